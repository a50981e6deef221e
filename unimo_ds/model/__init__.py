"""The UNIMO Transformer: embeddings, layers, heads; it knows the packed batch and nothing of files."""
