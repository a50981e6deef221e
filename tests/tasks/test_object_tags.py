"""Object tags: which names, in which order; where they stand in the stream; and that a caption is searched for with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import TINY, WordsTokenizer, random_regions
from tests.life.small_run import DETECTOR
from tests.numerics.test_outputs import sequences
from tests.numerics.test_whole_model import Weights, gelu, layer_norm, linear
from tests.tasks.test_losses import Store, stirred
from unimo_ds.config import CaptionFiles, CaptioningSection, TagsSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.store import RegionStore, RegionStoreWriter, finish_store
from unimo_ds.errors import DataError
from unimo_ds.tasks.object_tags import expect_names, object_tags
from unimo_ds.tasks.task import Example, Tokens
from unimo_ds.tasks.writing import Captioning
from unimo_ds.tokenizer import CLS, SEP

SEEN = [  # (class, probability) pairs of each region, as a detector keeps them
    [(2, 0.5), (1, 0.4)],
    [(0, 0.75), (3, 0.25)],  # the background first: its object is not sure
    [(1, 0.875), (0, 0.125)],
    [(2, 0.625), (0, 0.25)],
    [(4, 0.375), (0, 0.25)],
    [(0, 0.5), (0, 0.5)],  # nothing but background
]


def store_of(folder: Path, names: tuple[str, ...], seen: list[list[tuple[int, float]]] = SEEN) -> RegionStore:
    regions = random_regions(np.random.default_rng(0), len(seen), kept=2)
    regions.class_ids_RK[:] = [[number for number, _ in region] for region in seen]
    regions.class_probabilities_RK[:] = [[share for _, share in region] for region in seen]
    with RegionStoreWriter(folder, DETECTOR, class_names=names) as writer:
        writer.write("a.jpg", regions)
        writer.write("classless.jpg", random_regions(np.random.default_rng(0), 2, kept=0))
    finish_store(folder)
    return RegionStore(folder)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.2, ("cup dog stop sign tree",)), (0.35, ("cup dog stop sign",)), (0.625, ("cup",)), (0.9, ())],
)
def test_each_name_stands_once_the_surest_first(tmp_path: Path, threshold: float, expected: tuple[str, ...]) -> None:
    """By hand: cup 0.875, dog 0.625 (and 0.5), stop sign 0.375, tree 0.25."""
    store = store_of(tmp_path, ("cup", "dog", "tree", "stop sign"))
    assert object_tags(store, "a.jpg", TagsSection(threshold=threshold)) == expected


def test_what_has_no_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"unnamed: has no names of classes.*write names\.json there.*or leave task\.object_tags"
    ):
        expect_names(store_of(tmp_path / "unnamed", ()))
    store = store_of(tmp_path / "few", ("cup", "dog", "tree"))
    expect_names(store)
    with pytest.raises(ValueError, match=r"few: image 'a\.jpg': has a region of class 4, and 3 classes have names"):
        object_tags(store, "a.jpg", TagsSection(threshold=0.35))
    with pytest.raises(ValueError, match=r"'classless\.jpg': its regions have no classes"):
        object_tags(store, "classless.jpg", TagsSection(threshold=0.35))


class Spelling(WordsTokenizer):
    """Words are written as their ids."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def test_captions_are_read_with_the_tags_of_their_image(tmp_path: Path) -> None:
    store = store_of(tmp_path / "regions", ("cup", "dog", "tree", "stop sign"))
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "classless.jpg"}]
    told = [{"image_id": number, "caption": caption} for number in (1, 2) for caption in ("A cup.", "A dog.")]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": told}))
    files = CaptionFiles(path=tmp_path / "captions.json", regions=store.folder)
    for teach, count in ((True, 2), (False, 1)):
        rejects = Rejects()
        found = list(tagged().read(files, rejects, teach))
        assert [each.texts for each in found] == [("cup dog stop sign",)] * count
        assert rejects.count == 1 and "image 'classless.jpg': its regions have no classes" in rejects.reasons[0]


