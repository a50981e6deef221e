"""What is hidden: rates, whole words, fragments, overlapping regions."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.config import MaskingSection
from unimo_ds.data.masking import choose_fragments, choose_regions, choose_spans, corrupt
from unimo_ds.data.plan import most_fragments
from unimo_ds.regions import intersection_over_union

Bools = npt.NDArray[np.bool_]
MASKING = MaskingSection()


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_spans_cover_15_percent_of_the_tokens() -> None:
    starts = np.ones(400, dtype=bool)
    shares = [choose_spans(starts, MASKING, rng).mean() for rng in rngs(50)]
    assert np.mean(shares) == pytest.approx(0.15, abs=0.005)


def test_spans_hide_whole_words() -> None:
    starts = np.tile([True, False, False], 60)
    for rng in rngs(30):
        chosen = choose_spans(starts, MASKING, rng).reshape(-1, 3)
        assert (chosen.all(axis=1) == chosen.any(axis=1)).all()


def spans(chosen: Bools) -> list[int]:
    """Lengths of the runs of chosen tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
    return [int(end - start) for start, end in edges.reshape(-1, 2)]


def test_span_lengths_are_geometric_and_clipped() -> None:
    """Spans so rare that hardly two touch: their lengths are Geo(0.2) clipped at 10, of mean (1 - 0.8^10) / 0.2."""
    masking = MaskingSection(token_rate=0.005)
    lengths = np.array([n for rng in rngs(40) for n in spans(choose_spans(np.ones(20_000, bool), masking, rng))])
    assert lengths.mean() == pytest.approx((1 - 0.8**10) / 0.2, rel=0.05)
    assert (lengths == 1).mean() == pytest.approx(0.2, abs=0.03)
    assert (lengths == 10).mean() == pytest.approx(0.8**9, abs=0.03)
    assert (lengths > 10).mean() < 0.03, "only where two touch"


def test_a_span_s_length_is_counted_in_words() -> None:
    masking = MaskingSection(token_rate=0.005, span_geometric=1.0)
    starts = np.tile([True, False, False], 2000)
    lengths = np.array([n for rng in rngs(10) for n in spans(choose_spans(starts, masking, rng))])
    assert lengths.min() == 3 and (lengths == 3).mean() > 0.95


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("words", [1, 2, 7, 40])
def test_at_least_one_token_is_chosen_and_at_most_a_word_too_many(rate: float, words: int) -> None:
    masking = MaskingSection(token_rate=rate)
    for rng in rngs(20):
        starts = rng.random(words) < 0.6
        chosen = choose_spans(starts, masking, rng)
        longest_word = np.diff(np.append(np.union1d([0], np.flatnonzero(starts)), words)).max()
        wanted = max(1, round(rate * words))
        assert wanted <= chosen.sum() < wanted + longest_word


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_shortest_texts(count: int) -> None:
    chosen = choose_spans(np.ones(count, dtype=bool), MASKING, np.random.default_rng(0))
    assert chosen.sum() == min(count, 1)
    assert choose_fragments(count, MASKING, np.random.default_rng(0)) == []


def test_chosen_tokens_are_80_10_10_and_others_stay() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 999, 100_000)
    chosen = rng.random(100_000) < 0.5
    seen = corrupt(tokens, chosen, 999, 4, rng)
    assert (seen[~chosen] == tokens[~chosen]).all()
    assert (seen[chosen] == 999).mean() == pytest.approx(0.8, abs=0.01)
    assert (seen[chosen] == tokens[chosen]).mean() == pytest.approx(0.1, abs=0.01)
    assert seen.min() >= 4, "a random token is never a special one"
    replaced = seen[chosen & (seen != 999) & (seen != tokens)]
    assert len(np.unique(replaced)) > 950 and replaced.mean() == pytest.approx((4 + 998) / 2, rel=0.02), "uniform over words"


