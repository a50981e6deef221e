"""What the captions of one image say together, and what must therefore be false of it.

Captions leave most things out, so a claim is taken for false only if it clashes with what they do say: it names an object of
which none of them speaks, or gives the things of one name a look that excludes the one which all of them have, or
turns a relation round. Where two things share a name, no claim about one of them is decided by what is said of the other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from unimo_ds.augment.graph_nodes import Attribute, Role, SceneGraph
from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.spatial import EXCLUDES, MIRRORED
from unimo_ds.augment.word_lists import COMMON_NOUNS

Exclusive = Callable[[str, str], bool]

_SHORTEST_STEM = 4  # of a noun that is looked for in other words: snow in snowy, skateboard in skateboarding
_ANY_PLACE = frozenset({"on", "in", "at", "during", "by"})
_SAME_RELATION = {"near": "beside", "onto": "on", "into": "in", "top": "on"}


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing that a caption speaks of, once or several times (`a red cup ... the cup`).

    Attributes:
        lemma: its noun.
        looks: the lemmas of its attributes; `actions`: of the verbs said of it.
        count: of how many things it speaks; None: not said.
        role: as of the scene object.
    """

    lemma: str
    looks: frozenset[str]
    actions: frozenset[str]
    count: int | None
    role: Role


@dataclass(frozen=True, slots=True)
class Bond:
    """A relation between entities, by their numbers in a caption."""

    subject: int
    meaning: str
    object: int


@dataclass(frozen=True, slots=True)
class Caption:
    """The entities of a caption, the relations between them, and the entity of each object of its graph."""

    entities: tuple[Entity, ...]
    bonds: tuple[Bond, ...]
    entity_of: tuple[int, ...]


def read_caption(graph: SceneGraph) -> Caption:
    """Joins the phrases of a graph that speak of one thing."""
    firsts = [number for number, thing in enumerate(graph.objects) if thing.same_as is None]
    place = {number: position for position, number in enumerate(firsts)}
    entity_of = tuple(place[number if thing.same_as is None else thing.same_as] for number, thing in enumerate(graph.objects))
    said: list[list[Attribute]] = [[] for _ in firsts]
    for entity, thing in zip(entity_of, graph.objects, strict=True):
        said[entity] += thing.attributes
    entities = tuple(
        Entity(
            graph.objects[number].lemma,
            frozenset(attribute.lemma for attribute in attributes if not attribute.action),
            frozenset(attribute.lemma for attribute in attributes if attribute.action),
            graph.objects[number].count,
            graph.objects[number].role,
        )
        for number, attributes in zip(firsts, said, strict=True)
    )
    bonds = tuple(Bond(entity_of[found.subject], found.meaning, entity_of[found.object]) for found in graph.relations)
    return Caption(entities, bonds, entity_of)


