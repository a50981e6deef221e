"""What the kernels are timed against: the same results by the means that users take otherwise.

A peer is made once for a batch, which is not timed (masks, indices, FlexAttention's block mask; our tile list neither), and
then called as a layer calls it. One that is not installed or cannot do the task raises `RefusedError` with the reason.

Shape suffixes: T positions, S sequences, L the longest sequence, H heads, E head width, N rows and columns, D width, M targets,
V vocabulary.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.kernels.attention import Sequences, tile_list
from unimo_ds.kernels.counts import Lengths

Attend = Callable[[Tensor], Tensor]
MakeAttend = Callable[[Lengths, float, torch.device], Attend]


class RefusedError(Exception):
    """This peer cannot be timed: the message says why."""


def sequences_of(lengths: Lengths, device: torch.device) -> Sequences:
    """The batch on a device, as our packer makes it."""
    lengths_S, prefixes_S = lengths
    starts_S1 = np.concatenate([[0], np.cumsum(lengths_S)])
    tiles_N4 = torch.from_numpy(np.ascontiguousarray(tile_list(lengths_S, prefixes_S), dtype=np.int32))
    starts, prefixes = (torch.from_numpy(array.astype(np.int32)) for array in (starts_S1, prefixes_S))
    return Sequences(starts.to(device), prefixes.to(device), tiles_N4.to(device))


def padded_sdpa(lengths: Lengths, rate: float, device: torch.device) -> Attend:
    """torch's attention on sequences padded to the longest, with a boolean mask: gathered, attended, scattered back."""
    lengths_S, prefixes_S = (torch.from_numpy(array).to(device) for array in lengths)
    column_L = torch.arange(int(lengths.lengths_S.max()), device=device)
    inside_SL = column_L < lengths_S[:, None]
    sources_SL = (lengths_S.cumsum(0) - lengths_S)[:, None] + torch.minimum(column_L, lengths_S[:, None] - 1)
    sources = sources_SL.flatten()
    reach_SL = torch.minimum(torch.maximum(prefixes_S[:, None], column_L + 1), lengths_S[:, None])
    seen_S1LL = (column_L < reach_SL[..., None])[:, None]
    places_T = inside_SL.flatten().nonzero()[:, 0]

    def attend(qkv_T3HE: Tensor) -> Tensor:
        padded_SL3HE = qkv_T3HE.index_select(0, sources).view(*sources_SL.shape, *qkv_T3HE.shape[1:])
        query, key, value = padded_SL3HE.permute(2, 0, 3, 1, 4)
        mixed_SHLE = F.scaled_dot_product_attention(query, key, value, attn_mask=seen_S1LL, dropout_p=rate)
        return mixed_SHLE.transpose(1, 2).flatten(0, 1).index_select(0, places_T)

    return attend


def flex(lengths: Lengths, rate: float, device: torch.device) -> Attend:
    """FlexAttention on the packed stream, compiled on a GPU; eager, which makes the whole matrix, on a CPU."""
    if rate:
        raise RefusedError("FlexAttention has no dropout of attention weights")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    positions = int(lengths.lengths_S.sum())
    lengths_S, prefixes_S = (torch.from_numpy(array).to(device) for array in lengths)
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths_S), device=device), lengths_S)
    place_T = torch.arange(positions, device=device) - (lengths_S.cumsum(0) - lengths_S)[sequence_T]
    prefix_T = prefixes_S[sequence_T]

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (place_T[key] < prefix_T[query]) | (place_T[key] <= place_T[query])
        return (sequence_T[query] == sequence_T[key]) & seen

    mask = create_block_mask(visible, None, None, positions, positions, device=device.type)
    run = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def attend(qkv_T3HE: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            qkv_T3HE = qkv_T3HE.detach()  # eager on a CPU it refuses what could have a gradient, whether one is wanted or not
        query, key, value = qkv_T3HE.permute(1, 2, 0, 3)[:, None]
        mixed: Tensor = run(query, key, value, block_mask=mask)
        return mixed[0].transpose(0, 1)

    return attend


def flash(lengths: Lengths, rate: float, device: torch.device) -> Attend:
    """flash-attn on the packed stream, where all sequences are bidirectional or all are causal."""
    causal = not lengths.prefixes_S.any()
    if not causal and (lengths.prefixes_S < lengths.lengths_S).any():
        raise RefusedError("flash-attn has no prefix mask, and one launch is all causal or not at all")
    attention = _installed("flash_attn", "flash-attn", device).flash_attn_varlen_func
    starts = sequences_of(lengths, device).cu_seqlens_S1
    longest = int(lengths.lengths_S.max())

    def attend(qkv_T3HE: Tensor) -> Tensor:
        query, key, value = qkv_T3HE.unbind(1)
        mixed: Tensor = attention(query, key, value, starts, starts, longest, longest, dropout_p=rate, causal=causal)
        return mixed

    return attend


def _installed(module: str, package: str, device: torch.device) -> ModuleType:
    if device.type != "cuda":
        raise RefusedError(f"{package} runs on CUDA only")
    try:
        return import_module(module)
    except ImportError as error:
        raise RefusedError(f"{package} cannot be imported: {error}") from None


ATTENTION: dict[str, MakeAttend] = {"SDPA, padded, mask": padded_sdpa, "FlexAttention": flex, "flash-attn": flash}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
MakeLoss = Callable[[torch.device], Loss]


def whole_matrix(device: torch.device) -> Loss:
    """CLIP's loss with the similarity matrix in memory, one positive a row, as open_clip computes it under autocast."""

    def loss(x_ND: Tensor, y_ND: Tensor, scale: Tensor) -> Tensor:
        labels_N = torch.arange(len(x_ND), device=device)
        s_NN = (scale.to(x_ND.dtype) * x_ND) @ y_ND.T
        return (F.cross_entropy(s_NN.float(), labels_N) + F.cross_entropy(s_NN.T.float(), labels_N)) / 2

    return loss


def inf_cl(device: torch.device) -> Loss:
    """Inf-CL, one call for each direction; it makes float32 of its inputs. Its own `scale` has a gradient across ranks only."""
    one_way = _installed("inf_cl", "inf-cl", device).cal_inf_loss

    def loss(x_ND: Tensor, y_ND: Tensor, scale: Tensor) -> Tensor:
        both: Tensor = (one_way(scale * x_ND, y_ND) + one_way(scale * y_ND, x_ND)) / 2
        return both

    return loss


CONTRASTIVE: dict[str, MakeLoss] = {"whole matrix": whole_matrix, "Inf-CL": inf_cl}


def whole_logits(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy of logits that are stored whole, in float32 as autocast makes it."""
    return F.cross_entropy(F.linear(hidden_MD, weight_VD, bias_V).float(), labels_M, reduction="none")
