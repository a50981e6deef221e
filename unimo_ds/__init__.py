"""unimo_ds: pre-training and fine-tuning of UNIMO (ACL 2021) on PyTorch and DeepSpeed.

`from unimo_ds import Unimo` is a trained model for use in other programs (docs/python.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimo_ds.pretrained import Unimo as Unimo

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the model, and torch with it, only where it is asked for."""
    if name == "Unimo":
        from unimo_ds.pretrained import Unimo

        return Unimo
    raise AttributeError(f"module 'unimo_ds' has no attribute {name!r}")
