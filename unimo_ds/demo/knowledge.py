"""What the demo world's texts know and its pictures and captions never say: kinds, uses, places, parts, materials.

The facts are a table; the corpus says each of them in many ways. A model that answers "What color is the container?" of
a picture must have learnt from the texts that a cup is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimo_ds.demo.grammar import as_sentence, with_article
from unimo_ds.demo.objects import KIND_BY_NAME


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one kind.

    `uses` are what people do with one (`{it}` stands for `a cup`); `habits` what it does itself, as (one does, many do);
    `places` carry their preposition; `parts` are singular nouns; `materials` mass nouns.
    """

    category: str
    places: tuple[str, ...]
    parts: tuple[str, ...]
    materials: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    habits: tuple[tuple[str, str], ...] = ()


FACTS: dict[str, Facts] = {
    "cup": Facts(
        "container",
        ("in the kitchen", "in a cupboard"),
        ("handle", "rim"),
        ("porcelain", "clay"),
        ("drink tea from {it}", "fill {it} with hot coffee", "wash {it} after breakfast"),
    ),
    "ball": Facts(
        "toy",
        ("on a playground", "in a stadium"),
        ("round surface", "seam"),
        ("rubber", "leather"),
        ("throw {it}", "kick {it}", "play football with {it}"),
        (("rolls down a hill", "roll down a hill"), ("bounces", "bounce")),
    ),
    "house": Facts(
        "building",
        ("in a village", "in a street"),
        ("roof", "door", "chimney"),
        ("brick", "stone"),
        ("live in {it}", "sleep in {it}", "build {it} for a family"),
        (("keeps out the rain", "keep out the rain"),),
    ),
    "tree": Facts(
        "plant",
        ("in a forest", "in a park"),
        ("trunk", "branch", "root"),
        (),
        ("climb {it}", "rest in the shade of {it}", "cut wood from {it}"),
        (("grows slowly", "grow slowly"), ("loses its leaves in autumn", "lose their leaves in autumn")),
    ),
    "car": Facts(
        "vehicle",
        ("on the road", "in a garage"),
        ("engine", "wheel", "windscreen"),
        ("steel", "aluminium"),
        ("drive {it} to work", "park {it} near the shop", "travel in {it}"),
        (("burns petrol", "burn petrol"),),
    ),
    "boat": Facts(
        "vehicle",
        ("on the water", "in a harbour"),
        ("sail", "hull", "mast"),
        ("timber", "fibreglass"),
        ("cross a lake in {it}", "steer {it} with a rudder", "catch herring from {it}"),
        (("floats", "float"),),
    ),
    "fish": Facts(
        "animal",
        ("in a river", "in the ocean", "in an aquarium"),
        ("fin", "gill", "tail"),
        (),
        ("catch {it} with a net", "cook {it} for dinner"),
        (("swims", "swim"), ("breathes under water", "breathe under water")),
    ),
    "cat": Facts(
        "animal",
        ("near the stove", "on a sofa"),
        ("tail", "paw", "whisker"),
        (),
        ("keep {it} as a pet", "feed {it} with milk", "stroke {it}"),
        (("catches mice", "catch mice"), ("purrs", "purr"), ("sleeps for hours", "sleep for hours")),
    ),
    "star": Facts(
        "heavenly body",
        ("in space", "in a galaxy"),
        ("hot core",),
        ("hydrogen", "helium"),
        ("watch {it} through a telescope", "steer a ship by {it}"),
        (("gives off light", "give off light"), ("burns for billions of years", "burn for billions of years")),
    ),
    "hat": Facts(
        "garment",
        ("in a wardrobe", "on a hook by the entrance"),
        ("brim", "ribbon"),
        ("felt", "straw"),
        ("wear {it}", "lift {it} to greet a lady", "hang {it} on a hook"),
        (("keeps the head warm", "keep the head warm"),),
    ),
    "book": Facts(
        "source of stories",
        ("in a library", "on a shelf", "in a school"),
        ("page", "cover", "spine"),
        ("paper", "cardboard"),
        ("read {it}", "write {it}", "borrow {it} from the library"),
        (("tells a story", "tell stories"),),
    ),
    "lamp": Facts(
        "electric device",
        ("on a desk", "beside a bed"),
        ("bulb", "shade", "switch"),
        ("brass", "iron"),
        ("switch {it} on in the evening", "read by the light of {it}"),
        (("needs electricity", "need electricity"),),
    ),
    "chair": Facts(
        "piece of furniture",
        ("in an office", "in a classroom"),
        ("seat", "backrest", "leg"),
        ("oak", "plastic"),
        ("rest on {it}", "take a seat on {it}", "pull up {it}"),
    ),
    "table": Facts(
        "piece of furniture",
        ("in the dining hall", "in a restaurant"),
        ("smooth surface", "leg", "drawer"),
        ("oak", "pine"),
        ("eat at {it}", "work at {it}", "lay {it} for dinner"),
    ),
    "box": Facts(
        "container",
        ("in a warehouse", "in the attic"),
        ("lid", "bottom", "corner"),
        ("cardboard", "plywood"),
        ("pack gifts into {it}", "store old letters in {it}", "send {it} by post"),
    ),
    "bottle": Facts(
        "container",
        ("in a cellar", "in a bar"),
        ("neck", "cork", "label"),
        ("glass", "plastic"),
        ("pour wine from {it}", "open {it} with a corkscrew", "store milk in {it}"),
    ),
    "key": Facts(
        "tool",
        ("in a pocket", "in a lock"),
        ("bit", "bow"),
        ("brass", "steel"),
        ("open a door with {it}", "start an engine with {it}", "lose {it}"),
        (("fits only one lock", "fit only one lock"),),
    ),
    "umbrella": Facts(
        "tool",
        ("in a hallway", "in a handbag"),
        ("canopy", "hooked grip", "rib"),
        ("nylon", "silk"),
        ("carry {it} in the rain", "fold {it} after a shower", "open {it} in bad weather"),
        (("keeps people dry", "keep people dry"),),
    ),
    "flower": Facts(
        "plant",
        ("in a garden", "in a vase"),
        ("petal", "stem", "root"),
        (),
        ("water {it}", "pick {it} for a friend", "smell {it}"),
        (("blooms in spring", "bloom in spring"), ("attracts bees", "attract bees")),
    ),
    "apple": Facts(
        "fruit",
        ("in an orchard", "at the market"),
        ("peel", "core", "seed"),
        (),
        ("eat {it}", "bake a cake with {it}", "press juice from {it}"),
        (("ripens in autumn", "ripen in autumn"), ("tastes sweet", "taste sweet")),
    ),
    "clock": Facts(
        "instrument",
        ("at a station", "in a church tower"),
        ("dial", "pendulum", "spring"),
        ("brass", "steel"),
        ("tell the time by {it}", "wind {it} every morning", "wake up by {it}"),
        (("ticks", "tick"), ("counts the hours", "count the hours")),
    ),
    "kite": Facts(
        "toy",
        ("in a toy shop", "over windy hills"),
        ("string", "frame", "tail"),
        ("paper", "silk"),
        ("fly {it} in the wind", "hold {it} by its string"),
        (("rises in the wind", "rise in the wind"),),
    ),
    "bell": Facts(
        "instrument",
        ("in a church tower", "in a school"),
        ("clapper", "crown"),
        ("bronze", "iron"),
        ("ring {it}", "call pupils to class with {it}"),
        (("rings loudly", "ring loudly"),),
    ),
    "drum": Facts(
        "instrument",
        ("in an orchestra", "in a marching band"),
        ("skin", "shell", "hoop"),
        ("maple", "calfskin"),
        ("beat {it} with sticks", "keep the rhythm on {it}"),
        (("makes a deep sound", "make a deep sound"),),
    ),
}

