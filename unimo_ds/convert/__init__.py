"""Published weights and tokenizers in the forms in which others wrote them, and how they become ours; it writes no checkpoint."""
