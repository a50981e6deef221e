"""What is read off the hidden states: words, regions, and the vectors of CMCL (unimo-spec, 2.3).

Shape suffixes: M language targets, G region targets, D hidden width, V vocabulary, F feature width, C region classes,
Q pooled rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimo_ds.config import ModelSection
from unimo_ds.kernels.linear import linear
from unimo_ds.kernels.linear_cross_entropy import linear_cross_entropy
from unimo_ds.model.layers import Linear, layer_norm

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.001, 0.5


class LanguageHead(nn.Module):
    """`LayerNorm(gelu(Linear(h)))`, then the transposed word embedding and a bias; serves masked and generated words."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.transform = Linear(model.hidden_size, model.hidden_size, model)
        self.norm = layer_norm(model)
        self.bias = nn.Parameter(torch.zeros(model.vocabulary_size))

    def forward(
        self, hidden_MD: Tensor, word_VD: Tensor, labels_M: Tensor, want_logits: bool = False, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        """The cross-entropy of each target, float32 [M]; and with `want_logits` the scores of every word, [M, V].

        In a step of generation there are no labels, and no cross-entropies either. With `smoothing` a target is the label to
        1 - smoothing and every word of the vocabulary alike to the rest (unimo-spec, 7.2).
        """
        transformed_MD = self.norm(F.gelu(self.transform(hidden_MD)))
        if not want_logits:
            losses_M = linear_cross_entropy(transformed_MD, word_VD, self.bias, labels_M)
            if smoothing:
                losses_M = losses_M + smoothing * self._above_mean(transformed_MD, word_VD, labels_M)
            return losses_M, None
        logits_MV = linear(transformed_MD, word_VD, self.bias).float()
        losses_M = F.cross_entropy(logits_MV[: len(labels_M)], labels_M, reduction="none", label_smoothing=smoothing)
        return losses_M, logits_MV

    def _above_mean(self, transformed_MD: Tensor, word_VD: Tensor, labels_M: Tensor) -> Tensor:
        """The label's logit less the mean of all, [M]: what smoothing adds to a cross-entropy, with no logits stored.

        The mean of `-log p` over the vocabulary is the log-sum of the logits less their mean, and that of the label is the
        log-sum less its logit; the mean of the logits is the logit of the mean word.
        """
        logits_M = (transformed_MD * word_VD.index_select(0, labels_M)).sum(1).float() + self.bias[labels_M].float()
        return logits_M - (transformed_MD @ word_VD.mean(0)).float() - self.bias.float().mean()


class RegionHead(nn.Module):
    """Predicts a hidden region's feature and its class distribution."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.feature = Linear(model.hidden_size, model.feature_width, model)
        self.classes = Linear(model.hidden_size, model.region_classes, model)

    def forward(self, hidden_GD: Tensor) -> tuple[Tensor, Tensor]:
        """`features [G, F], class logits [G, C]`, float32."""
        return self.feature(hidden_GD).float(), self.classes(hidden_GD).float()


class Pooler(nn.Module):
    """`relu(Linear(h))`: one for [IMG] rows, one for [CLS] rows. ReLU, not the tanh of BERT."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.dense = Linear(model.hidden_size, model.hidden_size, model)

    def forward(self, hidden_QD: Tensor) -> Tensor:
        """Pooled vectors, none negative, [Q, D]."""
        pooled_QD: Tensor = F.relu(self.dense(hidden_QD))
        return pooled_QD


class MatchingHead(nn.Module):
    """`Linear(pooled image * pooled text)`: how well an image and a text that were encoded together fit (unimo-spec, 7.3)."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.score = Linear(model.hidden_size, 1, model)

    def forward(self, image_JD: Tensor, text_JD: Tensor) -> Tensor:
        """Logits, float32 [J]."""
        logits_J: Tensor = self.score(image_JD * text_JD).float().squeeze(1)
        return logits_J


class Temperature(nn.Module):
    """The learned temperature of CMCL, kept in [0.001, 0.5] (unimo-spec, 11.6).

    The clamp passes its gradient straight through, so that a value at a bound can come back.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([start]))  # not a scalar: ZeRO-3 cannot partition one

    def forward(self) -> Tensor:
        """float32 [1]."""
        value = self.value.float()
        clamped = value.clamp(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)
        return value + (clamped - value).detach()
