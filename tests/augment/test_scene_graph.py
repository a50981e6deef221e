"""Captions to scene graphs: the world's, the photographs', and ordinary ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unimo_ds.augment.scene_graph import CaptionParser, SceneGraph
from unimo_ds.errors import UnimoError

Read = Callable[..., list[SceneGraph]]


def objects_of(graph: SceneGraph) -> list[str]:
    """Each object with its looks: `tiny red cup`; what a text speaks of again is left out."""
    return [
        " ".join([*(look.lemma for look in thing.attributes if not look.action), thing.lemma])
        for thing in graph.objects
        if thing.same_as is None
    ]


def relations_of(graph: SceneGraph) -> list[str]:
    """`cup on table`, with the nouns of both ends."""
    return [
        f"{graph.objects[found.subject].lemma} {found.meaning} {graph.objects[found.object].lemma}" for found in graph.relations
    ]


WORLD = [
    (
        "A purple boat to the right of a tiny black cup, with a drum to the left of the boat.",
        ["purple boat", "tiny black cup", "drum"],
        ["boat right cup", "drum left boat"],
    ),
    ("An orange ball is higher than a huge orange ball.", ["orange ball", "huge orange ball"], ["ball above ball"]),
    ("A chair right of a small purple house.", ["chair", "small purple house"], ["chair right house"]),
    ("A yellow box that has a tiny white lamp in it.", ["yellow box", "tiny white lamp"], ["lamp in box"]),
    ("A purple boat that has a cup to its left.", ["purple boat", "cup"], ["cup left boat"]),
    ("A purple box with a blue bell on its right.", ["purple box", "blue bell"], ["bell right box"]),
    ("A hat with a little key beneath it.", ["hat", "little key"], ["key below hat"]),
    ("A green table that has a book on top of it.", ["green table", "book"], ["book on table"]),
    (
        "In front of a striped wall, a blue clock is on the left of a green car.",
        ["striped wall", "blue clock", "green car"],
        ["clock front wall", "clock left car"],
    ),
    (
        "On a snowy day, there is a red book left of an orange apple.",
        ["snowy day", "red book", "orange apple"],
        ["book left apple"],
    ),
    (
        "Two things indoors: a tiny umbrella and a large green clock.",
        ["thing", "indoors", "tiny umbrella", "large green clock"],
        [],
    ),
    ("A black bottle can be seen on top of a large orange box.", ["black bottle", "large orange box"], ["bottle on box"]),
    ("A key can be seen lower than a hat.", ["key", "hat"], ["key below hat"]),
]

ORDINARY = [
    (
        "A fire hydrant on the sidewalk next to a parked car.",
        ["fire hydrant", "sidewalk", "parked car"],
        ["fire hydrant on sidewalk"],
    ),
    ("A man riding a brown horse on the beach.", ["man", "brown horse", "beach"], ["man on beach"]),
    ("Two dogs are playing with a red frisbee in the park.", ["dog", "red frisbee", "park"], ["frisbee in park"]),
    ("A woman holding a tennis racket stands on a court.", ["woman", "tennis racket", "court"], ["woman hold tennis racket"]),
    (
        "A plate of food with broccoli and meat on a wooden table.",
        ["plate", "food", "broccoli", "meat", "wooden table"],
        ["plate of food"],
    ),
    ("Several people are standing in front of a large red bus.", ["people", "large red bus"], ["people front bus"]),
    ("A cat sitting on top of a laptop computer.", ["cat", "laptop computer"], ["cat on laptop computer"]),
    (
        "The kitchen has white cabinets and a black stove.",
        ["kitchen", "white cabinet", "black stove"],
        ["kitchen with cabinet"],
    ),
    (
        "A young boy is wearing a blue shirt and holding a baseball bat.",
        ["young boy", "blue shirt", "baseball bat"],
        ["boy wear shirt", "boy hold baseball bat"],
    ),
    ("There are three zebras grazing in a grassy field.", ["zebra", "grassy field"], ["zebra in field"]),
    (
        "A group of people sitting at a table with glasses of wine.",
        ["group", "people", "table", "glasses", "wine"],
        ["people at table"],
    ),
    ("A train traveling down tracks near a station.", ["train", "track", "station"], ["train near station"]),
    (
        "A bathroom with a white toilet and a sink under a mirror.",
        ["bathroom", "white toilet", "sink", "mirror"],
        ["sink below mirror"],
    ),
    ("Two giraffes standing next to each other in a zoo.", ["giraffe", "zoo"], ["giraffe in zoo"]),
    (
        "A man in a black suit and a red tie is talking on a cell phone.",
        ["man", "black suit", "red tie", "cell phone"],
        ["man in suit"],
    ),
    ("A bunch of bananas hanging from a tree.", ["bunch", "banana", "tree"], ["banana from tree"]),
    (
        "A close-up of a pizza with cheese and green peppers.",
        ["close-up", "pizza", "cheese", "green pepper"],
        ["pizza with cheese"],
    ),
    (
        "An old-fashioned clock hangs on a brick wall above a door.",
        ["old-fashioned clock", "brick wall", "door"],
        ["clock on wall"],
    ),
    (
        "A dog with a stick in its mouth runs through the snow.",
        ["dog", "stick", "mouth", "snow"],
        ["stick in mouth", "dog through snow"],
    ),
    (
        "The little girl is sitting on a bench with an umbrella above her.",
        ["little girl", "bench", "umbrella"],
        ["girl on bench", "umbrella above girl"],
    ),
    ("A couple of birds perched on a wire.", ["couple", "bird", "wire"], ["bird on wire"]),
    ("A white and black cow stands behind a fence.", ["white black cow", "fence"], ["cow behind fence"]),
    ("A bed with a blue blanket and two pillows.", ["bed", "blue blanket", "pillow"], ["bed with blanket"]),
    ("A large airplane is flying over a city at night.", ["large airplane", "city", "night"], ["airplane above city"]),
    ("Some boats are floating on the water near a bridge.", ["boat", "water", "bridge"], ["boat on water"]),
    (
        "A vase filled with yellow flowers sits on a table.",
        ["vase", "yellow flower", "table"],
        ["vase full flower", "vase on table"],
    ),
    ("A person's hand holding a small green apple.", ["person", "hand", "small green apple"], ["hand hold apple"]),
    (
        "A camera on a three-legged stand is in front of a man.",
        ["camera", "three-legged stand", "man"],
        ["camera on stand", "camera front man"],
    ),
    ("A cup that is red outside and white inside holds coffee.", ["red white cup", "coffee"], ["cup hold coffee"]),
    ("A helmet with a black visor rests in front of a woman.", ["helmet", "black visor", "woman"], ["helmet front woman"]),
    (
        "A flag is to the left of a woman and a rocket is to her right.",
        ["flag", "woman", "rocket"],
        ["flag left woman", "rocket right woman"],
    ),
    (
        "A man bends over a camera with tall buildings far behind him.",
        ["man", "camera", "tall building"],
        ["building behind man"],
    ),
    ("Trees surround a colourful tower with a lake behind it.", ["tree", "colourful tower", "lake"], ["lake behind tower"]),
]


@pytest.mark.parametrize(("text", "objects", "relations"), WORLD + ORDINARY)
def test_objects_and_relations(read: Read, text: str, objects: list[str], relations: list[str]) -> None:
    (graph,) = read(text)
    assert objects_of(graph) == objects
    assert set(relations) <= set(relations_of(graph))


@pytest.mark.parametrize(
    ("text", "count", "determiner", "plural"),
    [
        ("A cup.", 1, "a", False),
        ("Three orange cups.", 3, "number", True),
        ("One cup.", 1, "number", False),
        ("The cups.", None, "the", True),
        ("Several old cups.", None, "many", True),
        ("A few red cups.", None, "many", True),
        ("12 cups.", 12, "number", True),
        ("Hot coffee.", 1, "bare", False),
    ],
)
def test_number_and_determiner(read: Read, text: str, count: int | None, determiner: str, plural: bool) -> None:
    thing = read(text)[0].objects[0]
    assert (thing.count, thing.determiner, thing.plural) == (count, determiner, plural)


def test_spans_are_characters_of_the_text(read: Read) -> None:
    text = "We see two tiny space suits left of an orange ball."
    (graph,) = read(text)
    suits, ball = graph.objects
    assert suits.lemma == "space suit"
    assert text[suits.start : suits.end] == "space suits"
    assert text[suits.phrase_start : suits.end] == "two tiny space suits"
    assert text[suits.core_start : suits.end] == "tiny space suits"
    assert suits.number_span is not None and text[slice(*suits.number_span)] == "two"
    assert [text[look.start : look.end] for look in ball.attributes] == ["orange"]
    (relation,) = graph.relations
    assert text[relation.start : relation.end] == "left of"


def test_the_same_thing_again(read: Read) -> None:
    (graph,) = read("A black hat is on a box, and a blue bell is above the hat.")
    assert [thing.same_as for thing in graph.objects] == [None, None, None, 0]
    (graph,) = read("A black hat is on a box, and the blue hat is above the box.")
    assert [thing.same_as for thing in graph.objects] == [None, None, None, 1]  # another hat


def test_actions_are_no_looks(read: Read) -> None:
    (graph,) = read("A smiling man sits on a bench.")
    assert [(look.lemma, look.action) for look in graph.objects[0].attributes] == [("smiling", False), ("sit", True)]


def test_roles(read: Read) -> None:
    (graph,) = read("A picture of a dog on a beach at night.")
    assert [(thing.lemma, thing.role) for thing in graph.objects] == [
        ("picture", "frame"),
        ("dog", "thing"),
        ("beach", "setting"),
        ("night", "time"),
    ]


@pytest.mark.parametrize(
    "text", ["", " ", ".", "Running quickly!", "left of", "to its left", "with", "No.", "🙂", "a " * 200, "-", "a-"]
)
def test_texts_without_objects(read: Read, text: str) -> None:
    (graph,) = read(text)
    assert graph.text == text
    assert graph.relations == ()


def test_order_is_kept(parser: CaptionParser) -> None:
    texts = [f"A cup and {number} balls." for number in range(2, 30)]
    assert [graph.text for graph in parser.parse(texts, batch=4)] == texts


def test_photographs(parser: CaptionParser) -> None:
    """No caption of the committed photographs is without an object, and every span is inside its text."""
    content = json.loads(Path("photos/captions.json").read_text())
    for graph in parser.parse(annotation["caption"] for annotation in content["annotations"]):
        assert graph.objects
        for thing in graph.objects:
            assert 0 <= thing.phrase_start <= thing.core_start <= thing.start < thing.end <= len(graph.text)


def test_a_missing_model_says_what_to_install() -> None:
    with pytest.raises(UnimoError, match="pip install no_such_model"):
        CaptionParser.load("no_such_model")
