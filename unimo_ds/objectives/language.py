"""Masked language and sequence-to-sequence losses (unimo-spec, 4.3)."""

from torch import Tensor

from unimo_ds.batch import Batch, Target
from unimo_ds.model.unimo import Outputs


def language_losses(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums of the cross-entropies of masked words and of generated words, float32 scalars."""
    masked_M = batch.language_kinds_M == Target.MLM
    losses_M = outputs.language_losses_M
    return losses_M[masked_M].sum(), losses_M[~masked_M].sum()
