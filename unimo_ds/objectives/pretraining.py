"""One forward pass to one loss.

A loss is the sum over its targets on all ranks and micro-batches of a step, divided by their count over the same. So N ranks
equal one rank with the joined batch, and a rank with few targets weighs no more than its targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimo_ds import distributed
from unimo_ds.batch import Batch
from unimo_ds.config import ObjectivesSection
from unimo_ds.model.unimo import Unimo
from unimo_ds.objectives.contrastive import contrastive_losses
from unimo_ds.objectives.language import language_losses
from unimo_ds.objectives.regions import region_losses

NAMES = ("mlm", "seq2seq", "mrfr", "mrc", "cmcl")


@dataclass(frozen=True)
class Totals:
    """Counts of a step's targets over all ranks and micro-batches: the denominators."""

    mlm: float
    seq2seq: float
    regions: float
    pairs: float
    positions: float


class PretrainingModel(nn.Module):
    """The model with its objectives: what the engine wraps.

    Args:
        unimo: the model.
        objectives: the weights.
    """

    def __init__(self, unimo: Unimo, objectives: ObjectivesSection) -> None:
        super().__init__()
        self.unimo = unimo
        self._objectives = objectives
        weights = (objectives.mlm, objectives.seq2seq, objectives.mrfr, objectives.mrc, float(objectives.cmcl.weight > 0))
        self._weights = torch.tensor(weights)

    def forward(self, batch: Batch, totals: Totals) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, and this micro-batch's share of each objective.

        Returns:
            A scalar whose gradient, averaged over ranks as data parallelism does, is the gradient of the step's loss; and
            the shares, float32 [5] in the order of `NAMES`, which sum over ranks and micro-batches to the step's losses.
        """
        outputs = self.unimo(batch)
        cmcl = self._objectives.cmcl
        pairwise, matrix = contrastive_losses(outputs, batch, in_batch=cmcl.in_batch > 0)
        sums = torch.stack(
            [
                *language_losses(outputs, batch),
                *region_losses(outputs, batch),
                cmcl.weight * (pairwise + cmcl.in_batch * matrix),
            ]
        )
        counts = torch.tensor(
            [totals.mlm, totals.seq2seq, totals.regions, totals.regions, totals.pairs], device=sums.device
        ).clamp(min=1)
        shares = sums / counts
        loss = (shares * self._weights.to(sums.device)).sum()
        return loss * distributed.world_size(), shares.detach()
