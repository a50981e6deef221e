"""Output, loss and every gradient of each family against formulas of the specification in float64, on a reference model."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import TINY, WordsTokenizer, random_regions
from tests.numerics.test_outputs import sequences
from tests.numerics.test_whole_model import Weights, gelu, layer_norm, linear
from unimo_ds.config import CaptioningSection, ModelSection, SentencesSection, WritingSection
from unimo_ds.data.packing import Packer
from unimo_ds.model.task_heads import EntailmentHead
from unimo_ds.opening import build_model
from unimo_ds.tasks.classification import joined
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.sentences import Sentences
from unimo_ds.tasks.task import Example, Task, TaskBatch, TaskModel, TaskTotals, Tokens
from unimo_ds.tasks.vqa import Vqa
from unimo_ds.tasks.writing import Captioning, TextWriting

COUNT = 5


class Store:
    """A store of random images."""

    folder = Path("random")

    def get(self, key: str) -> Any:
        return random_regions(np.random.default_rng(int(key)), 3 + int(key) % 3)


def sentences(labels: list[str]) -> Task[Any]:
    files = {"path": "none"}
    metric = "accuracy" if labels else "correlation"
    section = {"family": "sentences", "labels": labels, "metric": metric, "train": files, "dev": {"dev": files}}
    return Sentences(SentencesSection.model_validate(section))


def text_scores(text: Tensor, image: Tensor, weights: Weights) -> Tensor:
    """FC(pooled text) (spec 7.1)."""
    return linear(text, weights, "head.classes")


def entailment_scores(text: Tensor, image: Tensor, weights: Weights) -> Tensor:
    """FC(FC_2048(pooled text + pooled image)), no activation between them (spec 7.4)."""
    return linear(linear(text + image, weights, "head.expand"), weights, "head.classes")


def answer_scores(text: Tensor, image: Tensor, weights: Weights) -> Tensor:
    """UNITER's head on pooled text times pooled image (spec 7.6)."""
    normed = layer_norm(gelu(linear(text * image, weights, "head.expand")), weights, "head.norm")
    scores = linear(normed, weights, "head.answers")
    return scores - np.log(scores.shape[1])  # ours: every answer starts at its share


def cross_entropies(scores: Tensor, labels: list[Any]) -> Tensor:
    return torch.stack([row.exp().sum().log() - row[label] for row, label in zip(scores, labels, strict=True)])


def squared_errors(scores: Tensor, labels: list[Any]) -> Tensor:
    return torch.stack([(row[0] - label) ** 2 for row, label in zip(scores, labels, strict=True)])


def answer_errors(scores: Tensor, labels: list[Any]) -> Tensor:
    """Binary cross-entropy with soft scores, summed over the answers: 3 of 10 annotators say the first, 7 the second."""
    targets = torch.tensor([[0.9, 1.0, 0.0]] * len(labels)).double()
    right = torch.sigmoid(scores)
    return -(targets * right.log() + (1 - targets) * (1 - right).log()).sum(1)


Scores = Callable[[Tensor, Tensor, Weights], Tensor]
Errors = Callable[[Tensor, list[Any]], Tensor]
FAMILIES: dict[str, tuple[Task[Any], list[Any], Scores, Errors]] = {
    "classes": (sentences(["a", "b", "c"]), [0, 2, 1, 1, 0], text_scores, cross_entropies),
    "numbers": (sentences([]), [0.5, -2.0, 3.25, 0.0, 5.0], text_scores, squared_errors),
    "entailment": (Entailment(WordsTokenizer()), [0, 2, 1, 1, 0], entailment_scores, cross_entropies),  # type: ignore[arg-type]
    "vqa": (Vqa(["cat", "dog", "bird"]), [["cat"] * 3 + ["dog"] * 7] * COUNT, answer_scores, answer_errors),
}


def stirred(task: Task[Any]) -> tuple[TaskModel, Weights]:
    """A model in float64 whose biases and norms are away from 0 and 1, and its weights for the reference."""
    torch.manual_seed(0)
    model = build_model(task, TINY).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, {name.removeprefix("unimo."): p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


def assert_same_gradients(model: TaskModel, weights: Weights) -> None:
    """Every parameter has the reference's gradient, and one of 0 where no example shows what it is for."""
    for name, parameter in model.named_parameters():
        right = weights[name.removeprefix("unimo.")].grad
        assert parameter.grad is not None, name
        expected = torch.zeros_like(parameter) if right is None else right
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_loss_and_gradients(family: str) -> None:
    task, labels, scores_of, errors_of = FAMILIES[family]
    rng, packer, examples = np.random.default_rng(0), Packer(TINY.feature_width, 100), []
    for number, label in enumerate(labels):
        example = Example(str(number), ("x",), str(number), Store(), label)  # type: ignore[arg-type]
        texts = [rng.integers(4, TINY.vocabulary_size - 1, int(rng.integers(1, 9))) for _ in range(1 + number % 2)]
        task.add(packer, example, Tokens(texts, None, 64), number)
        examples.append(example)
    batch = TaskBatch(packer.build(), task.targets(examples), COUNT)
    model, weights = stirred(task)
    hidden = sequences(batch.batch, weights)
    image = torch.stack([rows[0] for rows in hidden])
    text = torch.stack([rows[number] for rows, number in zip(hidden, first_words(batch), strict=True)])
    pooled = [
        torch.relu(linear(rows, weights, f"{part}_pooler.dense")) if f"{part}_pooler.dense.weight" in weights else rows
        for part, rows in (("text", text), ("image", image))
    ]
    expected = scores_of(pooled[0], pooled[1], weights)
    errors = errors_of(expected, labels)
    errors.sum().div(7).backward()
    found = task.output(model.unimo, model.head, batch.batch)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(task.losses(found, batch.targets).double(), errors, atol=1e-6, rtol=1e-6)
    loss, measured = model(batch, TaskTotals(targets=7, positions=1))
    assert float(measured) == pytest.approx(float(errors.sum().detach()) / 7, rel=1e-6)
    loss.backward()
    assert_same_gradients(model, weights)


def test_the_likeliest_answers_come_first_with_their_probabilities() -> None:
    task, *_ = FAMILIES["vqa"]
    scores = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 1.0]])
    task.output = lambda *_: scores  # type: ignore[method-assign]
    try:
        found = task.answers(None, None, None)  # type: ignore[arg-type]
    finally:
        del task.output  # type: ignore[method-assign]
    (ids, probabilities), (other_ids, _) = found
    assert ids.tolist() == [1, 0, 2] and other_ids.tolist() == [0, 2, 1]
    assert probabilities.tolist() == pytest.approx(torch.sigmoid(scores[0, [1, 0, 2]]).tolist())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("family", ["captioning", "writing", "both"])
