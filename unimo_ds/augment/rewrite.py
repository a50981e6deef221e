"""Hard negatives of a caption: one node of its scene graph replaced, so that one detail decides (UNIMO, section 2.2).

At word level a noun, an attribute, a number or a relation becomes another of the corpus's vocabulary; at phrase level a noun
phrase, or a relation with its object. The captions of the image as a whole (`DescribedImage`) decide what may come in: what
might be true of the picture as well stays out.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from unimo_ds.augment.described_image import Caption, DescribedImage, read_caption
from unimo_ds.augment.graph_nodes import ADVERBS_OF_PLACE, Attribute, Relation, SceneGraph, SceneObject, role_of
from unimo_ds.augment.inflection import plural
from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.spatial import EXCLUDES, EXPRESSIONS, MIRRORED, PLACES
from unimo_ds.augment.template import Template
from unimo_ds.augment.usage import NounUsage, by_count
from unimo_ds.augment.vocabulary import Vocabulary
from unimo_ds.augment.word_lists import COLOURS, COMMON_NOUNS, NUMBER_WORDS, PERSON_NOUNS, SIZES
from unimo_ds.errors import UnimoError
from unimo_ds.rewrites import Rewrite

# N nouns of the vocabulary, A alternatives of one

_ALTERNATIVES = 200  # nouns kept for each noun, most similar in use
_MOST_NOUNS = 5_000  # of the vocabulary, most frequent: the matrix of their features is dense
_RAREST_USE = 0.02  # of a noun's uses: below it is an error of the parser that coffee comes as `a coffee`
_ROUNDS = 8  # phrases tried with each noun
_UNLIKE = 0.05  # added to a cosine, so that a noun used quite differently comes in now and then
_SAME_CATEGORY = 1.0  # added for a noun of the same kind: in a small corpus it tells more than the use
_FIT = 1.5  # added to the logarithm for a noun seen after the same relation, and for one seen with the same attribute
_CACHED = 1 << 14
_LIST_WORDS = frozenset({"thing", "object", "item"})
_NOT_NAMES = frozenset({"background", "backdrop", "someone", "somebody"})
_NEVER_SWAPPED = _NOT_NAMES | ADVERBS_OF_PLACE
_NEVER_PUT_IN = _NOT_NAMES | COMMON_NOUNS | COLOURS
_ANY_NOUN_WEARS = COLOURS | SIZES

_PERSONAL = re.compile(r"\b(?:he|she|him|his|her)\b")

PLACE = "place"
TextsOf = dict[str, list[str]]  # noun -> texts


@dataclass(frozen=True)
class _Task:
    """One caption to rewrite; `described` is what all captions of its image say."""

    graph: SceneGraph
    caption: Caption
    described: DescribedImage
    rng: np.random.Generator

    def phrases_of(self, number: int) -> list[SceneObject]:
        """The phrases that speak of an object, that one first."""
        entity_of, objects = self.caption.entity_of, self.graph.objects
        others = (place for place, entity in enumerate(entity_of) if entity == entity_of[number] and place != number)
        return [objects[number], *(objects[place] for place in others)]


class NegativeRewriter:
    """Makes false captions at word and phrase level.

    Args:
        vocabulary: of the corpus, frozen.
        lexicon: which words say the same.

    Raises:
        UnimoError: the vocabulary has no objects.
    """

    def __init__(self, vocabulary: Vocabulary, lexicon: Lexicon) -> None:
        if not vocabulary.nouns:
            raise UnimoError(
                "the vocabulary of the captions has no objects: no noun was found often enough. Give more captions, in English."
            )
        self._vocabulary, self._lexicon = vocabulary, lexicon
        self._nouns = [noun for (noun,), _ in sorted(vocabulary.nouns.items(), key=by_count)[:_MOST_NOUNS]]
        self._usage = NounUsage(vocabulary, self._nouns)
        self._forms = _most_common_forms(vocabulary)
        self._phrases = _phrases(vocabulary)
        self._relation_phrases = _relation_phrases(vocabulary)
        self._expressions = _expressions(vocabulary)
        self._numbers = sorted((NUMBER_WORDS[word], word) for (word,) in vocabulary.numbers if word in NUMBER_WORDS)
        self._alternatives = lru_cache(_CACHED)(self._find_alternatives)
        self._looks_instead = lru_cache(_CACHED)(self._find_looks_instead)

    def negatives(
        self,
        graph: SceneGraph,
        of_image: Sequence[SceneGraph] | DescribedImage,
        wanted: int,
        rng: np.random.Generator,
    ) -> list[Rewrite]:
        """Up to `wanted` false captions, spread evenly over the nodes of the graph and the ways to change them.

        Args:
            graph: of the caption to rewrite.
            of_image: the graphs of all captions of its image, or what was made of them.
            wanted: most rewrites.
            rng: draws the replacements.
        """
        described = of_image if isinstance(of_image, DescribedImage) else DescribedImage(of_image, self._lexicon)
        sources = self._sources(_Task(graph, read_caption(graph), described, rng))
        found: dict[str, Rewrite] = {}
        while sources and len(found) < wanted:
            alive = []
            for source in sources:
                for rewrite in source:
                    if rewrite.text not in found and rewrite.text not in described.texts:
                        found[rewrite.text] = rewrite
                        alive.append(source)
                        break
                if len(found) == wanted:
                    break
            sources = alive
        return list(found.values())

    def _sources(self, task: _Task) -> list[Iterator[Rewrite]]:
        """One stream of rewrites for each node and way to change it."""
        sources = []
        for number, thing in enumerate(task.graph.objects):
            if thing.same_as is None:
                sources.append(self._other_objects(task, number))
                sources.append(self._other_phrases(task, number))
                sources += [self._other_looks(task, number, look) for look in thing.attributes if not look.action]
                sources.append(self._other_numbers(task, number))
                if thing.lemma in ADVERBS_OF_PLACE:
                    sources.append(self._other_ends(task, number, thing.start, PLACE))
        for relation in task.graph.relations:
            sources.append(self._other_relations(task, relation))
            sources.append(self._other_relation_phrases(task, relation))
        return sources

    # word level

    def _other_objects(self, task: _Task, number: int) -> Iterator[Rewrite]:
        """`a red cup` -> `a red ball`."""
        thing = task.graph.objects[number]
        if not self._may_be_swapped(task, thing):
            return
        phrases = task.phrases_of(number)
        template = Template(task.graph.text, [(phrase.start, phrase.end) for phrase in phrases])
        meanings = {found.meaning for found in task.graph.relations if found.object == number}
        for noun in self._draw_nouns(task, number):
            if thing.role == "setting" and not any((noun, "object", meaning) in self._vocabulary.slots for meaning in meanings):
                continue
            filled = template.fill([self._form(noun, phrase.plural) for phrase in phrases])
            if filled:
                yield Rewrite(filled[0], "word", f"object: {thing.lemma} -> {noun}", filled[1])

    def _other_looks(self, task: _Task, number: int, look: Attribute) -> Iterator[Rewrite]:
        """`a red cup` -> `a blue cup`."""
        thing = task.graph.objects[number]
        if thing.role == "frame":
            return
        spans = [
            (other.start, other.end)
            for phrase in task.phrases_of(number)
            for other in phrase.attributes
            if other.lemma == look.lemma
        ]
        template = Template(task.graph.text, spans)
        looks = self._looks_instead(look.lemma)
        for place in task.rng.permutation(len(looks)).tolist():
            new = looks[place]
            if not self._suits(thing.lemma, new) or not task.described.excluding(thing.lemma, new, self._exclusive):
                continue
            if filled := template.fill([new] * len(spans)):
                yield Rewrite(filled[0], "word", f"attribute: {look.lemma} -> {new} (of {thing.lemma})", filled[1])

    def _other_numbers(self, task: _Task, number: int) -> Iterator[Rewrite]:
        """`two cups` -> `three cups`; fewer than there are would still be there."""
        thing = task.graph.objects[number]
        if thing.number_span is None or thing.count is None or not thing.plural:
            return
        old = task.graph.text[slice(*thing.number_span)].lower()
        if thing.lemma in _LIST_WORDS:  # "three things: a cup, a ball and a box"
            stated = {other.count for things in task.described.mentions(thing.lemma) for other in things}
            new_words = [word for value, word in self._numbers if value > 1 and value not in stated]
        else:
            new_words = [word for value, word in self._numbers if value > task.described.most(thing.lemma)]
        template = Template(task.graph.text, [thing.number_span])
        for word in new_words:
            if word != old and (filled := template.fill([word])):
                yield Rewrite(filled[0], "word", f"count: {old} -> {word} (of {thing.lemma})", filled[1])

    def _other_relations(self, task: _Task, relation: Relation) -> Iterator[Rewrite]:
        """`left of a cup` -> `right of a cup`."""
        if relation.form not in ("preposition", "back"):
            return
        subject, target = (task.graph.objects[end] for end in (relation.subject, relation.object))
        template = Template(task.graph.text, [(relation.start, relation.end)])
        for meaning in EXCLUDES.get(relation.meaning, ()):
            plausible = meaning == MIRRORED.get(relation.meaning) or (target.lemma, "object", meaning) in self._vocabulary.slots
            if not plausible or not task.described.excludes_bond(subject.lemma, meaning, target.lemma, relation.meaning):
                continue
            for words in self._words_instead(task, relation, meaning):
                if filled := template.fill([words]):
                    yield Rewrite(filled[0], "word", f"relation: {relation.words} -> {words}", filled[1])

    def _words_instead(self, task: _Task, relation: Relation, meaning: str) -> Sequence[str]:
        """The expressions of another relation that fit in this one's place; `to its left` can only become `to its right`."""
        written = task.graph.text[relation.start : relation.end]
        if relation.form == "back" and written.lower() != relation.words:
            if meaning != MIRRORED[relation.meaning]:
                return ()
            return (written.replace(relation.meaning, meaning),)
        return self._expressions.get((meaning, relation.form), ())

    # phrase level

    def _other_phrases(self, task: _Task, number: int) -> Iterator[Rewrite]:
        """`a small orange cup` -> `a black dog`."""
        thing = task.graph.objects[number]
        if not self._may_be_swapped(task, thing) or thing.role == "setting":
            return
        phrases = task.phrases_of(number)
        template = Template(task.graph.text, [(phrase.core_start, phrase.end) for phrase in phrases])
        old = task.graph.text[thing.core_start : thing.end]
        for noun, new in self._draw_texts(task, number, self._phrases["plural" if thing.plural else "singular"]):
            if filled := template.fill([new, *(self._form(noun, phrase.plural) for phrase in phrases[1:])]):
                yield Rewrite(filled[0], "phrase", f"phrase: {old} -> {new}", filled[1])

    def _other_relation_phrases(self, task: _Task, relation: Relation) -> Iterator[Rewrite]:
        """`on a red table` -> `in a small box`, `riding a horse` -> `holding a flag`."""
        kind = _exchange(relation.form, relation.meaning)
        if kind is None or self._is_held(task, relation, kind):
            return
        yield from self._other_ends(task, relation.object, relation.start, kind)

    def _other_ends(self, task: _Task, number: int, start: int, kind: str) -> Iterator[Rewrite]:
        """Other phrases of a kind of relation for what stands from `start` to the end of an object."""
        thing = task.graph.objects[number]
        if thing.role in ("frame", "time"):
            return
        template = Template(task.graph.text, [(start, thing.end)])
        old = task.graph.text[start : thing.end]
        for _, new in self._draw_texts(task, number, self._relation_phrases.get(kind, {}), any_use=True):
            if filled := template.fill([new]):
                yield Rewrite(filled[0], "phrase", f"phrase: {old} -> {new}", filled[1])

    @staticmethod
    def _is_held(task: _Task, relation: Relation, kind: str) -> bool:
        """Whether the rest of the sentence builds on the relation's object, so that it cannot go."""
        text, target = task.graph.text, task.graph.objects[relation.object]
        if relation.form == "back" or text[relation.end : target.phrase_start] != " ":
            return True
        if kind != PLACE and text[target.end :].lstrip(" ,").startswith(("and ", "or ")):
            return True  # "with a cup and a ball"
        return any(thing.same_as == relation.object for thing in task.graph.objects) or any(
            (found.object == relation.object and found.form == "back")
            or (found.subject == relation.object and _belongs(found, task.graph.objects[found.object]))
            for found in task.graph.relations
        )

    # what may go, and what may come in

    @staticmethod
    def _may_be_swapped(task: _Task, thing: SceneObject) -> bool:
        """Whether another noun may stand there: it shows something, and no `her` speaks of it."""
        if thing.role not in ("thing", "setting") or thing.lemma in _NEVER_SWAPPED:
            return False
        return _head(thing.lemma) not in PERSON_NOUNS or _PERSONAL.search(task.graph.text, thing.end) is None

    def _draw_nouns(self, task: _Task, number: int, any_use: bool = False) -> Iterator[str]:
        """Nouns that the image does not show, in random order, first rather those that fit the place of the old one."""
        thing = task.graph.objects[number]
        nouns, affinity_A = self._alternatives(thing.lemma, "" if any_use else _use(thing))
        slots = [("object", found.meaning) for found in task.graph.relations if found.object == number]
        looks = [look.lemma for look in thing.attributes if not look.action]
        seen = self._vocabulary.slots, self._vocabulary.noun_attributes
        fit_A = [
            any((noun, *slot) in seen[0] for slot in slots) + any((noun, look) in seen[1] for look in looks) for noun in nouns
        ]
        holds = any(found.subject == number and found.meaning == "of" for found in task.graph.relations)  # "a cup of tea"
        order_A = np.argsort(-task.rng.gumbel(size=len(nouns)) - affinity_A - _FIT * np.array(fit_A))
        for place in order_A.tolist():
            noun = nouns[place]
            if not task.described.names(noun) and not (holds and (noun, "subject", "of") not in self._vocabulary.slots):
                yield noun

    def _draw_texts(self, task: _Task, number: int, texts_of: TextsOf, any_use: bool = False) -> Iterator[tuple[str, str]]:
        """Phrases of such nouns, each noun once before any comes again."""
        nouns = [noun for noun in self._draw_nouns(task, number, any_use) if noun in texts_of]
        for chances in task.rng.random((_ROUNDS, len(nouns))).tolist():
            for noun, chance in zip(nouns, chances, strict=True):
                texts = texts_of[noun]
                yield noun, texts[int(chance * len(texts))]

    def _find_alternatives(self, noun: str, use: str) -> tuple[list[str], npt.NDArray[np.float64]]:
        """The nouns that may stand for another, and the logarithm of how alike they are used.

        Args:
            noun: the noun to replace.
            use: how it is introduced (`a`, `plural`, ...); "": whatever fits some use.
        """
        role, alike_N = role_of(noun), self._usage.alike(noun)
        nouns, alike = [], []
        for place in np.argsort(-alike_N, kind="stable").tolist():
            other = self._nouns[place]
            if (
                role_of(other) == role
                and _head(other) not in _NEVER_PUT_IN
                and (not use or self._is_used(other, use))
                and not self._lexicon.related(noun, other, "noun")
            ):
                nouns.append(other)
                alike.append(float(alike_N[place]) + _SAME_CATEGORY * self._lexicon.same_category(noun, other))
            if len(nouns) == _ALTERNATIVES:
                break
        return nouns, np.log(np.array(alike) + _UNLIKE)

    def _is_used(self, noun: str, use: str) -> bool:
        """Whether a noun comes in a use; what is counted has a plural, though the corpus may not show it."""
        uses = self._vocabulary.uses
        kinds = {"plural": ("plural", "a"), "the": ("the", "a")}.get(use, (use,))
        return sum(uses[noun, kind] for kind in kinds) > _RAREST_USE * self._vocabulary.nouns[noun,]

    def _find_looks_instead(self, look: str) -> list[str]:
        """The attributes that exclude another, by the lists of the lexicon or by what the corpus shows."""
        known = {other for (other,) in self._vocabulary.attributes}
        return sorted(other for other in known if self._exclusive(look, other))

    def _exclusive(self, first: str, second: str) -> bool:
        if self._lexicon.exclusive(first, second):
            return True
        return self._vocabulary.exclusive(first, second) and not self._lexicon.related(first, second, "adj")

    def _suits(self, noun: str, look: str) -> bool:
        """Whether people give such a look to such a noun: old coins are not young, nor is a little girl large."""
        if (noun, look) in self._vocabulary.noun_attributes:
            return True
        return look in _ANY_NOUN_WEARS and _head(noun) not in PERSON_NOUNS

    def _form(self, noun: str, is_plural: bool) -> str:
        if is_plural:
            return self._forms.get((noun, "plural")) or plural(noun)
        return self._forms.get((noun, "singular"), noun)


