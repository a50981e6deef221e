"""Reads scene graphs off parsed sentences: the rules.

Nouns with what stands before them, adjectives said of them, prepositions and verbs that join two of them. Small parsers err
on what captions are full of ("a ball left of a cup" has no verb; "an orange cup" is no fruit), so noun phrases and expressions
of place are read off the words and tags, and the parse decides only what it is good at: what a verb's subject is, and
what a phrase belongs to.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unimo_ds.augment.graph_nodes import ADVERBS_OF_PLACE, Attribute, Determiner, Relation, SceneGraph, SceneObject, role_of
from unimo_ds.augment.spatial import EXPRESSIONS, PLACES
from unimo_ds.augment.word_lists import COLOURS, MATERIALS, NUMBER_WORDS, PERSON_NOUNS, words

_LIGHT_VERBS = words(
    "be have see show place locate feature depict display picture position contain appear do can there seem situate set"
)
"""Verbs that say of a picture's things no more than that they are there."""

_NO_ATTRIBUTES = words("""
    other several many few same different various own such first last next more most single multiple numerous countless
    another every each all some any both certain only left right top bottom
    """)
_MANY = words("several many few some various multiple numerous countless all any these those both")
_PLURAL_ONLY = words("glasses sunglasses goggles pants jeans shorts trousers scissors clothes stairs headphones woods")
_MISTAKEN_NOUNS = words("hydrant")  # frequent in COCO's captions, and an adjective to small English models
_PRONOUNS = words("it them him her")
_POSSESSIVES = words("its his her their")
_SUBJECTS = ("nsubj", "nsubjpass")
_MODIFIERS = ("JJ", "JJR", "JJS", "VBN", "VBG", "CD", "RB", "HYPH")

_EXPRESSION_TREE: dict[str, list[tuple[str, ...]]] = {}
for _expression in sorted((tuple(text.split()) for text in EXPRESSIONS), key=len, reverse=True):
    _EXPRESSION_TREE.setdefault(_expression[0], []).append(_expression)


@dataclass(frozen=True, slots=True)
class _Expression:
    """A relation expression by its tokens, with the pronoun that it refers back by (`above it`, `to its left`)."""

    first: int
    end: int
    words: str
    meaning: str
    pronoun: str = ""


