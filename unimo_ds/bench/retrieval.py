"""Scoring of image-text pairs against a padded single-stream encoder, Hugging Face's VisualBERT: processor time of one thread.

Both score every image with every caption, in evaluation mode and with random weights, as many pairs at once. The peer's batches
are one caption and many images, as UNITER's evaluation makes them, padded to the longest of the batch, with the images in
random order or sorted by their number of regions. Ours are in the order of `unimo-ds evaluate`, the pairs of an image together.
Rounds alternate between the three; a ratio is the median over rounds.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from unimo_ds.bench import workload as work
from unimo_ds.bench.contenders import hugging_face_shape, shape
from unimo_ds.bench.threads import DTYPES, one_thread, processor_seconds
from unimo_ds.config import RetrievalSection
from unimo_ds.data.packing import Packer
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.progress import track
from unimo_ds.regions import Regions
from unimo_ds.tasks.retrieval import Retrieval
from unimo_ds.tasks.task import Example, TaskModel, Tokens
from unimo_ds.tokenizer import CLS, SEP

IMAGES, CAPTIONS, AT_ONCE = 96, 4, 32

Score = Callable[[], list[float]]


def measure_retrieval(
    sizes: Sequence[str], precisions: Sequence[str], rounds: int = 3, images: int = IMAGES, captions: int = CAPTIONS
) -> list[dict[str, object]]:
    """A row for every size and precision: pairs that each scores a second, and the ratios.

    Args:
        sizes: layers, width and heads of our model of that name, for both.
        precisions: fp32 or bf16, of the weights.
        rounds: timings of each, after a warm-up.
        images: images of 10 to 100 regions.
        captions: captions of 13 tokens on average, each scored with every image.
    """
    cases = list(product(sizes, precisions))
    with one_thread():
        return [_row(*case, rounds, images, captions) for case in track(cases, "retrieval", len(cases), "cases")]


def _row(size: str, precision: str, rounds: int, images: int, captions: int) -> dict[str, object]:
    torch.manual_seed(0)
    load = work.pairs(images)
    load = work.Workload(load.images, load.texts[:captions])
    by_regions = sorted(range(images), key=lambda image: len(load.images[image]))
    dtype = DTYPES[precision]
    scorers = (ours(size, dtype, load), *visualbert(size, dtype, load, [list(range(images)), by_regions]))
    times = [[processor_seconds(score) for score in scorers] for _ in range(rounds + 1)][1:]
    speeds = [images * captions / statistics.median(column) for column in zip(*times, strict=True)]
    return {
        "size": size,
        "precision": precision,
        "ours_per_second": speeds[0],
        "visualbert_per_second": speeds[1],
        "visualbert_sorted_per_second": speeds[2],
        "times_faster": statistics.median(padded / here for here, padded, _ in times),
        "times_faster_sorted": statistics.median(padded / here for here, _, padded in times),
    }


class _Store:
    """The images of a workload as a regions store has them."""

    folder = Path("workload")

    def __init__(self, load: work.Workload) -> None:
        self._images = load.images

    def get(self, key: str) -> Regions:
        return self._images[int(key)]


def ours(size: str, dtype: torch.dtype, load: work.Workload) -> Score:
    """Our task of retrieval, from region features to the scores of all pairs."""
    files = {"path": "none", "regions": "none"}
    section = RetrievalSection.model_validate({"family": "retrieval", "train": files, "dev": {"dev": files}})
    task, store = Retrieval(section, work.WordTokenizer()), _Store(load)  # type: ignore[arg-type]
    unimo = UnimoModel(shape(size))
    unimo.keep_heads(task.heads)
    model = TaskModel(unimo, task, shape(size)).to(dtype).eval()
    examples = [Example("", ("",), str(image), store) for image in range(len(load.images))]  # type: ignore[arg-type]
    pairs = list(product(examples, load.texts))

    @torch.no_grad()
    def score() -> list[float]:
        scores: list[float] = []
        for first in range(0, len(pairs), AT_ONCE):
            packer = Packer(work.FEATURE_WIDTH, max_regions=100)
            for number, (example, tokens) in enumerate(pairs[first : first + AT_ONCE]):
                task.add(packer, example, Tokens([tokens], None, 64), number)
            scores.extend(model.answers(packer.build()))
        return scores

    return score


def visualbert(size: str, dtype: torch.dtype, load: work.Workload, orders: Sequence[Sequence[int]]) -> list[Score]:
    """Hugging Face's VisualBertModel with a linear layer on its pooled row; a scorer for each order of the images."""
    from transformers import VisualBertConfig, VisualBertModel

    config = VisualBertConfig(visual_embedding_dim=work.FEATURE_WIDTH, **hugging_face_shape(size))
    model: Any = VisualBertModel(config).to(dtype).eval()
    head = torch.nn.Linear(config.hidden_size, 1).to(dtype)
    features = [torch.from_numpy(image.features_RF).to(dtype) for image in load.images]
    ids = [torch.tensor([[CLS, *text.tolist(), SEP]]) for text in load.texts]

    @torch.no_grad()
    def score(order: Sequence[int]) -> list[float]:
        scores: list[float] = []
        for text, first in product(ids, range(0, len(order), AT_ONCE)):
            shown = [features[image] for image in order[first : first + AT_ONCE]]
            visual = torch.nn.utils.rnn.pad_sequence(shown, batch_first=True)
            counts = torch.tensor([len(image) for image in shown])
            seen = (torch.arange(visual.shape[1])[None] < counts[:, None]).long()
            words = text.expand(len(shown), -1)
            inputs = {"input_ids": words, "attention_mask": torch.ones_like(words), "visual_embeds": visual}
            pooled = model(**inputs, visual_attention_mask=seen, visual_token_type_ids=torch.ones_like(seen)).pooler_output
            scores += head(pooled).squeeze(1).tolist()
        return scores

    return [partial(score, order) for order in orders]


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    head = (
        "| size | precision | ours pairs/s | VisualBERT pairs/s | the same, images sorted | times faster | than sorted |\n"
        "|---|---|--:|--:|--:|--:|--:|\n"
    )
    keys = ("ours_per_second", "visualbert_per_second", "visualbert_sorted_per_second")
    return head + "\n".join(
        f"| {row['size']} | {row['precision']} | {' | '.join(f'{row[key]:.1f}' for key in keys)} "
        f"| {row['times_faster']:.2f} | {row['times_faster_sorted']:.2f} |"
        for row in rows
    )
