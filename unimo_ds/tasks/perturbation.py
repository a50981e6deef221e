"""Perturbations of a stream's inputs, and how they move against the model (VILLA, arXiv:2006.06195; unimo-spec, 7.4).

The perturbation of an example's text is one vector, that of its image another: magnitudes and norms are those of all the rows
of a sequence together.

Shape suffixes: see `unimo_ds.batch`; D hidden width; N rows of one kind, E their width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.batch import Batch
from unimo_ds.config import AdversarialSection

VIEWS = 3  # of a stream: as it is, with its texts perturbed, with its regions perturbed
_SMALLEST = 1e-12  # a divisor that is not 0


@dataclass(frozen=True)
class Perturbation:
    """What is added to a stream's inputs: float32 leaves, which a backward pass gives gradients.

    Attributes:
        text_WD: added to the sum of each token's word and position embedding.
        regions_LF: added to the vector that is shown at each place of a region, the [IMG] row's included.
    """

    text_WD: Tensor
    regions_LF: Tensor

    @staticmethod
    def drawn(batch: Batch, hidden_size: int, magnitude: float) -> "Perturbation":
        """Uniform numbers of -1 to 1, times `magnitude` over the square root of their count."""
        text_WD = _drawn(batch, batch.token_rows_W, hidden_size, magnitude)
        return Perturbation(text_WD, _drawn(batch, batch.region_rows_L, batch.features_RF.shape[1], magnitude))

    def moved(self, batch: Batch, section: AdversarialSection) -> "Perturbation":
        """Moved by the gradients that a backward pass left, and made shorter where it is to be."""
        text_WD = _moved(self.text_WD, batch, batch.token_rows_W, section)
        return Perturbation(text_WD, _moved(self.regions_LF, batch, batch.region_rows_L, section))

    def views(self, batch: Batch) -> tuple[Batch, Tensor]:
        """`VIEWS` copies of a stream, in the order said there, and what is to be added to the tokens of all of them."""
        places_L = batch.region_sources_L
        shown_LF = batch.features_RF[places_L] + self.regions_LF
        own_L = len(batch.features_RF) + torch.arange(len(places_L), device=places_L.device)
        views = replace(
            batch.repeated(VIEWS),
            features_RF=torch.cat([batch.features_RF.to(shown_LF.dtype), shown_LF]),
            boxes_R5=torch.cat([batch.boxes_R5, batch.boxes_R5[places_L]]),
            region_sources_L=torch.cat([places_L, places_L, own_L]),
        )
        nothing_WD = torch.zeros_like(self.text_WD)
        return views, torch.cat([nothing_WD, self.text_WD, nothing_WD])


def _owners(batch: Batch, rows_N: Tensor) -> Tensor:
    """The sequence of each row."""
    return torch.bucketize(rows_N, batch.cu_seqlens_S1[1:].long(), right=True)


def _drawn(batch: Batch, rows_N: Tensor, width: int, magnitude: float) -> Tensor:
    owners_N = _owners(batch, rows_N)
    lengths_S = torch.bincount(owners_N, minlength=batch.sequences)
    uniform_NE = 2 * torch.rand(len(rows_N), width, device=rows_N.device) - 1
    return (uniform_NE * (magnitude / (lengths_S * width).sqrt())[owners_N, None]).requires_grad_()


def _norms(values_NE: Tensor, owners_N: Tensor, sequences: int) -> Tensor:
    """The norm of each sequence's rows together, [S]."""
    return values_NE.new_zeros(sequences).index_add_(0, owners_N, values_NE.square().sum(1)).sqrt()


def _moved(values_NE: Tensor, batch: Batch, rows_N: Tensor, section: AdversarialSection) -> Tensor:
    assert values_NE.grad is not None
    owners_N = _owners(batch, rows_N)
    # Of the mean over the step, on any number of ranks: `TaskModel` gives a loss that is scaled by it.
    gradient_NE = values_NE.grad / distributed.world_size()
    norms_S = _norms(gradient_NE, owners_N, batch.sequences)
    moved_NE = values_NE.detach() + section.learning_rate * gradient_NE / norms_S.clamp_min(_SMALLEST)[owners_N, None]
    if section.largest_norm:
        if section.projection == "perturbation":
            norms_S = _norms(moved_NE, owners_N, batch.sequences)
        moved_NE = moved_NE * (section.largest_norm / norms_S.clamp_min(_SMALLEST)).clamp_max(1)[owners_N, None]
    return moved_NE.requires_grad_()
