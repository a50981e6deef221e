"""Packs sequences into one stream: a `Batch`."""

from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimo_ds.batch import Batch, Kind
from unimo_ds.data.sequences import IGNORED, Member, PackedText, Sequence
from unimo_ds.data.store import RegionStore
from unimo_ds.kernels.attention import tile_list
from unimo_ds.regions import Regions, location_features

_IMAGE_LOCATION = np.array([[0, 0, 1, 1, 1]], dtype=np.float32)  # of the [IMG] row (unimo-spec, 1.5)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]


class _Column:
    """One growing index array."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.generic]] = []

    def extend(self, values: npt.NDArray[np.generic]) -> None:
        self._parts.append(values)

    def append(self, value: int) -> None:
        self._parts.append(np.array([value]))

    def tensor(self, dtype: type[np.generic] = np.int64) -> Tensor:
        joined = np.concatenate(self._parts) if self._parts else np.zeros(0)
        return torch.from_numpy(joined.astype(dtype))


class Packer:
    """Collects the images and sequences of a micro-batch.

    An image's region vectors are stored once, however many sequences show them, and projected once by the model.

    Args:
        feature_width: F, needed where a batch has no image at all.
        max_regions: regions of an image that are shown; the [IMG] vector is the mean of all (unimo-spec, 1.5).
    """

    def __init__(self, feature_width: int, max_regions: int) -> None:
        self._width, self._max_regions = feature_width, max_regions
        self._images: list[Regions] = []
        self._stored: dict[tuple[Path, str], tuple[int, int]] = {}
        self._first_vector: list[int] = []
        self._vectors: list[Halves] = []
        self._boxes: list[Floats] = []
        self._vector_count = 0
        self._sequences: list[Sequence] = []
        self._groups: list[int] = []

    def add_image(self, regions: Regions) -> tuple[int, int]:
        """Adds an image; returns its number and how many of its regions are shown."""
        shown = min(len(regions), self._max_regions)
        features = regions.features_RF
        self._first_vector.append(self._vector_count)
        self._add_vectors(_mean(features), _IMAGE_LOCATION)
        boxes = location_features(regions.boxes_R4[:shown], regions.width, regions.height)
        self._add_vectors(features[:shown], boxes)
        self._images.append(regions)
        return len(self._images) - 1, shown

    def show(self, store: RegionStore, key: str) -> tuple[int, int]:
        """The number of a store's image and how many of its regions are shown; it is added when it is first asked for.

        Raises:
            DamagedRecordError: it cannot be read; nothing was added.
        """
        if (store.folder, key) not in self._stored:
            self._stored[store.folder, key] = self.add_image(store.get(key))
        return self._stored[store.folder, key]

    def add_pair(self, group: int) -> int:
        """Adds a pair of CMCL whose image has number `group`; returns the pair's number."""
        self._groups.append(group)
        return len(self._groups) - 1

    def add(self, sequence: Sequence) -> None:
        """Adds a sequence to the end of the stream."""
        self._sequences.append(sequence)

    def _add_vectors(self, vectors: Halves, boxes: Floats) -> None:
        self._vectors.append(vectors)
        self._boxes.append(boxes)
        self._vector_count += len(vectors)

    def _mean_vector(self, sequence: Sequence) -> int:
        """Which vector the [IMG] row shows: a mean that holds hidden regions would give them away."""
        assert sequence.image is not None
        if sequence.hidden is None:
            return self._first_vector[sequence.image]
        features = self._images[sequence.image].features_RF
        seen = np.ones(len(features), dtype=bool)
        seen[: len(sequence.hidden)] = ~sequence.hidden
        self._add_vectors(_mean(features[seen]), _IMAGE_LOCATION)
        return self._vector_count - 1

    def build(self) -> Batch:
        """The batch."""
        columns = {name: _Column() for name in Batch.__dataclass_fields__}
        labels = _SoftLabels()
        row = 0
        for sequence in self._sequences:
            if sequence.image is not None:
                self._place_image(columns, labels, sequence, row)
            if sequence.text is not None:
                _place_text(columns, sequence, sequence.text, row + sequence.image_length)
            if sequence.member is not None:
                _place_member(columns, sequence, sequence.member, row)
            row += len(sequence)
        lengths = np.array([len(sequence) for sequence in self._sequences], dtype=np.int64)
        prefixes = np.array([sequence.prefix_length for sequence in self._sequences], dtype=np.int32)
        class_ids, class_probabilities = labels.tensors()
        made = {
            "cu_seqlens_S1": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
            "prefix_lengths_S": torch.from_numpy(prefixes),
            "attention_tiles_N4": torch.from_numpy(tile_list(lengths, prefixes)),
            "features_RF": torch.from_numpy(_stacked(self._vectors, self._width, np.float16)),
            "boxes_R5": torch.from_numpy(_stacked(self._boxes, 5, np.float32)),
            "token_voices_W2": columns["token_voices_W2"].tensor().view(-1, 2),
            "region_hidden_L": columns["region_hidden_L"].tensor(np.bool_),
            "target_class_ids_GK": class_ids,
            "target_class_probabilities_GK": class_probabilities,
            "pair_groups_P": torch.tensor(self._groups, dtype=torch.int64),
        }
        return Batch(**{name: made.get(name, column.tensor()) for name, column in columns.items()})

    def _place_image(self, columns: dict[str, _Column], labels: "_SoftLabels", sequence: Sequence, row: int) -> None:
        assert sequence.image is not None
        first = self._first_vector[sequence.image] + 1
        mean = self._mean_vector(sequence)
        sources = np.concatenate([[mean], np.arange(first, first + sequence.regions)])
        hidden = sequence.hidden if sequence.hidden is not None else np.zeros(sequence.regions, dtype=bool)
        columns["region_sources_L"].extend(sources)
        columns["region_rows_L"].extend(np.arange(row, row + sequence.image_length))
        columns["region_hidden_L"].extend(np.concatenate([[False], hidden]))
        chosen = np.flatnonzero(hidden)
        columns["target_rows_G"].extend(chosen + row + 1)
        columns["target_sources_G"].extend(chosen + first)
        if len(chosen):
            labels.add(self._images[sequence.image], chosen)