class DescribedImage:
    """Everything that the captions of one image say; made once an image, then asked about many candidates.

    Args:
        of_image: the graphs of all its captions.
        lexicon: which words say the same.
    """

    def __init__(self, of_image: Sequence[SceneGraph], lexicon: Lexicon) -> None:
        self.texts = frozenset(graph.text for graph in of_image)
        self.captions = [read_caption(graph) for graph in of_image]
        self._lexicon = lexicon
        # Everything is an object or part of a scene: such nouns name nothing.
        entities = [entity for caption in self.captions for entity in caption.entities if entity.role != "frame"]
        self._nouns = {noun for entity in entities for noun in (entity.lemma, *entity.lemma.split(" "))}
        self._words = {word.strip(".,;:!?\"'()").lower() for text in self.texts for word in text.split()}
        self._named: dict[str, bool] = {}
        self._mentions: dict[str, list[list[Entity]]] = {}

    def names(self, noun: str) -> bool:
        """Whether a caption may speak of such a thing: by that noun, a related one, or a word made from it."""
        found = self._named.get(noun)
        if found is None:
            related = self._lexicon.related
            found = self._named[noun] = (
                noun in self._words
                or any(related(noun, other, "noun") for other in self._nouns)
                or (len(noun) >= _SHORTEST_STEM and any(word.startswith(noun) for word in self._words))
            )
        return found

    def excluding(self, noun: str, look: str, exclusive: Exclusive) -> str | None:
        """The attribute because of which no thing called `noun` has the attribute `look`, or None where one might.

        Needs a caption that speaks of as many such things as any does and gives each an attribute that excludes `look`, while
        no caption gives `look` or anything like it to such a thing.
        """
        mentions = self.mentions(noun)
        most = self.most(noun)
        if not most or any(
            self._lexicon.related(look, other, "adj") for things in mentions for thing in things for other in thing.looks
        ):
            return None
        for things in mentions:
            if _total(things) == most:
                reasons = [next((other for other in sorted(thing.looks) if exclusive(look, other)), None) for thing in things]
                if all(reasons):
                    return reasons[0]
        return None

    def most(self, noun: str) -> float:
        """How many things of that name there are at least by the captions; infinite where a caption does not count them."""
        mentions = self.mentions(noun)
        most = max(map(_total, mentions), default=0)
        if most == 1 and self._differ([thing for things in mentions for thing in things]):
            return 2
        return most

    def mentions(self, noun: str) -> list[list[Entity]]:
        """For each caption the things in it that may be called `noun`."""
        if noun not in self._mentions:
            self._mentions[noun] = [
                [
                    entity
                    for entity in caption.entities
                    if entity.lemma == noun or (entity.role != "frame" and self.same_kind(noun, entity.lemma))
                ]
                for caption in self.captions
            ]
        return self._mentions[noun]

    def same_kind(self, first: str, second: str) -> bool:
        """Whether two nouns may be said of one thing."""
        return self._lexicon.related(first, second, "noun") not in (None, "part")

    def excludes_bond(self, subject: str, meaning: str, target: str, instead_of: str) -> bool:
        """Whether `subject meaning target` is false because `subject instead_of target` is true.

        So it is if either name is one thing's alone, the names are not of one kind, and no caption states it.
        """
        if meaning not in EXCLUDES.get(instead_of, ()) or self.same_kind(subject, target):
            return False
        if self.most(subject) != 1 or self.most(target) != 1:
            return False
        mirrored = MIRRORED.get(meaning)
        return not any(
            (bond.meaning == meaning and self._joins(caption, bond, subject, target))
            or (bond.meaning == mirrored and self._joins(caption, bond, target, subject))
            for caption in self.captions
            for bond in caption.bonds
        )

    def contradicts(self, candidate: SceneGraph) -> str | None:
        """Why a caption must be false of the image, as `kind of reason: detail`; None where it might be true."""
        caption = read_caption(candidate)
        for entity in caption.entities:
            if entity.role != "thing" or entity.lemma.rsplit(" ", 1)[-1] in COMMON_NOUNS:
                continue
            if not self.names(entity.lemma):
                return f"object not in the image: {entity.lemma}"
            for look in sorted(entity.looks):
                if reason := self.excluding(entity.lemma, look, self._lexicon.exclusive):
                    return f"attribute excluded: {look} {entity.lemma} ({reason})"
            most = self.most(entity.lemma)
            if entity.count is not None and entity.count > most and sum(map(bool, self.mentions(entity.lemma))) > 1:
                return f"count too high: {entity.count} {entity.lemma} ({int(most)})"
        for bond in caption.bonds:
            subject, target = caption.entities[bond.subject].lemma, caption.entities[bond.object].lemma
            if true := self._excluding_bond(subject, bond.meaning, target):
                return f"relation excluded: {subject} {bond.meaning} {target} ({true})"
        return None

    def _excluding_bond(self, subject: str, meaning: str, target: str) -> str | None:
        """The relation stated by a caption that excludes the given one."""
        for caption in self.captions:
            for bond in caption.bonds:
                stated = bond.meaning
                if not self._joins(caption, bond, subject, target):
                    if stated not in MIRRORED or not self._joins(caption, bond, target, subject):
                        continue
                    stated = MIRRORED[stated]
                if self.excludes_bond(subject, meaning, target, stated):
                    return stated
        return None

    def _joins(self, caption: Caption, bond: Bond, subject: str, target: str) -> bool:
        first, second = caption.entities[bond.subject].lemma, caption.entities[bond.object].lemma
        return self.same_kind(first, subject) and self.same_kind(second, target)

    def _differ(self, things: Sequence[Entity]) -> bool:
        """Whether two of them cannot be one thing."""
        looks = sorted({look for thing in things for look in thing.looks})
        return any(self._lexicon.exclusive(one, other) for place, one in enumerate(looks) for other in looks[place + 1 :])


