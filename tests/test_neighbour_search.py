"""Finding neighbours: from files to a folder, what is found, what never is, and every kind of bad input."""

import dataclasses
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers import WIDTH, random_regions
from tests.life.small_run import flip_a_byte
from unimo_ds import neighbour_search as module
from unimo_ds.augment import nearest as nearest_module
from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.errors import ConfigError, DataError, StoreError
from unimo_ds.neighbour_search import NeighbourPlan, describe, find_neighbours
from unimo_ds.neighbours import Neighbours, open_neighbours
from unimo_ds.regions import Regions
from unimo_ds.rewrites import pair_digest

DETECTOR = {"architecture": "random", "feature_width": WIDTH, "classes": 19, "weights_sha256": "a" * 64}
CUP, TABLE, DOG, BALL, TREE = 1, 2, 3, 4, 5


def picture(*classes: int, seed: int = 0) -> Regions:
    """An image with one sure region a class."""
    regions = random_regions(np.random.default_rng([seed, *classes]), len(classes), kept=2)
    ids = np.array([[number, 0] for number in classes], "u2").reshape(len(classes), 2)
    return dataclasses.replace(
        regions, class_ids_RK=ids, class_probabilities_RK=np.tile(np.array([0.875, 0.125], "f2"), (len(classes), 1))
    )


def write_store(folder: Path, pictures: dict[str, Regions], detector: dict[str, Any] = DETECTOR) -> Path:
    with RegionStoreWriter(folder, detector) as writer:
        for key, regions in pictures.items():
            writer.write(key, regions)
    finish_store(folder)
    return folder


PAIRS = [
    ("1.jpg", "A red cup on a table."),
    ("1.jpg", "The table has a cup on it."),
    ("2.jpg", "A dog with two balls."),
    ("3.jpg", "It is of the."),
]
OWN = {"1.jpg": picture(CUP, TABLE), "2.jpg": picture(DOG, BALL), "3.jpg": picture()}
OTHERS = {
    "a.jpg": picture(CUP, TABLE, seed=1),
    "b.jpg": picture(CUP, DOG),
    "c.jpg": picture(TREE),
    "d.jpg": picture(DOG, BALL, TREE),
    "e.jpg": picture(),
}
TEXT = """Cups stand on tables in every house. Every dog likes a ball to play with. Short one.
A red cup on a table!

Dr. Fox has a dog called Rex. every DOG likes a ball to play with."""
SENTENCES = [
    "Cups stand on tables in every house.",
    "Every dog likes a ball to play with.",
    "A red cup on a table!",
    "Dr. Fox has a dog called Rex.",
]


@pytest.fixture
def plan(tmp_path: Path) -> NeighbourPlan:
    pairs, texts = tmp_path / "pairs.jsonl", tmp_path / "texts.txt"
    pairs.write_text("".join(json.dumps({"image": image, "text": text}) + "\n" for image, text in PAIRS))
    texts.write_text(TEXT.replace("Rex. every", "Rex.\n\nEvery"), encoding="utf-8")
    own, others = write_store(tmp_path / "own", OWN), write_store(tmp_path / "others", OTHERS)
    return NeighbourPlan(pairs, own, (own, others), (texts,), tmp_path / "out", 4, 3, image_score_above=0.0)


def images_of(found: Neighbours, pair: int) -> list[str]:
    listed = [key for _, key in found.found_images()]
    return [listed[number] for number in found.image_rows[found.pair_images[pair]] if number >= 0]


def texts_of(found: Neighbours, pair: int) -> list[str]:
    listed = list(found.sentences())
    return [listed[number] for number in found.text_rows[pair] if number >= 0]


def with_changes(plan: NeighbourPlan, **changes: Any) -> NeighbourPlan:
    return dataclasses.replace(plan, **changes)


def test_images_of_the_same_objects_and_sentences_of_the_same_words_are_found(plan: NeighbourPlan) -> None:
    result = find_neighbours(plan)
    found = open_neighbours(plan.out)
    assert found.pairs.tolist() == [pair_digest(image, text) for image, text in PAIRS]
    assert found.pair_images.tolist() == [0, 0, 1, 2] and found.image_rows.shape == (3, 4)
    assert images_of(found, 0) == images_of(found, 1) == ["a.jpg", "b.jpg"]
    assert images_of(found, 2) == ["d.jpg", "b.jpg"] and images_of(found, 3) == []
    assert list(found.sentences()) == SENTENCES
    assert texts_of(found, 0) == SENTENCES[:1]  # its own words with another full stop are no neighbour
    assert set(texts_of(found, 1)) == {SENTENCES[0], SENTENCES[2]}
    assert texts_of(found, 2) == [SENTENCES[1], SENTENCES[3]] and texts_of(found, 3) == []
    assert (found.image_scores[0, 0], found.image_scores[2].tolist()) == (1.0, [0.0] * 4)
    assert [*found.manifest["counts"].values()] == [4, 0, 3, 0, 2, 8, 0, 4, 4, 0, 3, 5]
    assert result.counts == found.manifest["counts"] and found.stores == list(plan.images)
    text = describe(result)
    assert "4 pairs of 3 images; 1.3 of 8 images found for each image (1 have none)" in text
    assert "2.jpg: class 3 0.88, class 4 0.88\n  A dog with two balls.\n  images:\n" in text
    assert "  d.jpg: class 3 0.88, class 4 0.88, class 5 0.88\n" in text and f"  {SENTENCES[1]}\n" in text


