"""What a sample becomes: the sequences that are packed into the stream, each one view of a text, an image or a pair.

Layouts (unimo-spec, 1.2): `[IMG] v..`, `[CLS] w.. [SEP]`, or the image followed by the text. Text positions start at 2;
the source and every target fragment of a sequence-to-sequence view start there anew (1.3), regions have no position.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unimo_ds.batch import FIRST_POSITION, Kind, Source, Target
from unimo_ds.config import MaskingSection
from unimo_ds.data.masking import choose_fragments, choose_regions, choose_spans, corrupt
from unimo_ds.regions import Regions, intersection_over_union
from unimo_ds.tokenizer import CLS, SEP, Tokenizer

FIRST_WORD = 4  # ids below are special
IGNORED = -1

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """A sequence's part in CMCL: its pair's local number, what it is to the pair, and where its text was taken from."""

    pair: int
    kind: Kind
    source: Source = Source.OWN


@dataclass(frozen=True)
class PackedText:
    """The text part of a sequence: n ids with their position ids, and the label of each row (`IGNORED`: none)."""

    ids: Ints
    positions: Ints
    labels: Ints
    source_length: int  # rows before the generated part: the prefix, if there is one
    voices: Ints | None = None  # [n, 2] role and turn of each row, in a dialogue

    @property
    def said_by(self) -> Ints:
        """[n, 2] role and turn of each row; outside of dialogues 0, 0."""
        return np.zeros((len(self.ids), 2), np.int64) if self.voices is None else self.voices


def with_targets(source: PackedText, *targets: PackedText) -> PackedText:
    """A source with generated parts behind it, each with its own positions (unimo-spec, 1.3)."""
    parts = (source, *targets)
    return PackedText(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.labels for part in parts]),
        len(source.ids),
        np.concatenate([part.said_by for part in parts]),
    )


@dataclass(frozen=True)
class Sequence:
    """One sequence of the stream.

    Attributes:
        image: number of the image among the micro-batch's images, or None.
        regions: how many regions of it are shown, [IMG] not counted.
        hidden: which regions are replaced by zeros and must be predicted, or None.
        text: the text part, or None.
        causal: whether the text's generated part sees only what is before it.
        target: which objective its labels belong to.
        member: its part in CMCL, or None.
    """

    image: int | None = None
    regions: int = 0
    hidden: Bools | None = None
    text: PackedText | None = None
    causal: bool = False
    target: Target = Target.MLM
    member: Member | None = None

    def __len__(self) -> int:
        return self.image_length + self.text_length

    @property
    def image_length(self) -> int:
        """Rows of the image part, [IMG] included."""
        return 0 if self.image is None else 1 + self.regions

    @property
    def text_length(self) -> int:
        """Rows of the text part."""
        return 0 if self.text is None else len(self.text.ids)

    @property
    def prefix_length(self) -> int:
        """Rows that every row of the sequence sees."""
        if not self.causal or self.text is None:
            return len(self)
        return self.image_length + self.text.source_length


@dataclass(frozen=True)
class ViewMaker:
    """Makes the views of one run: knows the tokenizer and the masking, holds no state."""

    tokenizer: Tokenizer
    masking: MaskingSection

    def whole_text(self, tokens: Ints) -> PackedText:
        """`[CLS] w.. [SEP]`, nothing to predict."""
        ids = np.concatenate([[CLS], tokens, [SEP]])
        return PackedText(ids, np.arange(len(ids)) + FIRST_POSITION, np.full(len(ids), IGNORED), len(ids))

    def masked_text(self, tokens: Ints, rng: np.random.Generator) -> PackedText:
        """`[CLS] w.. [SEP]` with spans of words masked."""
        chosen = choose_spans(self.tokenizer.starts_word_V[tokens], self.masking, rng)
        seen = corrupt(tokens, chosen, self.tokenizer.mask, FIRST_WORD, rng)
        whole = self.whole_text(seen)
        labels = np.concatenate([[IGNORED], np.where(chosen, tokens, IGNORED), [IGNORED]])
        return PackedText(whole.ids, whole.positions, labels, whole.source_length)

    def fragments_of_text(self, tokens: Ints, rng: np.random.Generator) -> PackedText | None:
        """`[CLS] rest [SEP]` then `[CLS] fragment [SEP]` for each removed fragment; None if the text is too short."""
        fragments = choose_fragments(len(tokens), self.masking, rng)
        if not fragments:
            return None
        kept = np.ones(len(tokens), dtype=bool)
        for start, end in fragments:
            kept[start:end] = False
        source = self.whole_text(tokens[kept])
        targets = [self.generated_text(tokens[start:end]) for start, end in fragments]
        return with_targets(source, *targets)

    def generated_text(self, tokens: Ints) -> PackedText:
        """`[CLS] w.. [SEP]`, each row but the last predicting the next one."""
        whole = self.whole_text(tokens)
        return PackedText(whole.ids, whole.positions, np.append(whole.ids[1:], IGNORED), 0)

    def hidden_regions(self, regions: Regions, shown: int, rng: np.random.Generator) -> Bools:
        """[R] which of the first `shown` regions are hidden."""
        return choose_regions(intersection_over_union(regions.boxes_R4[:shown]), self.masking, rng)
