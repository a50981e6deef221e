"""Texts for people: which words were masked, generated, or stand for other ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np
import numpy.typing as npt

from unimo_ds.batch import Target
from unimo_ds.data.sequences import IGNORED
from unimo_ds.explain.views import View
from unimo_ds.tokenizer import CLS, SEP, Tokenizer

Ints = npt.NDArray[np.int64]
Mark = Literal["", "masked", "random", "kept", "generated", "changed"]

_WORDS = re.compile(r"\s*(?:\w+|[^\w\s])")
_ALIKE = 0.5  # a text that shares less with the caption is another one, not the caption changed


@dataclass(frozen=True)
class Piece:
    """A stretch of a text.

    Attributes:
        text: what stands there; of a masked token what the model sees.
        other: of a masked token the true one, which the model must name; of changed words those of the caption.
        mark: `masked`: [MASK] is seen, `random`: a random token is seen, `kept`: the token itself is seen, and all three must
            be named; `generated`: to be written, not seen; `changed`: differs from the caption.
    """

    text: str
    other: str = ""
    mark: Mark = ""


def pieces_of_view(view: View, tokens: Ints, tokenizer: Tokenizer) -> list[Piece]:
    """The text of a view with what is hidden in it.

    Args:
        view: of a batch.
        tokens: the whole text, from the corpus: where generated fragments stood is not in the batch.
        tokenizer: the run's.
    """
    if view.target == Target.MLM:
        return _masked(view.ids_n[1:-1], view.labels_n[1:-1], tokenizer)
    if view.target != Target.SEQ2SEQ:
        return _plain(view.ids_n[1:-1], tokenizer)
    parts = [part[part != SEP] for part in np.split(view.ids_n, np.flatnonzero(view.ids_n == CLS)[1:])]
    source, *fragments = [part[1:] for part in parts]
    if not fragments:  # a caption, written whole
        return _plain(source, tokenizer, "generated")
    return _with_fragments(tokens, source, fragments, tokenizer)


def text_of(view: View, tokenizer: Tokenizer) -> str:
    """The text of a view in which nothing is hidden."""
    return tokenizer.decode(view.ids_n[1:-1])


def pieces_of_difference(caption: str, text: str) -> list[Piece]:
    """`text` with the words marked that stand for others in `caption`; none where the two have little in common."""
    before, after = _WORDS.findall(caption), _WORDS.findall(text)
    matcher = SequenceMatcher(None, [word.strip() for word in before], [word.strip() for word in after], autojunk=False)
    if matcher.ratio() < _ALIKE:
        return [Piece(text)]
    pieces: list[Piece] = []
    for tag, start, end, new_start, new_end in matcher.get_opcodes():
        words, others = "".join(after[new_start:new_end]), "".join(before[start:end])
        if tag == "equal":
            pieces.append(Piece(words))
            continue
        space = _leading_space(words or others)
        pieces += [Piece(space)] if space else []
        pieces.append(Piece(words.strip(), others.strip(), "changed"))
    return pieces


def _masked(ids_n: Ints, labels_n: Ints, tokenizer: Tokenizer) -> list[Piece]:
    """One piece for each masked token, and one for what lies between."""
    pieces: list[Piece] = []
    start = 0
    for place in np.flatnonzero(labels_n != IGNORED).tolist():
        pieces += _plain(ids_n[start:place], tokenizer)
        seen, true = int(ids_n[place]), int(labels_n[place])
        name = tokenizer.token(true)
        space = _leading_space(name)
        pieces += [Piece(space)] if space else []
        mark: Mark = "masked" if seen == tokenizer.mask else "kept" if seen == true else "random"
        pieces.append(Piece("[MASK]" if seen == tokenizer.mask else tokenizer.token(seen).strip(), name.strip(), mark))
        start = place + 1
    return pieces + _plain(ids_n[start:], tokenizer)


def _plain(ids_n: Ints, tokenizer: Tokenizer, mark: Mark = "") -> list[Piece]:
    """A run of tokens as one piece, with its leading space as another where it is marked."""
    if not len(ids_n):
        return []
    space, text = _leading_space(tokenizer.token(int(ids_n[0]))), tokenizer.decode(ids_n)
    if mark:
        return [*([Piece(space)] if space else []), Piece(text, "", mark)]
    return [Piece(space + text)]


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _with_fragments(tokens: Ints, source: Ints, fragments: Sequence[Ints], tokenizer: Tokenizer) -> list[Piece]:
    """The whole text with the fragments where they were taken out."""
    starts = find_fragments(tokens.tolist(), source.tolist(), [fragment.tolist() for fragment in fragments])
    pieces: list[Piece] = []
    done = 0
    for start, fragment in zip(starts, fragments, strict=True):
        pieces += _plain(tokens[done:start], tokenizer) + _plain(fragment, tokenizer, "generated")
        done = start + len(fragment)
    return pieces + _plain(tokens[done:], tokenizer)


def find_fragments(whole: list[int], source: list[int], fragments: list[list[int]]) -> list[int]:
    """Where in `whole` each fragment begins, if `source` is what is left without them, in their order.

    Raises:
        ValueError: the parts do not make the whole.
    """

    def find(number: int, begin: int, used: int) -> list[int] | None:
        """Starts of the fragments from `number` on, in `whole[begin:]`; `used` tokens of the source lie before."""
        if number == len(fragments):
            return [] if whole[begin:] == source[used:] else None
        fragment = fragments[number]
        for start in range(begin, len(whole) - len(fragment) + 1):
            if whole[start : start + len(fragment)] == fragment:
                rest = find(number + 1, start + len(fragment), used + start - begin)
                if rest is not None:
                    return [start, *rest]
            if used + start - begin >= len(source) or whole[start] != source[used + start - begin]:
                return None
        return None

    found = find(0, 0, 0)
    if found is None:
        raise ValueError("the fragments do not fit the text")
    return found
