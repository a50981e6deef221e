"""Weights and tokenizers that others wrote, in their forms, and how they become ours; and ours in the form of Hugging Face."""