def test_a_random_token_is_no_mask() -> None:
    """In a vocabulary of two words each tenth that is drawn at random must be one of them."""
    rng = np.random.default_rng(0)
    seen = corrupt(np.full(50_000, 4), np.ones(50_000, bool), 6, 4, rng)
    assert np.bincount(seen) / 50_000 == pytest.approx([0, 0, 0, 0, 0.15, 0.05, 0.8], abs=0.01)


def test_fragment_lengths_are_uniform_between_4_and_32() -> None:
    """Of long texts, where only the last fragment is cut to what is still wanted."""
    lengths = [end - start for rng in rngs(40) for start, end in choose_fragments(4000, MASKING, rng)]
    counts = np.bincount(lengths, minlength=33)
    assert counts[:4].sum() == 0 and len(counts) == 33
    assert (counts[4:] > 0.6 * counts[4:].mean()).all() and np.mean(lengths) == pytest.approx(18, abs=0.6)


def test_fragments_lie_everywhere_in_the_text() -> None:
    covered = np.zeros(200)
    for rng in rngs(400):
        for start, end in choose_fragments(200, MASKING, rng):
            covered[start:end] += 1
    assert covered.min() > 0 and covered[20:180].mean() == pytest.approx(0.25 * 400, rel=0.2)


@pytest.mark.parametrize("count", [5, 16, 40, 200, 510])
def test_fragments_are_disjoint_of_legal_length_and_a_quarter_of_the_text(count: int) -> None:
    totals = []
    for rng in rngs(60):
        fragments = choose_fragments(count, MASKING, rng)
        covered = [position for start, end in fragments for position in range(start, end)]
        assert len(set(covered)) == len(covered) < count
        assert all(4 <= end - start <= 32 for start, end in fragments)
        assert 1 <= len(fragments) <= most_fragments(count, MASKING)
        totals.append(len(covered))
    assert np.mean(totals) == pytest.approx(max(4, count / 4), abs=4)


def test_a_region_that_overlaps_an_anchor_is_hidden_with_it() -> None:
    overlap = np.eye(20)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        overlap[a, b] = overlap[b, a] = 0.5
    overlap[6, 7] = overlap[7, 6] = 0.3  # below the threshold of 0.4
    hidden = np.array([choose_regions(overlap, MASKING, rng) for rng in rngs(300)])
    for a, b in ((0, 1), (2, 3), (4, 5)):
        assert (hidden[:, a] == hidden[:, b]).all()
    assert (hidden[:, 6] != hidden[:, 7]).any()
    assert hidden.mean() == pytest.approx(0.16, abs=0.03)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_when_all_regions_overlap_one_is_left_to_see(count: int) -> None:
    hidden = choose_regions(np.ones((count, count)), MASKING, np.random.default_rng(0))
    assert hidden.any() and (count == 1 or not hidden.all())


@pytest.mark.parametrize("threshold", [0.3, 0.4])
def test_hidden_regions_are_anchors_with_all_that_overlaps_them(threshold: float) -> None:
    masking = MaskingSection(region_overlap=threshold)
    for rng in rngs(60):
        corners = rng.random((30, 2)) * 100
        boxes = np.concatenate([corners, corners + rng.random((30, 2)) * 80 + 5], axis=1)
        overlap = intersection_over_union(boxes)
        hidden = choose_regions(overlap, masking, rng)
        near = overlap > threshold
        anchors = [a for a in np.flatnonzero(hidden) if not (near[a] & ~hidden).any()]
        assert hidden.sum() >= round(0.15 * 30) and anchors
        assert (hidden == near[anchors].any(axis=0)).all(), "nothing is hidden that overlaps no anchor"


def test_regions_that_do_not_overlap_are_hidden_at_the_rate() -> None:
    hidden = np.array([choose_regions(np.eye(100), MASKING, rng) for rng in rngs(300)])
    assert (hidden.sum(axis=1) == 15).all()
    assert hidden.mean(axis=0).std() < 0.03, "no region is favoured"