def same_meaning(caption: SceneGraph, candidate: SceneGraph, lexicon: Lexicon) -> str | None:
    """Why two texts do not say the same, as `kind of reason: detail`; None where they do.

    They do if they speak of the same things up to synonyms, with the same attributes, actions and counts, and state the same
    relations, whichever end they are told from.
    """
    one, other = read_caption(caption), read_caption(candidate)
    pairs = _pair_entities(one, other, lexicon)
    if isinstance(pairs, str):
        return pairs
    ours = _facts(one, lambda number: pairs[number])
    theirs = _facts(other, lambda number: number)
    if ours != theirs:
        odd = sorted(ours ^ theirs, key=str)[0]
        side = other.entities
        ends = [side[number].lemma for number in odd if isinstance(number, int) and number >= 0]
        return f"relation differs: {odd[1]} ({', '.join(ends)})"
    return None


def _pair_entities(one: Caption, other: Caption, lexicon: Lexicon) -> dict[int, int] | str:
    """Which entity of `other` each of `one` is, or why they cannot be paired; nouns that frame a picture do not count."""
    free = [number for number, entity in enumerate(other.entities) if entity.role != "frame"]
    pairs = {}
    for number, entity in enumerate(one.entities):
        if entity.role == "frame":
            continue
        named = [place for place in free if lexicon.related(entity.lemma, other.entities[place].lemma, "noun") == "synonym"]
        if not named:
            return f"object missing: {entity.lemma}"
        alike = [place for place in named if _same_look(entity, other.entities[place], lexicon)]
        if not alike:
            return f"attribute or count differs: {entity.lemma}"
        pairs[number] = alike[0]
        free.remove(alike[0])
    if free:
        return f"object added: {other.entities[free[0]].lemma}"
    return pairs


def _same_look(one: Entity, other: Entity, lexicon: Lexicon) -> bool:
    return (
        one.count == other.count
        and _same_words(one.looks, other.looks, lambda a, b: lexicon.related(a, b, "adj") == "synonym")
        and _same_words(one.actions, other.actions, lambda a, b: lexicon.related(a, b, "verb") == "synonym")
    )


def _same_words(ones: Iterable[str], others: Iterable[str], same: Callable[[str, str], bool]) -> bool:
    ones, others = set(ones), set(others)
    return ones == others or (
        len(ones) == len(others)
        and all(any(same(one, other) for other in others) for one in ones)
        and all(any(same(one, other) for one in ones) for other in others)
    )


def _facts(caption: Caption, name: Callable[[int], int]) -> set[tuple[int, str, int]]:
    """The relations as (subject, relation, object); told from the end that comes first in the alphabet of relations.

    Of a place or time it does not matter which thing a phrase stands beside: a whole scene is at night. Its subject is -1.
    """
    facts = set()
    for bond in caption.bonds:
        roles = caption.entities[bond.subject].role, caption.entities[bond.object].role
        if "frame" in roles and roles[1] not in ("setting", "time"):
            continue
        if roles[1] in ("setting", "time"):
            facts.add((-1, "in" if bond.meaning in _ANY_PLACE else bond.meaning, name(bond.object)))
        elif bond.meaning in MIRRORED and MIRRORED[bond.meaning] < bond.meaning:
            facts.add((name(bond.object), MIRRORED[bond.meaning], name(bond.subject)))
        else:
            facts.add((name(bond.subject), _SAME_RELATION.get(bond.meaning, bond.meaning), name(bond.object)))
    return facts


def _total(things: Sequence[Entity]) -> float:
    """How many things a caption's mentions speak of."""
    return sum(float("inf") if thing.count is None else thing.count for thing in things)
