"""Cross-modal contrastive learning, CMCL (unimo-spec, 4.1).

Two parts, each a sum over pairs:

- Equation 1 of the paper, over the candidates of one pair: `-log(sum_positives exp(d/t) / sum_all exp(d/t))`, where d is the
  cosine of the pooled [IMG] and [CLS] vectors. Jointly encoded candidates (the pair, rewritten positives, hard negatives) are
  scored within their own sequence; a retrieved image against the caption encoded alone, a retrieved text against the image.
- The similarity matrix of images and captions encoded alone, over the whole global batch, in both directions. The paper has
  it not (`cmcl.in_batch: 0` turns it off); it is what makes the vectors encoded alone good for retrieval.

By default (`cmcl.positives: each`) every jointly encoded positive has a logarithm of its own, against the hard negatives of its
pair, and retrieved images and texts, which are encoded alone, are told from those of the other pairs of the global batch.
`summed` is Equation 1 as it is printed, with all positives of a pair in one sum against its hard negatives; then the easiest
one satisfies the whole, and what only ever comes as a positive is told by its kind (docs/cmcl.md).

Shape suffixes: see `unimo_ds.batch`; J candidates, F retrieved ones, D width.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from unimo_ds.batch import Batch, Kind, Source
from unimo_ds.config import CmclSection
from unimo_ds.kernels.contrastive import log_sums_by_row
from unimo_ds.kernels.contrastive_over_ranks import Way, statistics_over_ranks
from unimo_ds.model.unimo import Outputs


@dataclass(frozen=True)
class Candidates:
    """Scores `d/t` of all candidates of the local pairs, the number of each one's pair, its `Kind` and its `Source`.

    Jointly encoded ones come first, in the order of their members, then retrieved images, then retrieved texts.
    """

    scores_J: Tensor
    pairs_J: Tensor
    kinds_J: Tensor
    sources_J: Tensor

    def only(self, chosen_J: Tensor) -> "Candidates":
        """Those that are chosen."""
        return Candidates(*(getattr(self, field.name)[chosen_J] for field in fields(self)))


def contrastive_losses(outputs: Outputs, batch: Batch, candidates: Candidates, cmcl: CmclSection) -> tuple[Tensor, Tensor]:
    """Sums over the local pairs of both parts, float32 scalars, not yet weighted; every rank must call it.

    Args:
        outputs: the model's.
        batch: the micro-batch of this rank.
        candidates: what `score_candidates` made of them.
        cmcl: the form; without a matrix the second sum is 0.
    """
    pairs = len(batch.pair_groups_P)
    if cmcl.positives == "summed":
        pairwise = summed_loss(candidates, pairs)
    elif cmcl.retrieved_apart:
        pairwise = each_loss(candidates.only(candidates.kinds_J != Kind.RETRIEVED), pairs)
    else:  # without the matrix there are no others of their kind: as in the paper, against the pair's hard negatives
        pairwise = each_loss(candidates, pairs)
    if not cmcl.matrix:
        return pairwise, pairwise.new_zeros(())
    image_PD = outputs.image_vectors_ID[batch.image_kinds_I == Kind.ALONE]
    text_PD = outputs.text_vectors_XD[batch.text_kinds_X == Kind.ALONE]
    matrix = matrix_loss(image_PD, text_PD, batch.pair_groups_P, 1 / outputs.temperature, cmcl.across_ranks)
    if cmcl.retrieved_apart:
        matrix = matrix + retrieved_loss(outputs, batch, image_PD, text_PD, cmcl.across_ranks)
    return pairwise, matrix


def score_candidates(outputs: Outputs, batch: Batch) -> Candidates:
    """Every candidate of every local pair, scored as its kind demands."""
    image_PD = outputs.image_vectors_ID[batch.image_kinds_I == Kind.ALONE]
    text_PD = outputs.text_vectors_XD[batch.text_kinds_X == Kind.ALONE]
    joint_I, joint_X = batch.image_kinds_I <= Kind.NEGATIVE, batch.text_kinds_X <= Kind.NEGATIVE
    found_I, found_X = batch.image_kinds_I == Kind.RETRIEVED, batch.text_kinds_X == Kind.RETRIEVED
    joint = (outputs.image_vectors_ID[joint_I] * outputs.text_vectors_XD[joint_X]).sum(1)
    images = (outputs.image_vectors_ID[found_I] * text_PD[batch.image_pairs_I[found_I]]).sum(1)
    texts = (outputs.text_vectors_XD[found_X] * image_PD[batch.text_pairs_X[found_X]]).sum(1)
    return Candidates(
        scores_J=torch.cat([joint, images, texts]) / outputs.temperature,
        pairs_J=torch.cat([batch.image_pairs_I[joint_I], batch.image_pairs_I[found_I], batch.text_pairs_X[found_X]]),
        kinds_J=torch.cat([batch.image_kinds_I[joint_I], batch.image_kinds_I[found_I], batch.text_kinds_X[found_X]]),
        sources_J=torch.cat(
            [
                batch.text_sources_X[joint_X],
                torch.full_like(batch.image_kinds_I[found_I], Source.COLLECTION),
                batch.text_sources_X[found_X],
            ]
        ),
    )


def summed_loss(candidates: Candidates, pairs: int) -> Tensor:
    """Equation 1 as it is printed, summed over the local pairs: all positives of a pair in one logarithm."""
    positive = candidates.only(candidates.kinds_J != Kind.NEGATIVE)
    over_all_P = log_sums_by_row(candidates.scores_J, candidates.pairs_J, pairs)
    over_positives_P = log_sums_by_row(positive.scores_J, positive.pairs_J, pairs)
    return (over_all_P - over_positives_P).sum()


def each_loss(candidates: Candidates, pairs: int) -> Tensor:
    """Equation 1 of each positive alone against the pair's negatives, the mean over a pair's positives, summed over pairs."""
    negative_J = candidates.kinds_J == Kind.NEGATIVE
    negative, positive = candidates.only(negative_J), candidates.only(~negative_J)
    over_negatives_P = log_sums_by_row(negative.scores_J, negative.pairs_J, pairs)
    losses_J = torch.logaddexp(positive.scores_J, over_negatives_P[positive.pairs_J]) - positive.scores_J
    counts_P = losses_J.new_zeros(pairs).index_add(0, positive.pairs_J, torch.ones_like(losses_J))
    return (losses_J / counts_P[positive.pairs_J]).sum()


def matrix_loss(image_PD: Tensor, text_PD: Tensor, groups_P: Tensor, scale: Tensor, way: Way) -> Tensor:
    """InfoNCE of the global similarity matrix, the mean of both directions, summed over the local pairs.

    Each rank sweeps its own images against the captions of all ranks, once for both directions. Gradients flow to the vectors
    of all ranks.
    """
    sums = statistics_over_ranks(image_PD, text_PD, groups_P, groups_P, scale, way)
    row_all_P, row_positive_P, column_all_P, column_positive_P = sums
    both_ways_P = row_all_P - row_positive_P + column_all_P - column_positive_P
    loss: Tensor = 0.5 * both_ways_P.sum()
    return loss


def retrieved_loss(outputs: Outputs, batch: Batch, image_PD: Tensor, text_PD: Tensor, way: Way) -> Tensor:
    """InfoNCE of each caption with the images retrieved for all pairs of the global batch, and of each image with the texts.

    Those retrieved for pairs of the same image are the positives, so that what tells them is what they show, not that they were
    retrieved. Half the sum over the local pairs; a pair for which nothing was retrieved has no part in it. An item that was
    retrieved for two pairs of the batch counts as another one each time.
    """
    groups_P = batch.pair_groups_P
    found_I, found_X = batch.image_kinds_I == Kind.RETRIEVED, batch.text_kinds_X == Kind.RETRIEVED
    loss = image_PD.new_zeros(())
    for anchors_PD, vectors_FD, pairs_F in (
        (text_PD, outputs.image_vectors_ID[found_I], batch.image_pairs_I[found_I]),
        (image_PD, outputs.text_vectors_XD[found_X], batch.text_pairs_X[found_X]),
    ):
        found_groups_F, scale = groups_P[pairs_F], 1 / outputs.temperature
        over_all_P, over_own_P, *_ = statistics_over_ranks(anchors_PD, vectors_FD, groups_P, found_groups_F, scale, way)
        loss = loss + 0.5 * torch.where(over_own_P.isfinite(), over_all_P - over_own_P, 0.0).sum()
    return loss
