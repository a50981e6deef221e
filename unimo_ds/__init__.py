"""unimo_ds: pre-training and fine-tuning of UNIMO (ACL 2021) on PyTorch and DeepSpeed."""

__version__ = "0.1.0"
