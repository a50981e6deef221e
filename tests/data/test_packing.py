"""Views and the packed stream: layouts, positions, prefixes, labels, and nothing that gives an answer away."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import CLASSES, VOCABULARY, WIDTH, random_batch, random_regions, view_maker
from unimo_ds.batch import Kind, Target
from unimo_ds.data.packing import Packer, pack_alone
from unimo_ds.data.sequences import IGNORED, Member, Sequence
from unimo_ds.tokenizer import CLS, SEP

VIEWS = view_maker()
TOKENS = np.arange(10, 40)


def test_a_whole_text() -> None:
    text = VIEWS.whole_text(TOKENS)
    assert text.ids.tolist() == [CLS, *TOKENS, SEP]
    assert text.positions.tolist() == list(range(2, 34)), "positions start at 2"
    assert (text.labels == IGNORED).all()


def test_a_masked_text_asks_for_what_it_hides() -> None:
    text = VIEWS.masked_text(TOKENS, np.random.default_rng(0))
    asked = text.labels != IGNORED
    assert (text.labels[asked] == np.concatenate([[CLS], TOKENS, [SEP]])[asked]).all()
    assert not asked[0] and not asked[-1] and 4 <= asked.sum() <= 6


def test_a_generated_text_predicts_the_next_word() -> None:
    text = VIEWS.generated_text(TOKENS)
    assert text.labels.tolist() == [*TOKENS, SEP, IGNORED]


def test_fragments_are_removed_and_generated() -> None:
    text = VIEWS.fragments_of_text(TOKENS, np.random.default_rng(1))
    assert text is not None
    source, rest = text.ids[: text.source_length], text.ids[text.source_length :]
    assert source[0] == CLS and source[-1] == SEP and rest[0] == CLS and rest[-1] == SEP
    assert sorted([*source, *rest]) == sorted([*TOKENS, *([CLS, SEP] * (1 + (rest == CLS).sum()))])
    assert (text.labels[: text.source_length] == IGNORED).all()
    starts = [*np.flatnonzero(text.ids == CLS), len(text.ids)]
    counted = [np.arange(b - a) + 2 for a, b in itertools.pairwise(starts)]
    assert text.positions.tolist() == np.concatenate(counted).tolist(), "source and fragments count their positions anew"
    ends = text.ids == SEP
    assert (text.labels[text.source_length :] == IGNORED).tolist() == ends[text.source_length :].tolist()
    for place in np.flatnonzero(text.labels != IGNORED):
        assert text.labels[place] == text.ids[place + 1]


def visible(prefix: int, length: int) -> np.ndarray:
    place = np.arange(length)
    return place[None] < np.maximum(prefix, place[:, None] + 1)


def test_the_mask_of_a_caption_after_its_image() -> None:
    packer = Packer(WIDTH, 100)
    image, shown = packer.add_image(random_regions(np.random.default_rng(0), 5))
    packer.add(Sequence(image=image, regions=shown, text=VIEWS.generated_text(TOKENS[:4]), causal=True, target=Target.SEQ2SEQ))
    batch = packer.build()
    seen = visible(int(batch.prefix_lengths_S[0]), int(batch.cu_seqlens_S1[1]))
    assert seen[:, :6].all(), "every row sees [IMG] and the regions"
    assert not seen[:6, 6:].any(), "the image sees no text"
    assert (seen[6:, 6:] == np.tril(np.ones((6, 6), bool))).all(), "the text sees what is before it"
    assert batch.language_rows_M.tolist() == [6, 7, 8, 9, 10]


def test_the_image_row_shows_the_mean_of_all_regions_even_of_those_cut_off() -> None:
    regions = random_regions(np.random.default_rng(0), 9)
    packer = Packer(WIDTH, max_regions=4)
    image, shown = packer.add_image(regions)
    packer.add(Sequence(image=image, regions=shown))
    batch = packer.build()
    assert shown == 4 and batch.positions == 5
    mean = batch.features_RF[batch.region_sources_L[0]]
    np.testing.assert_allclose(mean, regions.features_RF.astype("f4").mean(0), atol=1e-3)
    assert batch.boxes_R5[batch.region_sources_L[0]].tolist() == [0, 0, 1, 1, 1]


def test_a_hidden_region_cannot_be_read_off_anything_shown() -> None:
    """Changing a hidden region's feature changes no vector that the sequence shows unhidden."""

    def shown_vectors(change: float) -> torch.Tensor:
        regions = random_regions(np.random.default_rng(0), 6)
        regions.features_RF[2] += np.float16(change)
        packer = Packer(WIDTH, 100)
        image, shown = packer.add_image(regions)
        hidden = np.arange(6) == 2
        packer.add(Sequence(image=image, regions=shown, hidden=hidden))
        batch = packer.build()
        assert batch.target_rows_G.tolist() == [3]
        return batch.features_RF[batch.region_sources_L[~batch.region_hidden_L]]

    assert torch.equal(shown_vectors(0.0), shown_vectors(5.0))


