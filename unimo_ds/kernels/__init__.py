"""The operations worth a kernel of their own: each file holds the public op and its CPU implementation."""
