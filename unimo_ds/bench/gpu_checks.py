"""Are the kernels right on this device: every op against the same formula in float64 on the CPU, values and gradients.

An error is the greatest difference over the greatest number of the reference, so tolerances are those of a type, whatever the
size of the numbers. Dropout is checked as a mask: zero queries and keys with one-hot values show each weight by itself, and
with the mask that they show, values and gradients must be those of the reference too.

Shape suffixes: T positions, S sequences, H heads, E head width, L rows of one sequence, N rows, M columns or targets, D width,
V vocabulary.
"""

import math
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.bench.kernel_peers import sequences_of
from unimo_ds.kernels.attention import Sequences, packed_attention
from unimo_ds.kernels.contrastive import contrastive_statistics
from unimo_ds.kernels.counts import Lengths
from unimo_ds.kernels.linear_cross_entropy import linear_cross_entropy

# float32 products are three TF32 ones on a GPU; the weights of attention are rounded to the type of the values.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
WIDTHS = (32, 64, 128)
_HEADS, _RATE, _SIGMAS = 2, 0.1, 5.0
_MANY_BLOCKS = 4200, 8300, 40  # rows, columns, width: more of both than the gradient's kernel takes at once
_MANY_CHUNKS = 700, 50265, 64  # targets, vocabulary, width: more than one chunk of logits
_SHORT = Lengths(np.array([1, 37, 100, 128, 64, 17]), np.array([1, 37, 0, 50, 64, 3]))  # for dropout: no longer than E
_MIXED = Lengths(np.append(_SHORT.lengths_S, [300, 257]), np.append(_SHORT.prefixes_S, [140, 257]))


class Check(NamedTuple):
    """One comparison: `error` may be at most `allowed`."""

    op: str
    what: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.op}, {self.what}: error {self.error:.1e}, allowed {self.allowed:.1e}"


def check_all(device: torch.device) -> Iterator[Check]:
    """Every check, for all three types. An op that raises has failed; the traceback goes to stderr."""
    for dtype in TOLERANCES:
        for op, checks in _CHECKS:
            try:
                yield from checks(device, dtype)
            except Exception as error:  # a kernel that does not compile or start on this GPU must not end the report
                traceback.print_exc()
                first = (str(error).strip().splitlines() or [""])[0][:120]
                yield Check(op, f"{_name(dtype)}, {type(error).__name__}: {first}", math.inf, TOLERANCES[dtype])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _difference(found: Tensor, wanted: Tensor) -> float:
    found = found.detach().cpu().double()
    if not torch.equal(found.isinf(), wanted.isinf()):
        return math.inf
    finite = wanted.isfinite()
    return float((found - wanted)[finite].abs().max() / wanted[finite].abs().max())


def _compared(
    op: str,
    label: str,
    dtype: torch.dtype,
    device: torch.device,
    inputs: dict[str, Tensor],
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
) -> Iterator[Check]:
    """Values and gradients of both functions at `inputs`, which are rounded to `dtype` for both; `scale` stays in float32."""
    given = [tensor.to(tensor.dtype if name == "scale" else dtype) for name, tensor in inputs.items()]
    wanted, *expected = _with_gradients(reference, [tensor.double() for tensor in given])
    found, again = (_with_gradients(ours, [tensor.to(device) for tensor in given]) for _ in range(2))
    for what, right, got in zip(["values", *inputs], [wanted, *expected], found, strict=True):
        part = what if what == "values" else f"gradient of {what}"
        yield Check(op, f"{_name(dtype)}, {label}, {part}", _difference(got, right), TOLERANCES[dtype])
    unequal = sum(not torch.equal(one, other) for one, other in zip(found, again, strict=True))
    yield Check(op, f"{_name(dtype)}, {label}, the same bits twice", float(unequal), 0.0)


def _with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The values and the gradients of their weighted sum; the weights are the same for every implementation."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    values = function(*leaves)
    weights = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(values)
    # A log-sum of nothing is -inf: replaced before the sum, or its gradient would be NaN.
    total = (torch.where(values.isfinite(), values, 0.0) * weights).sum()
    return [values.detach(), *torch.autograd.grad(total, leaves)]


def attention_reference(qkv_T3HE: Tensor, lengths: Lengths, kept: list[Tensor] | None = None, rate: float = 0.0) -> Tensor:
    """[T, H, E]: attention of each sequence by its definition; `kept` are dropout masks [H, L, L] of the sequences."""
    ends = np.concatenate([[0], np.cumsum(lengths.lengths_S)]).tolist()
    attended = []
    for number, (start, end) in enumerate(pairwise(ends)):
        query, key, value = qkv_T3HE[start:end].permute(1, 2, 0, 3)
        place = torch.arange(end - start)
        reach = torch.clamp(place + 1, min=int(lengths.prefixes_S[number]))
        scores = query @ key.mT * qkv_T3HE.shape[-1] ** -0.5
        weights = scores.masked_fill(place[None] >= reach[:, None], -math.inf).softmax(-1)
        if kept is not None:
            weights = weights * kept[number] / (1 - rate)
        attended.append((weights @ value).transpose(0, 1))
    return torch.cat(attended)


