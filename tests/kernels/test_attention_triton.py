"""Attention's Triton kernels, in Triton's interpreter, against a float64 loop over sequences and an independent Philox."""

import itertools
import random
from collections import Counter
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from tests.kernels.interpreter import INTERPRETED, repaired
from tests.kernels.philox import kept_weights, philox
from unimo_ds.kernels import attention_triton
from unimo_ds.kernels.attention import TILE_ROWS, tile_list
from unimo_ds.kernels.launch_triton import Launcher, Recorder
from unimo_ds.kernels.table import ARCHITECTURES, WIDTHS, AttentionKernel, Launch, attention_launch

pytestmark = pytest.mark.long

SEED = (0x0123456789ABCDEF, 0x7654321089ABCDEF)
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # relative to the largest value


def triton_attention(
    qkv_T3HE: Tensor,
    d_attended_THE: Tensor,
    lengths: list[int],
    prefixes: list[int],
    rate: float = 0.0,
    launcher: Launcher = INTERPRETED,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attended values, log-sums and the gradient of queries, keys and values."""
    tiles, seed = torch.from_numpy(tile_list(lengths, prefixes)), torch.tensor(SEED) if rate else None
    with repaired():
        attended, log_sums = attention_triton.forward(qkv_T3HE, tiles, rate, seed, launcher)
        d_qkv = attention_triton.backward(d_attended_THE, qkv_T3HE, attended, log_sums, tiles, rate, seed, launcher)
    return attended, log_sums, d_qkv


def reference(
    qkv_T3HE: Tensor, d_attended_THE: Tensor, lengths: list[int], prefixes: list[int], rate: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in float64, with the mask rule written out and the dropout mask of the other Philox."""
    exact = qkv_T3HE.double().requires_grad_()
    attended, log_sums, start = [], [], 0
    for length, prefix in zip(lengths, prefixes, strict=True):
        query, key, value = exact[start : start + length].permute(1, 2, 0, 3)
        scores = query @ key.mT / exact.shape[-1] ** 0.5
        for i in range(length):
            scores[:, i, max(prefix, i + 1) :] = -torch.inf
        weights = scores.softmax(-1)
        if rate:
            kept = [kept_weights(SEED, rate, head, start, length) for head in range(exact.shape[2])]
            weights = weights * torch.from_numpy(np.stack(kept)) / (1 - rate)
        attended.append((weights @ value).transpose(0, 1))
        log_sums.append(scores.logsumexp(-1))
        start += length
    joined = torch.cat(attended)
    joined.backward(d_attended_THE.double())
    assert exact.grad is not None
    return joined.detach(), torch.cat(log_sums, dim=1).detach(), exact.grad


def drawn(lengths: list[int], heads: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, heads, width, generator=generator)
    return qkv.to(dtype), torch.randn(sum(lengths), heads, width, generator=generator).to(dtype)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    allowed = tolerance * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found.double(), expected, atol=allowed, rtol=0)


@st.composite
def sequences(draw: st.DrawFn, longest: int) -> tuple[list[int], list[int]]:
    """One to three sequences of every kind, short ones, or a single one of any length."""
    lengths = draw(st.lists(st.integers(1, 100), min_size=1, max_size=3) | st.integers(1, longest).map(lambda length: [length]))
    return lengths, [draw(st.sampled_from([0, length]) | st.integers(0, length)) for length in lengths]


@settings(deadline=None, derandomize=True, max_examples=12)
@given(sequences(longest=600), st.sampled_from(ARCHITECTURES), st.sampled_from(WIDTHS), st.sampled_from([0.0, 0.0, 0.1, 0.7]))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_and_gradient_in_16_bits(
    dtype: torch.dtype, shape: tuple[list[int], list[int]], architecture: int, width: int, rate: float
) -> None:
    compare_with_reference(dtype, shape, architecture, width, rate)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(sequences(longest=200), st.sampled_from(ARCHITECTURES), st.sampled_from(WIDTHS), st.sampled_from([0.0, 0.0, 0.1, 0.7]))
