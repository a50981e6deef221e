"""Beam search by the original's rules (unimo-spec, 7.2); it sees the scores of next words and knows no model.

Shape suffixes: S sentences, B hypotheses of each (one before the first step, later `Decoding.beams`, or as many as there are),
N hypotheses of all (S B), V vocabulary, X blocks of it, K next tokens that a hypothesis proposes, L tokens, the start
token among them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REPEATED = -65000.0  # added to the log-probability of a repeated trigram; the original's value
_BLOCK = 128  # ids


@dataclass(frozen=True)
class Decoding:
    """How text is searched for.

    Attributes:
        beams: hypotheses of each sentence; 1 is greedy search.
        longest: tokens at most, the end token among them.
        shortest: tokens before the end token at least; with `longest` equal to it every text has that many.
        length_penalty: alpha of `score = sum(log p) / ((5 + tokens) / 6)^alpha`.
        block_trigrams: whether three words may not come twice.

    Raises:
        ValueError: a value is not allowed.
    """

    beams: int
    longest: int
    shortest: int = 0
    length_penalty: float = 0.0
    block_trigrams: bool = False

    @property
    def rows(self) -> int:
        """Rows of keys and values that a sentence needs behind its prefix (`model.cache`)."""
        return 1 + (self.longest - 1) * self.beams

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams {self.beams}: wants 1 or more")
        if self.longest < 1:
            raise ValueError(f"longest {self.longest}: wants 1 or more")
        if not 0 <= self.shortest <= self.longest:
            raise ValueError(f"shortest {self.shortest}: wants 0 to longest, which is {self.longest}")
        if not (math.isfinite(self.length_penalty) and self.length_penalty >= 0):
            raise ValueError(f"length_penalty {self.length_penalty}: wants a finite number, 0 or more")
        if self.block_trigrams and self.beams < 2:
            # A hypothesis proposes its `beams` likeliest tokens, so nothing would take the place of a blocked one.
            raise ValueError(f"block_trigrams with beams {self.beams}: wants 2 beams or more")


@dataclass(frozen=True)
class Generated:
    """One sentence's text.

    Attributes:
        ids: its tokens, start and end left out.
        log_probability: the sum over its tokens, the end token among them, natural logarithm.
        score: the same with the length penalty.
    """

    ids: list[int]
    log_probability: float
    score: float


class Beams:
    """The hypotheses of S sentences, best first.

    A finished hypothesis keeps its place and its score, and competes with those that go on. Of each hypothesis only the
    `decoding.beams` likeliest next tokens are looked at, before trigrams are blocked, as the original does.

    Args:
        sentences: S; may be 0.
        decoding: the rules.
        start, end: the ids that every text begins and ends with.
        forbidden: ids that are never generated. Like the end token of a text that is still too short, they leave the softmax:
            the probabilities of the others sum to 1.
        starts_word_V: for each id whether it begins a word (a leading space); needed to block trigrams.
        device: where the scores will be.

    Raises:
        ValueError: trigrams are to be blocked and `starts_word_V` is missing.
    """

    def __init__(
        self,
        sentences: int,
        decoding: Decoding,
        start: int,
        end: int,
        forbidden: Sequence[int] = (),
        starts_word_V: Sequence[bool] | None = None,
        device: torch.device | None = None,
    ) -> None:
        if decoding.block_trigrams and starts_word_V is None:
            raise ValueError("block_trigrams: wants starts_word_V, which tells words apart")
        self._decoding, self._end, self._starts_word_V = decoding, end, starts_word_V
        self._forbidden = torch.tensor(forbidden, dtype=torch.int64, device=device)
        self.tokens_SBL = torch.full((sentences, 1, 1), start, device=device)
        self.parents_SB = torch.zeros((sentences, 1), dtype=torch.int64, device=device)
        self._sums_SB = torch.zeros((sentences, 1), device=device)
        self._scores_SB = torch.zeros((sentences, 1), device=device)
        self._finished_SB = torch.zeros((sentences, 1), dtype=torch.bool, device=device)

    @property
    def last_N(self) -> Tensor:
        """The last token of every hypothesis."""
        return self.tokens_SBL[:, :, -1].flatten()

    def unfinished(self) -> Tensor:
        """How many hypotheses can still change, int64 scalar."""
        return (~self._finished_SB & (self._scores_SB > -torch.inf)).sum()

    def advance(self, logits_NV: Tensor) -> None:
        """Adds a token to every hypothesis that is not finished, and keeps the best of each sentence.

        Sets `parents_SB`: which of the hypotheses before each one continues.

        Args:
            logits_NV: float32 or float64 scores of each hypothesis's next token; they are overwritten.
        """
        sums_SBK, ids_SBK = self._proposals(logits_NV)
        scores_SBK = sums_SBK / ((5 + self.tokens_SBL.shape[2]) / 6) ** self._decoding.length_penalty
        # A finished hypothesis proposes itself as it is, once: its other proposals have the probability 0.
        first_K = torch.arange(ids_SBK.shape[2], device=ids_SBK.device) == 0
        finished_SB1 = self._finished_SB[:, :, None]
        own_scores_SBK, own_sums_SBK = (
            torch.where(first_K, values_SB[:, :, None], -torch.inf) for values_SB in (self._scores_SB, self._sums_SB)
        )
        self._keep_best(
            torch.where(finished_SB1, own_scores_SBK, scores_SBK),
            torch.where(finished_SB1, own_sums_SBK, sums_SBK),
            ids_SBK.masked_fill(finished_SB1, self._end),
        )

    def _proposals(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest next tokens of each hypothesis: log-probabilities with those of its past, and ids, both [S, B, K]."""
        logits_NV.index_fill_(1, self._forbidden, -torch.inf)
        if self.tokens_SBL.shape[2] <= self._decoding.shortest:
            logits_NV[:, self._end] = -torch.inf
        likeliest_NK, ids_NK = highest(logits_NV, min(self._decoding.beams, logits_NV.shape[1]))
        best_N1 = likeliest_NK[:, :1]
        sum_N1 = logits_NV.sub_(best_N1).exp_().sum(1, keepdim=True)  # in place: many words, so memory is most of the time
        log_probabilities_NK = likeliest_NK - best_N1 - sum_N1.log()
        shape = (*self._sums_SB.shape, ids_NK.shape[1])
        ids_SBK = ids_NK.view(shape)
        sums_SBK = self._sums_SB[:, :, None] + log_probabilities_NK.view(shape)
        if self._decoding.block_trigrams:
            sums_SBK += REPEATED * self._repeats(ids_SBK)
        return sums_SBK, ids_SBK

    def _repeats(self, ids_SBK: Tensor) -> Tensor:
        """Whether each proposal would end in three words that its text already has, [S, B, K]."""
        assert self._starts_word_V is not None
        texts, proposals = self.tokens_SBL.flatten(0, 1).tolist(), ids_SBK.flatten(0, 1).tolist()
        repeats = [
            [_ends_in_repeated_trigram(words_of([*text, token], self._starts_word_V)) for token in tokens]
            for text, tokens in zip(texts, proposals, strict=True)
        ]
        return torch.tensor(repeats, device=ids_SBK.device).view(ids_SBK.shape)

    def _keep_best(self, scores_SBK: Tensor, sums_SBK: Tensor, ids_SBK: Tensor) -> None:
        beams, proposed = scores_SBK.shape[1:]
        self._scores_SB, chosen_SB = scores_SBK.flatten(1).topk(min(self._decoding.beams, beams * proposed))
        self.parents_SB = chosen_SB // proposed
        self._sums_SB = sums_SBK.flatten(1).gather(1, chosen_SB)
        tokens_SB1 = ids_SBK.flatten(1).gather(1, chosen_SB)[:, :, None]
        past_SBL = self.tokens_SBL.take_along_dim(self.parents_SB[:, :, None], dim=1)
        self.tokens_SBL = torch.cat([past_SBL, tokens_SB1], dim=2)
        # Where there are fewer texts than places, what fills them has the probability 0 and must not count as a text.
        self._finished_SB = (tokens_SB1[:, :, 0] == self._end) & (self._scores_SB > -torch.inf)

    def best(self) -> list[Generated]:
        """Each sentence's best finished text, or its best unfinished one where none is finished."""
        some_S1 = self._finished_SB.any(1, keepdim=True)
        best_S1 = self._scores_SB.masked_fill(some_S1 & ~self._finished_SB, -torch.inf).argmax(1, keepdim=True)
        tokens_SL = self.tokens_SBL.take_along_dim(best_S1[:, :, None], dim=1)[:, 0, 1:]
        numbers = (values_SB.gather(1, best_S1)[:, 0].tolist() for values_SB in (self._sums_SB, self._scores_SB))
        return [
            Generated(tokens[: tokens.index(self._end)] if self._end in tokens else tokens, log_probability, score)
            for tokens, log_probability, score in zip(tokens_SL.tolist(), *numbers, strict=True)
        ]


