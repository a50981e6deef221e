"""Which row sees which: the masks of the specification, written out, against what attention really does with a batch."""

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.helpers import WIDTH, random_regions, view_maker
from unimo_ds.batch import Batch, Kind, Target
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Member, Sequence
from unimo_ds.kernels.attention import Sequences, packed_attention
from unimo_ds.tokenizer import SEP

VIEWS = view_maker()
TOKENS = np.arange(10, 34)
Mask = npt.NDArray[np.bool_]


def everything_sees_everything(batch: Batch) -> Mask:
    return np.ones((batch.positions, batch.positions), bool)


def source_then_target(batch: Batch) -> Mask:
    """`M[:e, :s] = 1`, `M[s:e, s:e] = tril(1)` (spec 3, seq2seq); the source ends with the first [SEP]."""
    end = batch.positions
    start = int((batch.token_ids_W == SEP).nonzero()[0]) + 1
    mask = np.zeros((end, end), bool)
    mask[:end, :start] = True
    mask[start:end, start:end] = np.tril(np.ones((end - start, end - start), bool))
    return mask


def image_then_text(batch: Batch) -> Mask:
    """All ones; text-text block := tril; image-to-text block := 0 (spec 3, image-to-text)."""
    image, end = len(batch.region_rows_L), batch.positions
    mask = np.ones((end, end), bool)
    mask[image:, image:] = np.tril(np.ones((end - image, end - image), bool))
    mask[:image, image:] = False
    return mask


def text_alone(packer: Packer) -> None:
    packer.add(Sequence(text=VIEWS.masked_text(TOKENS, np.random.default_rng(0))))


def image_alone(packer: Packer) -> None:
    image, shown = packer.add_image(random_regions(np.random.default_rng(0), 6))
    packer.add(Sequence(image=image, regions=shown, hidden=np.arange(6) == 1))


def pair_masked(packer: Packer) -> None:
    image, shown = packer.add_image(random_regions(np.random.default_rng(0), 6))
    packer.add(Sequence(image=image, regions=shown, text=VIEWS.masked_text(TOKENS, np.random.default_rng(0))))


def pair_of_cmcl(packer: Packer) -> None:
    image, shown = packer.add_image(random_regions(np.random.default_rng(0), 6))
    member = Member(packer.add_pair(0), Kind.PAIR)
    packer.add(Sequence(image=image, regions=shown, text=VIEWS.whole_text(TOKENS), member=member))


def text_with_fragments(packer: Packer) -> None:
    fragments = VIEWS.fragments_of_text(TOKENS, np.random.default_rng(3))
    assert fragments is not None
    packer.add(Sequence(text=fragments, causal=True, target=Target.SEQ2SEQ))


def caption_generated(packer: Packer) -> None:
    image, shown = packer.add_image(random_regions(np.random.default_rng(0), 6))
    packer.add(Sequence(image=image, regions=shown, text=VIEWS.generated_text(TOKENS), causal=True, target=Target.SEQ2SEQ))


VIEWS_AND_MASKS: dict[str, tuple[Callable[[Packer], None], Callable[[Batch], Mask]]] = {
    "text alone": (text_alone, everything_sees_everything),
    "image alone": (image_alone, everything_sees_everything),
    "pair masked": (pair_masked, everything_sees_everything),
    "pair of CMCL": (pair_of_cmcl, everything_sees_everything),
    "text with fragments": (text_with_fragments, source_then_target),
    "caption generated": (caption_generated, image_then_text),
}


def what_attention_sees(batch: Batch) -> Mask:
    """Values are unit vectors, so that the attended value of a row is its attention weights; those above 0 are seen."""
    qkv = torch.randn(batch.positions, 3, 1, batch.positions, generator=torch.Generator().manual_seed(0))
    qkv[:, 2, 0] = torch.eye(batch.positions)
    sequences = Sequences(batch.cu_seqlens_S1, batch.prefix_lengths_S, batch.attention_tiles_N4)
    return (packed_attention(qkv, sequences, 0.0)[:, 0] > 0).numpy()


@pytest.mark.parametrize("name", VIEWS_AND_MASKS)
def test_each_view_has_the_mask_of_the_specification(name: str) -> None:
    add, mask = VIEWS_AND_MASKS[name]
    packer = Packer(WIDTH, 100)
    add(packer)
    batch = packer.build()
    np.testing.assert_array_equal(what_attention_sees(batch), mask(batch))


def test_views_packed_together_keep_their_masks_and_do_not_see_each_other() -> None:
    packer, alone = Packer(WIDTH, 100), []
    for add, mask in VIEWS_AND_MASKS.values():
        own = Packer(WIDTH, 100)
        add(own)
        add(packer)
        alone.append(mask(own.build()))
    batch = packer.build()
    expected = np.zeros((batch.positions, batch.positions), bool)
    starts = [0, *itertools.accumulate(len(mask) for mask in alone)]
    for start, mask in zip(starts, alone, strict=False):
        expected[start : start + len(mask), start : start + len(mask)] = mask
    np.testing.assert_array_equal(what_attention_sees(batch), expected)


def test_what_is_generated_is_never_seen_by_the_row_that_predicts_it() -> None:
    """The label of a row is the id of a later row of its sequence, or none that it sees."""
    for add in (text_with_fragments, caption_generated):
        packer = Packer(WIDTH, 100)
        add(packer)
        batch = packer.build()
        seen = what_attention_sees(batch)
        ids = {int(row): int(token) for row, token in zip(batch.token_rows_W, batch.token_ids_W, strict=True)}
        for row, label in zip(batch.language_rows_M.tolist(), batch.language_labels_M.tolist(), strict=True):
            assert ids[row + 1] == label and not seen[row, row + 1]
            assert label == SEP or label not in [ids[other] for other in np.flatnonzero(seen[row]) if other in ids]


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_the_shortest_texts_have_legal_views(count: int) -> None:
    """Four words are too few to lose a fragment of four and keep one."""
    tokens = TOKENS[:count]
    masked = VIEWS.masked_text(tokens, np.random.default_rng(0))
    assert len(masked.ids) == count + 2 and (masked.labels >= 0).sum() == min(count, 1)
    assert VIEWS.fragments_of_text(tokens, np.random.default_rng(0)) is None
    generated = VIEWS.generated_text(tokens)
    assert generated.labels.tolist() == [*tokens, SEP, -1]


def test_five_words_lose_four_and_keep_one() -> None:
    found = VIEWS.fragments_of_text(TOKENS[:5], np.random.default_rng(0))
    assert found is not None and found.source_length == 3 and len(found.ids) == 9
