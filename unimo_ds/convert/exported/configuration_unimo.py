"""The shape of UNIMO (ACL 2021, arXiv:2012.15409) and of what is read off it."""

from typing import Any

from transformers import PretrainedConfig


class UnimoConfig(PretrainedConfig):  # type: ignore[misc]
    """Shape of the model.

    Args:
        vocab_size: of the byte-level BPE; the last id is the mask.
        hidden_size, num_hidden_layers, num_attention_heads: of the Transformer; its inner layers are four times as wide.
        hidden_dropout_prob, attention_probs_dropout_prob: in training.
        max_position_embeddings: of texts; their positions begin at 2. Regions have none.
        layer_norm_eps, initializer_range: as the original has them.
        feature_width: of a region's vector.
        region_classes: of the detector, the background included.
        parts: what the weights have beside the Transformer: `language_head`, `region_head`, `image_pooler`, `text_pooler`,
            `matching_head`, `temperature`.
        head: of a fine-tuned model: `sentences`, `entailment`, `vqa`, `retrieval`, or None.
        voices: roles and turns that dialogues have embedded, or None.
    """

    model_type = "unimo"

    def __init__(
        self,
        vocab_size: int = 50265,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 514,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        feature_width: int = 2048,
        region_classes: int = 1601,
        parts: tuple[str, ...] | list[str] = ("language_head", "image_pooler", "text_pooler"),
        head: str | None = None,
        voices: tuple[int, int] | list[int] | None = None,
        bos_token_id: int = 0,
        pad_token_id: int = 1,
        eos_token_id: int = 2,
        decoder_start_token_id: int = 0,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = hidden_size, num_hidden_layers, num_attention_heads
        self.hidden_dropout_prob, self.attention_probs_dropout_prob = hidden_dropout_prob, attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.layer_norm_eps, self.initializer_range = layer_norm_eps, initializer_range
        self.feature_width, self.region_classes = feature_width, region_classes
        self.parts, self.head, self.voices = list(parts), head, list(voices) if voices is not None else None
        super().__init__(
            bos_token_id=bos_token_id,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
            decoder_start_token_id=decoder_start_token_id,
            **others,
        )
