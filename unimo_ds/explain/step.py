"""What was in a step: a summary over all ranks, and its samples one by one, read off the packed batches."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unimo_ds.batch import Counts, Kind, Source
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.plan import Item, share
from unimo_ds.errors import DamagedRecordError
from unimo_ds.explain.run import OpenedRun
from unimo_ds.explain.scores import Scorer, Scores
from unimo_ds.explain.views import View, take_apart
from unimo_ds.explain.words import Piece, pieces_of_difference, pieces_of_view, text_of
from unimo_ds.progress import Progress
from unimo_ds.regions import BACKGROUND, Regions

BACKGROUND_NAME = "background"
_SOURCES = {
    Source.OWN: "caption",
    Source.STEP: "caption of the step",
    Source.SENTENCE: "sentence",
    Source.PHRASE: "phrase",
    Source.WORD: "word",
    Source.COLLECTION: "collection",
}
_REWRITTEN = (Source.OWN, Source.PHRASE, Source.WORD)  # the others are texts of their own, not the caption changed


@dataclass(frozen=True)
class Share:
    """What one rank gets in one micro-batch, both counted from 0."""

    micro_batch: int
    rank: int
    samples: int
    counts: Counts


@dataclass(frozen=True)
class Summary:
    """A step over all ranks.

    Attributes:
        corpora: name, kind, samples in the step and in all, of each corpus of the mixture.
        views: what the samples were made into, and how many of them.
        candidates: the candidates of its pairs by kind and source, and how many of them.
        counts: the targets: the denominators of its losses.
        micro_batches, ranks: into how many parts it is split.
        shares: the parts.
        problems: what training left out, and why.
    """

    corpora: list[tuple[str, str, int, int]]
    views: list[tuple[str, int]]
    candidates: list[tuple[str, int]]
    counts: Counts
    micro_batches: int
    ranks: int
    shares: list[Share]
    problems: list[str]


@dataclass(frozen=True)
class ShownRegion:
    """A region of an image.

    Attributes:
        box: `x1, y1, x2, y2` as shares of the image's width and height.
        label: its most probable class, background too; of a hidden one what the model must say.
        probability: of that class.
        hidden: whether the model sees zeros in its place.
    """

    box: tuple[float, float, float, float]
    label: str
    probability: float
    hidden: bool


@dataclass(frozen=True)
class ShownImage:
    """An image as the model sees it: its key, its size on disk, and its regions, best first."""

    key: str
    width: int
    height: int
    regions: list[ShownRegion]

    @property
    def hidden(self) -> list[ShownRegion]:
        """The hidden regions."""
        return [region for region in self.regions if region.hidden]

    @property
    def objects(self) -> list[ShownRegion]:
        """The regions that show something."""
        return [region for region in self.regions if region.label != BACKGROUND_NAME]


@dataclass(frozen=True)
class ShownCandidate:
    """One candidate of a pair.

    Attributes:
        role: what it is to the pair, in words.
        positive: whether it counts as fitting.
        pieces: its text; none of a retrieved image.
        image: a retrieved image.
        fit, share: see `Scores`; both None without a checkpoint.
        beats: it is false of the image, and scores no lower than the true caption.
    """

    role: str
    positive: bool
    pieces: list[Piece]
    image: ShownImage | None
    fit: float | None
    share: float | None
    beats: bool


@dataclass(frozen=True)
class Sample:
    """One sample of a step.

    Attributes:
        corpus, kind: where it is from.
        index: which sample of its corpus it is.
        draw: the how-manieth draw from that corpus: with the corpus its name for ever.
        rank, micro_batch: who handles it, and when.
        positions: its length in the stream.
        view: what it was made into.
        pieces: the text of that view.
        image: the image of that view.
        candidates: of a pair, the true caption first.
        loss: see `Scores`; None without a checkpoint.
    """

    corpus: str
    kind: str
    index: int
    draw: int
    rank: int
    micro_batch: int
    positions: int
    view: str
    pieces: list[Piece]
    image: ShownImage | None
    candidates: list[ShownCandidate]
    loss: float | None

    @property
    def positive_share(self) -> float:
        """The part of the softmax that falls to the positives."""
        return sum(candidate.share or 0.0 for candidate in self.candidates if candidate.positive)


def summarise(run: OpenedRun) -> Summary:
    """Makes the batches of all ranks and counts what is in them."""
    micro_batches = share(run.items, run.ranks, run.config.data.positions_per_micro_batch)
    problems: list[str] = []
    shares: list[Share] = []
    views: Counter[str] = Counter()
    candidates: Counter[str] = Counter()
    with Progress(f"packing step {run.step}", len(run.items), "samples") as progress:
        for micro_batch, ranks in enumerate(micro_batches):
            for rank, items in enumerate(ranks):
                batch = run.data.pack(items, problems)
                shares.append(Share(micro_batch, rank, len(items), batch.counts()))
                for view in take_apart(batch):
                    views[view.name] += bool(view.name)
                    candidates[_role(view)] += view.kind not in (None, Kind.PAIR, Kind.ALONE)
                progress.advance(len(items))
    drawn = Counter(item.draw.corpus for item in run.items)
    return Summary(
        [
            (corpus.name, corpus.section.kind, drawn[number], len(corpus))
            for number, corpus in enumerate(run.corpora)
            if drawn[number]
        ],
        [(view, count) for view, count in views.most_common() if count],
        [(role, candidates[role]) for role in sorted(candidates) if candidates[role]],
        sum((part.counts for part in shares), Counts(0, 0, 0, 0, 0)),
        len(micro_batches),
        run.ranks,
        shares,
        problems,
    )


class SampleReader:
    """Reads samples of a step off their batches.

    Args:
        run: the opened run.
        scorer: scores candidates, or None.
        class_names: of the detector, without the background; empty where unknown.
    """

    def __init__(self, run: OpenedRun, scorer: Scorer | None, class_names: Sequence[str]) -> None:
        self._run, self._scorer, self._class_names = run, scorer, class_names
        micro_batches = share(run.items, run.ranks, run.config.data.positions_per_micro_batch)
        self._places = {
            item.draw: (micro_batch, rank)
            for micro_batch, ranks in enumerate(micro_batches)
            for rank, items in enumerate(ranks)
            for item in items
        }

    def read(self, item: Item) -> Sample | None:
        """The sample, or None where its record is damaged: training left it out."""
        run = self._run
        corpus, draw = run.corpora[item.draw.corpus], item.draw
        batch = run.data.pack([item], [])
        if not batch.sequences:
            return None
        views = take_apart(batch)
        masked = next((view for view in views if view.kind is None), None)
        first = masked or views[0]
        micro_batch, rank = self._places[draw]
        scores = self._scorer.score(batch) if self._scorer is not None and len(batch.pair_groups_P) else None
        return Sample(
            corpus=corpus.name,
            kind=corpus.section.kind,
            index=draw.index,
            draw=draw.number,
            rank=rank,
            micro_batch=micro_batch,
            positions=batch.positions,
            view=masked.name if masked else "nothing hidden",
            pieces=pieces_of_view(first, corpus.tokens(draw.index), run.tokenizer),
            image=self._image(corpus.image_key(draw.index), _stored(corpus, draw.index), first)
            if len(first.hidden_r)
            else None,
            candidates=list(self._candidates(corpus, item, views, scores)),
            loss=scores.loss if scores else None,
        )

    def _candidates(self, corpus: Corpus, item: Item, views: list[View], scores: Scores | None) -> Iterator[ShownCandidate]:
        """In the order of their scores: jointly encoded ones, retrieved images, retrieved texts."""
        joint = [view for view in views if view.kind in (Kind.PAIR, Kind.POSITIVE, Kind.NEGATIVE)]
        if not joint:
            return
        found = [view for view in views if view.kind == Kind.RETRIEVED]
        images, texts = [view for view in found if not len(view.ids_n)], [view for view in found if len(view.ids_n)]
        shown = [*joint, *images, *texts]
        keys = _found_images(corpus, item)
        caption = text_of(joint[0], self._run.tokenizer)
        for number, view in enumerate(shown):
            image = None if len(view.ids_n) else self._image(*next(keys), view)
            text = "" if image else text_of(view, self._run.tokenizer)
            fit = scores.fits[number] if scores else None
            yield ShownCandidate(
                role=_role(view),
                positive=view.kind != Kind.NEGATIVE,
                pieces=[] if image else pieces_of_difference(caption, text) if view.source in _REWRITTEN else [Piece(text)],
                image=image,
                fit=fit,
                share=scores.shares[number] if scores else None,
                beats=view.kind == Kind.NEGATIVE and scores is not None and scores.fits[number] >= scores.fits[0],
            )

    def _image(self, key: str, stored: Regions, view: View) -> ShownImage:
        """The image of a view; classes of what is seen are the store's, of what is hidden those that must be said."""
        shown = len(view.hidden_r)
        ids_rK, probabilities_rK = stored.class_ids_RK[:shown].astype(int), stored.class_probabilities_RK[:shown].astype(float)
        hidden = iter(zip(view.class_ids_hK, view.class_probabilities_hK, strict=True))
        regions = []
        for number in range(shown):
            ids, probabilities = next(hidden) if view.hidden_r[number] else (ids_rK[number], probabilities_rK[number])
            label, probability = self._best_class(ids, probabilities)
            x1, y1, x2, y2 = view.boxes_r4[number].tolist()
            regions.append(ShownRegion((x1, y1, x2, y2), label, probability, bool(view.hidden_r[number])))
        return ShownImage(key, stored.width, stored.height, regions)

    def _best_class(self, ids_K: npt.NDArray[np.integer], probabilities_K: npt.NDArray[np.floating]) -> tuple[str, float]:
        best = int(probabilities_K.argmax())
        number = int(ids_K[best])
        return self._class_name(number), float(probabilities_K[best])

    def _class_name(self, number: int) -> str:
        if number == BACKGROUND:
            return BACKGROUND_NAME
        return self._class_names[number - 1] if number <= len(self._class_names) else f"class {number}"