def tagged(most: int = 100, **decoding: Any) -> Captioning:
    files = {"path": "none", "regions": "none"}
    section = {
        "family": "captioning",
        "train": files,
        "dev": {"dev": files},
        "object_tags": {"threshold": 0.35, "most_tokens": most},
        "decoding": {"longest": 6, **decoding},
    }
    return Captioning(CaptioningSection.model_validate(section), Spelling())  # type: ignore[arg-type]


EXAMPLE = Example("1", ("x",), "1", Store())  # type: ignore[arg-type]
IMAGE_ROWS = 1 + 4  # [IMG] and the regions that `Store` gives image 1


def test_tags_stand_alone_between_image_and_caption_and_all_rows_see_them() -> None:
    """`[IMG] v.. objects [CLS] caption [SEP]`: objects from position 2, the caption from 2 anew (spec 1.3, 7.5)."""
    packer, task = Packer(TINY.feature_width, 100), tagged(most=3)
    task.add(packer, EXAMPLE, Tokens([np.array([11, 12, 13, 14])], np.array([21, 22]), 64), 0)
    task.add(packer, EXAMPLE, Tokens([], np.array([23]), 64), 1)  # an image in which nothing was sure
    task.add(packer, EXAMPLE, Tokens([np.array([11, 12])], None, 64), 2)  # to be evaluated
    batch = packer.build()
    assert batch.token_ids_W.tolist() == [11, 12, 13, CLS, 21, 22, SEP, CLS, 23, SEP, 11, 12]
    assert batch.token_positions_W.tolist() == [2, 3, 4, 2, 3, 4, 5, 2, 3, 4, 2, 3]
    assert batch.cu_seqlens_S1.diff().tolist() == [IMAGE_ROWS + 7, IMAGE_ROWS + 3, IMAGE_ROWS + 2]
    assert batch.prefix_lengths_S.tolist() == [IMAGE_ROWS + 3, IMAGE_ROWS, IMAGE_ROWS + 2]
    assert batch.language_labels_M.tolist() == [21, 22, SEP, 23, SEP]
    second = IMAGE_ROWS * 2 + 7
    assert batch.language_rows_M.tolist() == [IMAGE_ROWS + 3, IMAGE_ROWS + 4, IMAGE_ROWS + 5, second, second + 1]


def next_words(task: Captioning, tags: list[int], words: list[int], weights: Weights) -> Tensor:
    """Logits of the word behind `[IMG] v.. tags [CLS] words`, by the reference model."""
    packer = Packer(TINY.feature_width, 100)
    task.add(packer, EXAMPLE, Tokens([np.array(tags)], np.array([*words, 9], np.int64), 64), 0)
    batch = packer.build()
    hidden = torch.cat(sequences(batch, weights))[batch.language_rows_M[len(words)]]
    transformed = layer_norm(gelu(linear(hidden, weights, "language_head.transform")), weights, "language_head.norm")
    return transformed @ weights["embedding.text.word.weight"].T + weights["language_head.bias"]


def test_a_caption_is_searched_for_with_its_tags() -> None:
    task = tagged(beams=1, shortest=6)
    model, _ = stirred(task)
    model.eval()
    with torch.no_grad():  # so far from its start that what it writes hangs on all that it sees
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    weights = {name.removeprefix("unimo."): parameter.detach() for name, parameter in model.named_parameters()}
    chosen = []
    for tags in ([11, 12, 13], [30, 31]):
        packer = Packer(TINY.feature_width, 100)
        task.add(packer, EXAMPLE, Tokens([np.array(tags)], None, 64), 0)
        (found,) = model.answers(packer.build())
        words: list[int] = []
        with torch.no_grad():
            for _ in range(6):
                logits = next_words(task, tags, words, weights)
                logits[[0, 1, 2, 3, WordsTokenizer.mask]] = -torch.inf
                words.append(int(logits.argmax()))
        assert found == " ".join(map(str, words))
        chosen.append(words)
    assert chosen[0] != chosen[1], "with other tags another caption"