def highest(scores_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(count)`, a few times as fast on a CPU: values, best first, and ids, both [N, count].

    The best blocks of the vocabulary, by their own highest score, hold the best ids: only these are looked at.
    """
    blocks = scores_NV.shape[1] // _BLOCK
    if blocks <= count:
        return scores_NV.topk(count)
    whole = blocks * _BLOCK
    # Turned round, torch finds the fast order of scores laid out by columns too, as a few rows come out of the head.
    peaks_XN = scores_NV.T[:whole].view(blocks, _BLOCK, len(scores_NV)).amax(1)
    inside = torch.arange(_BLOCK, device=scores_NV.device)
    looked_at = (peaks_XN.T.topk(count).indices[:, :, None] * _BLOCK + inside).flatten(1)
    rest = torch.arange(whole, scores_NV.shape[1], device=scores_NV.device).expand(len(scores_NV), -1)
    ids = torch.cat([looked_at, rest], dim=1)
    values_NK, places_NK = scores_NV.gather(1, ids).topk(count)
    return values_NK, ids.gather(1, places_NK)


def words_of(tokens: Sequence[int], starts_word_V: Sequence[bool]) -> list[tuple[int, ...]]:
    """Tokens joined to words: one that does not begin a word goes on with the one before, [CLS] and the end token included."""
    begins = [place for place, token in enumerate(tokens) if place == 0 or starts_word_V[token]]
    return [tuple(tokens[begin:end]) for begin, end in zip(begins, [*begins[1:], len(tokens)], strict=True)]


def _ends_in_repeated_trigram(words: list[tuple[int, ...]]) -> bool:
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(trigrams) > 1 and trigrams[-1] in trigrams[:-1]
