"""The judge of sentences agrees with what is known by construction: captions, labelled hypotheses, and hand-made sentences."""

from collections import Counter
from itertools import pairwise

import pytest

from unimo_ds.demo import entailment, grammar
from unimo_ds.demo.scene import Scene, Thing, compose, generator
from unimo_ds.demo.truth import judge

SCENES = [compose(1, "train", index) for index in range(300)]

TABLE_SCENE = Scene(
    1,
    "train",
    0,
    "beach",
    (
        Thing("table", "red", "large", (40, 100, 80, 60)),
        Thing("cup", "blue", "small", (60, 82, 30, 30), host=0, held="on"),
        Thing("ball", "orange", "small", (180, 120, 30, 30)),
        Thing("ball", "orange", "large", (170, 20, 70, 70)),
    ),
)
BOX_SCENE = Scene(
    1,
    "train",
    1,
    "plain",
    (
        Thing("box", "green", "large", (30, 90, 70, 60)),
        Thing("key", "white", "small", (45, 112, 35, 28), host=0, held="inside"),
        Thing("umbrella", "black", "large", (150, 95, 70, 70)),
    ),
)


def captions(scene: Scene) -> list[str]:
    return grammar.captions(scene, generator(scene.seed, scene.split, scene.index, "captions"))


def test_every_caption_is_true_of_its_scene() -> None:
    forms = Counter[str]()
    for scene in SCENES:
        for text in captions(scene):
            forms[text.split()[0].strip(",")] += 1
            verdict = judge(text, scene)
            assert verdict.true is True, (text, verdict)
    assert {"A", "An", "There", "This", "We", "Two", "Three", "Four", "In", "On", "Against", "At", "Indoors"} <= set(forms)


def test_captions_of_other_scenes_are_read_and_false() -> None:
    verdicts = Counter(judge(text, scene).true for scene, other in pairwise(SCENES) for text in captions(other))
    assert verdicts[None] == 0 and verdicts[True] < 0.01 * verdicts[False]


def test_labelled_hypotheses_get_their_labels() -> None:
    expected = {"entailment": True, "contradiction": False, "neutral": None}
    for scene in SCENES:
        for hypothesis in entailment.hypotheses(scene, generator(1, "train", scene.index, "entailment")):
            verdict = judge(hypothesis.text, scene)
            assert verdict.true is expected[hypothesis.label], (hypothesis, verdict)


TRUE = (
    (TABLE_SCENE, "A blue mug on a big red table."),
    (TABLE_SCENE, "A cup is shown on top of the table, and an orange ball to the right of the table at the beach."),
    (TABLE_SCENE, "The cup is blue and small."),
    (TABLE_SCENE, "A blue cup over a red table."),  # loosely: it stands on it
    (TABLE_SCENE, "Two orange balls at a sandy beach."),
    (TABLE_SCENE, "We see a table of big red, two orange balls and a cup of small blue."),
    (TABLE_SCENE, "Four objects on a bright day: a cup, a table and two balls."),
    (TABLE_SCENE, "A large orange ball above a small orange ball."),
    (TABLE_SCENE, "A table that has a blue cup on it."),
    (TABLE_SCENE, "A table with a ball at his right."),
    (TABLE_SCENE, "On a table, there is a cup."),
    (TABLE_SCENE, "A blue container left of a toy."),
    (TABLE_SCENE, "There are no cats in the picture."),
    (BOX_SCENE, "A key inside a box against a simple background."),
    (BOX_SCENE, "A white key can be seen in a green box, with a black umbrella on the right of the box indoors."),
    (BOX_SCENE, "A green box and a black umbrella with a white key in it."),  # loosely: `it` may be the box
    (BOX_SCENE, "This image shows a box, a key and a huge umbrella against a background plain."),
    (BOX_SCENE, "Three things inside: a box, a key and an umbrella."),
)
FALSE = (
    (TABLE_SCENE, "A blue cup in a red table.", "inside"),
    (TABLE_SCENE, "A blue cup below a red table.", "below"),
    (TABLE_SCENE, "A red cup on a blue table.", "red cup"),
    (TABLE_SCENE, "A large blue cup.", "large blue cup"),
    (TABLE_SCENE, "Three orange balls.", "only 2"),
    (TABLE_SCENE, "A cup and a cup.", "different things"),
    (TABLE_SCENE, "A small orange ball above a large orange ball.", "above"),
    (TABLE_SCENE, "Three things at the beach: a cup, a table and a ball.", "3 things"),
    (TABLE_SCENE, "A cup on a table in the dark.", "the setting is beach"),
    (TABLE_SCENE, "A cup against a sandy wall.", "sandy wall"),
    (TABLE_SCENE, "The cup is orange.", "none"),
    (TABLE_SCENE, "A ball left of a table and a cup on the table.", "left"),
    (TABLE_SCENE, "A small ball right of a table, with a cup above the ball and a ball left of the cup.", "not"),
    (TABLE_SCENE, "A checked cup on a table.", "checked cup"),
    (TABLE_SCENE, "A red animal left of a ball.", "animal"),
    (BOX_SCENE, "A key below a box.", "below"),  # its middle is lower, yet who would say so
    (BOX_SCENE, "An umbrella in a box.", "inside"),
    (BOX_SCENE, "A box with an umbrella to its left.", "left"),
    (BOX_SCENE, "Indoors, a white key is on a green box.", "on"),
)


@pytest.mark.parametrize(("scene", "text"), TRUE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_true_however_it_is_said(scene: Scene, text: str) -> None:
    verdict = judge(text, scene)
    assert verdict.true is True, verdict


@pytest.mark.parametrize(("scene", "text", "why"), FALSE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_false_and_why(scene: Scene, text: str, why: str) -> None:
    verdict = judge(text, scene)
    assert verdict.true is False and why in verdict.reason, verdict


def test_one_assignment_must_fulfil_all_claims() -> None:
    """Each half is true of some ball, no ball fulfils both."""
    assert judge("A ball above a small ball.", TABLE_SCENE).true is True
    assert judge("A small ball right of a cup.", TABLE_SCENE).true is True
    verdict = judge("A small ball above a ball, and a cup left of the small ball.", TABLE_SCENE)
    assert verdict.true is False


UNREAD = (
    ("A blue till on a table.", ("till",)),
    ("A cup that belongs to a child.", ("that", "belongs", "to", "child")),
    ("A cup taller than a ball.", ("taller", "than")),
    ("A cup left of.", ("left of",)),
    ("A table cup at the beach.", ("cup",)),
    ("The red.", ("the red",)),
    ("It.", ("it",)),
    ("No cup on a table.", ("no",)),
)


@pytest.mark.parametrize(("text", "unread"), UNREAD, ids=[text for text, _ in UNREAD])
def test_what_cannot_be_read_is_named_and_not_guessed(text: str, unread: tuple[str, ...]) -> None:
    verdict = judge(text, TABLE_SCENE)
    assert verdict.true is None and verdict.unread == unread


def test_a_sentence_without_a_claim_has_no_truth() -> None:
    assert judge("A picture.", TABLE_SCENE).true is None
