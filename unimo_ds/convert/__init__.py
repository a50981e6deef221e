"""Weights and tokenizers in the forms of others: what others published becomes ours, and ours becomes Hugging Face's."""