def test_generated_words_with_smoothed_labels(family: str, smoothing: float) -> None:
    """-(1 - e) log p(label) - e mean log p(word), over the words of the targets; positions begin anew (spec 1.3, 7.2)."""
    files = {"path": "none"} if family == "writing" else {"path": "none", "regions": "none"}
    shared = {"train": files, "dev": {"dev": files}, "decoding": {"beams": 2, "longest": 9}, "label_smoothing": smoothing}
    task: Task[Any]
    if family == "writing":
        section = WritingSection.model_validate({"family": "writing", "metric": "rouge", **shared})
        task = TextWriting(section, WordsTokenizer())  # type: ignore[arg-type]
    else:
        tags = {"object_tags": {"threshold": 0.35}} if family == "both" else {}
        captioning = CaptioningSection.model_validate({"family": "captioning", **tags, **shared})
        task = Captioning(captioning, WordsTokenizer())  # type: ignore[arg-type]
    rng, packer = np.random.default_rng(0), Packer(TINY.feature_width, 100)
    for number in range(COUNT):
        example = Example(str(number), (), None, None)
        if family != "writing":
            example = Example(str(number), (), str(number), Store())  # type: ignore[arg-type]
        words = [rng.integers(4, TINY.vocabulary_size - 1, int(count)) for count in rng.integers(1, 9, 2)]
        task.add(packer, example, Tokens([] if family == "captioning" else words[:1], words[1], 64), number)
    check_generated_words(task, task.teach(packer.build(), []), smoothing)


def check_generated_words(task: Task[Any], batch: TaskBatch, smoothing: float) -> None:
    """Loss and gradients of a batch that is taught equal the formulas'."""
    assert batch.count == len(batch.batch.language_labels_M) > COUNT
    model, weights = stirred(task)
    hidden = torch.cat(sequences(batch.batch, weights))[batch.batch.language_rows_M]
    transformed = layer_norm(gelu(linear(hidden, weights, "language_head.transform")), weights, "language_head.norm")
    logits = transformed @ weights["embedding.text.word.weight"].T + weights["language_head.bias"]
    log_probabilities = logits.log_softmax(1)
    own = log_probabilities.gather(1, batch.batch.language_labels_M[:, None])[:, 0]
    errors = -(1 - smoothing) * own - smoothing * log_probabilities.mean(1)
    errors.sum().div(batch.count).backward()
    loss, _ = model(batch, TaskTotals(targets=batch.count, positions=1))
    assert float(loss.detach()) == pytest.approx(float(errors.sum().detach()) / batch.count, rel=1e-6)
    loss.backward()
    assert_same_gradients(model, weights)


def first_words(batch: TaskBatch) -> list[int]:
    """Where in its sequence each [CLS] stands: behind the image's rows, or first."""
    starts = batch.batch.cu_seqlens_S1.tolist()
    regions = batch.batch.region_rows_L.tolist()
    return [sum(start <= row < end for row in regions) for start, end in pairwise(starts)]


def test_an_empty_share_costs_nothing_and_has_gradients_of_0() -> None:
    for task, *_ in FAMILIES.values():
        model = build_model(task, TINY)
        batch = TaskBatch(Packer(TINY.feature_width, 100).build(), task.targets([]), 0)
        loss, _ = model(batch, TaskTotals(targets=3, positions=9))
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("lengths", "limit", "kept"),
    [([3], 9, [3]), ([9], 6, [4]), ([3, 4], 20, [3, 4]), ([9, 4], 11, [4, 4]), ([2, 9], 8, [2, 3]), ([6, 6], 9, [3, 3])],
)
def test_the_longer_sentence_is_cut_first(lengths: list[int], limit: int, kept: list[int]) -> None:
    texts = [np.arange(10 * number + 10, 10 * number + 10 + length) for number, length in enumerate(lengths)]
    text = joined(texts, limit)
    expected = [0, *(token for part, count in zip(texts, kept, strict=True) for token in [*part[:count].tolist(), 2])]
    assert text.ids.tolist() == expected and len(text.ids) <= limit
    assert text.positions.tolist() == list(range(2, 2 + len(expected)))


def test_entailment_has_the_widths_of_the_release() -> None:
    head = EntailmentHead(ModelSection.model_validate({"size": "tiny"}), 3)
    assert head.expand.weight.shape == (2048, 128) and head.classes.weight.shape == (3, 2048)