_CATEGORY_PLURALS = {
    "heavenly body": "heavenly bodies",
    "source of stories": "sources of stories",
    "piece of furniture": "pieces of furniture",
    "fruit": "fruits",
}
_CATEGORY_LORE: dict[str, tuple[str, ...]] = {
    "container": ("containers hold other things", "a container can be full or empty"),
    "toy": ("children play with toys", "toys make children happy"),
    "building": ("buildings have walls and windows", "an architect plans a building"),
    "plant": ("plants need water and sunlight", "every plant has roots"),
    "vehicle": ("vehicles carry people and goods", "a vehicle takes us from one town to another"),
    "animal": ("animals eat and breathe", "every animal needs food"),
    "heavenly body": ("heavenly bodies are very far away",),
    "garment": ("a garment keeps us warm", "a tailor sews garments"),
    "source of stories": ("stories teach us about other lives",),
    "electric device": ("electric devices need a socket",),
    "piece of furniture": ("furniture makes a home comfortable", "a carpenter makes furniture"),
    "tool": ("tools help people with their work", "a good tool lasts for years"),
    "fruit": ("fruit is healthy", "fruits contain vitamins"),
    "instrument": ("an instrument must be built with care",),
}

_CATEGORY_FORMS = (
    "{a} is {a_category}",
    "{a} counts as {a_category}",
    "every {one} is {a_category}",
    "{many} are {categories}",
    "all {many} are {categories}",
    "among {categories}, {many} are well known",
    "one well-known {category} is the {one}",
)
_PLACE_FORMS = (
    "{a} is often found {value}",
    "you can find {many} {value}",
    "look for {a} {value}",
    "{many} are usually kept or seen {value}",
    "people expect {a} {value}",
    "if you need {a}, look {value}",
)
_PART_FORMS = (
    "{a} has {a_value}",
    "the {value} is a part of {a}",
    "most {many} have {a_value}",
    "{many} usually have {a_value}",
    "without its {value}, {a} is not complete",
)
_MATERIAL_FORMS = (
    "{a} is made of {value}",
    "{many} are often made of {value}",
    "{value} is used to make {many}",
    "some {many} are made of {value}",
)
_USE_FORMS = ("people {value}", "you can {value}", "many people {value}", "we often {value}", "some people like to {value}")
_PAIR_FORMS = (
    "{a} and {b} are both {categories}",
    "like {a}, {b} is {a_category}",
    "both {many} and {b_many} are {categories}",
)
_CONTRAST_FORMS = (
    "{a} is {a_category}, but {b} is {b_category}",
    "unlike {a}, {b} is {b_category}",
    "{a} is {a_category} while {b} is {b_category}",
)


