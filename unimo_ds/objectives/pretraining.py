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
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.contrastive import contrastive_losses, score_candidates
from unimo_ds.objectives.language import language_losses
from unimo_ds.objectives.matching import matching_loss
from unimo_ds.objectives.meter import meter_sums
from unimo_ds.objectives.regions import region_losses

NAMES = ("mlm", "seq2seq", "mrfr", "mrc", "cmcl", "matching")


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

    def __init__(self, unimo: UnimoModel, objectives: ObjectivesSection) -> None:
        super().__init__()
        self.unimo = unimo
        self._objectives = objectives
        self._weights = torch.tensor(loss_weights(objectives))

    def forward(self, batch: Batch, totals: Totals) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, and what is measured of this micro-batch.

        Returns:
            A scalar whose gradient, averaged over ranks as data parallelism does, is the gradient of the step's loss; and
            float32 numbers that add up over ranks and micro-batches: each objective's share of the step's loss, in the
            order of `NAMES`, then the sums of the CMCL meter, in the order of `METER`.
        """
        outputs = self.unimo(batch)
        cmcl = self._objectives.cmcl
        candidates = score_candidates(outputs, batch)
        pairwise, matrix = contrastive_losses(outputs, batch, candidates, cmcl)
        sums = torch.stack(
            [
                *language_losses(outputs, batch),
                *region_losses(outputs, batch),
                cmcl.weight * (pairwise + cmcl.in_batch * matrix),
                matching_loss(outputs, batch),
            ]
        )
        counts = torch.tensor(
            [totals.mlm, totals.seq2seq, totals.regions, totals.regions, totals.pairs, totals.pairs], device=sums.device
        ).clamp(min=1)
        shares = sums / counts
        loss = (shares * self._weights.to(sums.device)).sum()
        measured = torch.cat([shares.detach(), meter_sums(outputs, batch, candidates)])
        return loss * distributed.world_size(), measured


def loss_weights(objectives: ObjectivesSection) -> tuple[float, ...]:
    """The weight of each objective's share in the loss, in the order of `NAMES`; CMCL's share has its weight in it."""
    on = float(objectives.cmcl.weight > 0)
    return objectives.mlm, objectives.seq2seq, objectives.mrfr, objectives.mrc, on, objectives.matching
