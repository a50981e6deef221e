"""Steps of adversarial training against the specification's formulas in float64 (7.4, 7.5), on the reference model."""

from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import TINY, WordsTokenizer
from tests.numerics.test_outputs import sequences
from tests.numerics.test_whole_model import Weights, gelu, layer_norm, linear
from tests.tasks.test_losses import Store, entailment_scores, first_words, stirred
from unimo_ds.config import AdversarialSection, CaptioningSection
from unimo_ds.data.packing import Packer
from unimo_ds.tasks.adversarial import AdversarialTask, Rounds
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.perturbation import Perturbation
from unimo_ds.tasks.task import Example, TaskBatch, TaskTotals, Tokens
from unimo_ds.tasks.writing import Captioning

COUNT, ROUNDS, TOTAL = 5, 3, 11  # examples, rounds, targets of the step over all micro-batches
SMOOTHING = 0.1


def entailment(section: AdversarialSection | None) -> AdversarialTask[Any]:
    return Entailment(WordsTokenizer(), section)  # type: ignore[arg-type]


def captioning(section: AdversarialSection | None) -> AdversarialTask[Any]:
    files = {"path": "none", "regions": "none"}
    content = {"family": "captioning", "train": files, "dev": {"dev": files}, "adversarial": section}
    return Captioning(CaptioningSection.model_validate(content), WordsTokenizer())  # type: ignore[arg-type]