def test_soft_labels_are_distributions_over_classes() -> None:
    batch = random_batch(0, pairs=2, images=3)
    torch.testing.assert_close(batch.target_class_probabilities_GK.sum(1), torch.ones(len(batch.target_rows_G)))
    assert int(batch.target_class_ids_GK.max()) < CLASSES


def test_members_of_cmcl_are_aligned() -> None:
    batch = random_batch(0, pairs=4, candidates=True)
    joint_i, joint_x = batch.image_kinds_I <= Kind.NEGATIVE, batch.text_kinds_X <= Kind.NEGATIVE
    assert torch.equal(batch.image_pairs_I[joint_i], batch.text_pairs_X[joint_x])
    assert torch.equal(batch.image_kinds_I[joint_i], batch.text_kinds_X[joint_x])
    assert batch.image_pairs_I[batch.image_kinds_I == Kind.ALONE].tolist() == [0, 1, 2, 3]
    ids = torch.full((batch.positions,), -1)
    ids[batch.token_rows_W] = batch.token_ids_W
    assert (ids[batch.text_rows_X] == CLS).all(), "a text member is the [CLS] row"
    starts = batch.cu_seqlens_S1[:-1]
    assert torch.isin(batch.image_rows_I, starts).all(), "an image member is the first row of its sequence"


def test_every_row_of_the_stream_is_filled_once() -> None:
    batch = random_batch(0, pairs=2, texts=2, images=2)
    rows = torch.cat([batch.token_rows_W, batch.region_rows_L]).sort().values
    assert torch.equal(rows, torch.arange(batch.positions)) and int(batch.cu_seqlens_S1[-1]) == batch.positions
    assert int(batch.token_ids_W.max()) < VOCABULARY


def test_an_empty_batch_is_legal_and_says_so() -> None:
    batch = Packer(WIDTH, 100).build()
    assert batch.positions == batch.sequences == 0 and batch.features_RF.shape == (0, WIDTH)
    assert batch.describe().startswith("0 positions in 0 sequences")


def test_counts_and_description_agree() -> None:
    batch = random_batch(0, pairs=3, texts=2, images=1)
    counts = batch.counts()
    assert counts.mlm + counts.seq2seq == len(batch.language_labels_M) and counts.pairs == 3
    assert f"{counts.mlm} masked words, {counts.seq2seq} generated words" in batch.describe()
    assert (counts + counts).positions == 2 * batch.positions


def test_an_image_s_vectors_are_stored_once_however_often_they_are_shown() -> None:
    packer = Packer(WIDTH, 100)
    image, shown = packer.add_image(random_regions(np.random.default_rng(0), 7))
    pair = packer.add_pair(0)
    for kind in (Kind.ALONE, Kind.RETRIEVED):
        packer.add(Sequence(image=image, regions=shown, member=Member(pair, kind)))
    batch = packer.build()
    assert len(batch.features_RF) == 8 and len(batch.region_rows_L) == 16


def test_an_image_without_regions_is_its_image_row_alone() -> None:
    regions = random_regions(np.random.default_rng(0), 0)
    packer = Packer(WIDTH, 100)
    image, shown = packer.add_image(regions)
    packer.add(Sequence(image=image, regions=shown, hidden=VIEWS.hidden_regions(regions, shown, np.random.default_rng(0))))
    batch = packer.build()
    assert batch.positions == 1 and batch.counts().regions == 0 and not batch.features_RF.any()


