"""What must be false of an image by its captions, and which texts say the same."""

from collections.abc import Callable

import pytest

from unimo_ds.augment.described_image import DescribedImage, same_meaning
from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.scene_graph import SceneGraph

Read = Callable[..., list[SceneGraph]]

CAPTIONS = (
    "A small red cup to the left of a wooden table on a snowy day.",
    "A mug and a table.",
    "A red cup beside a table, and two dogs under the table.",
)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ("A lamp on a table.", "object not in the image: lamp"),
        ("A blue cup.", "attribute excluded: blue cup (red)"),
        ("A huge mug.", "attribute excluded: huge mug (small)"),
        ("A red cup to the right of a table.", "relation excluded: cup right table (left)"),
        ("A wooden table to the left of a cup.", "relation excluded: table left cup (right)"),
        ("A red cup on a table.", "relation excluded: cup on table (left)"),
    ],
)
def test_contradicts(read: Read, lexicon: Lexicon, candidate: str, reason: str) -> None:
    assert DescribedImage(read(*CAPTIONS), lexicon).contradicts(read(candidate)[0]) == reason


@pytest.mark.parametrize(
    "candidate",
    [
        *CAPTIONS,
        "A tiny cup.",  # tiny is small
        "A crimson cup.",  # crimson is a red
        "A plain cup.",  # says nothing of colour or size
        "A mug left of a table.",
        "A table to the right of a cup.",
        "An old table.",
        "A picture of a cup.",
        "A cup in a room.",  # a place that nobody named
        "A cup in the snow.",  # a word of it is there: snowy
        "A person with a cup.",  # people are often left out
        "Puppies under a table.",
        "",
    ],
)
def test_may_be_true(read: Read, lexicon: Lexicon, candidate: str) -> None:
    assert DescribedImage(read(*CAPTIONS), lexicon).contradicts(read(candidate)[0]) is None


@pytest.mark.parametrize(
    ("captions", "candidate"),
    [
        (("A red cup and a blue cup.", "A red cup."), "A blue cup."),
        (("A red cup.", "A blue cup."), "A green cup."),  # two cups at least, maybe three
        (("A small red cup.", "A blue cup."), "A large cup."),  # the blue one may be large
        (("A red cup above a cup.",), "A blue cup."),  # nobody said the colour of the second
        (("A cup left of a cup.",), "A cup right of a cup."),
        (("A cup left of a box.", "Two cups and a box."), "A cup right of a box."),  # another cup
        (("A red cup.", "Some cups."), "A green cup."),
        (("A cup on a box.", "A cup above a box."), "A cup below a table."),
    ],
)
def test_does_not_decide_between_things_of_one_name(
    read: Read, lexicon: Lexicon, captions: tuple[str, ...], candidate: str
) -> None:
    reason = DescribedImage(read(*captions), lexicon).contradicts(read(candidate)[0])
    assert reason is None or reason.startswith("object not in the image: table")


def test_decides_where_all_things_of_one_name_are_alike(read: Read, lexicon: Lexicon) -> None:
    described = DescribedImage(read("Two red cups.", "A cup on a table."), lexicon)
    assert described.contradicts(read("A blue cup.")[0]) == "attribute excluded: blue cup (red)"
    assert described.contradicts(read("Three cups.")[0]) == "count too high: 3 cup (2)"
    assert described.contradicts(read("Two cups.")[0]) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A small red cup on a table.", "A little red cup on top of a table."),
        ("A cup to the left of a box.", "A box to the right of a cup."),
        ("A key above a hat.", "A hat with a key above it."),
        ("A key above a hat.", "A hat below a key."),
        ("There is a cup and a box.", "A box and a cup."),
        ("A picture of a cup.", "An image of a cup."),
        ("In the snow, a cup is on a box.", "A cup on a box in the snow."),
        ("A sofa in a meadow.", "A couch in a field."),
        ("", ""),
    ],
)
def test_same_meaning(read: Read, lexicon: Lexicon, one: str, other: str) -> None:
    graphs = read(one, other)
    assert same_meaning(graphs[0], graphs[1], lexicon) is None
    assert same_meaning(graphs[1], graphs[0], lexicon) is None


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("A red cup on a table.", "A red cup.", "object missing"),
        ("A red cup.", "A red cup on a table.", "object added"),
        ("A red cup.", "A red bowl.", "object missing"),
        ("A red cup.", "A blue cup.", "attribute or count differs"),
        ("A red cup.", "A cup.", "attribute or count differs"),
        ("A red cup and a blue box.", "A blue cup and a red box.", "attribute or count differs"),
        ("Two cups.", "Three cups.", "attribute or count differs"),
        ("A red cup.", "Red cups.", "attribute or count differs"),
        ("A man sits.", "A man stands.", "attribute or count differs"),
        ("A cup left of a box.", "A cup right of a box.", "relation differs"),
        ("A cup left of a box.", "A box left of a cup.", "relation differs"),
        ("A cup on a box.", "A cup under a box.", "relation differs"),
        ("A cup on a box.", "A cup and a box.", "relation differs"),
        ("A man rides a horse.", "A man leads a horse.", "attribute or count differs"),
    ],
)
def test_another_meaning(read: Read, lexicon: Lexicon, one: str, other: str, kind: str) -> None:
    graphs = read(one, other)
    reason = same_meaning(graphs[0], graphs[1], lexicon)
    assert reason is not None and reason.partition(":")[0] == kind
    assert same_meaning(graphs[1], graphs[0], lexicon) is not None
