"""Steps through the cache give the scores of one pass over the whole sequences, at every position, after any reordering."""

import pytest
import torch

from tests.helpers import TINY, VOCABULARY
from tests.model.prefixes import PREFIXES, next_logits, pack, some, stirred
from unimo_ds.data.packing import Packer
from unimo_ds.model.cache import Cache
from unimo_ds.model.generation import _new_rows
from unimo_ds.tokenizer import CLS

TOLERANCE = {torch.float64: 2e-6, torch.float32: 1e-4, torch.bfloat16: 0.15}  # scores are float32 whatever the model is
STEPS = 5


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", PREFIXES)
def test_steps_equal_the_whole_pass(kind: str, dtype: torch.dtype, beams: int) -> None:
    given, unimo = some(kind, 3), stirred(dtype=dtype)
    generator = torch.Generator().manual_seed(beams)
    prefix = pack(given)
    cache = Cache(prefix, rows=1 + (STEPS - 1) * beams)
    with torch.no_grad():
        unimo(prefix, attend=cache.encode)
    written: list[list[list[int]]] = [[[]] for _ in given]  # of each sentence, of each hypothesis
    for step in range(STEPS):
        now = beams if step else 1
        parents_SB = torch.randint(len(written[0]), (len(given), now), generator=generator)
        tokens_SB = torch.randint(4, VOCABULARY, (len(given), now), generator=generator) if step else torch.full((3, 1), CLS)
        written = [
            [[*texts[parent], token] for parent, token in zip(parents, tokens, strict=True)]
            for texts, parents, tokens in zip(written, parents_SB.tolist(), tokens_SB.tolist(), strict=True)
        ]
        cache.follow(parents_SB)
        rows = _new_rows(prefix.emptied(), tokens_SB.flatten(), 2 + step)
        with torch.no_grad():
            found = unimo(rows, want_logits=True, attend=cache.extend).language_logits_MV
        each = [sentence for sentence in given for _ in range(now)]
        expected = next_logits(unimo, each, [text[1:] for texts in written for text in texts])
        assert expected.std() > 0.5, "scores that are all alike would prove nothing"
        torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_a_sentence_does_not_see_the_others() -> None:
    """Not a bit of its scores changes with what else is in the batch, if that is no longer than itself."""
    given, unimo = some("of all kinds", 3), stirred()
    longest = max(range(3), key=lambda number: pack(given[number : number + 1]).positions)
    results = []
    for chosen in (given, given[longest : longest + 1]):
        prefix = pack(chosen)
        cache = Cache(prefix, rows=1)
        with torch.no_grad():
            unimo(prefix, attend=cache.encode)
            cache.follow(torch.zeros(len(chosen), 1, dtype=torch.int64))
            rows = _new_rows(prefix.emptied(), torch.full((len(chosen),), CLS), 2)
            results.append(unimo(rows, want_logits=True, attend=cache.extend).language_logits_MV)
    torch.testing.assert_close(results[0][longest], results[1][0], atol=1e-5, rtol=1e-5)


def test_no_sentences() -> None:
    prefix, unimo = Packer(TINY.feature_width, 100).build(), stirred()
    cache = Cache(prefix, rows=3)
    with torch.no_grad():
        unimo(prefix, attend=cache.encode)
        for now in (1, 2):
            cache.follow(torch.zeros(0, now, dtype=torch.int64))
            rows = _new_rows(prefix.emptied(), torch.zeros(0, dtype=torch.int64), 2)
            assert unimo(rows, want_logits=True, attend=cache.extend).language_logits_MV.shape == (0, VOCABULARY)


def test_an_emptied_batch_has_nothing_and_keeps_widths() -> None:
    batch = pack(some("of all kinds", 3)).emptied()
    assert (batch.positions, batch.sequences, batch.cu_seqlens_S1.tolist()) == (0, 0, [0])
    assert batch.features_RF.shape == (0, TINY.feature_width) and batch.boxes_R5.shape == (0, 5)
