"""The packed batch: counts, words, moves; and that random batches, which other tests stand on, are well formed."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed.joining import join
from tests.helpers import CLASSES, VOCABULARY, WIDTH, random_batch
from unimo_ds.batch import Batch, Counts, Kind, Target
from unimo_ds.kernels.attention import TILE_ROWS
from unimo_ds.tokenizer import CLS, SEP

INT32 = {"cu_seqlens_S1", "prefix_lengths_S", "attention_tiles_N4"}
FLOATS = {"features_RF": torch.float16, "boxes_R5": torch.float32, "target_class_probabilities_GK": torch.float32}


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    seed, pairs, texts, images = (draw(st.integers(0, most)) for most in (99, 3, 2, 2))
    return random_batch(seed, pairs=pairs, texts=texts, images=images, candidates=draw(st.booleans()))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(batches())
def test_every_index_points_where_the_description_says(batch: Batch) -> None:
    for field in fields(Batch):
        expected = FLOATS.get(field.name, torch.int32 if field.name in INT32 else torch.int64)
        expected = torch.bool if field.name == "region_hidden_L" else expected
        assert getattr(batch, field.name).dtype == expected, field.name
    starts = batch.cu_seqlens_S1.tolist()
    lengths = [b - a for a, b in pairwise(starts)]
    assert starts[0] == 0 and starts[-1] == batch.positions and len(lengths) == batch.sequences
    assert all(0 <= prefix <= length for prefix, length in zip(batch.prefix_lengths_S.tolist(), lengths, strict=True))
    tiled = [
        (start, length, prefix, first)
        for start, length, prefix in zip(starts, lengths, batch.prefix_lengths_S.tolist(), strict=False)
        for first in range(0, length, 64)
    ]
    assert sorted(map(tuple, batch.attention_tiles_N4.tolist())) == tiled, "every row is in one tile of its own sequence"
    rows = torch.cat([batch.token_rows_W, batch.region_rows_L])
    assert sorted(rows.tolist()) == list(range(batch.positions)), "every row of the stream is filled once"
    tokens = dict(zip(batch.token_rows_W.tolist(), batch.token_ids_W.tolist(), strict=True))
    regions = dict(zip(batch.region_rows_L.tolist(), batch.region_sources_L.tolist(), strict=True))
    assert all(0 <= source < len(batch.features_RF) for source in regions.values())
    assert len(batch.boxes_R5) == len(batch.features_RF) and batch.features_RF.shape[1] == WIDTH
    for row in [*batch.language_rows_M.tolist(), *batch.text_rows_X.tolist()]:
        assert row in tokens
    assert all(tokens[row] == CLS for row in batch.text_rows_X.tolist())
    hidden = {
        row for row, is_hidden in zip(batch.region_rows_L.tolist(), batch.region_hidden_L.tolist(), strict=True) if is_hidden
    }
    assert sorted(hidden) == sorted(batch.target_rows_G.tolist()), "a region is hidden exactly where it must be predicted"
    assert [regions[row] for row in batch.target_rows_G.tolist()] == batch.target_sources_G.tolist()
    image_rows = batch.image_rows_I.tolist()
    assert all(row in starts and row in regions and row not in hidden for row in image_rows)
    assert all(batch.boxes_R5[regions[row]].tolist() == [0, 0, 1, 1, 1] for row in image_rows)
    assert ((batch.language_labels_M >= 0) & (batch.language_labels_M < VOCABULARY)).all()
    assert ((batch.target_class_ids_GK >= 0) & (batch.target_class_ids_GK < CLASSES)).all()
    sums = batch.target_class_probabilities_GK.sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)
    generated = batch.language_kinds_M == Target.SEQ2SEQ
    for row, label in zip(batch.language_rows_M[generated].tolist(), batch.language_labels_M[generated].tolist(), strict=True):
        assert tokens[row + 1] == label and tokens[row] != SEP, "a generated word is the next row's token"


@settings(deadline=None, derandomize=True, max_examples=25)
@given(batches())
def test_members_of_pairs_are_complete_and_in_order(batch: Batch) -> None:
    pairs = len(batch.pair_groups_P)
    for own, kinds in ((batch.image_pairs_I, batch.image_kinds_I), (batch.text_pairs_X, batch.text_kinds_X)):
        assert own[kinds == Kind.ALONE].tolist() == list(range(pairs))
        assert own[kinds == Kind.PAIR].tolist() == list(range(pairs))
    joint_I, joint_X = batch.image_kinds_I <= Kind.NEGATIVE, batch.text_kinds_X <= Kind.NEGATIVE
    assert batch.image_pairs_I[joint_I].tolist() == batch.text_pairs_X[joint_X].tolist()
    assert batch.image_kinds_I[joint_I].tolist() == batch.text_kinds_X[joint_X].tolist()
    places = torch.bucketize(batch.image_rows_I[joint_I], batch.cu_seqlens_S1.long(), right=True)
    assert torch.equal(places, torch.bucketize(batch.text_rows_X[joint_X], batch.cu_seqlens_S1.long(), right=True))


def test_counts_are_the_targets_of_each_objective() -> None:
    batch = random_batch(0, pairs=2, texts=2, images=1)
    counts = batch.counts()
    kinds = batch.language_kinds_M.tolist()
    assert (counts.mlm, counts.seq2seq) == (kinds.count(Target.MLM), kinds.count(Target.SEQ2SEQ))
    assert counts.regions == int(batch.region_hidden_L.sum()) and counts.pairs == 2
    assert counts.positions == len(batch.token_ids_W) + len(batch.region_rows_L) == int(batch.cu_seqlens_S1[-1])
    assert min(counts.tensor().tolist()) > 0


@settings(deadline=None, derandomize=True, max_examples=15)
@given(batches(), batches())
def test_counts_of_joined_batches_are_sums(first: Batch, second: Batch) -> None:
    assert join([first, second]).counts() == first.counts() + second.counts()


@settings(deadline=None, derandomize=True, max_examples=15)
@given(batches())
def test_a_repeated_batch_is_its_copies_joined_with_the_vectors_stored_once(batch: Batch) -> None:
    repeated, joined = batch.repeated(3), join([batch] * 3)
    shown = [each.features_RF[each.region_sources_L] for each in (repeated, joined)]
    asked = [each.boxes_R5[each.target_sources_G] for each in (repeated, joined)]
    assert torch.equal(*shown) and torch.equal(*asked) and len(repeated.features_RF) == len(batch.features_RF)
    tiles = [each.attention_tiles_N4.tolist() for each in (repeated, joined)]
    assert sorted(tiles[0]) == sorted(tiles[1])
    work = [max(prefix, min(first + TILE_ROWS, length)) for _, length, prefix, first in tiles[0]]
    assert work == sorted(work, reverse=True)
    own = {"features_RF", "boxes_R5", "region_sources_L", "target_sources_G", "attention_tiles_N4"}
    for field in fields(Batch):
        found, expected = getattr(repeated, field.name), getattr(joined, field.name)
        assert found.dtype == expected.dtype, field.name
        assert field.name in own or torch.equal(found, expected), field.name


def test_counts_add_and_stand_in_the_order_of_their_fields() -> None:
    total = Counts(1, 2, 3, 4, 5) + Counts(10, 20, 30, 40, 50)
    assert total == Counts(mlm=11, seq2seq=22, regions=33, pairs=44, positions=55)
    assert total.tensor().tolist() == [11, 22, 33, 44, 55] and total.tensor().dtype == torch.int64


def test_an_empty_batch_counts_nothing() -> None:
    batch = random_batch(0)
    assert batch.counts() == Counts(0, 0, 0, 0, 0) and batch.sequences == 0
    assert batch.features_RF.shape == (0, WIDTH) and batch.cu_seqlens_S1.tolist() == [0]
    assert batch.describe().startswith("0 positions in 0 sequences")


def test_a_move_keeps_every_field_in_its_place() -> None:
    batch = random_batch(1, pairs=1, texts=1, images=1)
    moved, meta = batch.to(torch.device("cpu")), batch.to(torch.device("meta"))
    for field in fields(Batch):
        before = getattr(batch, field.name)
        assert torch.equal(getattr(moved, field.name), before), field.name
        assert getattr(meta, field.name).is_meta and getattr(meta, field.name).shape == before.shape


@pytest.mark.parametrize("shape", [{"pairs": 2}, {"pairs": 1, "texts": 1, "images": 2}])
def test_the_description_names_what_is_there(shape: dict[str, int]) -> None:
    batch = random_batch(2, **shape)
    counts, words = batch.counts(), batch.describe()
    assert f"{counts.positions} positions in {batch.sequences} sequences: {len(batch.token_ids_W)} tokens" in words
    assert f"{len(batch.region_rows_L)} places of {len(batch.features_RF)} region vectors" in words
    assert f"{counts.mlm} masked words, {counts.seq2seq} generated words, {counts.regions} hidden regions" in words
    members = f"{counts.pairs} pair, 0 positive, {counts.pairs} negative, {counts.pairs} alone, 0 retrieved"
    assert f"{counts.pairs} pairs with images ({members}) and texts ({members})" in words
