"""How much a step holds: positions, regions, targets and operations, from the mixture and the lengths of its samples."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from unimo_ds.config import CorpusSection, DataSection, ModelSection, ObjectivesSection, RunConfig
from unimo_ds.data.plan import most_fragments

# Where a corpus is not prepared: captions as COCO's are, regions as a detector keeps of a photograph; a text fills its piece.
DEFAULT_CAPTION_TOKENS, DEFAULT_REGIONS = 13, 36


@dataclass(frozen=True)
class Lengths:
    """Mean lengths of a corpus's samples.

    Attributes:
        tokens: of a text, without special ones.
        regions: shown of an image.
        images: that its store holds; None where it is not known.
        prepared: whether they come from the prepared corpus, and not from the defaults.
    """

    tokens: float
    regions: float
    images: int | None = None
    prepared: bool = False


@dataclass(frozen=True)
class Work:
    """What the samples of a step add up to, over all ranks and micro-batches.

    Attributes:
        samples: drawn from the corpora.
        tokens: of texts, special ones included.
        vectors: region vectors that are projected, an image's mean included.
        positions: of all streams.
        attended: sum of the squares of the sequences' lengths, the pairs that attention scores.
        words: targets of the language head.
        matrix: rows of CMCL's similarity matrix.
    """

    samples: float = 0.0
    tokens: float = 0.0
    vectors: float = 0.0
    positions: float = 0.0
    attended: float = 0.0
    words: float = 0.0
    matrix: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(getattr(self, field.name) * times for field in fields(Work)))


def lengths_of(corpus: CorpusSection, data: DataSection) -> Lengths:
    """From the newest prepared folder of the corpus, else the defaults."""
    folders = sorted(data.prepared.glob(f"{corpus.name}-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(folders):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("name") == corpus.name and manifest.get("samples"):
            return _prepared_lengths(path.parent, manifest, data.max_regions)
    tokens = {"pairs": DEFAULT_CAPTION_TOKENS, "texts": data.max_text_tokens - 2, "images": 0}[corpus.kind]
    return Lengths(tokens, 0 if corpus.kind == "texts" else min(DEFAULT_REGIONS, data.max_regions))


def _prepared_lengths(folder: Path, manifest: dict[str, int], max_regions: int) -> Lengths:
    counts = np.load(folder / "region_counts.npy", mmap_mode="r")
    regions = float(np.minimum(counts, max_regions).mean()) if len(counts) else 0.0
    return Lengths(manifest["tokens"] / manifest["samples"], regions, manifest["images"], prepared=True)


def sample_work(corpus: CorpusSection, lengths: Lengths, objectives: ObjectivesSection) -> Work:
    """Of one sample of a corpus with its candidates, as `unimo_ds.data.plan` counts them."""
    image, text = 1 + lengths.regions, lengths.tokens + 2
    if corpus.kind == "images":
        return _sequences((image, 1)) + Work(samples=1, vectors=image)
    if corpus.kind == "texts":
        fragments = most_fragments(round(lengths.tokens), objectives.masking) if objectives.seq2seq else 0
        words = _words(lengths.tokens, objectives, objectives.masking.fragment_rate)
        return _sequences((text + 2 * fragments, 1)) + Work(samples=1, tokens=text, words=words)
    drawn = objectives.candidates
    rewritten = drawn.positives + drawn.sentence_negatives + drawn.phrase_negatives + drawn.word_negatives
    masked = objectives.mlm > 0 or objectives.seq2seq > 0 or objectives.regions
    together = masked + objectives.joint * (1 + drawn.step_negatives + (rewritten if corpus.rewrites else 0))
    contrasted = objectives.cmcl.weight > 0
    found = contrasted and corpus.neighbours is not None
    images, texts = contrasted + found * drawn.images, contrasted + found * drawn.texts
    return _sequences((image + text, together), (image, images), (text, texts)) + Work(
        samples=1,
        tokens=text * (together + texts),
        vectors=image * (1 + found * drawn.images),  # an image is projected once, however many sequences show it
        words=_words(lengths.tokens, objectives, 1.0),
        matrix=float(objectives.cmcl.matrix),
    )


def _sequences(*lengths_and_counts: tuple[float, float]) -> Work:
    positions = sum(length * count for length, count in lengths_and_counts)
    return Work(positions=positions, attended=sum(length**2 * count for length, count in lengths_and_counts))


def _words(tokens: float, objectives: ObjectivesSection, generated: float) -> float:
    """Targets of a text's own view: masked words, or those generated; in turn where both objectives are on."""
    views = [objectives.masking.token_rate] * (objectives.mlm > 0) + [generated] * (objectives.seq2seq > 0)
    return tokens * sum(views) / len(views) if views else 0.0


def step_work(config: RunConfig, lengths: dict[str, Lengths]) -> Work:
    """Of a whole step; `lengths` of each corpus by name."""
    corpora = config.data.corpora
    parts = (sample_work(corpus, lengths[corpus.name], config.objectives) * corpus.per_step for corpus in corpora)
    return sum(parts, Work())


def micro_batches(positions: float, ranks: int, budget: int) -> int:
    """Into how many a step is split: each rank's stream keeps its budget."""
    return max(1, -(-round(positions) // (budget * ranks)))


def step_flops(work: Work, model: ModelSection, recomputed: bool) -> float:
    """Operations of the matrix products of a step, over all ranks.

    A product of [n, i] and [i, o] takes 2 n i o, and backward twice as much. The last layer is counted whole.

    Args:
        work: of the step.
        model: its shape.
        recomputed: with activation checkpointing the layers run forward twice.
    """
    width = model.hidden_size
    layers = model.layers * (24 * width**2 * work.positions + 4 * width * work.attended)
    head = 2 * work.words * (width**2 + width * model.vocabulary_size)
    features = 2 * work.vectors * model.feature_width * width
    matrix = 2 * width * work.matrix**2
    return (4 if recomputed else 3) * layers + 3 * head + 2 * features + 4 * matrix
