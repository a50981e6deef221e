"""Rewrites captions of a corpus at all three levels, and counts what it did."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unimo_ds.augment.described_image import DescribedImage
from unimo_ds.augment.lexical import LexicalIndex
from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.parsed_captions import ParsedCaptions
from unimo_ds.augment.rewrite import NegativeRewriter
from unimo_ds.augment.scene_graph import SceneGraph
from unimo_ds.augment.sentence import Paraphraser, false_captions, plain
from unimo_ds.rewrites import Rewrite, RewrittenCaption, pair_digest

_QUERY = 256  # captions whose nearest are looked for together


@dataclass(frozen=True)
class Captions:
    """The captions of a corpus, those of one image side by side: N captions of M images.

    Attributes:
        images: the name of each image.
        texts: the captions.
        images_N: int32 [N], the image of each caption.
        first_M1: int64 [M + 1], the first caption of each image, and N.
    """

    images: list[str]
    texts: list[str]
    images_N: npt.NDArray[np.int32]
    first_M1: npt.NDArray[np.int64]

    @classmethod
    def of(cls, by_image: dict[str, list[str]]) -> "Captions":
        """From the captions of each image."""
        counts = [len(texts) for texts in by_image.values()]
        images_N = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        texts = [text for of_image in by_image.values() for text in of_image]
        return cls(list(by_image), texts, images_N, np.cumsum([0, *counts]))

    def of_image(self, image: int) -> range:
        """The numbers of an image's captions."""
        return range(int(self.first_M1[image]), int(self.first_M1[image + 1]))

    def of_images(self, images: range) -> range:
        """The numbers of the captions of some neighbouring images."""
        return range(int(self.first_M1[images.start]), int(self.first_M1[images.stop]))

    def chunks(self, size: int) -> list[range]:
        """Ranges of images that have at least `size` captions each, the last one excepted."""
        chunks, start = [], 0
        for stop in range(1, len(self.images) + 1):
            if self.first_M1[stop] - self.first_M1[start] >= size or stop == len(self.images):
                chunks.append(range(start, stop))
                start = stop
        return chunks


@dataclass
class Tally:
    """What was done, counted.

    Attributes:
        captions: captions that were rewritten.
        rewrites: rewrites: `positives`, and negatives by level.
        without: captions that lack something, by what.
        rejects: rewrites that were thought of and left out, by reason.
        seconds: by stage, summed over processes.
    """

    captions: int = 0
    rewrites: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tally":
        """A tally from its `vars` in a file."""
        rewrites, without, rejects = (Counter[str](content[name]) for name in ("rewrites", "without", "rejects"))
        return cls(content["captions"], rewrites, without, rejects, content["seconds"])

    def __iadd__(self, other: "Tally") -> "Tally":
        self.captions += other.captions
        self.rewrites.update(other.rewrites)
        self.without.update(other.without)
        self.rejects.update(other.rejects)
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0) + seconds
        return self

    def add(self, caption: RewrittenCaption, graph: SceneGraph) -> None:
        """Counts a caption and its rewrites."""
        self.captions += 1
        self.rewrites["positives"] += len(caption.positives)
        self.rewrites.update(rewrite.level for rewrite in caption.negatives)
        lacks = {"no noun": not graph.objects, "no positive": not caption.positives, "no negative": not caption.negatives}
        self.without.update(what for what, lacking in lacks.items() if lacking)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Counts the time of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - start


class CaptionRewriter:
    """Makes the positives and negatives of captions.

    Of the places for negatives a third is kept for other images' captions. Phrase and word level get the others, and those
    that they can not fill go to the sentence level too.

    Args:
        captions: the whole corpus.
        parsed: its scene graphs.
        paraphraser: makes the positives; None: there are none.
        rewriter: makes the negatives of phrase and word level; None: there are none.
        lexicon: which words say the same.
        wanted: most negatives a caption.
        seed: of the choice of negatives, together with the pair's digest: a caption's rewrites do not depend on its place.
    """

    def __init__(
        self,
        captions: Captions,
        parsed: ParsedCaptions,
        paraphraser: Paraphraser | None,
        rewriter: NegativeRewriter | None,
        lexicon: Lexicon,
        wanted: int,
        seed: int,
    ) -> None:
        self._captions, self._parsed, self._lexicon = captions, parsed, lexicon
        self._paraphraser, self._rewriter = paraphraser, rewriter
        self._wanted, self._seed = wanted, seed
        self._index = LexicalIndex(captions.texts, captions.images_N)

    def rewrite(self, images: range) -> tuple[list[RewrittenCaption], Tally]:
        """The captions of some images with their rewrites, and what was counted."""
        numbers, tally, rewritten = self._captions.of_images(images), Tally(), []
        graphs = [self._parsed.graph(number) for number in numbers]
        positives: list[list[Rewrite]] = [[] for _ in numbers]
        if self._paraphraser:
            with tally.timed("positives"):
                positives = self._paraphraser.positives(graphs, tally.rejects)
        with tally.timed("sentence negatives"):
            near = self._near(numbers)
        for image in images:
            own = self._captions.of_image(image)
            places = range(own.start - numbers.start, own.stop - numbers.start)
            with tally.timed("phrase and word negatives"):
                described = DescribedImage([graphs[place] for place in places], self._lexicon)
            for place in places:
                name, graph = self._captions.images[image], graphs[place]
                negatives = self._negatives(name, graph, described, near[place], tally)
                caption = RewrittenCaption(name, graph.text, tuple(positives[place]), tuple(negatives))
                tally.add(caption, graph)
                rewritten.append(caption)
        return rewritten, tally

    def _near(self, numbers: range) -> list[list[int]]:
        """The captions of other images nearest to each; twice as many as wanted, for some may be true of its image."""
        if not self._wanted:
            return [[] for _ in numbers]
        near: list[list[int]] = []
        for first in range(numbers.start, numbers.stop, _QUERY):
            found_BK, _ = self._index.nearest(first, min(first + _QUERY, numbers.stop), 2 * self._wanted)
            near += (row[row >= 0].tolist() for row in found_BK)
        return near

    def _negatives(
        self, image: str, graph: SceneGraph, described: DescribedImage, near: Sequence[int], tally: Tally
    ) -> list[Rewrite]:
        rng = np.random.default_rng([self._seed, pair_digest(image, graph.text)])
        found: list[Rewrite] = []
        if self._rewriter:
            with tally.timed("phrase and word negatives"):
                found = self._rewriter.negatives(graph, described, self._wanted - self._wanted // 3, rng)
        with tally.timed("sentence negatives"):
            taken = {plain(text) for text in (*described.texts, *(rewrite.text for rewrite in found))}
            left = self._wanted - len(found)
            return found + false_captions(near, self._parsed.graph, self._image_of, described, taken, left, tally.rejects)

    def _image_of(self, number: int) -> str:
        return self._captions.images[int(self._captions.images_N[number])]
