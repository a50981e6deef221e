"""Beam search against a search over all texts, and against the original's rules written with plain lists."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.model.beams import REPEATED, Beams, Decoding, Generated, highest, words_of

START, END = 0, 1
Scores = Callable[[tuple[int, ...]], list[float]]
ALPHAS = st.sampled_from([0.0, 0.6, 1.0, 1.2, 3.0])


def random_scores(seed: int, vocabulary: int) -> Scores:
    """A score for every next token after every text, the start token among it."""
    return lambda text: list(np.random.default_rng((seed, *text)).normal(0, 2, vocabulary))


def search(tables: list[Scores], decoding: Decoding, forbidden: list[int], starts: list[bool] | None = None) -> list[Generated]:
    beams = Beams(len(tables), decoding, START, END, forbidden, starts)
    for _ in range(decoding.longest):
        before = beams.tokens_SBL
        texts = [(scores, tuple(text)) for scores, own in zip(tables, before.tolist(), strict=True) for text in own]
        beams.advance(torch.tensor([scores(text) for scores, text in texts], dtype=torch.float64))
        past = before.take_along_dim(beams.parents_SB[:, :, None], dim=1)
        assert torch.equal(beams.tokens_SBL[:, :, :-1], past), "the cache follows the parents"
        if not beams.unfinished():
            break
    return beams.best()


def log_probabilities(scores: list[float], without: set[int]) -> dict[int, float]:
    """Of the ids that are allowed; they sum to 1."""
    allowed = {token: score for token, score in enumerate(scores) if token not in without}
    total = math.log(sum(math.exp(score) for score in allowed.values()))
    return {token: score - total for token, score in allowed.items()}


def without(decoding: Decoding, forbidden: list[int], tokens: int, end: int = END) -> set[int]:
    return {*forbidden, *([end] if tokens < decoding.shortest else [])}


def penalised(total: float, tokens: int, decoding: Decoding) -> float:
    return float(total / ((5 + tokens) / 6) ** decoding.length_penalty)


def all_texts(scores: Scores, decoding: Decoding, forbidden: list[int]) -> Iterator[tuple[list[int], float]]:
    """Every text that can be, with its log-probability: finished ones, and those of the greatest length."""
    texts: list[tuple[list[int], float]] = [([], 0.0)]
    for length in range(decoding.longest):
        longer = []
        for text, total in texts:
            for token, log_p in log_probabilities(scores((START, *text)), without(decoding, forbidden, length)).items():
                if token == END:
                    yield [*text, END], total + log_p
                else:
                    longer.append(([*text, token], total + log_p))
        texts = longer
    yield from texts


def best_of(texts: list[tuple[list[int], float, float]], end: int = END) -> Generated:
    """The best finished text, or the best of all where none is: `(tokens, log-probability, score)`."""
    finished = [text for text in texts if text[0][-1] == end]
    tokens, total, score = max(finished or texts, key=lambda text: text[2])
    return Generated([token for token in tokens if token != end], total, score)


def equal(found: Generated, expected: Generated) -> None:
    assert found.ids == expected.ids
    assert found.log_probability == pytest.approx(expected.log_probability, rel=1e-6, abs=1e-6)
    assert found.score == pytest.approx(expected.score, rel=1e-6, abs=1e-6)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 10**6), st.integers(3, 5), st.integers(1, 4), st.data())
def test_wide_beams_find_the_best_of_all_texts(seed: int, vocabulary: int, longest: int, data: st.DataObject) -> None:
    shortest, alpha = data.draw(st.integers(0, longest)), data.draw(ALPHAS)
    forbidden = [START] if data.draw(st.booleans()) else []
    decoding = Decoding(vocabulary**longest, longest, shortest, alpha)
    tables = [random_scores(seed + number, vocabulary) for number in range(2)]
    for scores, found in zip(tables, search(tables, decoding, forbidden), strict=True):
        texts = [(text, total, penalised(total, len(text), decoding)) for text, total in all_texts(scores, decoding, forbidden)]
        equal(found, best_of(texts))


def by_the_original_s_rules(
    scores: Scores, decoding: Decoding, forbidden: list[int], starts: list[bool], end: int = END
) -> Generated:
    """`[tokens], log-probability, score` of each beam, START among the tokens."""
    beams: list[tuple[list[int], float, float]] = [([START], 0.0, 0.0)]
    for step in range(decoding.longest):
        candidates: list[tuple[list[int], float, float]] = []
        for tokens, total, score in beams:
            if tokens[-1] == end:
                candidates.append((tokens, total, score))
                continue
            allowed = log_probabilities(scores(tuple(tokens)), without(decoding, forbidden, step, end))
            for token in sorted(allowed, key=lambda token: -allowed[token])[: decoding.beams]:
                longer, sum_of_logs = [*tokens, token], total + allowed[token]
                if decoding.block_trigrams and repeats(longer, starts):
                    sum_of_logs -= 65000
                candidates.append((longer, sum_of_logs, penalised(sum_of_logs, step + 1, decoding)))
        beams = sorted(candidates, key=lambda candidate: -candidate[2])[: decoding.beams]
    return best_of([(tokens[1:], total, score) for tokens, total, score in beams], end)


def repeats(tokens: list[int], starts: list[bool]) -> bool:
    """Whether the last three words came before; words as strings, as the original compares them."""
    text = str(tokens[0]) + "".join((" " if starts[token] else "-") + str(token) for token in tokens[1:])
    words = text.split(" ")
    seen = [" ".join(words[place : place + 3]) for place in range(len(words) - 2)]
    return bool(seen) and seen[-1] in seen[:-1]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.integers(0, 10**6), st.integers(3, 8), st.integers(1, 9), st.integers(1, 4), st.data())
def test_narrow_beams_follow_the_original_s_rules(
    seed: int, vocabulary: int, longest: int, beams: int, data: st.DataObject
) -> None:
    shortest, alpha = data.draw(st.integers(0, longest)), data.draw(ALPHAS)
    forbidden = [START] if data.draw(st.booleans()) else []
    block = beams > 1 and data.draw(st.booleans())
    starts = data.draw(st.lists(st.booleans(), min_size=vocabulary, max_size=vocabulary))
    decoding = Decoding(beams, longest, shortest, alpha, block)
    tables = [random_scores(seed + number, vocabulary) for number in range(2)]
    for scores, found in zip(tables, search(tables, decoding, forbidden, starts), strict=True):
        equal(found, by_the_original_s_rules(scores, decoding, forbidden, starts))


def cycle(text: tuple[int, ...]) -> list[float]:
    """2 3 4 2 3 4 .., with 5 as the second choice."""
    wanted = {2: 3, 3: 4, 4: 2}.get(text[-1], 2)
    return [0.0 if token == wanted else -1.0 if token == 5 else -20.0 for token in range(6)]


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([True] * 6, [2, 3, 4, 2, 3, 5]),  # the third word of the second round would make the trigram 2 3 4 again
        ([True, True, True, False, False, True], [2, 3, 4, 2, 3, 4]),  # one word, said twice: no trigram yet
    ],
)
def test_trigrams_are_of_words(starts: list[bool], expected: list[int]) -> None:
    (found,) = search([cycle], Decoding(2, 6, 6, 0.0, block_trigrams=True), [], starts)
    assert found.ids == expected
    (free,) = search([cycle], Decoding(2, 6, 6), [])
    assert free.ids == [2, 3, 4, 2, 3, 4]


def test_where_all_is_repeated_the_penalty_stays_in_the_score() -> None:
    only = lambda text: [0.0 if token == 2 else -50.0 for token in range(6)]  # noqa: E731
    (found,) = search([only], Decoding(2, 5, 5, 0.0, block_trigrams=True), [START, END, 3, 4], [True] * 6)
    assert found.ids.count(5) >= 1 and found.log_probability > REPEATED  # the second choice breaks the row
    (stuck,) = search([only], Decoding(2, 5, 5, 0.0, block_trigrams=True), [START, END, 3, 4, 5], [True] * 6)
    assert stuck.ids == [2] * 5 and stuck.log_probability == pytest.approx(2 * REPEATED)


def test_words_are_tokens_joined() -> None:
    starts = [False, False, True, True, False, True]
    assert words_of([0, 4, 2, 4, 4, 3, 5, 1], starts) == [(0, 4), (2, 4, 4), (3,), (5, 1)]


def test_a_finished_text_competes_with_longer_ones() -> None:
    """END is likelier than going on, but what follows is certain: with a length penalty the longer text wins."""
    table = {(START,): {END: 0.6, 2: 0.4}, (START, 2): {3: 1.0}, (START, 2, 3): {END: 1.0}}
    scores = lambda text: [math.log(table.get(text, {}).get(token, 1e-30)) for token in range(4)]  # noqa: E731
    assert search([scores], Decoding(2, 4), [])[0].ids == []
    longer = search([scores], Decoding(2, 4, length_penalty=3.0), [])[0]
    assert longer.ids == [2, 3] and longer.score == pytest.approx(math.log(0.4) / (8 / 6) ** 3)
    assert search([scores], Decoding(2, 4, shortest=1), [])[0].ids == [2, 3]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 4), st.integers(1, 1500), st.integers(1, 12), st.booleans())
def test_the_highest_scores_are_found(rows: int, vocabulary: int, count: int, by_columns: bool) -> None:
    count = min(count, vocabulary)
    scores = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    scores = scores.T.contiguous().T if by_columns else scores
    scores[:, : vocabulary // 2] = -torch.inf
    values, ids = highest(scores, count)
    assert torch.equal(values, scores.topk(count).values) and torch.equal(scores.gather(1, ids), values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beams": 0}, "beams 0: wants 1 or more"),
        ({"longest": 0}, "longest 0: wants 1 or more"),
        ({"shortest": 9}, "shortest 9: wants 0 to longest, which is 8"),
        ({"shortest": -1}, "shortest -1: wants 0"),
        ({"length_penalty": -0.5}, r"length_penalty -0\.5: wants a finite number, 0 or more"),
        ({"length_penalty": math.nan}, "length_penalty nan"),
        ({"beams": 1, "block_trigrams": True}, "block_trigrams with beams 1: wants 2"),
    ],
)
def test_rules_that_cannot_be_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**({"beams": 3, "longest": 8} | values))  # type: ignore[arg-type]


def test_trigrams_need_to_know_words() -> None:
    with pytest.raises(ValueError, match="block_trigrams: wants starts_word_V"):
        Beams(1, Decoding(2, 3, block_trigrams=True), START, END)
