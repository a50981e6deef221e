"""Masked-region losses: feature regression and classification against the detector's distribution (unimo-spec, 4.2)."""

from torch import Tensor

from unimo_ds.batch import Batch
from unimo_ds.model.unimo import Outputs


def region_losses(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums over hidden regions of the squared error and of the soft cross-entropy, float32 scalars.

    The squared error is the mean over the feature's width, as UNITER has it, not the paper's sum: a sum over 2,048 numbers
    would drown the other objectives under one gradient norm. The weight `objectives.mrfr` scales it.
    """
    true_GF = batch.features_RF.index_select(0, batch.target_sources_G).float()
    regression = (outputs.region_features_GF - true_GF).square().mean(1).sum()
    logits_GC = outputs.region_logits_GC
    expected_G = (batch.target_class_probabilities_GK * logits_GC.gather(1, batch.target_class_ids_GK)).sum(1)
    classification = (logits_GC.logsumexp(1) - expected_G).sum()
    return regression, classification
