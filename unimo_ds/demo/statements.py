"""Held-out statements for forced choice: one true sentence about a picture beside false ones that differ in a word or two.

`held_out` uses the words of the captions: what pictures and captions teach suffices. `knowledge` names a thing by its category
(`a red container left of a lamp`), a word that no caption has and every text uses: without the texts it cannot be known what
is one. They are made from the scenes, not by the rewriting tool, and nothing is kept that `truth.judge` does not find false.

Guessing is right 1 time in 4 for `knowledge` and 1 in 5 for `held_out`. The words alone do not help: of the times that a
category stands to choose it is true as often as any other, and words of a caption are replaced by ones that captions use as
often. (To prefer the likelier sentence is even worse than to guess in `held_out`: each change makes it likelier or less likely,
so the true one is the likeliest of five about 1 time in 16.)
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from unimo_ds.demo import formats, grammar
from unimo_ds.demo.grammar import OPPOSITE, RELATION_WORDS, SETTING_WORDS, SIZE_WORDS, Speaker, as_sentence, with_article
from unimo_ds.demo.knowledge import FACTS, category_of
from unimo_ds.demo.objects import COLOURS, KIND_BY_NAME, KINDS
from unimo_ds.demo.scene import Scene, generator
from unimo_ds.demo.truth import judge
from unimo_ds.rewrites import Rewrite, RewrittenCaption

FALSE_OF_KNOWLEDGE = 3
FALSE_OF_HELD_OUT = 4
_A_PICTURE = 2
"""Statements made of each picture, at most, in either set."""
_TRIES = 40

_CATEGORIES = sorted({facts.category for facts in FACTS.values()})
_COLOURS = [colour.name for colour in COLOURS]
_PLURALS = {kind.plural: kind.name for kind in KINDS if kind.plural != kind.name}


# --- what only the texts know ----------------------------------------------------------------------------------------


def knowledge(scenes: Iterable[Scene]) -> list[RewrittenCaption]:
    """Statements that name one thing by its category, each with three that name categories of which no thing is.

    A false category is the one whose share of the false statements lags furthest behind its share of the true ones.
    """
    lag = Counter[str]()
    told: list[RewrittenCaption] = []
    for scene in scenes:
        speaker = Speaker(scene, generator(scene.seed, scene.split, scene.index, "knowledge"))
        present = {category_of(thing.kind) for thing in scene.things}
        named: set[str] = set()
        for place in map(int, speaker.rng.permutation(len(scene.things))):
            category = category_of(scene.things[place].kind)
            if category in named or len(named) == _A_PICTURE:
                continue
            named.add(category)
            absent = [name for name in _CATEGORIES if name not in present]
            order = {name: int(turn) for name, turn in zip(absent, speaker.rng.permutation(len(absent)), strict=True)}
            false = sorted(absent, key=lambda name: (-lag[name], order[name]))[:FALSE_OF_KNOWLEDGE]
            lag[category] += FALSE_OF_KNOWLEDGE
            lag.subtract(false)
            frame = _about_category(speaker, place)
            negatives = tuple(_rewrite(frame, category, name, "category") for name in false)
            told.append(RewrittenCaption(formats.file_name(scene), frame.format(category), (), negatives))
    return told


def _about_category(speaker: Speaker, place: int) -> str:
    """`A red {} left of a lamp.`: the colour keeps the article the same, and beside a thing anything may stand."""
    scene = speaker.scene
    thing = f"{with_article(scene.things[place].colour)} {{}}"
    beside = [(word, second) for first, word, second in speaker.edges if first == place and word in ("left", "right")]
    if beside:
        word, second = beside[int(speaker.rng.integers(len(beside)))]
        return as_sentence(f"{thing} {speaker.relation_words(word)} {speaker.a_thing(second)}")
    other = speaker.a_thing(int(speaker.rng.choice([number for number in range(len(scene.things)) if number != place])))
    return as_sentence(f"there is {thing} and {other}")


def _rewrite(frame: str, true: str, false: str, what: str) -> Rewrite:
    start = frame.index("{}")
    return Rewrite(frame.format(false), "word", f"{what}: {true} -> {false}", (start, start + len(false)))


# --- in the words of captions ----------------------------------------------------------------------------------------


def held_out(scene: Scene) -> list[RewrittenCaption]:
    """New captions of a scene, each with four that are false of it: another kind, colour, size, relation or setting."""
    rng = generator(scene.seed, scene.split, scene.index, "statements")
    told: list[RewrittenCaption] = []
    for text in grammar.captions(scene, rng, _A_PICTURE):
        negatives = _false_variants(text, scene, rng)
        if len(negatives) == FALSE_OF_HELD_OUT:
            told.append(RewrittenCaption(formats.file_name(scene), text, (), negatives))
    return told


@dataclass(frozen=True, slots=True)
class _Site:
    """Words of a caption (without capital and full stop) and what could stand there instead."""

    sort: str
    start: int
    word: str
    others: tuple[str, ...]


def _false_variants(text: str, scene: Scene, rng: np.random.Generator) -> tuple[Rewrite, ...]:
    """Changes of every sort in turn, so that four negatives differ in as many ways as the caption allows."""
    body = f"{text[0].lower()}{text[1:-1]}"
    sites = [site for site in _sites(body) if site.others]
    sorts = [str(sort) for sort in rng.permutation(sorted({site.sort for site in sites}))]
    found: dict[str, Rewrite] = {}
    for turn in range(_TRIES):
        choices = [site for site in sites if site.sort == sorts[turn % len(sorts)]]
        site = choices[int(rng.integers(len(choices)))]
        rewrite = _changed(body, site, site.others[int(rng.integers(len(site.others)))])
        if judge(rewrite.text, scene).true is False:
            found.setdefault(rewrite.text, rewrite)
        if len(found) == FALSE_OF_HELD_OUT:
            break
    return tuple(found.values())


def _changed(body: str, site: _Site, word: str) -> Rewrite:
    """The caption with `word` at the site, and the article before it made to fit."""
    before, after = body[: site.start], body[site.start + len(site.word) :]
    start = site.start
    if article := re.search(r"\ban? $", before):
        fitting = with_article(word).split(" ", 1)[0] + " "
        if fitting != article[0]:
            before, word, start = before[: article.start()], fitting + word, article.start()
    reason = f"{site.sort}: {site.word} -> {word.removeprefix('an ').removeprefix('a ')}"
    return Rewrite(as_sentence(before + word + after), "word", reason, (start, start + len(word)))


def _sites(body: str) -> Iterator[_Site]:
    setting = _SETTING.search(body)
    if setting:
        others = [words for background, words in SETTING_WORDS.items() if setting[0] not in words]
        yield _Site("setting", setting.start(), setting[0], tuple(chain.from_iterable(others)))
        body = body.replace(setting[0], "_" * len(setting[0]))  # its words are no relation
    for match in _COLOUR.finditer(body):
        yield _Site("colour", match.start(), match[0], tuple(colour for colour in _COLOURS if colour != match[0]))
    for match in _SIZE.finditer(body):
        yield _Site("size", match.start(), match[0], next(words for words in SIZE_WORDS.values() if match[0] not in words))
    for match in _RELATION.finditer(body):
        yield _Site("relation", match.start(), match["words"], _other_relations(match, body))
    for match in _KIND.finditer(body):
        if len(re.findall(rf"\b{match[0]}\b", body)) == 1:  # else `the cup` may stand for it further on
            yield _Site("kind", match.start(), match[0], _other_kinds(match, body))


def _other_relations(match: re.Match[str], body: str) -> tuple[str, ...]:
    """Words for other relations; `on` and `inside` only where such a thing can be so: else the sentence alone tells."""
    guest, host = _KIND.findall(body[: match.start()])[-1], KIND_BY_NAME[match["host"]]
    possible = {*OPPOSITE} | ({surface.relation for surface in host.surfaces} if KIND_BY_NAME[guest].portable else set())
    others = [words for relation, words in RELATION_WORDS.items() if relation in possible and match["words"] not in words]
    return tuple(chain.from_iterable(others))


def _other_kinds(match: re.Match[str], body: str) -> tuple[str, ...]:
    """Kinds that are not named yet; where something holds something, hosts for a host and portable ones for others."""
    holds = next((relation for relation, words in _HOLDING.items() if words.search(body)), None)
    hosts = [kind for kind in KINDS if any(surface.relation == holds for surface in kind.surfaces)]
    plural = match[0] in _PLURALS
    true = KIND_BY_NAME[_PLURALS.get(match[0], match[0])]
    pool = KINDS if holds is None else hosts if true in hosts else [kind for kind in KINDS if kind.portable]
    named = {_PLURALS.get(word, word) for word in _KIND.findall(body)}
    return tuple(kind.plural if plural else kind.name for kind in pool if kind.name not in named)


def _one_of(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_NOUN = _one_of([*KIND_BY_NAME, *_PLURALS])
_COLOUR = re.compile(rf"\b(?:{_one_of(_COLOURS)})\b")
_SIZE = re.compile(rf"\b(?:{_one_of(chain.from_iterable(SIZE_WORDS.values()))})\b")
_KIND = re.compile(rf"\b(?:{_NOUN})\b")
_SETTING = re.compile(rf"\b(?:{_one_of(chain.from_iterable(SETTING_WORDS.values()))})\b")
_RELATION = re.compile(
    rf"\b(?P<words>{_one_of(chain.from_iterable(RELATION_WORDS.values()))}) (?:an?|the) (?:\w+ )??(?:\w+ )??(?P<host>{_NOUN})\b"
)
_HOLDING: dict[str, re.Pattern[str]] = {
    "on": re.compile(r"\bon (?:top of )?(?:an?|the|it)\b(?! left| right)"),
    "inside": re.compile(r"\bin(?:side)? (?:an?|the|it)\b"),
}