def category_of(kind: str) -> str:
    return FACTS[kind].category


def fact_table() -> list[dict[str, str]]:
    """Every fact as {kind, relation, value}, for tests of what a model has learnt."""
    rows: list[dict[str, str]] = []
    for kind, facts in FACTS.items():
        values: list[tuple[str, Sequence[str]]] = [
            ("is a", (facts.category,)),
            ("found", facts.places),
            ("has part", facts.parts),
            ("made of", facts.materials),
            ("used to", [use.format(it=with_article(kind)) for use in facts.uses]),
            ("does", [single for single, _ in facts.habits]),
        ]
        rows += [{"kind": kind, "relation": name, "value": value} for name, group in values for value in group]
    return rows


def sentences_about(kind: str) -> list[str]:
    """Everything the corpus can say of one kind, without capital and full stop; the ways to name its category first."""
    facts = FACTS[kind]
    words = _words(kind)
    said = [form.format(**words) for form in _CATEGORY_FORMS]
    said += [form.format(value=value, **words) for value in facts.places for form in _PLACE_FORMS]
    said += [form.format(value=part, a_value=with_article(part), **words) for part in facts.parts for form in _PART_FORMS]
    said += [form.format(value=material, **words) for material in facts.materials for form in _MATERIAL_FORMS]
    said += [form.format(value=use.format(it=words["a"])) for use in facts.uses for form in _USE_FORMS]
    for single, several in facts.habits:
        said += [f"{words['a']} {single}", f"{words['many']} {several}", f"every {kind} {single}"]
    return said


def paragraph(kind: str, rng: np.random.Generator) -> str:
    """Three to eight sentences about one kind: its category, what else is known of it, now and then another kind."""
    own = sentences_about(kind)
    opening = own[int(rng.integers(len(_CATEGORY_FORMS)))]
    count = int(rng.integers(2, 7))
    rest = [own[int(place)] for place in rng.choice(np.arange(len(_CATEGORY_FORMS), len(own)), count, replace=False)]
    said = [opening, *rest]
    lore = _CATEGORY_LORE[category_of(kind)]
    if rng.random() < 0.4:
        said.insert(1, lore[int(rng.integers(len(lore)))])
    if rng.random() < 0.5 and len(said) < 8:
        said.append(_comparison(kind, rng))
    return " ".join(as_sentence(text) for text in said)


def corpus(seed: int, paragraphs: int, held_out: bool = False) -> str:
    """`paragraphs` paragraphs, one a line with a blank line between; each kind gets its turn.

    Held-out ones are other paragraphs of the same sentences: the facts are those that the training texts tell.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, 0x7E88 if held_out else 0x7E87)))
    kinds = list(FACTS)
    texts: list[str] = []
    while len(texts) < paragraphs:
        texts += [paragraph(kinds[int(place)], rng) for place in rng.permutation(len(kinds))]
    return "\n\n".join(texts[:paragraphs]) + "\n"


def _words(kind: str) -> dict[str, str]:
    category = category_of(kind)
    return {
        "one": kind,
        "a": with_article(kind),
        "many": KIND_BY_NAME[kind].plural,
        "category": category,
        "a_category": with_article(category),
        "categories": _CATEGORY_PLURALS.get(category, f"{category}s"),
    }


def _comparison(kind: str, rng: np.random.Generator) -> str:
    others = [other for other in FACTS if other != kind]
    related = [other for other in others if category_of(other) == category_of(kind)]
    alike = bool(related) and rng.random() < 0.5
    pool = related if alike else [other for other in others if other not in related]
    other = _words(pool[int(rng.integers(len(pool)))])
    forms = _PAIR_FORMS if alike else _CONTRAST_FORMS
    form = forms[int(rng.integers(len(forms)))]
    return form.format(b=other["a"], b_many=other["many"], b_category=other["a_category"], **_words(kind))