class SentenceReader:
    """Reads the scene graph off one parsed sentence: its tokens as plain lists, and what has been found in them.

    Args:
        document: a spaCy document, tagged, parsed and lemmatised.
    """

    def __init__(self, document: Any) -> None:
        tokens = list(document)
        self.text: str = document.text
        self.starts: list[int] = [token.idx for token in tokens]
        self.ends: list[int] = [token.idx + len(token) for token in tokens]
        # "American" keeps its capital, the first word of a sentence does not.
        self.words: list[str] = [
            token.text if token.i and token.text[0].isupper() and token.tag_ == "JJ" else token.lower_ for token in tokens
        ]
        self.tags: list[str] = ["NN" if token.lower_ in _MISTAKEN_NOUNS else token.tag_ for token in tokens]
        self.deps: list[str] = [token.dep_ for token in tokens]
        self.heads: list[int] = [token.head.i for token in tokens]
        self.lemmas: list[str] = [token.lemma_.lower() for token in tokens]
        self.subject_of = {self.heads[place]: place for place, dep in enumerate(self.deps) if dep in _SUBJECTS}
        self.expressions = self._find_expressions()
        self.in_expression = {place for found in self.expressions for place in range(found.first, found.end)}
        self.objects: list[SceneObject] = []
        self.attributes: list[list[Attribute]] = []
        self.object_at: dict[int, int] = {}  # every token of a noun phrase -> the object's number
        self.object_from: dict[int, int] = {}  # its first token -> the object's number
        self.head_tokens: list[int] = []

    def graph(self) -> SceneGraph:
        """The scene graph; to be asked for once."""
        place = 0
        while place < len(self.words):
            if self.words[place] in ADVERBS_OF_PLACE:
                self._add_object(
                    SceneObject(
                        self.words[place],
                        self.starts[place],
                        self.ends[place],
                        self.starts[place],
                        self.starts[place],
                        False,
                        "bare",
                        1,
                        (),
                        "setting",
                    ),
                    [],
                    place,
                    place,
                )
            elif self._is_noun(place):
                place = self._read_noun_phrase(place)
            place += 1
        self._read_predicates()
        relations = self._look_through_frames(self._read_relations())
        objects = [
            replace(thing, attributes=tuple(sorted(attributes, key=lambda attribute: attribute.start)))
            for thing, attributes in zip(self.objects, self.attributes, strict=True)
        ]
        for number, thing in enumerate(objects):
            if thing.determiner == "the":
                objects[number] = replace(thing, same_as=_antecedent(objects[:number], thing))
        return SceneGraph(self.text, tuple(objects), tuple(relations))

    # noun phrases

    def _is_noun(self, place: int) -> bool:
        if not self.tags[place].startswith("NN") or place in self.in_expression or self.words[place] in ADVERBS_OF_PLACE:
            return False
        # "the ball is orange"
        return not (self.words[place] in COLOURS and self.deps[place] in ("attr", "acomp", "oprd"))

    def _read_noun_phrase(self, first: int) -> int:
        """Adds the noun phrase whose first noun is at `first`; returns the place of its last noun."""
        head = first
        while head + 1 < len(self.words) and self._is_noun(head + 1) and self._modifies_next(head):
            head += 1
        if head > first and self.tags[head] == "NNS" and self._is_one(first):
            self.tags[head] = "VBZ"  # "a helmet with a visor rests": the verb was taken for a noun
            self.subject_of[head] = self.head_tokens[0] if self.head_tokens else head - 1
            head -= 1
        start = first
        while start and self._is_premodifier(start - 1, head):
            start -= 1
        while self.tags[start] in ("CC", ","):
            start += 1
        determiner, count, core, number_span = self._read_determiner(start, head)
        start = min(start, core)
        if self.words[start] == "no":
            return head
        attributes = [
            Attribute(self.words[place], self.starts[place], self.ends[place], self._form(place))
            for place in range(core, head)
            if self._is_attribute(place)
        ]
        noun = head
        while noun > first and not self._is_attribute(noun - 1):
            noun -= 1
        plural = self.tags[head].endswith("S") or (count or 1) > 1
        last = self._singular(head) if plural else self.words[head]
        lemma = " ".join([*self.words[noun:head], last])
        if plural and determiner == "a":
            determiner, count = "many", None  # "a few dogs"
        if determiner != "number":
            count = None if plural else 1
        thing = SceneObject(
            lemma,
            self.starts[noun],
            self.ends[head],
            self.starts[start],
            self.starts[core],
            plural,
            determiner,
            count,
            (),
            role_of(lemma),
            None,
            number_span,
        )
        self._add_object(thing, attributes, start, head)
        return head

    def _add_object(self, thing: SceneObject, attributes: list[Attribute], start: int, head: int) -> None:
        number = len(self.objects)
        self.objects.append(thing)
        self.attributes.append(attributes)
        self.head_tokens.append(head)
        self.object_from[start] = number
        self.object_at.update((place, number) for place in range(start, head + 1))

    def _singular(self, place: int) -> str:
        """The lemma of a plural; the lemmatiser lets through plurals that it takes for names or verbs."""
        word, lemma = self.words[place], self.lemmas[place]
        if word in _PLURAL_ONLY:
            return word
        return lemma[:-1] if lemma == word and re.search(r"[^su]s$", word) else lemma

    def _is_one(self, first: int) -> bool:
        """Whether `a` or `an` stands before the noun at `first` and its adjectives, and nothing like `few`."""
        place = first - 1
        while place >= 0 and self._is_attribute(place):
            place -= 1
        return place >= 0 and self.words[place] in ("a", "an")

    def _modifies_next(self, place: int) -> bool:
        word, follower = self.words[place], self.words[place + 1]
        return (
            self.deps[place] in ("compound", "amod", "nmod")
            or word in COLOURS
            or word in MATERIALS
            or follower in _MISTAKEN_NOUNS
        )

    def _is_premodifier(self, place: int, head: int) -> bool:
        """Whether the token belongs to the noun phrase of the noun at `head`, given that all tokens between do."""
        if place in self.in_expression or place in self.object_at:
            return False
        tag = self.tags[place]
        if tag in ("DT", "PDT", "PRP$", "JJ", "CD") or self.words[place] in COLOURS:
            return self.words[place + 1] not in _DETERMINERS
        inside = place < self.heads[place] <= head
        if tag in ("CC", ",") and place and self._is_attribute(place - 1):
            # "a black and white photograph", but not "a cup that is red and white cups"
            return self.heads[place - 1] == head or (place - 1 < self.heads[place - 1] <= head)
        return tag in _MODIFIERS and inside and self.deps[place] in ("amod", "advmod", "nummod", "compound", "punct", "nmod")

    def _read_determiner(self, start: int, head: int) -> tuple[Determiner, int | None, int, tuple[int, int] | None]:
        """The kind of determiner, the count it gives, the place after it, and the span of a number word."""
        kind: Determiner = "bare"
        place = start
        while place < head:
            word, tag = self.words[place], self.tags[place]
            if tag == "CD" or word in NUMBER_WORDS:
                value = NUMBER_WORDS.get(word, int(word) if word.isdecimal() and len(word) < 7 else None)
                return "number", value, place + 1, (self.starts[place], self.ends[place])
            if word in _MANY:
                kind = "many"
            elif word in ("a", "an", "another", "each", "every"):
                kind = "a"
            elif tag in ("DT", "PDT", "PRP$"):
                kind = "the"
            else:
                break
            place += 1
        if kind == "bare" and start and self.tags[start - 1] == "POS":
            kind = "the"
        return kind, None, place, None

    def _is_attribute(self, place: int) -> bool:
        word, tag = self.words[place], self.tags[place]
        if word in _NO_ATTRIBUTES:
            return False
        return tag in ("JJ", "VBN", "VBG") or (tag.startswith("NN") and (word in COLOURS or word in MATERIALS))

    def _form(self, place: int) -> str:
        return "JJ" if self.tags[place].startswith("NN") else self.tags[place]

    # what verbs say

    def _read_predicates(self) -> None:
        """`the cup is red`; `a man sits`, `a sitting man`: what the subject is or does."""
        for place, tag in enumerate(self.tags):
            if place in self.object_at or place in self.in_expression:
                continue
            if (tag in ("JJ", "VBN") or self.words[place] in COLOURS) and self._is_predicate(place):
                subject = self._subject(self.heads[place])
                if subject is not None and self.words[place] not in _NO_ATTRIBUTES:
                    self.attributes[subject].append(
                        Attribute(self.words[place], self.starts[place], self.ends[place], self._form(place))
                    )
            elif tag.startswith("VB") and self.lemmas[place] not in _LIGHT_VERBS and not self.deps[place].startswith("aux"):
                subject = self._subject(place)
                if subject is not None:
                    self.attributes[subject].append(
                        Attribute(self.lemmas[place], self.starts[place], self.ends[place], tag, action=True)
                    )

    def _is_predicate(self, place: int) -> bool:
        """Whether an adjective is said of the subject of its verb; also the second of two: `red outside and white inside`."""
        dep, head = self.deps[place], self.heads[place]
        if dep == "conj" and head != place and self.tags[head] == "JJ" and head not in self.object_at:
            self.heads[place] = self.heads[head]
            return self._is_predicate(head)
        return dep in ("acomp", "attr", "oprd") and self.tags[head].startswith("VB")

    def _subject(self, verb: int, depth: int = 6) -> int | None:
        """The object that a verb is said of."""
        if verb in self.subject_of:
            found = self.subject_of[verb]
            if found in self.object_at:
                return self.object_at[found]
            if self.tags[found] in ("WDT", "WP"):
                return self.object_at.get(self.heads[verb])
            return None
        head = self.heads[verb]
        if not depth or head == verb:
            return None
        if head in self.object_at:
            return self.object_at[head] if self.deps[verb] in ("acl", "relcl", "amod") else None
        return self._subject(head, depth - 1) if self.tags[head].startswith("VB") else None

    # relations

    def _find_expressions(self) -> list[_Expression]:
        found, place = [], 0
        while place < len(self.words):
            expression = self._expression_at(place)
            if expression:
                found.append(expression)
            place = expression.end if expression else place + 1
        return found

    def _expression_at(self, place: int) -> _Expression | None:
        if self.words[place] in ("to", "on", "at") and tuple(self.words[place + 1 : place + 3]) in _SIDES_OF_IT:
            side = self.words[place + 2]
            if self.words[place + 3 : place + 4] != ["hand"]:
                return _Expression(place, place + 3, f"{self.words[place]} the {side}", side, self.words[place + 1])
        for expression in _EXPRESSION_TREE.get(self.words[place], ()):
            end = place + len(expression)
            if tuple(self.words[place:end]) != expression or end == len(self.words):
                continue
            if len(expression) == 1 and self.tags[place] not in ("IN", "TO", "RP", "RB"):
                continue
            text = " ".join(expression)
            pronoun = self.words[end] if self.tags[end] == "PRP" and self.words[end] in _PRONOUNS else ""
            return _Expression(place, end, text, EXPRESSIONS[text], pronoun)
        return None

    def _read_relations(self) -> list[Relation]:
        relations = [*self._verb_relations()]
        backward = []
        for expression in self.expressions:
            if expression.pronoun:
                backward.append(expression)
                continue
            target = self.object_from.get(expression.end)
            subject = self._bearer(expression)
            if target is not None and subject is not None and subject != target:
                relations.append(self._relation(subject, expression, target))
        for expression in backward:
            guest = self._bearer(expression)
            host = self._host_of(guest, expression, relations)
            if guest is not None and host is not None:
                relations.append(self._relation(guest, expression, host))
        placed = {relation.subject for relation in relations if relation.meaning in PLACES}
        # "a box with a cup on it" says no more than "a cup on a box"
        kept = [found for found in relations if not (found.meaning == "with" and found.object in placed)]
        return sorted(kept, key=lambda relation: relation.start)

    def _look_through_frames(self, relations: Sequence[Relation]) -> list[Relation]:
        """What a group of people does, the people do; that a picture is of them says nothing."""
        shown = {
            found.subject: found.object
            for found in relations
            if found.meaning == "of" and self.objects[found.subject].role == "frame"
        }
        for frame, content in shown.items():
            self.attributes[content] += [attribute for attribute in self.attributes[frame] if attribute.action]
            self.attributes[frame] = [attribute for attribute in self.attributes[frame] if not attribute.action]
        return [
            replace(found, subject=shown.get(found.subject, found.subject))
            for found in relations
            if not (found.meaning == "of" and found.subject in shown)
        ]

    def _relation(self, subject: int, expression: _Expression, target: int) -> Relation:
        start, end = self.starts[expression.first], self.ends[expression.end - 1]
        form = "back" if expression.pronoun else "preposition"
        return Relation(subject, expression.words, expression.meaning, target, start, end, form)

    def _verb_relations(self) -> Iterator[Relation]:
        for place, verb in enumerate(self.heads):
            if self.deps[place] != "dobj" or place not in self.object_at or place < verb:
                continue
            lemma = self.lemmas[verb]
            if lemma in _LIGHT_VERBS and lemma != "have":
                continue
            subject, target = self._subject(verb), self.object_at[place]
            if subject is not None and subject != target:
                meaning = "with" if lemma == "have" else lemma
                yield Relation(subject, self.words[verb], meaning, target, self.starts[verb], self.ends[verb], self.tags[verb])

    def _bearer(self, expression: _Expression) -> int | None:
        """The object that an expression is said of: the subject of the verb that it belongs to, else the noun before it."""
        before = expression.first - 1
        while before >= 0 and self.tags[before] == "RB":
            before -= 1
        beside = self.object_at.get(before) if before >= 0 and before in self.head_tokens else None
        head, seen = self.heads[expression.first], {expression.first}
        while head not in seen and (head in self.in_expression or self.tags[head] in ("JJR", "RB", "IN")):
            seen.add(head)
            head = self.heads[head]
        if self.tags[head].startswith("VB") and head not in self.object_at:
            if beside is not None and (self.lemmas[head] in _LIGHT_VERBS or expression.meaning in ("left", "right", "of")):
                return beside
            subject = self._subject(head)
            if subject is not None:
                return subject
        if beside is not None:
            return beside
        if head in self.object_at:
            return self.object_at[head]
        earlier = [number for number, noun in enumerate(self.head_tokens) if noun < expression.first]
        return earlier[-1] if earlier else None

    def _host_of(self, guest: int | None, expression: _Expression, relations: Sequence[Relation]) -> int | None:
        """What `it` is in `a box with a cup on it`: who has the cup, else the first thing before that the pronoun fits."""
        has_guest = {found.subject for found in relations if found.object == guest and found.meaning == "with"}
        fitting = [
            number
            for number, thing in enumerate(self.objects)
            if number != guest
            and self.head_tokens[number] < expression.first
            and thing.role != "frame"
            and expression.pronoun in _pronouns_of(thing)
        ]
        return next((number for number in fitting if number in has_guest), fitting[0] if fitting else None)


def _pronouns_of(thing: SceneObject) -> tuple[str, ...]:
    if thing.plural:
        return ("them", "their")
    return ("him", "his", "her") if thing.lemma.rsplit(" ", 1)[-1] in PERSON_NOUNS else ("it", "its")


_DETERMINERS = words("a an the this that these those its his her their my our")
_SIDES_OF_IT = {(owner, side) for owner in _POSSESSIVES for side in ("left", "right")}


def _antecedent(before: Sequence[SceneObject], thing: SceneObject) -> int | None:
    """The last object spoken of with the same noun and no other looks."""
    looks = {attribute.lemma for attribute in thing.attributes if not attribute.action}
    for number in range(len(before) - 1, -1, -1):
        other = before[number]
        other_looks = {attribute.lemma for attribute in other.attributes}
        if (other.lemma, other.plural) == (thing.lemma, thing.plural) and looks <= other_looks:
            return number if other.same_as is None else other.same_as
    return None