def _stored(corpus: Corpus, sample: int) -> Regions:
    assert corpus.store is not None
    return corpus.store.get(corpus.image_key(sample))


def _found_images(corpus: Corpus, item: Item) -> Iterator[tuple[str, Regions]]:
    """Key and regions of the retrieved images of a pair, in order, without those that training could not read."""
    for candidate in item.candidates:
        if candidate.image:
            assert corpus.neighbours is not None
            try:
                yield corpus.neighbours.image_name(candidate.number)[1], corpus.neighbours.regions(candidate.number)
            except (KeyError, DamagedRecordError):
                continue


def _role(view: View) -> str:
    """What a member is to its pair."""
    match view.kind:
        case Kind.PAIR:
            return "true caption"
        case Kind.POSITIVE:
            return "positive, rewritten"
        case Kind.NEGATIVE:
            assert view.source is not None
            return f"negative, {_SOURCES[view.source]}"
        case Kind.RETRIEVED:
            return "retrieved text" if len(view.ids_n) else "retrieved image"
    return ""


def choose_samples(items: Sequence[Item], kinds: Sequence[str], limit: int) -> list[Item]:
    """Up to `limit` samples, pairs first; every corpus gets its part of them, and one at least.

    Args:
        items: the step.
        kinds: of each corpus of the mixture.
        limit: most samples that are chosen.
    """
    of_corpus = Counter(item.draw.corpus for item in items)
    order = sorted(of_corpus, key=lambda corpus: (kinds[corpus] != "pairs", corpus))[:limit]
    quotas = {corpus: max(1, limit * of_corpus[corpus] // len(items)) for corpus in order}
    for corpus in order:  # what rounding has left goes to the first ones; what the small ones got too much, they give
        spare = limit - sum(quotas.values())
        quotas[corpus] = max(1, min(of_corpus[corpus], quotas[corpus] + spare))
    return [item for corpus in order for item in [item for item in items if item.draw.corpus == corpus][: quotas[corpus]]]
