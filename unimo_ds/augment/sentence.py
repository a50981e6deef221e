"""Sentence-level rewrites: true ones by back-translation, false ones from other images' captions."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from unimo_ds.augment.described_image import DescribedImage, same_meaning
from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.scene_graph import CaptionParser, SceneGraph
from unimo_ds.augment.similarity import SentenceSimilarity
from unimo_ds.augment.translation import Translator
from unimo_ds.rewrites import Rewrite

_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_LONGEST_PIECE = 4  # words that a piece of a back-translation stands for; more are half the sentence
# Prepositions that verbs and idioms choose: alone they are no other words for the same, but in `on the left of`.
_LOOSE = frozenset(
    {"to", "from", "of", "for", "with", "by", "at", "in", "on", "down", "up", "out", "off", "next", "as", "since"}
)
_SIDE = re.compile(r" the (?:left|right) of\b")
_ARTICLES = frozenset({"a", "an", "the", "one", "some", "any", "this", "that"})


def plain(text: str) -> str:
    """A text without what does not make it another one: case, punctuation, spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))


@dataclass(frozen=True)
class _Candidate:
    """A text that may say the same as caption `number`; `changed` as of a `Rewrite`, None for a whole back-translation."""

    number: int
    text: str
    reason: str
    changed: tuple[int, int] | None = None


class Paraphraser:
    """True rewrites: what comes back from a translator, where it still says the same.

    A translator often spoils one word of a sentence and finds a good one for another. So besides the back-translation as a
    whole, each of the pieces in which it differs is tried alone, in the caption. Of these texts one is kept if its scene graph
    has the same objects, attributes, counts and relations as the caption's, and its sentence vector is near.

    Args:
        translator, parser, similarity, lexicon: who does the parts of it.
        minimum_similarity: least cosine of the sentence vectors.
        wanted: most positives a caption; whole back-translations come first, then the nearest.
    """

    def __init__(
        self,
        translator: Translator,
        parser: CaptionParser,
        similarity: SentenceSimilarity,
        lexicon: Lexicon,
        minimum_similarity: float,
        wanted: int,
    ) -> None:
        self._translator, self._parser, self._similarity, self._lexicon = translator, parser, similarity, lexicon
        self._minimum, self._wanted = minimum_similarity, wanted

    def positives(self, graphs: Sequence[SceneGraph], rejects: Counter[str]) -> list[list[Rewrite]]:
        """The true rewrites of each caption; `rejects` counts by reason what was left out."""
        texts = [graph.text for graph in graphs]
        candidates = [
            candidate
            for number, variants in enumerate(self._translator.back_translate(texts))
            for candidate in _candidates(number, texts[number], variants, rejects)
        ]
        true = []
        parsed = self._parser.parse(candidate.text for candidate in candidates)
        for candidate, graph in zip(candidates, parsed, strict=True):
            if reason := same_meaning(graphs[candidate.number], graph, self._lexicon):
                rejects[f"meaning of positive, {kind_of(reason)}"] += 1
            else:
                true.append(candidate)
        found: list[list[tuple[bool, float, Rewrite]]] = [[] for _ in texts]
        for candidate, cosine in zip(true, self._cosines(texts, true), strict=True):
            if cosine < self._minimum:
                rejects[f"similarity below {self._minimum}"] += 1
            else:
                rewrite = Rewrite(candidate.text, "sentence", f"{candidate.reason}, similarity {cosine:.2f}", candidate.changed)
                found[candidate.number].append((candidate.changed is None, cosine, rewrite))
        return [
            [rewrite for _, _, rewrite in sorted(row, key=lambda item: item[:2], reverse=True)[: self._wanted]] for row in found
        ]

    def _cosines(self, texts: Sequence[str], candidates: Sequence[_Candidate]) -> list[float]:
        """How near each candidate is to its caption."""
        numbers = sorted({candidate.number for candidate in candidates})
        place = {number: place for place, number in enumerate(numbers)}
        captions_ND = self._similarity.encode([texts[number] for number in numbers])
        candidates_CD = self._similarity.encode([candidate.text for candidate in candidates])
        of_each_CD = captions_ND[[place[candidate.number] for candidate in candidates]]
        return [float(cosine) for cosine in np.einsum("cd,cd->c", of_each_CD, candidates_CD)]


def false_captions(
    near: Iterable[int],
    graph_of: Callable[[int], SceneGraph],
    image_of: Callable[[int], str],
    described: DescribedImage,
    taken: set[str],
    wanted: int,
    rejects: Counter[str],
) -> list[Rewrite]:
    """Up to `wanted` captions of other images that are false of this one.

    Args:
        near: numbers of captions of other images, best first.
        graph_of, image_of: the scene graph and the image's name of a caption.
        described: all that is known of this image.
        taken: `plain` texts that must not come again; those that are found are added.
        rejects: counts by reason what was left out.
    """
    found: list[Rewrite] = []
    for number in near:
        if len(found) == wanted:
            break
        graph = graph_of(number)
        key = plain(graph.text)
        if key in taken:
            rejects["negative equals another caption"] += 1
        elif reason := described.contradicts(graph):
            taken.add(key)
            found.append(Rewrite(graph.text, "sentence", f"caption of {image_of(number)}, {reason}"))
        else:
            rejects["another image's caption might be true"] += 1
    return found


def kind_of(reason: str) -> str:
    """What a reason is counted under: its words before the first colon."""
    return reason.partition(":")[0]


def _candidates(number: int, text: str, variants: Iterable[str], rejects: Counter[str]) -> list[_Candidate]:
    """The variants that differ from the caption and from each other, and the caption with one piece of a variant each."""
    own = plain(text)
    seen = {own, ""}
    kept = []
    whole = [_Candidate(number, variant, "back-translation") for variant in variants]
    pieces = [piece for candidate in whole for piece in _pieces(number, text, candidate.text)]
    for candidate in (*whole, *pieces):
        key = plain(candidate.text)
        if key not in seen:
            seen.add(key)
            kept.append(candidate)
        elif candidate.changed is None:
            rejects["positive equals caption" if key == own else "positive equals another" if key else "positive is empty"] += 1
    return kept


def _pieces(number: int, text: str, variant: str) -> Iterator[_Candidate]:
    """The caption with one differing piece of a variant instead of its own."""
    ours, theirs = list(_WORD.finditer(text)), list(_WORD.finditer(variant))
    matcher = SequenceMatcher(None, [word[0].lower() for word in ours], [word[0].lower() for word in theirs], autojunk=False)
    for kind, first, end, other_first, other_end in matcher.get_opcodes():
        if kind == "replace" and other_end - other_first <= end - first <= _LONGEST_PIECE:
            start, stop = ours[first].start(), ours[end - 1].end()
            piece = variant[theirs[other_first].start() : theirs[other_end - 1].end()]
            if _articles(piece) != _articles(text[start:stop]):
                continue  # another article speaks of something else
            if _LOOSE.issuperset(piece.lower().split()) and not _SIDE.match(text, stop):
                continue
            if first == 0 and text[0].isupper():
                piece = piece[0].upper() + piece[1:]
            reason = f"back-translation: {text[start:stop]} -> {piece}"
            yield _Candidate(number, text[:start] + piece + text[stop:], reason, (start, start + len(piece)))


def _articles(text: str) -> list[str]:
    return ["a" if word == "an" else word for word in text.lower().split() if word in _ARTICLES]