def test_neither_the_own_image_nor_a_copy_of_it_is_found(plan: NeighbourPlan, tmp_path: Path) -> None:
    """Not under its key in any store, though its boxes may differ, and not the same record under another key."""
    copies = {"1.jpg": picture(CUP, TABLE, seed=5), "copy.jpg": OWN["1.jpg"], "near.jpg": picture(CUP, TABLE, seed=6)}
    copied = write_store(tmp_path / "copies", copies)
    find_neighbours(with_changes(plan, images=(plan.regions, copied)))
    assert images_of(open_neighbours(plan.out), 0) == ["near.jpg"]


def test_the_name_of_a_class_is_shown_where_the_detector_is_known(plan: NeighbourPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named:
        class_names = ("cup", "table", "dog", "ball")

        def identity(self) -> dict[str, Any]:
            return DETECTOR

    monkeypatch.setattr(module, "load_detector", lambda name: Named())
    text = describe(find_neighbours(plan))
    assert "a.jpg: cup 0.88, table 0.88" in text and "1.jpg: cup 0.88, table 0.88" in text


def test_minimum_scores_and_numbers_are_kept(plan: NeighbourPlan) -> None:
    find_neighbours(with_changes(plan, image_score_above=0.75, texts_per_pair=1))
    found = open_neighbours(plan.out)
    assert images_of(found, 0) == ["a.jpg"] and found.text_rows.shape == (4, 1)
    assert found.image_scores[found.image_rows >= 0].min() > 0.75


def test_blocks_and_faiss_change_nothing_here(plan: NeighbourPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_neighbours(plan)
    monkeypatch.setattr(nearest_module, "_DENSE_BLOCK", (2, 3))
    monkeypatch.setattr(nearest_module, "_SPARSE_BLOCK", (1, 2))
    for name, change in (("blocks", {}), ("faiss", {"index": "faiss"})):
        find_neighbours(with_changes(plan, out=tmp_path / name, **change))
        one, other = open_neighbours(plan.out), open_neighbours(tmp_path / name)
        assert (one.image_rows == other.image_rows).all() and (one.text_rows == other.text_rows).all()


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_sentence_vectors_take_the_place_of_words(plan: NeighbourPlan, monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    class Lengths:
        """A sentence is its number of letters."""

        width = 2

        def __init__(self, folder: Path) -> None:
            assert folder == Path("model")

        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            angles = np.array([len(text) for text in texts]) / 40
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype("f4")

    monkeypatch.setattr(module, "SentenceSimilarity", Lengths)
    find_neighbours(with_changes(plan, text_vectors=Path("model"), index=index))
    found = open_neighbours(plan.out)
    assert texts_of(found, 3) == sorted(SENTENCES, key=lambda sentence: (len(sentence), SENTENCES.index(sentence)))[:3]
    assert SENTENCES[2] not in texts_of(found, 0)


def test_done_before_it_is_left_alone_and_after_a_change_done_again(plan: NeighbourPlan) -> None:
    find_neighbours(plan)
    written = (plan.out / "manifest.json").stat().st_mtime_ns
    again = find_neighbours(with_changes(plan, detector="another"))
    assert (plan.out / "manifest.json").stat().st_mtime_ns == written
    assert describe(again).startswith(f"{plan.out}: done before from the same input, nothing is changed: 4 pairs")
    find_neighbours(with_changes(plan, texts_per_pair=2))
    assert open_neighbours(plan.out).text_rows.shape == (4, 2)
    plan.texts[0].write_text("A cup is a vessel to drink from.")
    find_neighbours(with_changes(plan, texts_per_pair=2))
    assert list(open_neighbours(plan.out).sentences()) == ["A cup is a vessel to drink from."]


def test_a_pair_whose_image_is_missing_keeps_its_row(plan: NeighbourPlan, capsys: pytest.CaptureFixture[str]) -> None:
    with plan.pairs.open("a") as file:
        file.write('{"image": "lost.jpg", "text": "A dog on a table."}\nnonsense\n')
    result = find_neighbours(plan)
    found = open_neighbours(plan.out)
    assert found.pair_images[4] == 3 and images_of(found, 4) == [] and len(texts_of(found, 4)) == 3
    assert (result.counts["images_of_pairs_not_read"], result.counts["pairs_left_out"]) == (1, 1)
    told = capsys.readouterr().err
    assert f"{plan.regions}: there is no image 'lost.jpg'; its pairs get no images" in told
    assert "pairs.jsonl: 1 records left out, 5 used" in told


def test_damaged_images_are_told_of_and_stepped_over(plan: NeighbourPlan, capsys: pytest.CaptureFixture[str]) -> None:
    for store, pictures, key in (("own", OWN, "2.jpg"), ("others", OTHERS, "a.jpg")):
        flip_a_byte(plan.out.parent / store / "shard-00000/data.mdb", pictures[key].features_RF.tobytes())
    result = find_neighbours(plan)
    found = open_neighbours(plan.out)
    assert images_of(found, 0) == ["b.jpg"] and images_of(found, 2) == [] and len(texts_of(found, 2)) == 2
    # One store is both the pairs' own and one to find in, so its damaged image counts on both sides.
    assert (result.counts["images_of_pairs_not_read"], result.counts["images_not_read"]) == (1, 2)
    told = capsys.readouterr().err
    assert "image 'a.jpg': the checksum" in told and "image '2.jpg': the checksum" in told
    assert "2.jpg: cannot be read\n  A dog with two balls.\n  images:\n  sentences:\n" in describe(result)


def test_stores_of_two_detectors_are_refused(plan: NeighbourPlan, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", OTHERS, {**DETECTOR, "classes": 7})
    with pytest.raises(
        StoreError, match=r"other: made by another detector than .*own, the store of the pairs' images; classes: 7"
    ):
        find_neighbours(with_changes(plan, images=(other,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": (Path("corpus.csv"),)}, r"corpus\.csv: unknown suffix '\.csv' for texts; allowed: \.json .*\.jsonl .*\.txt"),
        (
            {"pairs": Path("pairs.txt")},
            r"pairs\.txt: unknown suffix '\.txt' for pairs; allowed: \.json \(coco_captions\), \.jsonl",
        ),
        ({"texts": (Path("nowhere.txt"),)}, r"nowhere\.txt: cannot be read: No such file"),
        ({"images": (Path("nowhere"),)}, r"nowhere: not a finished regions store"),
    ],
)
def test_input_that_is_not_there_or_of_no_known_kind_is_named(
    plan: NeighbourPlan, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_neighbours(with_changes(plan, **change))


@pytest.mark.parametrize("content", ["", "Too short.\n\nNor this one.", "\n\n"], ids=["empty", "short", "blank"])
def test_texts_without_a_sentence_are_refused(plan: NeighbourPlan, content: str) -> None:
    plan.texts[0].write_text(content)
    with pytest.raises(DataError, match=r"texts\.txt: no sentence of 5 to 50 words in there"):
        find_neighbours(plan)


def test_pairs_of_which_none_can_be_used_are_refused(plan: NeighbourPlan) -> None:
    plan.pairs.write_text('{"text": "no image"}\n')
    with pytest.raises(DataError, match=r"pairs\.jsonl: holds no pair that can be used \(1 were left out\)"):
        find_neighbours(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_pair": -1}, "--images-per-pair -1: expected 0 or more"),
        ({"text_score_above": -0.5}, "--text-score-above -0.5: expected 0 or more"),
        ({"index": "annoy"}, "--index 'annoy': expected one of exact, faiss"),
    ],
)
def test_settings_that_make_no_sense_are_refused(plan: NeighbourPlan, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_neighbours(with_changes(plan, **change))


def test_a_folder_of_something_else_is_never_replaced(plan: NeighbourPlan, tmp_path: Path) -> None:
    (plan.out / "precious").mkdir(parents=True)
    for out in (plan.out, plan.regions, plan.pairs):
        with pytest.raises(ConfigError, match="is there already and holds no neighbours; choose a new folder"):
            find_neighbours(with_changes(plan, out=out))
    assert (plan.out / "precious").exists() and (plan.regions / "manifest.json").exists()


def test_the_command_prints_what_it_found_and_errors_in_one_line(
    plan: NeighbourPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(Path(__file__).parents[1] / "tools/find_neighbours.py"))["main"]
    words = ["find_neighbours", plan.pairs, "--regions", plan.regions, "--images", *plan.images, "--out", plan.out, "--texts"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in [*words, *plan.texts]])
    main()
    printed = capsys.readouterr().out
    assert "4 pairs of 3 images" in printed and "A red cup on a table." in printed
    monkeypatch.setattr(sys, "argv", [str(word) for word in [*words, "a.csv"]])
    with pytest.raises(SystemExit, match=r"^find_neighbours: a\.csv: unknown suffix '\.csv'"):
        main()
