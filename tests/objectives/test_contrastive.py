"""CMCL against Equation 1 of the paper and against two cross-entropies, both in float64."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import TINY, VOCABULARY, WIDTH, random_regions, view_maker
from unimo_ds.batch import Batch, Kind
from unimo_ds.config import CmclSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Member, PackedText, Sequence
from unimo_ds.model.unimo import Outputs
from unimo_ds.objectives.contrastive import contrastive_losses, matrix_loss, retrieved_loss, score_candidates, summed_loss

ONE_LOGARITHM = CmclSection(in_batch=0, positives="summed")  # Equation 1 as it is printed
WITH_MATRIX = CmclSection(positives="summed")

Numbers = tuple[int, int, int, int]  # of rewritten positives, hard negatives, retrieved images, retrieved texts


def candidates_batch(seed: int, numbers: list[Numbers]) -> Batch:
    """Pairs with so many candidates each; sequences stand in a random order, but ALONE ones in the order of pairs."""
    rng = np.random.default_rng(seed)
    packer, others = Packer(WIDTH, 100), []

    def words() -> PackedText:
        return view_maker().whole_text(rng.integers(4, VOCABULARY - 1, int(rng.integers(1, 7))))

    for number, (positives, negatives, images, texts) in enumerate(numbers):
        image, shown = packer.add_image(random_regions(rng, int(rng.integers(1, 5))))
        pair = packer.add_pair(10 + number)
        for kind, count in ((Kind.PAIR, 1), (Kind.POSITIVE, positives), (Kind.NEGATIVE, negatives)):
            others += [Sequence(image=image, regions=shown, text=words(), member=Member(pair, kind)) for _ in range(count)]
        for _ in range(images):
            found, count = packer.add_image(random_regions(rng, int(rng.integers(1, 5))))
            others.append(Sequence(image=found, regions=count, member=Member(pair, Kind.RETRIEVED)))
        others += [Sequence(text=words(), member=Member(pair, Kind.RETRIEVED)) for _ in range(texts)]
        packer.add(Sequence(image=image, regions=shown, member=Member(pair, Kind.ALONE)))
        packer.add(Sequence(text=words(), member=Member(pair, Kind.ALONE)))
    for place in rng.permutation(len(others)):
        packer.add(others[place])
    return packer.build()


def random_outputs(batch: Batch, seed: int, temperature: float) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def unit(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, TINY.hidden_size, generator=generator), dim=1).requires_grad_()

    nothing = torch.zeros(0)
    images, texts = unit(len(batch.image_rows_I)), unit(len(batch.text_rows_X))
    learned = torch.tensor([temperature], requires_grad=True)
    return Outputs(nothing, None, nothing, nothing, images, texts, nothing, learned)


def leaves(outputs: Outputs) -> list[Tensor]:
    return [outputs.image_vectors_ID, outputs.text_vectors_XD, outputs.temperature]


def equation_1(batch: Batch, images: Tensor, texts: Tensor, temperature: Tensor, form: str = "summed") -> Tensor:
    """`-log(sum of positives / sum of all)` of each pair; members are found by the sequence they stand in.

    Or the mean over the positives of the same with each of them as the only one.
    """
    starts = batch.cu_seqlens_S1.tolist()

    def sequence_of(row: int) -> int:
        return next(s for s in range(batch.sequences) if starts[s] <= row < starts[s + 1])

    members: dict[int, dict[str, Any]] = {}
    for name, vectors, rows, pairs, kinds in (
        ("image", images, batch.image_rows_I, batch.image_pairs_I, batch.image_kinds_I),
        ("text", texts, batch.text_rows_X, batch.text_pairs_X, batch.text_kinds_X),
    ):
        for vector, row, pair, kind in zip(vectors, rows.tolist(), pairs.tolist(), kinds.tolist(), strict=True):
            member = members.setdefault(sequence_of(row), {"pair": pair, "kind": kind})
            assert (member["pair"], member["kind"]) == (pair, kind)
            member[name] = vector
    total = torch.zeros((), dtype=torch.float64)
    for pair in range(len(batch.pair_groups_P)):
        mine = [member for member in members.values() if member["pair"] == pair]
        (image,) = [m["image"] for m in mine if m["kind"] == Kind.ALONE and "image" in m]
        (text,) = [m["text"] for m in mine if m["kind"] == Kind.ALONE and "text" in m]
        scores = {True: [], False: []}  # by whether the candidate is a positive
        for member in mine:
            if member["kind"] != Kind.ALONE:
                d = member.get("image", image) @ member.get("text", text)
                scores[member["kind"] != Kind.NEGATIVE].append(d / temperature)
        positives = [score.exp().sum() for score in scores[True]]
        negative = torch.cat([*scores[False], torch.full((1,), -math.inf).double()]).exp().sum()
        positives = positives if form == "each" else [torch.stack(positives).sum()]
        total = total - torch.stack([(positive / (positive + negative)).log() for positive in positives]).mean()
    return total


NUMBERS = st.tuples(*[st.integers(0, 5)] * 4)


@pytest.mark.parametrize("form", ["summed", "each"])
@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(NUMBERS, min_size=1, max_size=4), st.sampled_from([0.05, 0.07, 0.5]), st.integers(0, 99))
def test_pairs_are_equation_1_and_so_are_their_gradients(
    form: Literal["summed", "each"], numbers: list[Numbers], temperature: float, seed: int
) -> None:
    batch = candidates_batch(seed, numbers)
    outputs = random_outputs(batch, seed, temperature)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves(outputs)]
    without_matrix = CmclSection(in_batch=0, positives=form)
    found, matrix = contrastive_losses(outputs, batch, score_candidates(outputs, batch), without_matrix)
    expected = equation_1(batch, *exact, form)
    assert float(matrix) == 0.0 and not matrix.requires_grad
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    found.backward()
    expected.backward()
    for ours, theirs in zip(leaves(outputs), exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(
            ours.grad.double(), theirs.grad, atol=1e-4 * (1 + 0.1 * float(theirs.grad.abs().max())), rtol=1e-4
        )


def test_every_candidate_is_scored_once_with_its_pair() -> None:
    numbers = [(0, 0, 0, 0), (2, 3, 1, 4), (5, 0, 0, 1)]
    batch = candidates_batch(0, numbers)
    outputs = random_outputs(batch, 0, 0.2)
    candidates = score_candidates(outputs, batch)
    for pair, (positives, negatives, images, texts) in enumerate(numbers):
        mine = candidates.kinds_J[candidates.pairs_J == pair] != Kind.NEGATIVE
        assert (int(mine.sum()), int((~mine).sum())) == (1 + positives + images + texts, negatives)
    assert len(candidates.scores_J) == sum(1 + sum(each) for each in numbers)
    assert float(candidates.scores_J.detach().abs().max()) <= 1 / 0.2 + 1e-5


def test_a_pair_without_negatives_costs_nothing() -> None:
    batch = candidates_batch(3, [(2, 0, 1, 1), (0, 0, 0, 0)])
    outputs = random_outputs(batch, 3, 0.07)
    found, _ = contrastive_losses(outputs, batch, score_candidates(outputs, batch), ONE_LOGARITHM)
    found.backward()
    assert float(found.detach()) == pytest.approx(0.0, abs=1e-6)
    assert all(leaf.grad is not None and float(leaf.grad.abs().max()) < 1e-4 for leaf in leaves(outputs))


@pytest.mark.parametrize("temperature", [0.001, 0.5])
def test_the_bounds_of_the_temperature_overflow_nothing(temperature: float) -> None:
    batch = candidates_batch(4, [(1, 5, 1, 1), (0, 5, 0, 0)])
    outputs = random_outputs(batch, 4, temperature)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves(outputs)]
    found, matrix = contrastive_losses(outputs, batch, score_candidates(outputs, batch), WITH_MATRIX)
    (found + matrix).backward()
    torch.testing.assert_close(found.double(), equation_1(batch, *exact), atol=1e-3, rtol=1e-4)
    assert all(leaf.grad is not None and torch.isfinite(leaf.grad).all() for leaf in leaves(outputs))


def test_no_pair_at_all_is_zero_with_a_gradient_path() -> None:
    batch = candidates_batch(0, [])
    outputs = random_outputs(batch, 0, 0.07)
    found, matrix = contrastive_losses(outputs, batch, score_candidates(outputs, batch), WITH_MATRIX)
    (found + matrix).backward()
    assert float(found.detach()) == 0.0 and float(matrix.detach()) == 0.0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves(outputs))


def cross_entropies(image: Tensor, text: Tensor, groups: Tensor, scale: Tensor) -> Tensor:
    """The mean of both directions; several captions of one image are positives together, in one logarithm."""
    logits = image @ text.T * scale
    same = groups[:, None] == groups[None]
    total = torch.zeros((), dtype=torch.float64)
    for each, positive in ((logits, same), (logits.T, same.T)):
        total = total - 0.5 * (each.softmax(1) * positive).sum(1).log().sum()
    return total


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [7, 7, 3, 7, 5, 3], [1, 1, 1], [9]])
@pytest.mark.parametrize("scale", [2.0, 14.0])
def test_the_matrix_is_two_cross_entropies_with_captions_of_one_image_as_positives(groups: list[int], scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = [F.normalize(torch.randn(len(groups), 8, generator=generator), dim=1).requires_grad_() for _ in range(2)]
    ours.append(torch.tensor([scale], requires_grad=True))
    exact = [leaf.detach().double().requires_grad_() for leaf in ours]
    numbers = torch.tensor(groups)
    found = matrix_loss(ours[0], ours[1], numbers, ours[2], "auto")
    expected = cross_entropies(exact[0], exact[1], numbers, exact[2])
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    if len(set(groups)) == len(groups):  # without several positives it is torch's own cross-entropy
        logits, labels = exact[0] @ exact[1].T * exact[2], torch.arange(len(groups))
        plain = (F.cross_entropy(logits, labels, reduction="sum") + F.cross_entropy(logits.T, labels, reduction="sum")) / 2
        torch.testing.assert_close(found.double(), plain, atol=1e-4, rtol=1e-5)
    found.backward()
    expected.backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4)


def test_equation_1_by_hand() -> None:
    """One pair at temperature 1/2: the joint pair is orthogonal, the hard negative identical: log(1 + e^2)."""
    batch = candidates_batch(0, [(0, 1, 0, 0)])
    first, second = torch.eye(2)
    images = torch.stack([first] * len(batch.image_rows_I))
    texts = torch.stack([first if kind == Kind.NEGATIVE else second for kind in batch.text_kinds_X.tolist()])
    outputs = random_outputs(batch, 0, 0.5)._replace(image_vectors_ID=images, text_vectors_XD=texts)
    candidates = score_candidates(outputs, batch)
    assert float(summed_loss(candidates, 1).detach()) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.lists(NUMBERS, min_size=1, max_size=4), st.integers(0, 99))
def test_retrieved_ones_are_told_from_those_of_other_pairs(numbers: list[Numbers], seed: int) -> None:
    """`-log(sum of the own / sum of all pairs')` of each anchor for which something was retrieved, and its gradient."""
    batch = candidates_batch(seed, numbers)
    outputs = random_outputs(batch, seed, 0.2)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves(outputs)]
    vectors, totals = {"image": exact[0], "text": exact[1]}, []
    kinds = {"image": batch.image_kinds_I, "text": batch.text_kinds_X}
    pairs = {"image": batch.image_pairs_I.tolist(), "text": batch.text_pairs_X.tolist()}
    for anchor, found in (("text", "image"), ("image", "text")):
        alone = vectors[anchor][kinds[anchor] == Kind.ALONE]
        rows = [row for row, kind in enumerate(kinds[found].tolist()) if kind == Kind.RETRIEVED]
        for pair in {pairs[found][row] for row in rows}:
            weights = [(pairs[found][row], (alone[pair] @ vectors[found][row] / exact[2]).exp()) for row in rows]
            own = sum(weight for owner, weight in weights if owner == pair)
            totals.append(-0.5 * (own / sum(weight for _, weight in weights)).log().sum())
    image_PD = outputs.image_vectors_ID[batch.image_kinds_I == Kind.ALONE]
    text_PD = outputs.text_vectors_XD[batch.text_kinds_X == Kind.ALONE]
    ours = retrieved_loss(outputs, batch, image_PD, text_PD, "auto")
    theirs = torch.stack(totals).sum() if totals else sum(leaf.sum() * 0 for leaf in exact)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-5)
    ours.backward()
    theirs.backward()
    for mine, reference in zip(leaves(outputs), exact, strict=True):
        assert mine.grad is not None and reference.grad is not None
        torch.testing.assert_close(mine.grad.double(), reference.grad, atol=1e-4, rtol=1e-3)
