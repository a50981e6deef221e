"""Keys and values of a prefix and of what is generated after it, kept so that a step of generation runs its new rows alone.

Each layer has one array of keys and one of values, and every row stays in the column where it was written: first the prefix,
padded to the longest of the batch, then for each step one column a hypothesis. A hypothesis is a path through the columns of
its sentence, so taking over a parent's past copies a row of booleans and never keys; and all hypotheses of a sentence attend in
one product, which reads their common prefix once. The columns of the others cost less than moving keys would.

It takes 2 x layers x S x D x (longest prefix + steps x beams) numbers: for 32 images of 100 regions, 5 beams, 20 steps and the
base model 0.5 GB in float32.

Shape suffixes: T positions of the prefix's stream, S sentences, B hypotheses of each, N hypotheses of all (S B), H heads,
E head width, D hidden width, C columns in use.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.batch import Batch
from unimo_ds.kernels.attention import Sequences, packed_attention
from unimo_ds.kernels.linear import product_dtype


class Cache:
    """The cache of one batch of sentences.

    `encode` and then, after each `follow`, `extend` are what `UnimoModel.forward` takes as `attend`.

    Args:
        prefix: one sequence a sentence; generation goes on where it ends.
        rows: how many rows each sentence may get beyond it, over all steps and hypotheses.
    """

    def __init__(self, prefix: Batch, rows: int) -> None:
        self._sequences = Sequences(prefix.cu_seqlens_S1, prefix.prefix_lengths_S, prefix.attention_tiles_N4)
        starts_S1 = prefix.cu_seqlens_S1.long()
        lengths_S, stream_T = starts_S1.diff(), torch.arange(prefix.positions, device=starts_S1.device)
        self._sentence_T = torch.repeat_interleave(lengths_S)
        self._column_T = stream_T - starts_S1[self._sentence_T]
        longest = int(lengths_S.max()) if prefix.sequences else 0
        self._columns = longest + rows
        self._layers: list[Tensor] = []
        self._visible_SBC = (torch.arange(longest, device=starts_S1.device) < lengths_S[:, None])[:, None]
        self._bias_S1BC = torch.empty(0)

    def encode(self, layer: int, qkv_T3HE: Tensor, rate: float) -> Tensor:
        """Attention within the prefixes, whose keys and values are kept; the layers come in order."""
        heads, width = qkv_T3HE.shape[2:]
        on_cpu = qkv_T3HE.device.type == "cpu"
        kept = qkv_T3HE.new_zeros(
            (2, len(self._visible_SBC), heads, self._columns, width),
            dtype=product_dtype(qkv_T3HE.dtype) if on_cpu else qkv_T3HE.dtype,
        )
        kept[:, self._sentence_T, :, self._column_T] = qkv_T3HE[:, 1:].to(kept.dtype)
        self._layers.append(kept)
        return packed_attention(qkv_T3HE, self._sequences, rate)

    def follow(self, parents_SB: Tensor) -> None:
        """Begins a step: a new column for each hypothesis, which sees what its parent saw, and itself.

        Args:
            parents_SB: which of the last step's hypotheses of its sentence each one continues; before the first step there is
                one, the prefix itself.
        """
        sentences, beams = parents_SB.shape
        paths_SBC = self._visible_SBC.take_along_dim(parents_SB[:, :, None], dim=1)
        own_SBB = torch.eye(beams, dtype=torch.bool, device=parents_SB.device).expand(sentences, -1, -1)
        self._visible_SBC = torch.cat([paths_SBC, own_SBB], dim=2)
        bias_SBC = self._layers[0].new_zeros(self._visible_SBC.shape).masked_fill_(~self._visible_SBC, -torch.inf)
        self._bias_S1BC = bias_SBC[:, None]

    def extend(self, layer: int, qkv_N3HE: Tensor, rate: float) -> Tensor:
        """Attention of one new row of each hypothesis to its path, [N, H, E]; its key and value are kept."""
        sentences, beams, columns = self._visible_SBC.shape
        kept_2SHCE = self._layers[layer][:, :, :, :columns]
        qkv_SB3HE = qkv_N3HE.view(sentences, beams, *qkv_N3HE.shape[1:])
        qkv_3SHBE = qkv_SB3HE.permute(2, 0, 3, 1, 4).to(kept_2SHCE.dtype)
        kept_2SHCE[:, :, :, -beams:] = qkv_3SHBE[1:]
        keys_SHCE, values_SHCE = kept_2SHCE
        query_SHBE = qkv_3SHBE[0].contiguous()  # laid out by columns it would miss torch's fused attention
        attended_SHBE = F.scaled_dot_product_attention(query_SHBE, keys_SHCE, values_SHCE, self._bias_S1BC, rate)
        return attended_SHBE.transpose(1, 2).flatten(0, 1).to(qkv_N3HE.dtype)
