"""The scene graph of a caption as data: objects with their attributes and counts, and relations between them."""

from dataclasses import dataclass
from typing import Literal

from unimo_ds.augment.word_lists import FRAME_NOUNS, SETTING_NOUNS, TIME_NOUNS

Role = Literal["thing", "setting", "time", "frame"]
ADVERBS_OF_PLACE = frozenset(["indoors", "outdoors"])
"""They say where a scene is, as a phrase with a noun does, and are objects of the graph with the role `setting`."""

Determiner = Literal["a", "the", "number", "many", "bare"]


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property said of an object.

    Attributes:
        lemma: in lower case; of what an object does, the verb's lemma.
        start, end: its characters.
        form: the tag of its word (`JJ`, `VBG`, ...).
        action: whether it is what the object does (`a sitting man`, `a man sits`).
    """

    lemma: str
    start: int
    end: int
    form: str = "JJ"
    action: bool = False


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A noun phrase.

    Attributes:
        lemma: of the noun with the nouns compounded with it: `space suit`.
        start, end: the characters of the noun, compounds included.
        phrase_start: where the phrase begins, with its determiner.
        core_start: where it begins without determiner and number; it ends at `end`.
        plural: by the noun's form.
        determiner: what introduces it; `many` stands for `several`, `some` and their like.
        count: of how many things it speaks, None where the number is not said.
        attributes: in the order of the words.
        role: `thing`, or a noun that names where, when or how something is shown.
        same_as: number of the earlier object of the graph that this phrase speaks of again (`the cup`), else None.
        number_span: the characters of the number word, else None.
    """

    lemma: str
    start: int
    end: int
    phrase_start: int
    core_start: int
    plural: bool
    determiner: Determiner
    count: int | None
    attributes: tuple[Attribute, ...]
    role: Role
    same_as: int | None = None
    number_span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """`subject` is `words` to `object`, both as numbers of objects of the graph.

    Attributes:
        words: in lower case: `to the left of`, `riding`; `to its left` counts as `to the left`.
        meaning: what the words name, by `spatial.MEANINGS`; of a verb its lemma.
        start, end: the characters of the words.
        form: `preposition`, `back` (it refers to its object by a pronoun: `above it`), or a verb's tag (`VBG`).
    """

    subject: int
    words: str
    meaning: str
    object: int
    start: int
    end: int
    form: str


@dataclass(frozen=True, slots=True)
class SceneGraph:
    """What a caption says, by numbers into `objects`."""

    text: str
    objects: tuple[SceneObject, ...] = ()
    relations: tuple[Relation, ...] = ()


def role_of(noun: str) -> Role:
    """The role of a noun or compound by the built-in lists."""
    head = noun.rsplit(" ", 1)[-1]
    for word in (noun, head):
        if word in SETTING_NOUNS:
            return "setting"
        if word in TIME_NOUNS:
            return "time"
        if word in FRAME_NOUNS:
            return "frame"
    return "thing"
