"""Packed attention as an op of torch: its contracts, fake CUDA tensors, torch.compile, checkpointing, autocast; tiles aside."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tests.helpers import TINY
from tests.kernels.test_attention import cut
from unimo_ds.kernels import attention
from unimo_ds.kernels.attention import Sequences, packed_attention
from unimo_ds.model.transformer import Transformer

LENGTHS, PREFIXES = [5, 17, 3, 9], [5, 0, 2, 9]
HEADS, WIDTH = 2, 32
SEED = [123456789, 987654321]


def random_qkv(dtype: torch.dtype = torch.float32, positions: int = sum(LENGTHS)) -> Tensor:
    qkv = torch.randn(positions, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    return qkv.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [LENGTHS, []])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.long
def test_both_ops_pass_the_checks_of_torch(lengths: list[int], rate: float, dtype: torch.dtype, keep: bool) -> None:
    sequences = cut(lengths, PREFIXES[: len(lengths)])
    qkv = random_qkv(dtype, sum(lengths))
    seed = torch.tensor(SEED) if rate else None
    kept = attention._weights_to_keep(qkv, sequences) if keep else 0
    torch.library.opcheck(attention._forward, (qkv, *sequences, rate, seed, kept))
    plain = qkv.detach()
    output = attention._forward(plain, *sequences, rate, seed, kept)
    torch.library.opcheck(attention._backward, (torch.randn_like(output[0]), plain, *output, *sequences, rate, seed))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_kept_weights_and_weights_made_again_give_the_same_bits(rate: float) -> None:
    sequences, seed = cut(LENGTHS, PREFIXES), torch.tensor(SEED) if rate else None
    qkv, weights = random_qkv(), torch.randn(sum(LENGTHS), HEADS, WIDTH)
    kept = attention._weights_to_keep(qkv, sequences)
    assert kept == HEADS * (2 * 8**2 + 24**2 + 16**2), "every length is rounded up to a multiple of 8"
    gradients = []
    for count in (0, kept):
        attended, _, held = attention._forward(qkv, *sequences, rate, seed, count)
        assert len(held) == count
        gradients.append(torch.autograd.grad(attended, qkv, weights)[0])
    assert torch.equal(*gradients) and gradients[0].any()


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    sequences, qkv = cut(LENGTHS, PREFIXES), random_qkv()
    assert attention._weights_to_keep(qkv, sequences) > 0
    assert attention._weights_to_keep(qkv.detach(), sequences) == 0
    with torch.no_grad():
        assert attention._weights_to_keep(qkv, sequences) == 0


def test_only_the_attended_values_can_be_differentiated() -> None:
    attended, log_sums, weights = attention._forward(random_qkv(), *cut(LENGTHS, PREFIXES), 0.0, None, 0)
    assert attended.requires_grad and not log_sums.requires_grad and not weights.requires_grad


def test_dropout_depends_on_the_seed_alone() -> None:
    sequences, qkv = cut(LENGTHS, PREFIXES), random_qkv().detach()
    first, again, other = (
        attention._forward(qkv, *sequences, 0.3, torch.tensor(seed), 0)[0] for seed in (SEED, SEED, [SEED[0] + 1, SEED[1]])
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_draws_come_from_the_default_generator_so_that_a_resumed_run_repeats_them() -> None:
    sequences, qkv = cut(LENGTHS, PREFIXES), random_qkv()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = packed_attention(qkv, sequences, 0.3)
    second = packed_attention(qkv, sequences, 0.3)
    torch.set_rng_state(state)
    assert torch.equal(packed_attention(qkv, sequences, 0.3), first)
    assert torch.equal(packed_attention(qkv, sequences, 0.3), second) and not torch.equal(first, second)
    before = torch.get_rng_state()
    packed_attention(qkv, sequences, 0.0)
    assert torch.equal(torch.get_rng_state(), before), "without dropout nothing is drawn"


class _Context:
    """What autograd hands to an op's formula. Its engine asks for a real GPU, so the formula is called by hand."""

    saved_tensors: tuple[Tensor | None, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_fake_cuda_tensors_go_through_forward_and_backward(rate: float, dtype: torch.dtype) -> None:
    positions, heads, width = 33, 3, 64
    with FakeTensorMode(), torch.device("cuda"):
        qkv = torch.empty(positions, 3, heads, width, dtype=dtype, requires_grad=True)
        sequences = Sequences(*(torch.empty(shape, dtype=torch.int32) for shape in (5, 4, (6, 4))))
        attended = packed_attention(qkv, sequences, rate)
        inputs = (qkv, *sequences, rate, torch.empty(2, dtype=torch.int64) if rate else None, 0)
        output, context = attention._forward(*inputs), _Context()
        attention._save(context, inputs, output)
        d_qkv, *others = attention._gradient(context, torch.empty_like(attended))
    assert attended.shape == output[0].shape == (positions, heads, width) and attended.dtype == dtype
    assert attended.requires_grad and attended.device.type == "cuda" and attended.is_contiguous()
    assert output[1].shape == (heads, positions) and output[1].dtype == torch.float32 and len(output[2]) == 0
    assert d_qkv is not None and d_qkv.shape == qkv.shape and d_qkv.dtype == dtype
    assert d_qkv.device.type == "cuda" and d_qkv.stride() == qkv.stride() and others == [None] * 6


@pytest.mark.parametrize(("width", "dtype"), [(48, torch.bfloat16), (64, torch.float64)])
def test_what_no_cuda_kernel_has_is_refused_with_what_there_is(width: int, dtype: torch.dtype) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        sequences = Sequences(*(torch.empty(shape, dtype=torch.int32) for shape in (5, 4, (6, 4))))
        with pytest.raises(ValueError, match=rf"head width {width} in {dtype}.*32, 64, 128.*bfloat16, float16 and float32"):
            packed_attention(torch.empty(9, 3, 2, width, dtype=dtype), sequences, 0.0)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"shape \[34, 2, 2, 32\]; give floats \[positions, 3, heads, head width\]"):
        packed_attention(random_qkv()[:, :2], cut(LENGTHS, PREFIXES), 0.0)
    with pytest.raises(ValueError, match="ends at 34 but qkv has 33 positions"):
        packed_attention(random_qkv()[1:], cut(LENGTHS, PREFIXES), 0.0)
    with pytest.raises(ValueError, match=r"qkv is torch\.int64.*give floats"):
        packed_attention(torch.zeros(34, 3, 2, 32, dtype=torch.int64), cut(LENGTHS, PREFIXES), 0.0)