def _belongs(relation: Relation, target: SceneObject) -> bool:
    """Whether a relation tells a part of its subject (`a woman in a coat`) rather than where that is (`a key in a room`)."""
    return relation.meaning == "of" or (relation.meaning in ("in", "with") and target.role == "thing")


def _head(noun: str) -> str:
    return noun.rsplit(" ", 1)[-1]


def _use(thing: SceneObject) -> str:
    if thing.plural:
        return "plural"
    return "a" if thing.determiner in ("a", "number", "many") else thing.determiner


def _exchange(form: str, meaning: str) -> str | None:
    """The kind of relation phrases among which one can stand for another without harm to grammar; None: none can."""
    if form != "preposition":
        return form
    if meaning in PLACES:
        return PLACE
    return None if meaning == "of" else meaning


def _most_common_forms(vocabulary: Vocabulary) -> dict[tuple[str, str], str]:
    """The usual singular and plural of each noun."""
    forms: dict[tuple[str, str], str] = {}
    for (noun, number, form), _ in sorted(vocabulary.forms.items(), key=by_count):
        forms.setdefault((noun, number), form)
    return forms


def _phrases(vocabulary: Vocabulary) -> dict[str, TextsOf]:
    """For singular and plural the phrases of each noun."""
    phrases: dict[str, TextsOf] = {"singular": {}, "plural": {}}
    for noun, number, text in sorted(vocabulary.phrases):
        phrases[number].setdefault(noun, []).append(text)
    return phrases


def _relation_phrases(vocabulary: Vocabulary) -> dict[str, TextsOf]:
    """For each kind of `_exchange` the phrases that end in each noun."""
    phrases: defaultdict[str, TextsOf] = defaultdict(dict)
    for noun, form, meaning, text in sorted(vocabulary.relation_phrases):
        kind = _exchange(form, meaning)
        if kind is not None:
            phrases[kind].setdefault(noun, []).append(text)
    for adverb in sorted(ADVERBS_OF_PLACE):
        if (adverb,) in vocabulary.nouns:
            phrases[PLACE][adverb] = [adverb]
    return dict(phrases)


def _expressions(vocabulary: Vocabulary) -> dict[tuple[str, str], list[str]]:
    """The words of each relation, for each form; those with a noun in them (`to the left`) stand for a possessive."""
    expressions: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for meaning, form, words in sorted(vocabulary.expressions):
        if form == "preposition" or words in EXPRESSIONS:
            expressions[meaning, form].append(words)
    return dict(expressions)