def _attention(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    torch.manual_seed(0)
    sequences = sequences_of(_MIXED, device)
    for width in WIDTHS:
        yield from _compared(
            "attention",
            f"width {width}",
            dtype,
            device,
            {"qkv": torch.randn(int(_MIXED.lengths_S.sum()), 3, _HEADS, width)},
            lambda qkv: packed_attention(qkv, sequences, 0.0),
            lambda qkv: attention_reference(qkv, _MIXED),
        )


def _dropout(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    sequences, name = sequences_of(_SHORT, device), _name(dtype)
    masks = [_mask(sequences, device, dtype, seed) for seed in (7, 7, 8)]
    lengths: list[int] = _SHORT.lengths_S.tolist()
    yield Check("attention", f"{name}, dropout, one seed, one mask", float((masks[0] != masks[1]).sum()), 0.0)
    yield Check("attention", f"{name}, dropout, two seeds, two masks", float(torch.equal(masks[0], masks[2])), 0.0)
    kept = [rows[:, :, :length].transpose(0, 1) for rows, length in zip(torch.split(masks[0], lengths), lengths, strict=True)]
    seen = _visible(lengths)
    count, total = float((masks[0] & seen).sum()), float(seen.sum() * _HEADS)
    sigmas = abs(count - total * (1 - _RATE)) / math.sqrt(total * _RATE * (1 - _RATE))
    yield Check("attention", f"{name}, dropout, share kept, standard deviations from 1 - rate", sigmas, _SIGMAS)
    torch.manual_seed(3)
    inputs = {"qkv": torch.randn(sum(lengths), 3, _HEADS, max(WIDTHS))}

    def ours(qkv: Tensor) -> Tensor:
        torch.manual_seed(7)
        return packed_attention(qkv, sequences, _RATE)

    yield from _compared(
        "attention",
        "dropout",
        dtype,
        device,
        inputs,
        ours,
        lambda qkv: attention_reference(qkv, _SHORT, kept, _RATE),
    )


def _visible(lengths: list[int]) -> Tensor:
    """bool [T, 1, E]: which columns each stream row sees."""
    reach = [max(prefix, row + 1) for length, prefix in zip(*_SHORT, strict=True) for row in range(length)]
    return torch.arange(max(WIDTHS)) < torch.tensor(reach)[:, None, None]


def _mask(sequences: Sequences, device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    """bool [T, H, E]: which weights are kept; column j of a row is the weight of key j of its sequence."""
    places = torch.cat([torch.arange(length) for length in _SHORT.lengths_S.tolist()])
    qkv_T3HE = torch.zeros(len(places), 3, _HEADS, max(WIDTHS), dtype=dtype, device=device)
    qkv_T3HE[:, 2] = F.one_hot(places, max(WIDTHS)).to(qkv_T3HE)[:, None]
    torch.manual_seed(seed)
    return packed_attention(qkv_T3HE, sequences, _RATE).cpu() != 0


def statistics_reference(x_ND: Tensor, y_MD: Tensor, scale: Tensor, x_groups_N: Tensor, y_groups_M: Tensor) -> Tensor:
    """The four vectors of `contrastive_statistics`, one after the other, by their definition."""
    counted_NM = (x_groups_N >= 0)[:, None] & (y_groups_M >= 0)
    all_NM = (scale * x_ND @ y_MD.T).masked_fill(~counted_NM, -math.inf)
    positive_NM = all_NM.masked_fill(x_groups_N[:, None] != y_groups_M, -math.inf)
    return torch.cat([s_NM.logsumexp(axis) for axis in (1, 0) for s_NM in (all_NM, positive_NM)])


def _contrastive(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    torch.manual_seed(0)
    shapes = [(150, 130, 40), (150, 130, 768)]
    if dtype == torch.bfloat16:
        shapes.append(_MANY_BLOCKS)
    for rows, columns, width in shapes:
        groups = torch.randint(-1, 60, (rows,)), torch.randint(-1, 60, (columns,))
        x_ND, y_MD = (F.normalize(torch.randn(count, width), dim=1) for count in (rows, columns))
        yield from _compared(
            "contrastive",
            f"{rows:,} x {columns:,}, width {width}",
            dtype,
            device,
            {"x": x_ND, "y": y_MD, "scale": torch.tensor([14.0])},
            partial(_statistics, groups=groups, device=device),
            partial(statistics_reference, x_groups_N=groups[0], y_groups_M=groups[1]),
        )


def _statistics(x_ND: Tensor, y_MD: Tensor, scale: Tensor, groups: tuple[Tensor, Tensor], device: torch.device) -> Tensor:
    x_groups_N, y_groups_M = (part.to(device) for part in groups)
    return torch.cat(contrastive_statistics(x_ND, y_MD, x_groups_N, y_groups_M, scale))


def _cross_entropy(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    torch.manual_seed(0)
    shapes = [(70, 5003, 96)]
    if dtype == torch.bfloat16:
        shapes.append(_MANY_CHUNKS)
    for targets, vocabulary, width in shapes:
        labels_M = torch.randint(0, vocabulary, (targets,))
        hidden_MD, weight_VD = torch.randn(targets, width), torch.randn(vocabulary, width) / 4
        yield from _compared(
            "cross-entropy",
            f"{targets} targets of {vocabulary:,} words",
            dtype,
            device,
            {"hidden": hidden_MD, "weight": weight_VD, "bias": torch.randn(vocabulary)},
            partial(linear_cross_entropy, labels_M=labels_M.to(device)),
            partial(_losses_of_logits, labels_M=labels_M),
        )


def _losses_of_logits(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_M: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_MD, weight_VD, bias_V), labels_M, reduction="none")


_CHECKS: list[tuple[str, Callable[[torch.device, torch.dtype], Iterator[Check]]]] = [
    ("attention", _attention),
    ("attention", _dropout),
    ("contrastive", _contrastive),
    ("cross-entropy", _cross_entropy),
]