def test_when_the_only_region_is_hidden_the_image_row_shows_nothing() -> None:
    packer = Packer(WIDTH, 100)
    image, shown = packer.add_image(random_regions(np.random.default_rng(0), 1))
    packer.add(Sequence(image=image, regions=shown, hidden=np.array([True])))
    batch = packer.build()
    assert not batch.features_RF[batch.region_sources_L[0]].any() and batch.counts().regions == 1


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 1000))
def test_the_image_row_is_the_mean_of_exactly_the_regions_that_are_not_hidden(count: int, limit: int, seed: int) -> None:
    """Those cut off by the limit count too: the mean is of all regions (spec 1.5)."""
    rng = np.random.default_rng(seed)
    regions = random_regions(rng, count)
    packer = Packer(WIDTH, limit)
    image, shown = packer.add_image(regions)
    hidden = rng.random(shown) < 0.4
    packer.add(Sequence(image=image, regions=shown, hidden=hidden))
    batch = packer.build()
    seen = np.append(~hidden, np.ones(count - shown, bool))
    expected = regions.features_RF[seen].astype("f8").mean(0) if seen.any() else np.zeros(WIDTH)
    np.testing.assert_allclose(batch.features_RF[batch.region_sources_L[0]], expected, atol=1e-3)
    assert batch.target_rows_G.tolist() == [1 + number for number in np.flatnonzero(hidden)]
    np.testing.assert_array_equal(batch.features_RF[batch.target_sources_G], regions.features_RF[:shown][hidden])
    assert batch.region_hidden_L.tolist() == [False, *hidden]


def test_stores_that_keep_different_numbers_of_classes_share_a_batch() -> None:
    packer, rng = Packer(WIDTH, 100), np.random.default_rng(0)
    kept = [3, 7]
    for number in kept:
        image, shown = packer.add_image(random_regions(rng, 4, kept=number))
        packer.add(Sequence(image=image, regions=shown, hidden=np.array([True, False, False, True])))
    batch = packer.build()
    assert batch.target_class_ids_GK.shape == batch.target_class_probabilities_GK.shape == (4, 7)
    assert not batch.target_class_probabilities_GK[:2, 3:].any()
    torch.testing.assert_close(batch.target_class_probabilities_GK.sum(1), torch.ones(4))


def test_images_and_texts_for_retrieval_stand_alone_in_their_order() -> None:
    rng = np.random.default_rng(0)
    images, texts = [random_regions(rng, n) for n in (3, 5)], [VIEWS.whole_text(TOKENS[:n]) for n in (4, 2, 6)]
    batch = pack_alone(images, texts, WIDTH, 4)
    assert batch.prefix_lengths_S.tolist() == [4, 5, 6, 4, 8]
    assert batch.image_rows_I.tolist() == [0, 4] and batch.text_rows_X.tolist() == [9, 15, 19]
    assert batch.image_pairs_I.tolist() == [0, 1] and batch.text_pairs_X.tolist() == [0, 1, 2]
    assert {*batch.image_kinds_I.tolist(), *batch.text_kinds_X.tolist()} == {Kind.ALONE}
    assert batch.counts().mlm == batch.counts().seq2seq == batch.counts().regions == batch.counts().pairs == 0


def test_locations_are_of_the_image_on_disk() -> None:
    regions = random_regions(np.random.default_rng(0), 3)
    packer = Packer(WIDTH, 100)
    image, shown = packer.add_image(regions)
    packer.add(Sequence(image=image, regions=shown))
    batch = packer.build()
    x1, y1, x2, y2 = regions.boxes_R4.T
    expected = np.stack([x1 / 200, y1 / 160, x2 / 200, y2 / 160, (y2 - y1) * (x2 - x1) / (200 * 160)], axis=1)
    np.testing.assert_allclose(batch.boxes_R5[batch.region_sources_L[1:]], expected, rtol=1e-5)


