"""The CMCL meter: what the candidates are worth at this moment, summed beside the losses and never differentiated.

Shape suffixes: J candidates, P local pairs, D width.
"""

import torch
from torch import Tensor

from unimo_ds.batch import Batch, Kind, Source
from unimo_ds.model.unimo import Outputs
from unimo_ds.objectives.contrastive import Candidates

_NEGATIVES = (Source.STEP, Source.SENTENCE, Source.PHRASE, Source.WORD)
_SUMS = ("pairs", "vector_pairs", "alignment", "uniformity", "effective", "with_negatives", "images", "texts")
METER = (*_SUMS, *(f"{what}_{source.name.lower()}" for source in _NEGATIVES for what in ("count", "winning")))


@torch.no_grad()
def meter_sums(outputs: Outputs, batch: Batch, candidates: Candidates) -> Tensor:
    """Sums over the local pairs in the order of `METER`, float32; they add up over ranks and micro-batches."""
    pairs = len(batch.pair_groups_P)
    scores_J, pairs_J = candidates.scores_J, candidates.pairs_J
    own_J = candidates.kinds_J == Kind.PAIR
    own_P = scores_J.new_zeros(pairs).index_copy(0, pairs_J[own_J], scores_J[own_J])
    negative_J = candidates.kinds_J == Kind.NEGATIVE
    sums = {name: scores_J.new_zeros(()) for name in METER}
    sums["pairs"] += pairs
    for source in _NEGATIVES:
        mine_J = negative_J & (candidates.sources_J == source)
        sums[f"count_{source.name.lower()}"] += mine_J.sum()
        sums[f"winning_{source.name.lower()}"] += (scores_J[mine_J] >= own_P[pairs_J[mine_J]]).sum()
    retrieved_I, retrieved_X = batch.image_kinds_I == Kind.RETRIEVED, batch.text_kinds_X == Kind.RETRIEVED
    sums["images"] += retrieved_I.sum()
    sums["texts"] += retrieved_X.sum()
    sums["effective"], sums["with_negatives"] = _effective(scores_J[negative_J], pairs_J[negative_J], pairs)
    image_PD = outputs.image_vectors_ID[batch.image_kinds_I == Kind.ALONE]
    text_PD = outputs.text_vectors_XD[batch.text_kinds_X == Kind.ALONE]
    sums["alignment"] += (image_PD - text_PD).square().sum()
    for vectors_PD in (image_PD, text_PD):
        apart_PP = (2 - 2 * vectors_PD @ vectors_PD.T).clamp(min=0)
        different_PP = batch.pair_groups_P[: len(vectors_PD), None] != batch.pair_groups_P[None, : len(vectors_PD)]
        sums["uniformity"] += (-2 * apart_PP[different_PP]).exp().sum()
        sums["vector_pairs"] += different_PP.sum()
    return torch.stack([sums[name] for name in METER])


def _effective(scores_J: Tensor, pairs_J: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Sum over pairs of `(sum w)^2 / sum w^2` of the negatives' weights `exp(score)`, and how many pairs have negatives.

    Equal weights count as many negatives as there are; one that outweighs the others counts as one.
    """
    largest_P = scores_J.new_full((pairs,), -torch.inf).scatter_reduce(0, pairs_J, scores_J, "amax")
    weights_J = (scores_J - largest_P[pairs_J]).exp()
    total_P = scores_J.new_zeros(pairs).index_add(0, pairs_J, weights_J)
    squares_P = scores_J.new_zeros(pairs).index_add(0, pairs_J, weights_J.square())
    return (total_P.square() / squares_P.clamp(min=1e-12)).sum(), (total_P > 0).sum()


def readings(sums: list[float]) -> dict[str, float]:
    """What the log shows of the sums of an interval, in the order of `METER`; nothing where there was no pair.

    `cmcl/alignment` is the mean squared distance of an image and its caption encoded alone, `cmcl/uniformity` the log of the
    mean of exp(-2 |x - y|^2) over vectors of different images (Wang and Isola, 2020); lower is better for both.
    `cmcl/negatives_*` is how many a pair has, `cmcl/winning_*` the share that scores no lower than the true caption,
    `cmcl/effective_negatives` how many count: one that outweighs the others counts as one.
    """
    of = dict(zip(METER, sums, strict=True))
    if not of["pairs"]:
        return {}
    found = {f"cmcl/retrieved_{name}": of[name] / of["pairs"] for name in ("images", "texts")}
    for source in _NEGATIVES:
        name = source.name.lower()
        found[f"cmcl/negatives_{name}"] = of[f"count_{name}"] / of["pairs"]
        if of[f"count_{name}"]:
            found[f"cmcl/winning_{name}"] = of[f"winning_{name}"] / of[f"count_{name}"]
    if of["with_negatives"]:
        found["cmcl/effective_negatives"] = of["effective"] / of["with_negatives"]
    if of["vector_pairs"]:
        found["cmcl/alignment"] = of["alignment"] / of["pairs"]
        found["cmcl/uniformity"] = float(torch.tensor(of["uniformity"] / of["vector_pairs"]).log())
    return found
