"""A sentence with holes: fills them and mends what depends on their words, `a` or `an` and the capital at the start."""

import re
from collections.abc import Sequence

from unimo_ds.augment.inflection import article

_ARTICLE_BEFORE = re.compile(r"\b(an?) $", re.IGNORECASE)
_WORD_BEFORE = re.compile(r"([\w'-]+) $")
_WORD_AFTER = re.compile(r" ([\w'-]+)")


class Template:
    """A text in which the characters of some spans are left open.

    Args:
        text: the sentence.
        spans: the holes, which do not overlap; the first of them is the one whose place `fill` tells.
    """

    def __init__(self, text: str, spans: Sequence[tuple[int, int]]) -> None:
        self._pieces: list[tuple[str, str, int, bool]] = []  # text before, article, number of the hole, whether in capitals
        self._before, self._after = [], []
        done = 0
        for number, (start, end) in sorted(enumerate(spans), key=lambda item: item[1]):
            found = _ARTICLE_BEFORE.search(text, done, start)
            until = found.start() if found else start
            self._pieces.append((text[done:until], found[1] if found else "", number, start == 0 and text[0].isupper()))
            self._before.append(_WORD_BEFORE.search(text, 0, start))
            self._after.append(_WORD_AFTER.match(text, end))
            done = end
        self._rest = text[done:]

    def fill(self, words: Sequence[str]) -> tuple[str, tuple[int, int]] | None:
        """The sentence with `words` in its holes and the characters of the first; None if it said a word twice in a row."""
        parts: list[str] = []
        length, place = 0, (0, 0)
        for (text, lead, number, capital), before, after in zip(self._pieces, self._before, self._after, strict=True):
            word = words[number]
            if (before and before[1].lower() == word.partition(" ")[0]) or (after and after[1] == word.rpartition(" ")[2]):
                return None
            if lead:
                lead = (article(word).capitalize() if lead[0] == "A" else article(word)) + " "
            elif capital:
                word = word[0].upper() + word[1:]
            length += len(text) + len(lead)
            parts += (text, lead, word)
            if number == 0:
                place = (length, length + len(word))
            length += len(word)
        return "".join([*parts, self._rest]), place
