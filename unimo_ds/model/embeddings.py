"""Text and regions become rows of the stream (unimo-spec, 2.1).

Shape suffixes: see `unimo_ds.batch`; D hidden width.
"""

import torch
from torch import Tensor, nn

from unimo_ds.batch import Batch
from unimo_ds.config import ModelSection
from unimo_ds.model.layers import Dropout, Embedding, Linear, layer_norm

ROLES, TURNS = 3, 16  # of a dialogue


class VoiceEmbedding(nn.Module):
    """`role + turn`: who says a token of a dialogue, and how many utterances ago (unimo-spec, 1.4)."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.role = Embedding(ROLES, model)
        self.turn = Embedding(TURNS, model)

    def forward(self, token_voices_W2: Tensor) -> Tensor:
        role_W, turn_W = token_voices_W2.unbind(1)
        voice_WD: Tensor = self.role(role_W) + self.turn(turn_W)
        return voice_WD


class TextEmbedding(nn.Module):
    """`Dropout(LayerNorm(word + position))`, in dialogues `+ role + turn`; no segment embeddings (unimo-spec, 1.4).

    `perturbation_WD`, where there is one, is added to the sum (unimo-spec, 2.1).
    """

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.word = Embedding(model.vocabulary_size, model)
        self.position = Embedding(model.max_positions, model)
        self.voice: VoiceEmbedding | None = None  # of dialogues only (`UnimoModel.add_voices`)
        self.norm = layer_norm(model)
        self.dropout = Dropout(model.dropout)

    def forward(self, batch: Batch, perturbation_WD: Tensor | None = None) -> Tensor:
        summed_WD = self.word(batch.token_ids_W) + self.position(batch.token_positions_W)
        if self.voice is not None:
            summed_WD = summed_WD + self.voice(batch.token_voices_W2)
        if perturbation_WD is not None:
            summed_WD = summed_WD + perturbation_WD.to(summed_WD.dtype)
        embedded_WD: Tensor = self.dropout(self.norm(summed_WD))
        return embedded_WD


class RegionEmbedding(nn.Module):
    """`Dropout(LayerNorm(Linear(feature) + Linear(location)))`; regions have no position embedding (unimo-spec, 1.3)."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.feature = Linear(model.feature_width, model.hidden_size, model)
        self.location = Linear(5, model.hidden_size, model)
        self.norm = layer_norm(model)
        self.dropout = Dropout(model.dropout)

    def forward(self, batch: Batch) -> Tensor:
        dtype = self.feature.weight.dtype
        features_RF = batch.features_RF.to(dtype)
        # One more vector, all zeros, stands for every hidden region: each vector is projected once, wherever it is shown.
        projected_RD = self.feature(torch.cat([features_RF, features_RF.new_zeros(1, features_RF.shape[1])]))
        shown_L = torch.where(batch.region_hidden_L, len(features_RF), batch.region_sources_L)
        located_RD = self.location(batch.boxes_R5.to(dtype))
        placed_LD = projected_RD.index_select(0, shown_L) + located_RD.index_select(0, batch.region_sources_L)
        embedded_LD: Tensor = self.dropout(self.norm(placed_LD))
        return embedded_LD


class StreamEmbedding(nn.Module):
    """The first layer's input: every row of the stream, from text or from a region."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.text = TextEmbedding(model)
        self.region = RegionEmbedding(model)

    def forward(self, batch: Batch, perturbation_WD: Tensor | None = None) -> Tensor:
        text_WD = self.text(batch, perturbation_WD)
        region_LD = self.region(batch)
        hidden_TD = text_WD.new_zeros(batch.positions, text_WD.shape[1])
        hidden_TD = hidden_TD.index_copy(0, batch.token_rows_W, text_WD)
        filled_TD: Tensor = hidden_TD.index_copy(0, batch.region_rows_L, region_LD)
        return filled_TD
