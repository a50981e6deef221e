"""What a corpus says: its objects, attributes and relations with counts, and which of them go together.

Everything is a count, so that parts of a corpus can be counted by several processes and added.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from unimo_ds.augment.graph_nodes import Relation, SceneGraph, SceneObject
from unimo_ds.errors import DataError

_PHRASES_KEPT = 50  # of one noun; drawing among more adds nothing, and memory stays bounded by the number of nouns
_LEAST_EXPECTED = 5.0  # images in which two attributes should have met by chance before their never meeting means anything
_MOST_MEETINGS = 0.05  # of those; a few meetings are errors of the parser or another object of the same name

_COUNTERS = (
    "nouns",
    "forms",
    "uses",
    "attributes",
    "noun_attributes",
    "numbers",
    "expressions",
    "slots",
    "phrases",
    "relation_phrases",
    "single_nouns",
    "single_attributes",
    "meetings",
)


class Vocabulary:
    """Counts of a corpus; keys are tuples of strings.

    Attributes:
        nouns: (noun).
        forms: (noun, `singular` or `plural`, the word as written in lower case).
        uses: (noun, how a phrase introduces it: `a`, `the`, `bare`, or `plural`).
        attributes: (attribute).
        noun_attributes: (noun, attribute).
        numbers: (number word).
        expressions: (relation, form, words): of prepositions and references back.
        slots: (noun, `subject` or `object`, relation).
        phrases: (noun, `singular` or `plural`, text): noun phrases without determiner, made of attributes and the noun alone.
        relation_phrases: (noun, form, relation, text): a relation's words with the phrase of its object, `on a red table`.
        single_nouns: (noun): images all whose captions speak of at most one thing of that name.
        single_attributes: (noun, attribute): those of them in which a caption gives that attribute to the noun.
        meetings: (attribute, attribute), in alphabetical order: those in which one noun has both.
    """

    def __init__(self) -> None:
        for name in _COUNTERS:
            setattr(self, name, Counter[tuple[str, ...]]())

    nouns: Counter[tuple[str, ...]]
    forms: Counter[tuple[str, ...]]
    uses: Counter[tuple[str, ...]]
    attributes: Counter[tuple[str, ...]]
    noun_attributes: Counter[tuple[str, ...]]
    numbers: Counter[tuple[str, ...]]
    expressions: Counter[tuple[str, ...]]
    slots: Counter[tuple[str, ...]]
    phrases: Counter[tuple[str, ...]]
    relation_phrases: Counter[tuple[str, ...]]
    single_nouns: Counter[tuple[str, ...]]
    single_attributes: Counter[tuple[str, ...]]
    meetings: Counter[tuple[str, ...]]

    def add(self, of_image: Sequence[SceneGraph]) -> None:
        """Counts the captions of ONE image: what different people say of one thing tells which attributes go together."""
        for graph in of_image:
            for thing in graph.objects:
                self._add_object(graph.text, thing)
            for relation in graph.relations:
                self._add_relation(graph, relation)
        self._add_meetings(of_image)

    def merge(self, other: "Vocabulary") -> None:
        """Adds the counts of another part of the corpus."""
        for name, counts in self._counters():
            counts.update(getattr(other, name))

    def freeze(self, minimum_count: int = 2) -> "Vocabulary":
        """A copy without nouns, attributes and relation words seen less often, and with the frequent phrases of each noun."""
        kept = Vocabulary()
        nouns = {noun for (noun,), count in self.nouns.items() if count >= minimum_count}
        attributes = {attribute for (attribute,), count in self.attributes.items() if count >= minimum_count}
        for name, counts in self._counters():
            target: Counter[tuple[str, ...]] = getattr(kept, name)
            if name in ("nouns", "forms", "uses", "slots", "single_nouns"):
                target.update({key: count for key, count in counts.items() if key[0] in nouns})
            elif name in ("attributes", "meetings"):
                target.update({key: count for key, count in counts.items() if attributes.issuperset(key)})
            elif name in ("noun_attributes", "single_attributes"):
                target.update({key: count for key, count in counts.items() if key[0] in nouns and key[1] in attributes})
            elif name in ("phrases", "relation_phrases"):
                target.update(_most_frequent(counts, nouns))
            else:
                target.update({key: count for key, count in counts.items() if count >= minimum_count})
        return kept

    def save(self, path: Path) -> None:
        """Writes JSON: for each kind of count rows of key parts and count, most frequent first."""
        content = {
            name: [[*key, count] for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
            for name, counts in self._counters()
        }
        rows = ",\n".join(
            f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in entries) + "\n]"
            for name, entries in content.items()
        )
        path.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
            DataError: the file cannot be read or holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            vocabulary = cls()
            for name, counts in vocabulary._counters():
                counts.update({tuple(map(str, key)): int(count) for *key, count in content[name]})
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is no vocabulary of captions ({error!r}); remove it, it is made anew") from error
        return vocabulary

    def exclusive(self, first: str, second: str) -> bool:
        """Whether the corpus shows that no thing has both attributes.

        They are given to the same nouns, in so many images that they should often meet in one by chance, and never do.
        """
        expected = self._expected[first].get(second, 0.0)
        met = self.meetings[min(first, second), max(first, second)]
        return first != second and expected >= _LEAST_EXPECTED and met <= _MOST_MEETINGS * expected

    @cached_property
    def _expected(self) -> "_ExpectedMeetings":
        return _ExpectedMeetings(self)

    def _counters(self) -> Iterator[tuple[str, Counter[tuple[str, ...]]]]:
        return ((name, getattr(self, name)) for name in _COUNTERS)

    def _add_object(self, text: str, thing: SceneObject) -> None:
        number = "plural" if thing.plural else "singular"
        self.nouns[thing.lemma,] += 1
        self.forms[thing.lemma, number, _as_inside(text, thing.start, thing.end)] += 1
        self.uses[thing.lemma, "plural" if thing.plural else thing.determiner] += 1
        if thing.number_span is not None:
            self.numbers[text[slice(*thing.number_span)].lower(),] += 1
        for attribute in thing.attributes:
            if not attribute.action:
                self.attributes[attribute.lemma,] += 1
                self.noun_attributes[thing.lemma, attribute.lemma] += 1
        if _is_plain(text, thing):
            self.phrases[thing.lemma, number, _as_inside(text, thing.core_start, thing.end)] += 1

    def _add_relation(self, graph: SceneGraph, relation: Relation) -> None:
        subject, target = graph.objects[relation.subject], graph.objects[relation.object]
        self.slots[subject.lemma, "subject", relation.meaning] += 1
        self.slots[target.lemma, "object", relation.meaning] += 1
        if relation.form in ("preposition", "back"):
            self.expressions[relation.meaning, relation.form, relation.words] += 1
        follows = graph.text[relation.end : target.phrase_start] == " "
        if (
            relation.form != "back"
            and follows
            and target.same_as is None
            and target.determiner in ("a", "the", "bare")
            and _is_plain(graph.text, target)
        ):
            words = _as_inside(graph.text, relation.start, target.end)
            self.relation_phrases[target.lemma, relation.form, relation.meaning, words] += 1

    def _add_meetings(self, of_image: Sequence[SceneGraph]) -> None:
        looks: defaultdict[str, set[str]] = defaultdict(set)
        several: set[str] = set()
        for graph in of_image:
            seen: set[str] = set()
            for thing in graph.objects:
                looks[thing.lemma].update(attribute.lemma for attribute in thing.attributes if not attribute.action)
                if thing.same_as is None and (thing.lemma in seen or thing.count != 1):
                    several.add(thing.lemma)
                seen.add(thing.lemma)
        for noun in looks.keys() - several:
            ordered = sorted(looks[noun])
            self.single_nouns[noun,] += 1
            self.single_attributes.update((noun, attribute) for attribute in ordered)
            self.meetings.update((first, second) for place, first in enumerate(ordered) for second in ordered[place + 1 :])


class _ExpectedMeetings(dict[str, dict[str, float]]):
    """In how many images two attributes would meet on one noun if they were given to it independently; made row by row."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._images = vocabulary.single_nouns
        self._of_noun: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self._of_attribute: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for (noun, attribute), count in vocabulary.single_attributes.items():
            self._of_noun[noun].append((attribute, count))
            self._of_attribute[attribute].append((noun, count))

    def __missing__(self, attribute: str) -> dict[str, float]:
        row: defaultdict[str, float] = defaultdict(float)
        for noun, count in self._of_attribute.get(attribute, ()):
            for other, other_count in self._of_noun[noun]:
                row[other] += count * other_count / self._images[noun,]
        # Only these decide anything, and most attributes never meet: else the rows would be attributes times attributes.
        self[attribute] = {other: expected for other, expected in row.items() if expected >= _LEAST_EXPECTED}
        return self[attribute]


def _as_inside(text: str, start: int, end: int) -> str:
    """A piece of a sentence as it reads in the middle of one."""
    piece = text[start:end]
    return piece[0].lower() + piece[1:] if start == 0 else piece


def _is_plain(text: str, thing: SceneObject) -> bool:
    """Whether a phrase has no words but determiner, attributes and noun, each of them understood."""
    if text[thing.phrase_start] in ",-":
        return False
    looks = [text[attribute.start : attribute.end] for attribute in thing.attributes if attribute.end <= thing.start]
    return text[thing.core_start : thing.end].split() == " ".join([*looks, text[thing.start : thing.end]]).split()


def _most_frequent(counts: Counter[tuple[str, ...]], nouns: set[str]) -> dict[tuple[str, ...], int]:
    of_noun: defaultdict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    for key, count in counts.items():
        if key[0] in nouns:
            of_noun[key[:-1]].append((-count, key))
    return {key: -count for rows in of_noun.values() for count, key in sorted(rows)[:_PHRASES_KEPT]}
