"""What fine-tuned models read off the pooled vectors (unimo-spec, 7).

Shape suffixes: B examples, D hidden width, C classes.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from unimo_ds.config import ModelSection
from unimo_ds.model.layers import Dropout, Linear, layer_norm


class SentenceHead(nn.Module):
    """Dropout and one layer (unimo-spec, 7.1); a number is one class."""

    def __init__(self, model: ModelSection, classes: int) -> None:
        super().__init__()
        self.dropout = Dropout(model.dropout)
        self.classes = Linear(model.hidden_size, classes, model)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Scores, float32 [B, C]."""
        scores_BC: Tensor = self.classes(self.dropout(pooled_BD))
        return scores_BC.float()


class EntailmentHead(nn.Module):
    """A layer of 2,048 without activation, dropout, and a second layer (unimo-spec, 7.4)."""

    WIDTH = 2048

    def __init__(self, model: ModelSection, classes: int) -> None:
        super().__init__()
        self.expand = Linear(model.hidden_size, self.WIDTH, model)
        self.dropout = Dropout(model.dropout)
        self.classes = Linear(self.WIDTH, classes, model)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Scores, float32 [B, C]."""
        scores_BC: Tensor = self.classes(self.dropout(self.expand(pooled_BD)))
        return scores_BC.float()


class ScoreHead(nn.Module):
    """Dropout and one number: how well an image and a text fit (unimo-spec, 7.3)."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.dropout = Dropout(model.dropout)
        self.score = Linear(model.hidden_size, 1, model)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Scores, float32 [B]."""
        scores_B: Tensor = self.score(self.dropout(pooled_BD)).float().squeeze(1)
        return scores_B


class AnswerHead(nn.Module):
    """UNITER's head of VQA (arXiv:1909.11740): twice the width, GELU, LayerNorm, answers. The paper does not say its own.

    The scores are lowered by the logarithm of the number of answers: of thousands of answers one is right, and else the first
    steps would only teach all others that they are wrong.
    """

    def __init__(self, model: ModelSection, answers: int) -> None:
        super().__init__()
        self.expand = Linear(model.hidden_size, 2 * model.hidden_size, model)
        self.norm = layer_norm(model.model_copy(update={"hidden_size": 2 * model.hidden_size}))
        self.answers = Linear(2 * model.hidden_size, answers, model)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Scores, float32 [B, C]."""
        scores_BC: Tensor = self.answers(self.norm(F.gelu(self.expand(pooled_BD))))
        return scores_BC.float() - math.log(self.answers.out_features)
