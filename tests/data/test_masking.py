"""What is hidden: rates, whole words, fragments, overlapping regions."""

import numpy as np
import pytest

from unimo_ds.config import MaskingSection
from unimo_ds.data.masking import choose_fragments, choose_regions, choose_spans, corrupt
from unimo_ds.data.plan import most_fragments

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


def test_span_lengths_are_geometric_and_clipped() -> None:
    """With a tiny rate each text has one span; its mean length is that of Geo(0.2) clipped at 10."""
    masking = MaskingSection(token_rate=1.0, span_geometric=0.2)
    drawn = np.minimum(np.random.default_rng(0).geometric(masking.span_geometric, 100_000), masking.span_longest)
    assert drawn.max() == 10 and drawn.mean() == pytest.approx((1 - 0.8**10) / 0.2, rel=0.01)
    assert choose_spans(np.ones(20, bool), masking, np.random.default_rng(0)).all()


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
