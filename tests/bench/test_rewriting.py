"""The measure of rewrites counts what is true and false of hand-made ones, and says what is wrong."""

import json
from pathlib import Path

import pytest

from unimo_ds.bench import rewriting
from unimo_ds.demo import grammar
from unimo_ds.demo.objects import COLOURS
from unimo_ds.demo.scene import compose, generator
from unimo_ds.errors import DataError
from unimo_ds.rewrites import Rewrite, RewrittenCaption, dump_caption

SCENE = compose(1, "train", 5)
CAPTIONS = grammar.captions(SCENE, generator(1, "train", 5, "captions"))
THING = SCENE.things[0]
ABSENT = next(colour.name for colour in COLOURS if colour.name not in {thing.colour for thing in SCENE.things})

RIGHT = RewrittenCaption(
    "train/train_000005.jpg",
    CAPTIONS[0],
    (Rewrite(CAPTIONS[1], "sentence", "back-translation, similarity 0.95"),),
    (Rewrite(f"A {ABSENT} {THING.kind}.", "word", f"attribute: {THING.colour} -> {ABSENT}", (2, 2 + len(ABSENT))),) * 2
    + (Rewrite(f"A {ABSENT} thing.", "sentence", "caption of train/train_000007.jpg, attribute: other"),),
)
WRONG = RewrittenCaption(
    "train/train_000005.jpg",
    CAPTIONS[0],
    (Rewrite(f"A {ABSENT} {THING.kind}.", "sentence", "back-translation, similarity 0.91"),),
    (
        Rewrite(CAPTIONS[2], "phrase", "object: a cup -> a ball"),
        Rewrite("A gizmo.", "word", "object: cup -> gizmo", (2, 7)),
    ),
)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "world.json").write_text(json.dumps({"config": {"seed": 1}}))
    return tmp_path


def write(folder: Path, *captions: RewrittenCaption) -> Path:
    path = folder / "rewrites-00000-of-00001.jsonl"
    path.write_text("".join(map(dump_caption, captions)))
    return path.parent


def test_right_rewrites_are_good_enough_and_counted_by_kind(world: Path) -> None:
    judged = rewriting.judge_rewrites(write(world, RIGHT), world, 10)
    assert rewriting.good_enough(judged)
    assert rewriting.table(judged).splitlines()[2:] == [
        "| **positive** | **all** |  | 1 | 0 | 0 | 100.00 % |",
        "| positive | sentence | back-translation | 1 | 0 | 0 | 100.00 % |",
        "| **negative** | **all** |  | 3 | 0 | 0 | 100.00 % |",
        "| negative | sentence | attribute | 1 | 0 | 0 | 100.00 % |",
        "| negative | word | attribute | 2 | 0 | 0 | 100.00 % |",
    ]
    assert rewriting.worst(judged) == ""


def test_wrong_and_unread_ones_count_against_it_and_are_shown(world: Path) -> None:
    judged = rewriting.judge_rewrites(write(world, RIGHT, WRONG), world, 10)
    assert not rewriting.good_enough(judged)
    assert "| **negative** | **all** |  | 5 | 1 | 1 | 60.00 % |" in rewriting.table(judged)
    worst = rewriting.worst(judged)
    assert (
        "not read: cannot be read: gizmo" in worst and CAPTIONS[2] in worst and f"{ABSENT} {THING.kind}: there is none" in worst
    )


def test_one_side_below_the_target_is_not_good_enough(world: Path) -> None:
    mixed = RewrittenCaption(RIGHT.image, RIGHT.text, WRONG.positives, RIGHT.negatives)
    assert not rewriting.good_enough(rewriting.judge_rewrites(write(world, mixed), world, 10))


def test_the_sample_marks_the_changed_words_and_has_all_levels(world: Path) -> None:
    judged = rewriting.judge_rewrites(write(world, RIGHT, WRONG), world, 10)
    rows = rewriting.sample_table(judged, 100).splitlines()[2:]
    assert len(rows) == len(judged)
    assert any(f"| A **{ABSENT}** {THING.kind}. | negative, word |" in row and row.endswith("| false |") for row in rows)
    assert any("positive, sentence" in row and row.endswith("| false (wrong) |") for row in rows)
    assert len(rewriting.sample_table(judged, 4).splitlines()) == 2 + 4


def test_rewrites_of_other_images_are_shown_but_not_judged(world: Path) -> None:
    photo = RewrittenCaption("photo.jpg", "A dog.", (), (Rewrite("A cat.", "word", "object: dog -> cat", (2, 5)),))
    text = rewriting.report(rewriting.judge_rewrites(write(world, photo), None, 10), 10)
    assert text.splitlines()[2:] == ["| A dog. | A **cat**. | negative, word | object: dog -> cat |  |"]


def test_a_sample_of_captions_is_seeded(world: Path) -> None:
    many = [RewrittenCaption(f"train/train_{index:06}.jpg", "A cup.", RIGHT.positives) for index in range(50)]
    folder = write(world, *many)
    samples = [[item.image for item in rewriting.judge_rewrites(folder, world, 20, seed)] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2] and len(set(samples[0])) == 20


def test_what_is_no_world_or_no_rewrite_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"world\.json.*Draw the world first"):
        rewriting.judge_rewrites(write(world, RIGHT), tmp_path / "none", 10)
    with pytest.raises(DataError, match=r"'photo\.jpg' is no picture of the drawn world"):
        rewriting.judge_rewrites(write(world, RewrittenCaption("photo.jpg", "A cup.", RIGHT.positives)), world, 10)
    with pytest.raises(DataError, match="holds no rewrite"):
        rewriting.judge_rewrites(write(world, RewrittenCaption(RIGHT.image, "A cup.")), world, 10)
    (world / "rewrites-00000-of-00001.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="'image' is None"):
        rewriting.judge_rewrites(world, world, 10)