def test_random_tokens_of_a_masked_text_are_all_words_and_no_special_ids() -> None:
    tokens = np.full(60_000, 50)
    text = VIEWS.masked_text(tokens, np.random.default_rng(0))
    replaced = text.ids[(text.labels != IGNORED) & (text.ids != 50)]
    assert set(replaced) == set(range(4, VOCABULARY)) - {50}, "every word, and [MASK]"


def test_two_sequences_one_after_the_other() -> None:
    """Everything that names a row counts from the start of the stream, and position ids from the start of the text."""
    rng = np.random.default_rng(0)
    packer = Packer(WIDTH, 100)
    first, second = random_regions(rng, 3), random_regions(rng, 4)
    packer.add(Sequence(text=VIEWS.generated_text(TOKENS[:2]), causal=True, target=Target.SEQ2SEQ))  # rows 0 to 3
    for regions, hidden in ((first, [True, False, True]), (second, [False, False, False, True])):
        image, shown = packer.add_image(regions)
        packer.add(Sequence(image=image, regions=shown, hidden=np.array(hidden), text=VIEWS.whole_text(TOKENS[:1])))
    masked = VIEWS.masked_text(TOKENS[:5], rng)
    packer.add(Sequence(text=masked))
    batch = packer.build()
    assert batch.cu_seqlens_S1.tolist() == [0, 4, 11, 19, 26] and batch.prefix_lengths_S.tolist() == [0, 7, 8, 7]
    assert batch.target_rows_G.tolist() == [5, 7, 15]
    expected = np.concatenate([first.features_RF[[0, 2]], second.features_RF[[3]]])
    np.testing.assert_array_equal(batch.features_RF[batch.target_sources_G], expected)
    ids = np.concatenate([first.class_ids_RK[[0, 2]], second.class_ids_RK[[3]]])
    np.testing.assert_array_equal(batch.target_class_ids_GK, ids)
    assert batch.token_rows_W.tolist() == [*range(4), 8, 9, 10, 16, 17, 18, *range(19, 26)]
    assert batch.token_positions_W.tolist() == [2, 3, 4, 5, 2, 3, 4, 2, 3, 4, *range(2, 9)]
    assert batch.language_rows_M.tolist() == [0, 1, 2, *(19 + np.flatnonzero(masked.labels != IGNORED))]
    assert batch.language_labels_M.tolist() == [*TOKENS[:2], SEP, *masked.labels[masked.labels != IGNORED]]
    assert batch.language_kinds_M.tolist()[:4] == [Target.SEQ2SEQ] * 3 + [Target.MLM]
    shown = np.concatenate([first.features_RF, second.features_RF])
    beside = batch.region_sources_L[[1, 2, 3, 5, 6, 7, 8]]
    np.testing.assert_array_equal(batch.features_RF[beside], shown)
    assert batch.region_rows_L.tolist() == [4, 5, 6, 7, 11, 12, 13, 14, 15]


def test_soft_labels_are_the_kept_probabilities_made_to_sum_to_one() -> None:
    regions = random_regions(np.random.default_rng(0), 3)
    regions.class_probabilities_RK[1] = 0  # all of its mass fell on classes that were not kept
    packer = Packer(WIDTH, 100)
    image, shown = packer.add_image(regions)
    packer.add(Sequence(image=image, regions=shown, hidden=np.array([True, True, False])))
    batch = packer.build()
    kept = regions.class_probabilities_RK[0].astype("f4")
    np.testing.assert_allclose(batch.target_class_probabilities_GK[0], kept / kept.sum(), rtol=1e-5)
    assert batch.target_class_probabilities_GK.isfinite().all(), "nothing is divided by nothing"
    assert batch.target_class_probabilities_GK.dtype == torch.float32


def test_dtypes_are_those_that_the_batch_promises() -> None:
    for batch in (random_batch(0, pairs=2, texts=1, images=1), Packer(WIDTH, 100).build()):
        special = dict.fromkeys(("cu_seqlens_S1", "prefix_lengths_S", "attention_tiles_N4"), torch.int32)
        special |= {"region_hidden_L": torch.bool}
        special |= {"features_RF": torch.float16, "boxes_R5": torch.float32, "target_class_probabilities_GK": torch.float32}
        for name in batch.__dataclass_fields__:
            assert getattr(batch, name).dtype == special.get(name, torch.int64), name
