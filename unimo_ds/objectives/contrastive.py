"""Cross-modal contrastive learning, CMCL (unimo-spec, 4.1).

Two parts, each a sum over pairs:

- Equation 1 of the paper, over the candidates of one pair: `-log(sum_positives exp(d/t) / sum_all exp(d/t))`, where d is the
  cosine of the pooled [IMG] and [CLS] vectors. Jointly encoded candidates (the pair, rewritten positives, hard negatives) are
  scored within their own sequence; a retrieved image against the caption encoded alone, a retrieved text against the image.
- The similarity matrix of images and captions encoded alone, over the whole global batch, in both directions. The paper has
  it not (`cmcl.in_batch: 0` turns it off); it is what makes the vectors encoded alone good for retrieval.

The two are separate terms, and by default retrieved images and texts, which are encoded alone too, are positives of the second
(`cmcl.retrieved: matrix`). Inside one logarithm with the jointly encoded candidates (`pair`, as the paper prints it) they
satisfy the sum by themselves: then being encoded alone is what tells a positive, and the pair hardly learns (docs/cmcl.md).

Shape suffixes: see `unimo_ds.batch`; J candidates, N pairs of all ranks, D width.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.batch import Batch, Kind, Source
from unimo_ds.config import CmclSection
from unimo_ds.kernels.contrastive import contrastive_statistics
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
    images_J: Tensor  # bool: a retrieved image

    def only(self, chosen_J: Tensor) -> "Candidates":
        """Those that are chosen."""
        return Candidates(*(getattr(self, field.name)[chosen_J] for field in fields(self)))

    def parts(self) -> tuple["Candidates", "Candidates"]:
        """Those that are encoded together with their image or text, and the retrieved ones."""
        retrieved_J = self.kinds_J == Kind.RETRIEVED
        return self.only(~retrieved_J), self.only(retrieved_J)

    def log_sums(self, pairs: int) -> tuple[Tensor, Tensor]:
        """Of retrieved candidates `log sum exp` of each pair's images and of its texts, [P] each; -inf where it has none."""
        images, texts = self.only(self.images_J), self.only(~self.images_J)
        return _log_sum_by_pair(images.scores_J, images.pairs_J, pairs), _log_sum_by_pair(texts.scores_J, texts.pairs_J, pairs)


def contrastive_losses(outputs: Outputs, batch: Batch, candidates: Candidates, cmcl: CmclSection) -> tuple[Tensor, Tensor]:
    """Sums over the local pairs of both parts, float32 scalars, not yet weighted; every rank must call it.

    Args:
        outputs: the model's.
        batch: the micro-batch of this rank.
        candidates: what `score_candidates` made of them.
        cmcl: the form; without a matrix the second sum is 0.
    """
    pairs = len(batch.pair_groups_P)
    joint, retrieved = candidates.parts()
    pairwise = pair_loss(joint if cmcl.retrieved_in_matrix else candidates, pairs)
    if not cmcl.matrix:
        return pairwise, pairwise.new_zeros(())
    image_PD = outputs.image_vectors_ID[batch.image_kinds_I == Kind.ALONE]
    text_PD = outputs.text_vectors_XD[batch.text_kinds_X == Kind.ALONE]
    found = retrieved.log_sums(pairs) if cmcl.retrieved_in_matrix else None
    return pairwise, matrix_loss(image_PD, text_PD, batch.pair_groups_P, 1 / outputs.temperature, found)


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
        images_J=torch.cat([torch.zeros_like(joint).bool(), torch.ones_like(images).bool(), torch.zeros_like(texts).bool()]),
    )


def pair_loss(candidates: Candidates, pairs: int) -> Tensor:
    """Equation 1, summed over the local pairs."""
    positive = candidates.kinds_J != Kind.NEGATIVE
    over_all_P = _log_sum_by_pair(candidates.scores_J, candidates.pairs_J, pairs)
    over_positives_P = _log_sum_by_pair(candidates.scores_J[positive], candidates.pairs_J[positive], pairs)
    return (over_all_P - over_positives_P).sum()


def _log_sum_by_pair(scores_J: Tensor, pairs_J: Tensor, pairs: int) -> Tensor:
    """`log sum exp` of the scores of each pair, [P]."""
    largest_P = scores_J.new_full((pairs,), -torch.inf).scatter_reduce(0, pairs_J, scores_J.detach(), "amax")
    shifted_J = (scores_J - largest_P[pairs_J]).exp()
    return scores_J.new_zeros(pairs).index_add(0, pairs_J, shifted_J).log() + largest_P


def matrix_loss(
    image_PD: Tensor, text_PD: Tensor, groups_P: Tensor, scale: Tensor, found: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """InfoNCE of the global similarity matrix, the mean of both directions, summed over the local pairs.

    `found` are the log-sums [P] of each pair's retrieved images, further positives of its caption, and of its retrieved texts,
    further positives of its image.

    Each rank sweeps its own images against the captions of all ranks once: its rows are then complete, and its share of every
    column joins the other ranks' shares. Gradients flow to the vectors of all ranks.
    """
    texts_ND, counts = distributed.gather_rows(text_PD)
    groups_N, _ = distributed.gather_rows(groups_P)
    row_all_P, row_positive_P, *column_shares_N = contrastive_statistics(image_PD, texts_ND, groups_P, groups_N, scale)
    shares, _ = distributed.gather_rows(torch.stack(column_shares_N)[None])  # [ranks, 2, N]
    first = sum(counts[: distributed.rank()])
    column_all_P, column_positive_P = shares[:, :, first : first + len(text_PD)].logsumexp(0)
    if found is not None:
        images_P, texts_P = found
        row_all_P, row_positive_P = torch.logaddexp(row_all_P, texts_P), torch.logaddexp(row_positive_P, texts_P)
        column_all_P, column_positive_P = torch.logaddexp(column_all_P, images_P), torch.logaddexp(column_positive_P, images_P)
    both_ways_P = row_all_P - row_positive_P + column_all_P - column_positive_P
    loss: Tensor = 0.5 * both_ways_P.sum()
    return loss
