"""The original's forward pass in float64 numpy, from its parameters by their own names and layouts.

Written from the specification (unimo-spec, 1 to 3 and 7) for one sequence at a time, to check a conversion with: it shares
nothing with `unimo_ds.model`, whose weights have been renamed, joined and transposed.

Shape suffixes: S rows of a sequence, R regions, F feature width, H hidden width, N heads, D width of a head, V vocabulary,
C classes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
_EPSILON = 1e-5  # of LayerNorm (unimo-spec, 12.3)
_HEAD_WIDTH = 64
_UNSEEN = -1e4  # what the original adds to the score of a row that may not be seen
_WHOLE_IMAGE = np.array([[0.0, 0.0, 1.0, 1.0, 1.0]])  # location of [IMG]
_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class SequenceInputs:
    """A sequence: an image, a text, or the image followed by the text.

    Attributes:
        features_RF: of the regions; None: no image.
        boxes_R4: in pixels: x1, y1, x2, y2.
        size: width and height of the image.
        ids: of the text with its special tokens; none: no text.
        positions: of its tokens, counted from 2.
        source: rows, those of the image among them, that all rows see; the others are generated. None: all are.
    """

    features_RF: npt.NDArray[Any] | None = None
    boxes_R4: npt.NDArray[Any] | None = None
    size: tuple[int, int] = (1, 1)
    ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    source: int | None = None


class OriginalModel:
    """The original's graph.

    Args:
        parameters: by the original's names; linear layers are [in, out].
    """

    def __init__(self, parameters: Mapping[str, npt.NDArray[Any]]) -> None:
        self._parameters = parameters
        self._layers = len({found[1] for name in parameters if (found := re.match(r"encoder_layer_(\d+)_", name))})

    def hidden(self, inputs: SequenceInputs) -> Doubles:
        """The last layer's rows, [S, H]."""
        parts = []
        if inputs.features_RF is not None:
            parts.append(self._image_rows(inputs))
        if inputs.ids:
            summed = self._of("word_embedding")[list(inputs.ids)] + self._of("pos_embedding")[list(inputs.positions)]
            parts.append(self._norm(summed, "pre_encoder_layer_norm"))
        x_SH = np.concatenate(parts)
        rows = np.arange(len(x_SH))
        source = len(x_SH) if inputs.source is None else inputs.source
        sees_SS = (rows[None, :] < source) | ((rows[:, None] >= source) & (rows[None, :] <= rows[:, None]))
        bias_SS = np.where(sees_SS, 0.0, _UNSEEN)
        for number in range(self._layers):
            name = f"encoder_layer_{number}"
            x_SH = self._norm(x_SH + self._attention(x_SH, bias_SS, f"{name}_multi_head_att"), f"{name}_post_att_layer_norm")
            fed_SH = self._fc(_gelu(self._fc(x_SH, f"{name}_ffn_fc_0")), f"{name}_ffn_fc_1")
            x_SH = self._norm(x_SH + fed_SH, f"{name}_post_ffn_layer_norm")
        return x_SH

    def language_logits(self, hidden_SH: Doubles) -> Doubles:
        """Scores of every word, [S, V]."""
        transformed_SH = self._norm(_gelu(self._fc(hidden_SH, "mask_lm_trans_fc")), "mask_lm_trans_layer_norm")
        logits_SV: Doubles = transformed_SH @ self._of("word_embedding").T + self._of("mask_lm_out_fc.b_0")
        return logits_SV

    def pooled_text(self, hidden_SH: Doubles) -> Doubles:
        """Of [CLS] rows, [S, H]."""
        return np.maximum(self._fc(hidden_SH, "pooled_fc_text"), 0.0)

    def pooled_image(self, hidden_SH: Doubles) -> Doubles:
        """Of [IMG] rows, [S, H]."""
        return np.maximum(self._fc(hidden_SH, "pooled_fc_image"), 0.0)

    def match(self, text_SH: Doubles, image_SH: Doubles) -> Doubles:
        """How well pooled texts and images fit, [S]."""
        return self._fc(text_SH * image_SH, "match_fc")[:, 0]

    def sentence_scores(self, text_SH: Doubles, classes: int) -> Doubles:
        """Of GLUE's classes, [S, C]."""
        return text_SH @ self._of(f"cls_out_{classes}_w") + self._of(f"cls_out_{classes}_b")

    def entailment_scores(self, text_SH: Doubles, image_SH: Doubles) -> Doubles:
        """Of SNLI-VE's classes, [S, C]."""
        expanded = (text_SH + image_SH) @ self._of("cls_out_w_0") + self._of("cls_out_b_0")
        return expanded @ self._of("cls_out_w_1") + self._of("cls_out_b_1")

    def _image_rows(self, inputs: SequenceInputs) -> Doubles:
        assert inputs.features_RF is not None and inputs.boxes_R4 is not None
        features_RF, boxes_R4 = inputs.features_RF.astype(np.float64), inputs.boxes_R4.astype(np.float64)
        width, height = inputs.size
        x1, y1, x2, y2 = boxes_R4.T
        area_R = (y2 - y1) * (x2 - x1) / (width * height)
        locations_R5 = np.stack([x1 / width, y1 / height, x2 / width, y2 / height, area_R], axis=1)
        features = self._fc(np.concatenate([features_RF.mean(axis=0, keepdims=True), features_RF]), "image_emb")
        locations = self._fc(np.concatenate([_WHOLE_IMAGE, locations_R5]), "image_loc")
        return self._norm(features + locations, "v_pre_encoder_layer_norm")

    def _attention(self, x_SH: Doubles, bias_SS: Doubles, name: str) -> Doubles:
        heads = x_SH.shape[1] // _HEAD_WIDTH
        query, key, value = (
            self._fc(x_SH, f"{name}_{part}_fc").reshape(len(x_SH), heads, _HEAD_WIDTH).transpose(1, 0, 2)  # [N, S, D]
            for part in ("query", "key", "value")
        )
        scores_NSS = (query * _HEAD_WIDTH**-0.5) @ key.transpose(0, 2, 1) + bias_SS
        weights_NSS = np.exp(scores_NSS - scores_NSS.max(axis=-1, keepdims=True))
        weights_NSS /= weights_NSS.sum(axis=-1, keepdims=True)
        mixed_SH = (weights_NSS @ value).transpose(1, 0, 2).reshape(x_SH.shape)
        return self._fc(mixed_SH, f"{name}_output_fc")

    def _fc(self, x: Doubles, name: str) -> Doubles:
        y: Doubles = x @ self._of(f"{name}.w_0") + self._of(f"{name}.b_0")
        return y

    def _norm(self, x: Doubles, name: str) -> Doubles:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled: Doubles = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _EPSILON)
        return scaled * self._of(f"{name}_scale") + self._of(f"{name}_bias")

    def _of(self, name: str) -> Doubles:
        return self._parameters[name].astype(np.float64)


def _gelu(x: Doubles) -> Doubles:
    y: Doubles = x * 0.5 * (1 + _erf(x / math.sqrt(2)))
    return y
