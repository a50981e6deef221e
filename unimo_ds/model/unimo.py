"""UNIMO: one Transformer over the packed stream, and everything that is read off it, in one forward pass.

Every module runs in every pass, with zero rows where a batch lacks a modality or an objective: under ZeRO-3 all ranks must
call the same modules in the same order (DeepSpeed#1355, #7170). So there is no `if` on the batch's content here; a fine-tuned
model may lack heads, the same on every rank.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimo_ds.batch import Batch, Kind
from unimo_ds.config import ModelSection
from unimo_ds.kernels.attention import Sequences
from unimo_ds.model.embeddings import StreamEmbedding, VoiceEmbedding
from unimo_ds.model.heads import LanguageHead, MatchingHead, Pooler, RegionHead, Temperature
from unimo_ds.model.transformer import AttendInLayer, Transformer


class Outputs(NamedTuple):
    """What one pass gives; a tuple, so that ZeRO-3 finds the tensors in it.

    Shape suffixes as in `unimo_ds.batch`; D hidden width, C region classes, V vocabulary.

    Attributes:
        language_losses_M: float32, cross-entropy of each language target.
        language_logits_MV: float32 scores of every word at the language targets, where asked for.
        region_features_GF, region_logits_GC: float32, predictions for hidden regions.
        image_vectors_ID, text_vectors_XD: float32 unit vectors of the contrastive members.
        matching_logits_J: float32, how well each jointly encoded image and text fit, in the order of their members.
        temperature: float32 [1].
    """

    language_losses_M: Tensor
    language_logits_MV: Tensor | None
    region_features_GF: Tensor
    region_logits_GC: Tensor
    image_vectors_ID: Tensor
    text_vectors_XD: Tensor
    matching_logits_J: Tensor
    temperature: Tensor


class UnimoModel(nn.Module):
    """The model.

    Args:
        model: its shape.
        temperature: where the learned temperature of CMCL starts.
    """

    def __init__(self, model: ModelSection, temperature: float = 0.07) -> None:
        super().__init__()
        self.embedding = StreamEmbedding(model)
        self.transformer = Transformer(model)
        self.language_head: LanguageHead | None = LanguageHead(model)
        self.region_head: RegionHead | None = RegionHead(model)
        self.image_pooler: Pooler | None = Pooler(model)
        self.text_pooler: Pooler | None = Pooler(model)
        self.matching_head: MatchingHead | None = MatchingHead(model)
        self.temperature: Temperature | None = Temperature(temperature)

    def keep_heads(self, heads: Collection[str]) -> None:
        """Leaves out what a task does not read: under ZeRO-3 a parameter that no pass uses keeps a stale gradient."""
        for name, _ in list(self.named_children()):
            if name not in ("embedding", "transformer", *heads):
                setattr(self, name, None)

    def add_voices(self, model: ModelSection) -> None:
        """Adds the role and turn embeddings of dialogues, which pre-training does not have."""
        self.embedding.text.voice = VoiceEmbedding(model)

    def encode(
        self, batch: Batch, rows: Sequence[Tensor], attend: AttendInLayer | None = None, perturbation_WD: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The hidden states of some rows of the stream, [Q, D] each; `attend` and `perturbation_WD` as in `forward`."""
        embedded_TD = self.embedding(batch, perturbation_WD)
        sequences = Sequences(batch.cu_seqlens_S1, batch.prefix_lengths_S, batch.attention_tiles_N4)
        hidden_QD: Tensor = self.transformer(embedded_TD, sequences, torch.cat(tuple(rows)), attend)
        return torch.split(hidden_QD, [len(group) for group in rows])

    def pooled(self, batch: Batch, perturbation_WD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The pooled [IMG] rows, [I, D], and [CLS] rows, [X, D], of the members; none of a pooler that was left out."""
        return self._pool(*self.encode(batch, [batch.image_rows_I, batch.text_rows_X], perturbation_WD=perturbation_WD))

    def _pool(self, image_ID: Tensor, text_XD: Tensor) -> tuple[Tensor, Tensor]:
        return (
            image_ID.new_empty(0) if self.image_pooler is None else self.image_pooler(image_ID),
            text_XD.new_empty(0) if self.text_pooler is None else self.text_pooler(text_XD),
        )

    def forward(
        self,
        batch: Batch,
        want_logits: bool = False,
        attend: AttendInLayer | None = None,
        smoothing: float = 0.0,
        perturbation_WD: Tensor | None = None,
    ) -> Outputs:
        """Encodes the stream and reads off all that the objectives need; of a head that was left out, nothing.

        Args:
            batch: the packed stream.
            want_logits: also give the scores of every word at the language targets, for prediction.
            attend: attention of each layer, in place of every sequence's with itself (`model.generation`).
            smoothing: of the labels of words (`LanguageHead`).
            perturbation_WD: added to the embedding of each token, before its LayerNorm.
        """
        rows = [batch.language_rows_M, batch.target_rows_G, batch.image_rows_I, batch.text_rows_X]
        words_MD, regions_GD, *members = self.encode(batch, rows, attend, perturbation_WD)
        nothing, logits_MV = words_MD.new_empty(0), None
        losses_M = features_GF = logits_GC = matching_J = temperature = nothing
        if self.language_head is not None:
            words_VD = self.embedding.text.word.weight
            losses_M, logits_MV = self.language_head(words_MD, words_VD, batch.language_labels_M, want_logits, smoothing)
        if self.region_head is not None:
            features_GF, logits_GC = self.region_head(regions_GD)
        image_ID, text_XD = self._pool(*members)
        if self.matching_head is not None:
            joint_ID = image_ID[batch.image_kinds_I <= Kind.NEGATIVE]
            matching_J = self.matching_head(joint_ID, text_XD[batch.text_kinds_X <= Kind.NEGATIVE])
        if self.temperature is not None:
            temperature = self.temperature()
        return Outputs(
            language_losses_M=losses_M,
            language_logits_MV=logits_MV,
            region_features_GF=features_GF,
            region_logits_GC=logits_GC,
            image_vectors_ID=F.normalize(image_ID.float(), dim=-1),
            text_vectors_XD=F.normalize(text_XD.float(), dim=-1),
            matching_logits_J=matching_J,
            temperature=temperature,
        )


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with and without weight decay: biases, LayerNorms and the temperature have none (unimo-spec, 7.0)."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (free if name.endswith((".bias", "temperature.value")) or ".norm." in name or "_norm." in name else decayed).append(
            parameter
        )
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
