"""Published weights and tokenizers, in the forms in which others wrote them, become ours; no checkpoint is written here."""