class _SoftLabels:
    """The class distributions of hidden regions; stores may keep different numbers of classes."""

    def __init__(self) -> None:
        self._ids: list[Ints] = []
        self._probabilities: list[Floats] = []

    def add(self, regions: Regions, chosen: Ints) -> None:
        self._ids.append(regions.class_ids_RK[chosen].astype(np.int64))
        kept = regions.class_probabilities_RK[chosen].astype(np.float32)
        self._probabilities.append(kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-6))

    def tensors(self) -> tuple[Tensor, Tensor]:
        most = max((ids.shape[1] for ids in self._ids), default=1)
        ids = [np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part in self._ids]
        probabilities = [np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part in self._probabilities]
        return (
            torch.from_numpy(_stacked(ids, most, np.int64)),
            torch.from_numpy(_stacked(probabilities, most, np.float32)),
        )


def _mean(features: Halves) -> Halves:
    """The mean vector, [1, F], summed in float32; zeros where there is nothing to see."""
    if len(features) == 0:
        return np.zeros((1, features.shape[1]), np.float16)
    mean: Halves = features.mean(axis=0, keepdims=True, dtype=np.float32).astype(np.float16)
    return mean


def _stacked(parts: Items[npt.NDArray[np.generic]], width: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    return np.concatenate(parts) if parts else np.zeros((0, width), dtype)


def _place_text(columns: dict[str, _Column], sequence: Sequence, text: PackedText, row: int) -> None:
    columns["token_ids_W"].extend(text.ids)
    columns["token_positions_W"].extend(text.positions)
    columns["token_rows_W"].extend(np.arange(row, row + len(text.ids)))
    columns["token_voices_W2"].extend(text.said_by)
    predicting = np.flatnonzero(text.labels != IGNORED)
    columns["language_rows_M"].extend(predicting + row)
    columns["language_labels_M"].extend(text.labels[predicting])
    columns["language_kinds_M"].extend(np.full(len(predicting), int(sequence.target)))


def _place_member(columns: dict[str, _Column], sequence: Sequence, member: Member, row: int) -> None:
    for part, present, offset in (
        ("image", sequence.image is not None, 0),
        ("text", sequence.text is not None, sequence.image_length),
    ):
        if present:
            suffix = "I" if part == "image" else "X"
            columns[f"{part}_rows_{suffix}"].append(row + offset)
            columns[f"{part}_pairs_{suffix}"].append(member.pair)
            columns[f"{part}_kinds_{suffix}"].append(int(member.kind))
            if part == "text":
                columns["text_sources_X"].append(int(member.source))


def pack_alone(images: Items[Regions], texts: Items[PackedText], feature_width: int, max_regions: int) -> Batch:
    """Images and texts, each encoded alone, for retrieval; member i of each list stands for item i."""
    packer = Packer(feature_width, max_regions)
    for number, regions in enumerate(images):
        image, shown = packer.add_image(regions)
        packer.add(Sequence(image=image, regions=shown, member=Member(number, Kind.ALONE)))
    for number, text in enumerate(texts):
        packer.add(Sequence(text=text, member=Member(number, Kind.ALONE)))
    return packer.build()