def test_values_and_gradient_in_float32(shape: tuple[list[int], list[int]], architecture: int, width: int, rate: float) -> None:
    compare_with_reference(torch.float32, shape, architecture, width, rate)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradient_where_the_mask_ends_beside_a_tile(architecture: int) -> None:
    lengths, prefixes = [130, 100, 66, 64, 65], [65, 63, 64, 63, 1]
    compare_with_reference(torch.float16, (lengths, prefixes), architecture, 32, 0.0)


def test_values_and_gradient_of_a_long_sequence_in_float32() -> None:
    compare_with_reference(torch.float32, ([600], [350]), 90, 32, 0.0)


def compare_with_reference(
    dtype: torch.dtype, shape: tuple[list[int], list[int]], architecture: int, width: int, rate: float
) -> None:
    inputs = *drawn(shape[0], 1, width, dtype), *shape, rate
    found, expected = triton_attention(*inputs, Launcher(architecture)), reference(*inputs)
    for result, exact in zip(found, expected, strict=True):
        assert_near(result, exact, TOLERANCES[dtype])
    assert [result.dtype for result in found] == [dtype, torch.float32, dtype]


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_heads_do_not_mix(rate: float) -> None:
    lengths, prefixes = [20, 70], [20, 30]
    inputs = *drawn(lengths, 3, 32), lengths, prefixes, rate
    for result, exact in zip(triton_attention(*inputs), reference(*inputs), strict=True):
        assert_near(result, exact, TOLERANCES[torch.float32])


# The mask hides the pairs whose weight overflows before it: a key that is not seen can fit far better than those that are.
@pytest.mark.filterwarnings("ignore:overflow")
def test_large_scores_do_not_overflow() -> None:
    lengths, prefixes = [80, 70], [80, 0]
    qkv, d_attended = drawn(lengths, 1, 32)
    qkv[:, :2] *= 30  # scores of some thousands: exp of them is infinite
    for result, exact in zip(
        triton_attention(qkv, d_attended, lengths, prefixes), reference(qkv, d_attended, lengths, prefixes), strict=True
    ):
        assert_near(result, exact, 1e-3)


