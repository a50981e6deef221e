"""Image-text matching: is this caption true of the image it is encoded with? (UNITER, ALBEF and others.)

UNIMO has CMCL in its place; with `objectives.matching` on and `cmcl.weight: 0` a run measures what that is worth.
"""

import torch.nn.functional as F
from torch import Tensor

from unimo_ds.batch import Batch, Kind
from unimo_ds.config import ObjectivesSection
from unimo_ds.model.unimo import Outputs


def joint_scores(outputs: Outputs, objectives: ObjectivesSection) -> Tensor:
    """How well each jointly encoded image and text fit, [J]: CMCL's cosine, or the matching head's logit without CMCL."""
    if objectives.cmcl.weight == 0:
        return outputs.matching_logits_J
    return (outputs.image_vectors_ID * outputs.text_vectors_XD).sum(1)


def matching_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """Binary cross-entropy, summed over the local pairs: half the mean over a pair's true captions, half over its false ones.

    The halves keep a pair with many candidates from saying "false" whatever it sees. A pair without a false caption has
    its true half only.
    """
    joint_X = batch.text_kinds_X <= Kind.NEGATIVE
    pairs_J, true_J = batch.text_pairs_X[joint_X], batch.text_kinds_X[joint_X] != Kind.NEGATIVE
    losses_J = F.binary_cross_entropy_with_logits(outputs.matching_logits_J, true_J.float(), reduction="none")
    sides_J = 2 * pairs_J + true_J  # a pair's true and its false captions, each a group of its own
    counts = losses_J.new_zeros(2 * len(batch.pair_groups_P)).index_add(0, sides_J, losses_J.new_ones(len(losses_J)))
    return 0.5 * (losses_J / counts[sides_J]).sum()
