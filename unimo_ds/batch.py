"""The packed batch: all sequences of a micro-batch end to end in one stream, with no padding. The waist of the house.

Data makes it, the model and the objectives read it, and they know nothing else of each other.

Shape suffixes:
    T  positions of the stream          S  sequences                     W  text tokens
    R  region vectors, stored once      L  places of regions in the stream (several may show one vector)
    M  language targets                 G  region targets                K  kept classes of a soft label
    P  image-text pairs                 I  image members of CMCL         X  text members of CMCL
    F  feature width                     N  tiles of attention
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor

FIRST_POSITION = 2  # of a text: RoBERTa's padding index + 1 (unimo-spec, 1.3)


class Kind(IntEnum):
    """What a contrastive member is to its pair (unimo-spec, 4.1)."""

    PAIR = 0  # image and caption, jointly encoded
    POSITIVE = 1  # image and rewritten caption, jointly encoded
    NEGATIVE = 2  # image and a caption that is false of it, jointly encoded
    ALONE = 3  # the pair's image, or its caption, encoded alone
    RETRIEVED = 4  # a related image, or a related text, encoded alone


class Source(IntEnum):
    """Where a contrastive member was taken from."""

    OWN = 0  # the pair itself, or its caption said in other words
    STEP = 1  # the caption of another image of the step
    SENTENCE = 2  # the caption of another image that reads alike
    PHRASE = 3  # a phrase of the caption was replaced
    WORD = 4  # a word of the caption was replaced
    COLLECTION = 5  # retrieved from a collection of images or texts


class Target(IntEnum):
    """Which objective a language target belongs to."""

    MLM = 0
    SEQ2SEQ = 1


@dataclass(frozen=True)
class Counts:
    """How many targets of each objective a batch has: the denominators of the losses, before summing over ranks."""

    mlm: int
    seq2seq: int
    regions: int
    pairs: int
    positions: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def tensor(self) -> Tensor:
        """The counts in field order, int64 [5]."""
        return torch.tensor([getattr(self, field.name) for field in fields(self)])


_STREAM_ROWS = ("token_rows_W", "region_rows_L", "language_rows_M", "target_rows_G", "image_rows_I", "text_rows_X")


@dataclass(frozen=True)
class Batch:
    """One packed stream. Index tensors are int64 unless said otherwise.

    Attributes:
        cu_seqlens_S1: int32 [S+1], where sequences begin; sequence s is `[cu[s], cu[s+1])`.
        prefix_lengths_S: int32; position j of a sequence is visible to position i when `j < max(prefix, i + 1)`.
        attention_tiles_N4: int32, the sequences cut into tiles of 64 rows, the longest work first: for each tile its sequence's
            first row, length and prefix, and its own first row inside the sequence (`kernels.attention.tile_list`).
        token_ids_W, token_positions_W, token_rows_W: each text token's id, position id and row of the stream.
        token_voices_W2: who says it in a dialogue, and how many utterances ago (`model.embeddings.VoiceEmbedding`); else 0, 0.
        features_RF: float16 region vectors as stored, the [IMG] means among them; the model converts them where it computes.
        boxes_R5: float32 location features.
        region_sources_L, region_rows_L: which vector is shown at which row of the stream.
        region_hidden_L: bool, whether its feature is replaced by zeros there.
        language_rows_M, language_labels_M, language_kinds_M: the row that predicts, the id to predict, a `Target`.
        target_rows_G, target_sources_G: the row that predicts a hidden region, and which vector it was.
        target_class_ids_GK, target_class_probabilities_GK: its soft label, float32 rows that sum to 1.
        pair_groups_P: a number shared by pairs of one image; under CMCL each has its image and its caption encoded alone.
        image_rows_I, image_pairs_I, image_kinds_I: the [IMG] row of each member, its pair (local number), its `Kind`.
        text_rows_X, text_pairs_X, text_kinds_X: the same for [CLS] rows. Jointly encoded members (PAIR, POSITIVE,
            NEGATIVE) stand in both lists, in the same order; ALONE members stand in the order of their pairs.
        text_sources_X: the `Source` of each text member.
    """

    cu_seqlens_S1: Tensor
    prefix_lengths_S: Tensor
    attention_tiles_N4: Tensor
    token_ids_W: Tensor
    token_positions_W: Tensor
    token_rows_W: Tensor
    token_voices_W2: Tensor
    features_RF: Tensor
    boxes_R5: Tensor
    region_sources_L: Tensor
    region_rows_L: Tensor
    region_hidden_L: Tensor
    language_rows_M: Tensor
    language_labels_M: Tensor
    language_kinds_M: Tensor
    target_rows_G: Tensor
    target_sources_G: Tensor
    target_class_ids_GK: Tensor
    target_class_probabilities_GK: Tensor
    pair_groups_P: Tensor
    image_rows_I: Tensor
    image_pairs_I: Tensor
    image_kinds_I: Tensor
    text_rows_X: Tensor
    text_pairs_X: Tensor
    text_kinds_X: Tensor
    text_sources_X: Tensor

    @property
    def positions(self) -> int:
        """T, the length of the stream."""
        return len(self.token_rows_W) + len(self.region_rows_L)

    @property
    def sequences(self) -> int:
        """S."""
        return len(self.prefix_lengths_S)

    def counts(self) -> Counts:
        """The denominators of this batch's losses."""
        mlm = int((self.language_kinds_M == Target.MLM).sum())
        return Counts(
            mlm=mlm,
            seq2seq=len(self.language_kinds_M) - mlm,
            regions=len(self.target_rows_G),
            pairs=len(self.pair_groups_P),
            positions=self.positions,
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; copies from pinned memory overlap with computation."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; torch's DataLoader calls this by name."""
        return self._map(Tensor.pin_memory)

    def repeated(self, times: int) -> "Batch":
        """The stream `times` times, end to end; all copies show the same region vectors."""
        rows = dict.fromkeys(_STREAM_ROWS, self.positions)
        shifts = {**rows, **dict.fromkeys(("image_pairs_I", "text_pairs_X"), len(self.pair_groups_P))}

        def copies(tensor: Tensor, shift: int | Tensor) -> list[Tensor]:
            return [tensor + number * shift for number in range(times)]

        start_4 = self.attention_tiles_N4.new_tensor([self.positions, 0, 0, 0])
        made = {
            "cu_seqlens_S1": torch.cat([self.cu_seqlens_S1[:1], *copies(self.cu_seqlens_S1[1:], self.positions)]),
            # The tiles of the copies take turns, so that the longest work still comes first.
            "attention_tiles_N4": torch.stack(copies(self.attention_tiles_N4, start_4), 1).flatten(0, 1),
            "features_RF": self.features_RF,
            "boxes_R5": self.boxes_R5,
            **{name: torch.cat(copies(getattr(self, name), shift)) for name, shift in shifts.items()},
        }
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in made}
        return Batch(**made, **{name: torch.cat([tensor] * times) for name, tensor in kept.items()})

    def emptied(self) -> "Batch":
        """A batch of no sequences, with the same widths, types and device."""
        return replace(self._map(lambda tensor: tensor[:0]), cu_seqlens_S1=self.cu_seqlens_S1[:1])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(*(change(getattr(self, field.name)) for field in fields(self)))

    def describe(self) -> str:
        """What is in the batch, in words."""
        counts = self.counts()
        kinds = [f"{int((self.image_kinds_I == kind).sum())} {kind.name.lower()}" for kind in Kind]
        texts = [f"{int((self.text_kinds_X == kind).sum())} {kind.name.lower()}" for kind in Kind]
        return (
            f"{self.positions} positions in {self.sequences} sequences: {len(self.token_ids_W)} tokens, "
            f"{len(self.region_rows_L)} places of {len(self.features_RF)} region vectors; "
            f"targets: {counts.mlm} masked words, {counts.seq2seq} generated words, {counts.regions} hidden regions; "
            f"{counts.pairs} pairs with images ({', '.join(kinds)}) and texts ({', '.join(texts)})"
        )