def test_philox_gives_the_words_of_its_authors() -> None:
    """Known answers of Random123, the authors' library (tests/kat_vectors, philox4x32 10)."""
    counters = np.array([[0, 0, 0, 0], [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], dtype=np.uint64)
    assert [*philox(0, counters)[0]] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [*philox(0x299F31D0A4093822, counters)[1]] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_the_weights_that_philox_says_are_dropped(rate: float) -> None:
    """Values are columns of an identity, so that the attended values of a row are its weights, one by one."""
    lengths, width = [7, 90], 128
    qkv, d_attended = drawn(lengths, 2, width)
    qkv[7:, 2] = torch.eye(90, width)[:, None]
    attended, _, _ = triton_attention(qkv, d_attended, lengths, [7, 90], rate)
    for head in range(2):
        np.testing.assert_array_equal(attended[7:, head, :90].numpy() != 0, kept_weights(SEED, rate, head, 7, 90))


@pytest.mark.parametrize("launch", [Launch(64, 64, 4, 1), Launch(64, 16, 4, 1, depth=16)])
def test_nothing_depends_on_the_launch(monkeypatch: pytest.MonkeyPatch, launch: Launch) -> None:
    lengths, prefixes = [110, 40], [100, 0]
    inputs = *drawn(lengths, 1, 32), lengths, prefixes, 0.5
    before = triton_attention(*inputs)
    monkeypatch.setattr(attention_triton, "attention_launch", lambda *_: launch)
    for result, other in zip(triton_attention(*inputs), before, strict=True):
        assert_near(result, other.double(), TOLERANCES[torch.float32])


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")
def test_a_sequence_never_sees_another() -> None:
    lengths, prefixes = [20, 90, 70], [20, 30, 0]
    qkv, d_attended = drawn(lengths, 1, 32)
    before = triton_attention(qkv, d_attended, lengths, prefixes)
    qkv[20:110], d_attended[20:110] = torch.nan, torch.nan
    after = triton_attention(qkv, d_attended, lengths, prefixes)
    kept = [*range(20), *range(110, 180)]
    for result, same in zip(after, before, strict=True):
        rows = (result.T[kept], same.T[kept]) if result.dim() == 2 else (result[kept], same[kept])
        torch.testing.assert_close(*rows, atol=0, rtol=0)


def test_every_element_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two programs write to one place, so that results cannot depend on their order; and nothing is left unwritten."""
    written: Counter[int] = Counter()
    store = InterpreterBuilder.create_masked_store

    def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *settings: Any) -> None:
        written.update(pointers.data[mask.data].tolist())
        store(self, pointers, value, mask, *settings)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counting_store)
    lengths, prefixes = [1, 64, 65, 130], [0, 64, 20, 0]
    results = triton_attention(*drawn(lengths, 2, 32), lengths, prefixes)
    assert set(written.values()) == {1}
    for result in results:
        size = result.element_size()
        assert all(result.data_ptr() + number * size in written for number in range(result.numel()))


def test_streams_of_more_elements_than_32_bits_count() -> None:
    """Only the last rows are touched, and what is not touched takes no memory. 32-bit offsets would read outside: a crash."""
    rows, width = 5, 128
    start = 2**31 // (3 * width) + 1
    qkv, d_attended = torch.empty(start + rows, 3, 1, width, dtype=torch.float16), torch.empty(start + rows, 1, width).half()
    qkv[start:], d_attended[start:] = drawn([rows], 1, width, torch.float16)
    tiles = torch.tensor([[start, rows, rows, 0]], dtype=torch.int32)
    attended, log_sums = attention_triton.forward(qkv, tiles, 0.0, None, INTERPRETED)
    d_qkv = attention_triton.backward(d_attended, qkv, attended, log_sums, tiles, 0.0, None, INTERPRETED)
    expected = reference(qkv[start:], d_attended[start:], [rows], [rows])
    for result, exact in zip((attended[start:], log_sums[:, start:], d_qkv[start:]), expected, strict=True):
        assert_near(result, exact, TOLERANCES[torch.float16])


def test_an_empty_stream_starts_nothing() -> None:
    qkv, d_attended = drawn([], 2, 64)
    recorder, tiles = Recorder(90), torch.from_numpy(tile_list([], []))
    attended, log_sums = attention_triton.forward(qkv, tiles, 0.0, None, recorder)
    d_qkv = attention_triton.backward(d_attended, qkv, attended, log_sums, tiles, 0.0, None, recorder)
    assert (attended.shape, log_sums.shape, d_qkv.shape) == ((0, 2, 64), (2, 0), (0, 3, 2, 64))
    assert not recorder.noted


@cache
def pairs_computed(length: int) -> int:
    """Query-key pairs of the forward pass of one bidirectional sequence, counted in the products that it makes."""
    multiplications = 0
    create_dot = InterpreterBuilder.create_dot

    def counting_dot(self: Any, a: Any, b: Any, d: Any, *settings: Any) -> Any:
        nonlocal multiplications
        multiplications += a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return create_dot(self, a, b, d, *settings)

    width = 32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", counting_dot)
        tiles = torch.from_numpy(tile_list([length], [length]))
        attention_triton.forward(torch.zeros(length, 3, 1, width, dtype=torch.float16), tiles, 0.0, None, INTERPRETED)
    return multiplications // (2 * width)  # a pair is multiplied once with a query and once with a value


def test_few_pairs_are_computed_in_vain() -> None:
    """Issue 5: at most 1.7 on 256 rows of 37..100 tokens; tiles of 64 by 64 compute 2.1 times what is needed."""
    lengths = random.Random(0).choices(range(37, 101), k=256)
    computed, needed = sum(pairs_computed(length) for length in lengths), sum(length**2 for length in lengths)
    assert computed / needed <= 1.7


def test_the_table_has_a_row_for_every_launch() -> None:
    for row in itertools.product(get_args(AttentionKernel), ARCHITECTURES, TOLERANCES, WIDTHS):
        launch = attention_launch(*row)
        assert launch.rows == TILE_ROWS and launch.columns in (16, 32, 64)