def test_sequences_that_do_not_fit_are_named() -> None:
    right = cut(LENGTHS, PREFIXES)
    for wrong, words in (
        (right._replace(prefix_lengths_S=right.prefix_lengths_S.long()), r"int32, torch\.int64, torch\.int32; give int32"),
        (right._replace(prefix_lengths_S=right.prefix_lengths_S[1:]), r"shapes \[5\], \[3\], .*give \[S\+1\], \[S\], \[N, 4\]"),
        (right._replace(cu_seqlens_S1=right.cu_seqlens_S1 + 5), "must begin with 0 and never fall"),
        (right._replace(cu_seqlens_S1=torch.tensor([0, 20, 5, 25, 34], dtype=torch.int32)), "must begin with 0 and never fall"),
    ):
        with pytest.raises(ValueError, match=words):
            packed_attention(random_qkv(), wrong, 0.0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_that_is_no_rate_is_named(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate is {rate}.*0 to below 1"):
        packed_attention(random_qkv(), cut(LENGTHS, PREFIXES), rate)


def test_a_view_and_a_gradient_of_any_strides_are_as_good_as_copies() -> None:
    sequences, qkv = cut(LENGTHS, PREFIXES), random_qkv().detach()
    crossed = qkv.permute(2, 1, 3, 0).contiguous().permute(3, 1, 0, 2).requires_grad_()
    found, expected = packed_attention(crossed, sequences, 0.0), packed_attention(qkv.requires_grad_(), sequences, 0.0)
    assert torch.equal(found, expected)
    found.sum().backward()  # the gradient of a sum is one number, expanded
    expected.backward(torch.ones_like(expected))
    assert qkv.grad is not None and crossed.grad is not None and torch.equal(crossed.grad, qkv.grad)


class _Layer(nn.Module):
    """The least module that has attention between two parameters."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.into = nn.Parameter(torch.randn(8, 3 * HEADS * WIDTH, generator=generator))
        self.out = nn.Parameter(torch.randn(HEADS * WIDTH, 8, generator=generator))

    def forward(self, hidden_TD: Tensor, sequences: Sequences, rate: float) -> Tensor:
        qkv_T3HE = (hidden_TD @ self.into).view(-1, 3, HEADS, WIDTH)
        return packed_attention(qkv_T3HE, sequences, rate).flatten(1) @ self.out


def values_and_gradients(run: Callable[[Tensor], Tensor], layer: nn.Module) -> list[Tensor]:
    hidden = torch.randn(sum(LENGTHS), 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    layer.zero_grad()
    torch.manual_seed(3)
    out = run(hidden)
    out.square().sum().backward()
    found = [out, hidden.grad, *(parameter.grad for parameter in layer.parameters())]
    return [tensor.detach().clone() for tensor in found if tensor is not None]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_compiled_graph_without_a_break_gives_the_same(rate: float) -> None:
    layer, sequences = _Layer(), cut(LENGTHS, PREFIXES)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = values_and_gradients(lambda hidden: layer(hidden, sequences, rate), layer)
    found = values_and_gradients(lambda hidden: compiled(hidden, sequences, rate), layer)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_graph_compiled_for_any_length_takes_other_batches() -> None:
    layer = _Layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in (LENGTHS, [4, 4], [11, 2, 30]):
        hidden = torch.randn(sum(lengths), 8, generator=torch.Generator().manual_seed(4))
        sequences = cut(lengths, lengths)
        torch.testing.assert_close(compiled(hidden, sequences, 0.0), layer(hidden, sequences, 0.0), rtol=0, atol=0)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_checkpoints_repeat_the_draws_and_give_the_same_bits(rate: float) -> None:
    layer, sequences = _Layer(), cut(LENGTHS, PREFIXES)

    def checkpointed(hidden: Tensor) -> Tensor:
        out: Tensor = checkpoint(layer, hidden, sequences, rate, use_reentrant=False)
        return out

    expected = values_and_gradients(lambda hidden: layer(hidden, sequences, rate), layer)
    found = values_and_gradients(checkpointed, layer)
    assert len(found) == 4 and all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_autocast_computes_in_bf16_and_gives_the_gradient_of_its_input(rate: float) -> None:
    sequences, qkv = cut(LENGTHS, PREFIXES), random_qkv()
    half = qkv.detach().bfloat16().requires_grad_()
    results = []
    for given, enabled in ((qkv, True), (half, False)):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            attended = packed_attention(given, sequences, rate)
        attended.sum().backward()
        results.append((attended, given.grad))
    (cast, d_cast), (attended, d_half) = results
    assert cast.dtype == torch.bfloat16 and torch.equal(cast, attended)
    assert d_cast is not None and d_half is not None and d_cast.dtype == torch.float32
    assert torch.equal(d_cast, d_half.float())


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_two_layers_encode_each_sequence_as_if_it_were_alone(rate: float) -> None:
    """With dropout: checkpointed layers equal plain ones; without: the stream is the sequences one by one."""
    transformer = Transformer(TINY.model_copy(update={"attention_dropout": rate}))
    hidden = torch.randn(sum(LENGTHS), TINY.hidden_size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    whole = transformer(hidden, cut(LENGTHS, PREFIXES), torch.arange(len(hidden)))
    if rate:
        transformer.activation_checkpointing = True
        torch.manual_seed(1)
        assert torch.equal(transformer(hidden, cut(LENGTHS, PREFIXES), torch.arange(len(hidden))), whole)
        return
    parts = hidden.split(LENGTHS)
    alone = [
        transformer(part, cut([length], [prefix]), torch.arange(length))
        for part, length, prefix in zip(parts, LENGTHS, PREFIXES, strict=True)
    ]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=1e-5)
    read = torch.tensor([5, 0, 5])
    torch.testing.assert_close(transformer(hidden, cut(LENGTHS, PREFIXES), read), whole[read], atol=1e-5, rtol=1e-5)