def classes(batch: TaskBatch, weights: Weights, text: Tensor | float, regions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy and scores of each example."""
    hidden = sequences(batch.batch, weights, text, regions)
    image = torch.stack([rows[0] for rows in hidden])
    words = torch.stack([rows[number] for rows, number in zip(hidden, first_words(batch), strict=True)])
    pooled = [torch.relu(linear(r, weights, f"{part}_pooler.dense")) for part, r in (("text", words), ("image", image))]
    scores = entailment_scores(*pooled, weights)
    return scores.logsumexp(1) - scores[torch.arange(COUNT), batch.targets], scores


def words(batch: TaskBatch, weights: Weights, text: Tensor | float, regions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Smoothed cross-entropy and scores of each word of the targets."""
    hidden = torch.cat(sequences(batch.batch, weights, text, regions))[batch.batch.language_rows_M]
    transformed = layer_norm(gelu(linear(hidden, weights, "language_head.transform")), weights, "language_head.norm")
    scores = transformed @ weights["embedding.text.word.weight"].T + weights["language_head.bias"]
    logs = scores - scores.logsumexp(1, keepdim=True)
    return -(1 - SMOOTHING) * logs[torch.arange(len(logs)), batch.batch.language_labels_M] - SMOOTHING * logs.mean(1), scores


Formulas = Callable[[TaskBatch, Weights, Tensor | float, Tensor | None], tuple[Tensor, Tensor]]
FAMILIES: dict[str, tuple[Callable[[AdversarialSection | None], AdversarialTask[Any]], Formulas]] = {
    "entailment": (entailment, classes),
    "captioning": (captioning, words),
}


def taught(task: AdversarialTask[Any], count: int = COUNT) -> TaskBatch:
    rng, packer, examples = np.random.default_rng(0), Packer(TINY.feature_width, 100), []
    for number in range(count):
        example = Example(str(number), (), str(number), Store(), number % 3)  # type: ignore[arg-type]
        text = rng.integers(4, TINY.vocabulary_size - 1, int(rng.integers(1, 9)))
        tokens = Tokens([text], None, 64) if isinstance(task, Entailment) else Tokens([], text, 64)
        task.add(packer, example, tokens, number)
        examples.append(example)
    return task.teach(packer.build(), examples)


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    p, q = first.softmax(1), second.softmax(1)
    return (p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)


def rows_of_sequences(batch: TaskBatch, rows: Tensor) -> Iterator[Tensor]:
    """Which of some rows each sequence has."""
    for start, end in pairwise(batch.batch.cu_seqlens_S1.tolist()):
        yield torch.tensor([number for number, row in enumerate(rows.tolist()) if start <= row < end])


def move(delta: Tensor, batch: TaskBatch, rows: Tensor, section: AdversarialSection) -> tuple[Tensor, list[bool]]:
    """`delta += lr * g / |g|`, then times `m / |g|` where the gradient's norm is above m, or by the norm of delta itself."""
    assert delta.grad is not None
    moved, scaled = delta.detach().clone(), []
    for mine in rows_of_sequences(batch, rows):
        gradient = delta.grad[mine]
        norm = gradient.square().sum().sqrt()
        moved[mine] = moved[mine] + section.learning_rate * gradient / norm
        if section.largest_norm > 0:
            tested = norm if section.projection == "gradient" else moved[mine].square().sum().sqrt()
            scaled.append(bool(tested > section.largest_norm))
            if scaled[-1]:
                moved[mine] = moved[mine] * section.largest_norm / tested
    return moved.requires_grad_(), scaled


PROJECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "gradient": {"largest_norm": 0.25, "projection": "gradient"},
    "perturbation": {"largest_norm": 0.315, "projection": "perturbation"},
}


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_has_the_losses_perturbations_and_gradients_of_the_formulas(family: str, projection: str) -> None:
    make, formulas = FAMILIES[family]
    section = AdversarialSection(rounds=ROUNDS, learning_rate=0.2, divergence_weight=1.5, **PROJECTIONS[projection])
    task = make(section)
    batch = taught(task)
    model, weights = stirred(task)
    passes, shares = [], []
    for each in Rounds([batch], section, TINY.hidden_size):
        assert each.perturbation is not None
        loss, measured = model(each, TaskTotals(targets=TOTAL, positions=1))
        loss.backward()
        passes.append(each.perturbation)
        shares.append(float(measured))
    assert len(passes) == ROUNDS
    text, regions = (part.detach().double().requires_grad_() for part in (passes[0].text_WD, passes[0].regions_LF))
    scaled: list[bool] = []
    for perturbation, share in zip(passes, shares, strict=True):
        torch.testing.assert_close(perturbation.text_WD.double(), text, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(perturbation.regions_LF.double(), regions, atol=1e-6, rtol=1e-5)
        views = [formulas(batch, weights, *deltas) for deltas in ((0.0, None), (text, None), (0.0, regions))]
        scores = [view[1] for view in views]
        apart = symmetric_divergence(scores[0], scores[1]) + symmetric_divergence(scores[0], scores[2])
        cost = sum(losses.sum() for losses, _ in views) / ROUNDS + section.divergence_weight * apart.sum()
        (cost / TOTAL).backward()
        assert share == pytest.approx(float(cost.detach()) / TOTAL, rel=1e-6)
        text, by_text = move(text, batch, batch.batch.token_rows_W, section)
        regions, by_regions = move(regions, batch, batch.batch.region_rows_L, section)
        scaled += by_text + by_regions
    assert projection == "none" or set(scaled) == {True, False}, "the bound stands between the examples"
    for name, parameter in model.named_parameters():
        right = weights[name.removeprefix("unimo.")].grad
        assert parameter.grad is not None and right is not None
        torch.testing.assert_close(parameter.grad, right, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_perturbed_copies_leave_the_pure_one_as_it_is(family: str) -> None:
    task = FAMILIES[family][0](None)
    batch = taught(task).batch
    model, _ = stirred(task)
    perturbation = Perturbation.drawn(batch, TINY.hidden_size, magnitude=5.0)
    views, text_WD = perturbation.views(batch)
    with torch.no_grad():
        (alone,) = model.unimo.encode(batch, [torch.arange(batch.positions)])
        (encoded,) = model.unimo.encode(views, [torch.arange(views.positions)], perturbation_WD=text_WD)
        pure, text, regions = encoded.chunk(3)
    torch.testing.assert_close(pure, alone, atol=1e-12, rtol=0)
    # Under a caption's mask no row of the image sees the text, and every word sees the image.
    untouched = batch.region_rows_L if family == "captioning" else batch.region_rows_L[:0]
    torch.testing.assert_close(text[untouched], alone[untouched], atol=1e-12, rtol=0)
    assert ((text[batch.token_rows_W] - alone[batch.token_rows_W]).abs().amax(1) > 1e-3).all()
    assert ((regions - alone).abs().amax(1) > 1e-3).all()


def test_the_start_is_uniform_and_its_size_follows_from_the_rows_of_a_sequence() -> None:
    batch = taught(entailment(None)).batch
    torch.manual_seed(0)
    drawn = Perturbation.drawn(batch, TINY.hidden_size, magnitude=0.4)
    for values, rows in ((drawn.text_WD, batch.token_rows_W), (drawn.regions_LF, batch.region_rows_L)):
        values = values.detach()
        for mine in rows_of_sequences(TaskBatch(batch, torch.zeros(0), 0), rows):
            bound = 0.4 / values[mine].numel() ** 0.5
            assert 0.9 * bound < float(values[mine].max()) <= bound and -bound <= float(values[mine].min()) < -0.9 * bound
    torch.manual_seed(0)
    assert torch.equal(Perturbation.drawn(batch, TINY.hidden_size, magnitude=0.4).regions_LF, drawn.regions_LF)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_added_is_the_plain_loss_three_times(family: str) -> None:
    make, _ = FAMILIES[family]
    still = AdversarialSection(rounds=2, learning_rate=0.0, initial_magnitude=0.0)
    totals, results = TaskTotals(targets=TOTAL, positions=1), []
    for task in (make(None), make(still)):
        model, _ = stirred(task)
        batch = taught(task)
        passes = [batch] if task.adversarial is None else Rounds([batch], still, TINY.hidden_size)
        loss = torch.zeros(())
        for each in passes:
            part, _ = model(each, totals)
            part.backward()
            loss = loss + part.detach()
        results.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(results[1][0], 3 * results[0][0], atol=1e-6, rtol=1e-6)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], 3 * gradient, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rank_without_examples_makes_the_same_passes(family: str) -> None:
    section = AdversarialSection(rounds=2, learning_rate=0.1, largest_norm=0.1)
    task = FAMILIES[family][0](section)
    model, _ = stirred(task)
    passes = Rounds([taught(task, count=0), taught(task)], section, TINY.hidden_size)
    assert len(passes) == 4
    for each in islice(passes, 2):
        loss, _ = model(each, TaskTotals(targets=3, positions=9))
        loss.backward()
        assert float(loss.detach()) == 0.0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_and_recomputed_layers_give_nearly_the_same_gradients(checkpointing: bool) -> None:
    section = AdversarialSection(rounds=2, learning_rate=0.1)
    task = captioning(section)
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        model, _ = stirred(task)
        model = model.to(dtype)
        model.unimo.transformer.activation_checkpointing = checkpointing and dtype == torch.bfloat16
        torch.manual_seed(1)
        for each in Rounds([taught(task)], section, TINY.hidden_size):
            model(each, TaskTotals(targets=TOTAL, positions=1))[0].backward()
        found.append(torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()]))  # type: ignore[union-attr]
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.05
