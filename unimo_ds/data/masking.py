"""What is hidden from the model: spans of words, fragments of text, regions of images (unimo-spec, 4.2 and 4.3).

All functions are pure: their randomness comes from the generator they are given.
"""

import numpy as np
import numpy.typing as npt

from unimo_ds.config import MaskingSection

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def choose_spans(starts_word: Bools, masking: MaskingSection, rng: np.random.Generator) -> Bools:
    """Marks whole words in spans of geometric length until `token_rate` of the tokens is chosen.

    Args:
        starts_word: [n], whether token i begins a word; the first token always does.
        masking: rates and lengths.
        rng: the sample's generator.

    Returns:
        [n], True where a token is chosen: at least one if n > 0, and never more than the rate asks plus one word.
    """
    count = len(starts_word)
    chosen = np.zeros(count, dtype=bool)
    if count == 0:
        return chosen
    firsts = np.flatnonzero(starts_word)
    if len(firsts) == 0 or firsts[0] != 0:
        firsts = np.concatenate([[0], firsts])
    ends = np.append(firsts[1:], count)
    wanted = max(1, round(masking.token_rate * count))
    while chosen.sum() < wanted:
        length = min(rng.geometric(masking.span_geometric), masking.span_longest)
        word = int(rng.integers(len(firsts)))
        for first, end in zip(firsts[word : word + length], ends[word : word + length], strict=True):
            if chosen.sum() >= wanted:
                break
            chosen[first:end] = True
    return chosen


def corrupt(tokens: Ints, chosen: Bools, mask_id: int, first_word_id: int, rng: np.random.Generator) -> Ints:
    """Replaces chosen tokens: 80 % by [MASK], 10 % by a random token, 10 % stay.

    Args:
        tokens: [n] ids.
        chosen: [n], which of them.
        mask_id: id of [MASK], the last one of the vocabulary.
        first_word_id: random tokens are drawn from `first_word_id .. mask_id - 1`, so never a special one.
        rng: the sample's generator.
    """
    fate = rng.random(len(tokens))
    random_ids = rng.integers(first_word_id, mask_id, len(tokens))
    replaced = np.where(chosen & (fate < 0.8), mask_id, tokens)
    return np.where(chosen & (fate >= 0.8) & (fate < 0.9), random_ids, replaced)


def choose_fragments(count: int, masking: MaskingSection, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Disjoint fragments `[start, end)` of a text of `count` tokens, until `fragment_rate` of them is chosen.

    Lengths are uniform in `fragment_shortest .. fragment_longest`, the last one cut to what is still wanted but never below
    the shortest. A text too short for one fragment beside one other token has none.
    """
    shortest = masking.fragment_shortest
    wanted = max(shortest, round(masking.fragment_rate * count))
    if count < shortest + 1:
        return []
    free = np.ones(count, dtype=bool)
    fragments: list[tuple[int, int]] = []
    while wanted >= shortest:
        length = min(int(rng.integers(shortest, masking.fragment_longest + 1)), wanted, count - 1)
        windows = np.convolve(free, np.ones(length, dtype=int), "valid") == length
        places = np.flatnonzero(windows)
        if len(places) == 0:
            break
        start = int(rng.choice(places))
        fragments.append((start, start + length))
        free[start : start + length] = False
        wanted -= length
    return sorted(fragments)


def choose_regions(overlap_RR: npt.NDArray[np.floating], masking: MaskingSection, rng: np.random.Generator) -> Bools:
    """Draws anchors and hides them with every region that overlaps them, until `region_rate` of the regions is hidden.

    Neighbouring boxes show the same pixels: without the overlap rule the answer could be copied.

    Args:
        overlap_RR: intersection over union of the regions.
        masking: the rate, and the overlap above which a region is hidden with its anchor.
        rng: the sample's generator.

    Returns:
        [R], True where a region is hidden; at least one if R > 0, and at least one is left if R > 1.
    """
    count = len(overlap_RR)
    hidden = np.zeros(count, dtype=bool)
    wanted = max(1, round(masking.region_rate * count))
    for anchor in rng.permutation(count):
        if hidden.sum() >= wanted:
            break
        hidden |= overlap_RR[anchor] > masking.region_overlap
        hidden[anchor] = True
    if count > 1 and hidden.all():
        hidden[int(rng.integers(count))] = False
    return hidden
