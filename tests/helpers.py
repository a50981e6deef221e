"""Small inputs shared by tests: random regions, packed batches, a tokenizer that needs no files."""

import numpy as np

from unimo_ds.batch import Batch, Kind, Source, Target
from unimo_ds.chaos.inputs import random_regions
from unimo_ds.config import MaskingSection, ModelSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Member, Sequence, ViewMaker

WIDTH, CLASSES, VOCABULARY = 24, 20, 100

TINY = ModelSection(
    size="tiny",
    hidden_size=32,
    layers=2,
    heads=2,
    vocabulary_size=VOCABULARY,
    feature_width=WIDTH,
    region_classes=CLASSES,
    dropout=0.0,
    attention_dropout=0.0,
)


class WordsTokenizer:
    """Every id is a word."""

    size = VOCABULARY
    mask = VOCABULARY - 1
    starts_word_V = np.ones(VOCABULARY, dtype=bool)
    begins_with_space_V = np.ones(VOCABULARY, dtype=bool)


def view_maker() -> ViewMaker:
    return ViewMaker(WordsTokenizer(), MaskingSection())  # type: ignore[arg-type]


def random_batch(
    seed: int,
    pairs: int = 0,
    texts: int = 0,
    images: int = 0,
    first_group: int = 0,
    groups: list[int] | None = None,
    candidates: bool = False,
) -> Batch:
    """A packed batch with every objective that its samples allow.

    Args:
        seed: of all random numbers.
        pairs, texts, images: numbers of samples.
        first_group: pairs are of images `first_group`, `first_group + 1`, ..
        groups: the pairs' images, where several are of one.
        candidates: give each pair 0 to 5 of every further kind of candidate.
    """
    rng = np.random.default_rng(seed)
    packer, views = Packer(WIDTH, 100), view_maker()
    for number in range(pairs):
        image, shown = packer.add_image(random_regions(rng, int(rng.integers(3, 9))))
        tokens = rng.integers(4, VOCABULARY - 1, int(rng.integers(5, 14)))
        packer.add(Sequence(image=image, regions=shown, text=views.masked_text(tokens, rng)))
        packer.add(Sequence(image=image, regions=shown, text=views.generated_text(tokens), causal=True, target=Target.SEQ2SEQ))
        pair = packer.add_pair(first_group + number if groups is None else groups[number])
        packer.add(Sequence(image=image, regions=shown, text=views.whole_text(tokens), member=Member(pair, Kind.PAIR)))
        packer.add(
            Sequence(
                image=image, regions=shown, text=views.whole_text(tokens[::-1]), member=Member(pair, Kind.NEGATIVE, Source.STEP)
            )
        )
        packer.add(Sequence(image=image, regions=shown, member=Member(pair, Kind.ALONE)))
        packer.add(Sequence(text=views.whole_text(tokens), member=Member(pair, Kind.ALONE)))
        if candidates:
            add_candidates(packer, rng, pair, image, shown)
    for _ in range(texts):
        tokens = rng.integers(4, VOCABULARY - 1, 24)
        packer.add(Sequence(text=views.masked_text(tokens, rng)))
        fragments = views.fragments_of_text(tokens, rng)
        assert fragments is not None
        packer.add(Sequence(text=fragments, causal=True, target=Target.SEQ2SEQ))
    for _ in range(images):
        regions = random_regions(rng, 7)
        image, shown = packer.add_image(regions)
        packer.add(Sequence(image=image, regions=shown, hidden=views.hidden_regions(regions, shown, rng)))
    return packer.build()


def add_candidates(packer: Packer, rng: np.random.Generator, pair: int, image: int, shown: int) -> None:
    """0 to 5 of each: rewritten positives, hard negatives, retrieved images, retrieved texts."""
    views = view_maker()
    for kind in (Kind.POSITIVE, Kind.NEGATIVE):
        for _ in range(int(rng.integers(6))):
            text = views.whole_text(rng.integers(4, VOCABULARY - 1, 7))
            source = Source.OWN if kind == Kind.POSITIVE else Source(rng.integers(Source.STEP, Source.COLLECTION))
            packer.add(Sequence(image=image, regions=shown, text=text, member=Member(pair, kind, source)))
    for _ in range(int(rng.integers(6))):
        other, count = packer.add_image(random_regions(rng, 4))
        packer.add(Sequence(image=other, regions=count, member=Member(pair, Kind.RETRIEVED)))
    for _ in range(int(rng.integers(6))):
        text = views.whole_text(rng.integers(4, VOCABULARY - 1, 9))
        packer.add(Sequence(text=text, member=Member(pair, Kind.RETRIEVED, Source.COLLECTION)))
