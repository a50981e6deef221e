"""The post-norm Transformer encoder on the packed stream (unimo-spec, 2.2).

Shape suffixes: T positions, D hidden width, H heads, E head width, Q rows that are read.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unimo_ds.config import ModelSection
from unimo_ds.kernels.attention import Sequences, packed_attention
from unimo_ds.model.layers import Dropout, Linear, layer_norm

# Queries, keys and values [T, 3, H, E] and the dropout rate of attention weights, to the attended values [T, H, E].
Attend = Callable[[Tensor, float], Tensor]
# The same, the number of the layer first: generation keeps keys and values of each (`model.cache`).
AttendInLayer = Callable[[int, Tensor, float], Tensor]


class TransformerLayer(nn.Module):
    """`h = LN(x + Dropout(Attention(x)))`, then `LN(h + Dropout(FFN(h)))`."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        width = model.hidden_size
        self.heads, self.attention_dropout = model.heads, model.attention_dropout
        self.query_key_value = Linear(width, 3 * width, model)
        self.output = Linear(width, width, model)
        self.attention_norm = layer_norm(model)
        self.expand = Linear(width, 4 * width, model)
        self.contract = Linear(4 * width, width, model)
        self.feed_forward_norm = layer_norm(model)
        self.dropout = Dropout(model.dropout)

    def forward(self, hidden_TD: Tensor, attend: Attend, rows_Q: Tensor | None = None) -> Tensor:
        """All rows, or those that are asked for: the others are attended to all the same."""
        positions, width = hidden_TD.shape
        qkv_T3HE = self.query_key_value(hidden_TD).view(positions, 3, self.heads, width // self.heads)
        rate = self.attention_dropout if self.training else 0.0
        attended_TD = attend(qkv_T3HE, rate).reshape(positions, width)
        if rows_Q is not None:
            attended_TD, hidden_TD = attended_TD.index_select(0, rows_Q), hidden_TD.index_select(0, rows_Q)
        hidden_TD = self.attention_norm(hidden_TD + self.dropout(self.output(attended_TD)))
        fed_TD: Tensor = self.contract(F.gelu(self.expand(hidden_TD)))
        normed_TD: Tensor = self.feed_forward_norm(hidden_TD + self.dropout(fed_TD))
        return normed_TD


class Transformer(nn.Module):
    """The stack of layers; `activation_checkpointing` recomputes each layer in the backward pass."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(model) for _ in range(model.layers))
        self.activation_checkpointing = False

    def forward(self, hidden_TD: Tensor, sequences: Sequences, rows_Q: Tensor, attend: AttendInLayer | None = None) -> Tensor:
        """The last layer's rows that are read, [Q, D]: it makes no others, which saves most of its work.

        Args:
            hidden_TD: rows of the stream.
            sequences: how it is cut.
            rows_Q: which rows are read.
            attend: attention of each layer, in place of every sequence's with itself.
        """
        for number, layer in enumerate(self.layers):
            read = rows_Q if number == len(self.layers) - 1 else None
            own = partial(_attend_within, sequences) if attend is None else partial(attend, number)
            if self.activation_checkpointing and self.training:
                # Re-entrant checkpoints give wrong gradients under ZeRO (docs/architecture.md).
                hidden_TD = checkpoint(layer, hidden_TD, own, read, use_reentrant=False)
            else:
                hidden_TD = layer(hidden_TD, own, read)
        return hidden_TD


def _attend_within(sequences: Sequences, qkv_T3HE: Tensor, rate: float) -> Tensor:
    return packed_attention(qkv_T3HE, sequences, rate)