def test_boxes_without_an_area_are_hidden_like_others() -> None:
    """They overlap nothing, not even themselves."""
    overlap = intersection_over_union(np.tile(np.array([[3.0, 3.0, 3.0, 3.0]]), (20, 1)))
    assert not overlap.any()
    assert all(choose_regions(overlap, MASKING, rng).sum() == 3 for rng in rngs(10))


def test_no_box_at_all_and_all_boxes_equal() -> None:
    assert choose_regions(np.zeros((0, 0)), MASKING, np.random.default_rng(0)).shape == (0,)
    boxes = np.tile(np.array([[1.0, 1.0, 5.0, 5.0]]), (9, 1))
    hidden = choose_regions(intersection_over_union(boxes), MASKING, np.random.default_rng(0))
    assert hidden.sum() == 8


@settings(deadline=None, derandomize=True, max_examples=120)
@given(st.integers(0, 300), st.integers(1, 8), st.integers(0, 30), st.floats(0.05, 0.9), st.integers(0, 2**32))
def test_fragments_keep_their_promises_for_any_setting(count: int, shortest: int, more: int, rate: float, seed: int) -> None:
    """The plan of a step relies on `most_fragments`: one more would be over the budget."""
    masking = MaskingSection(fragment_rate=rate, fragment_shortest=shortest, fragment_longest=shortest + more)
    fragments = choose_fragments(count, masking, np.random.default_rng(seed))
    assert len(fragments) <= most_fragments(count, masking)
    assert all(shortest <= end - start <= shortest + more for start, end in fragments)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(fragments)) and all(0 <= a < b <= count for a, b in fragments)
    assert sum(end - start for start, end in fragments) <= max(shortest, round(rate * count))
    assert bool(fragments) == (count > shortest)


@settings(deadline=None, derandomize=True, max_examples=120)
@given(st.lists(st.booleans(), max_size=80), st.floats(0, 1), st.integers(1, 12), st.integers(0, 2**32))
def test_spans_are_whole_words_whatever_the_text(starts: list[bool], rate: float, longest: int, seed: int) -> None:
    masking = MaskingSection(token_rate=rate, span_longest=longest)
    chosen = choose_spans(np.array(starts, bool), masking, np.random.default_rng(seed))
    words = np.cumsum([first or not number for number, first in enumerate(starts)])
    assert all(len(set(chosen[words == word])) == 1 for word in set(words.tolist()))
    assert chosen.sum() >= min(len(starts), max(1, round(rate * len(starts))))


def test_words_of_several_tokens_are_hidden_at_15_percent_too() -> None:
    """English has about 1.3 tokens a word; the last word of a span may bring a token too many."""
    shares, words = [], []
    for rng in rngs(60):
        starts = rng.random(400) < 1 / 1.3
        chosen = choose_spans(starts, MASKING, rng)
        shares.append(chosen.mean())
        words.append(chosen[starts].mean())
    assert np.mean(shares) == pytest.approx(0.15, abs=0.005) and np.mean(words) == pytest.approx(0.15, abs=0.01)


def test_every_word_is_hidden_about_equally_often() -> None:
    """Those at the very start are fewer: spans begin at a word and run to the right."""
    hidden = np.mean([choose_spans(np.ones(60, bool), MASKING, rng) for rng in rngs(1500)], axis=0)
    assert hidden[10:].min() > 0.12 and hidden[10:].max() < 0.21 and hidden[0] > 0.02


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 36])
def test_regions_that_do_not_overlap_are_hidden_in_exactly_the_number_asked(count: int, rate: float) -> None:
    hidden = choose_regions(np.eye(count), MaskingSection(region_rate=rate), np.random.default_rng(count))
    asked = max(1, round(rate * count))
    assert hidden.sum() == (asked if count == 1 else min(asked, count - 1))


def test_a_fragment_leaves_something_to_start_from() -> None:
    greedy = MaskingSection(fragment_rate=1.0)
    for rng in rngs(20):
        assert [end - start for start, end in choose_fragments(5, greedy, rng)] == [4]
