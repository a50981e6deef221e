"""UNIMO (ACL 2021, arXiv:2012.15409): one Transformer on texts, images, and images with texts.

A sequence is `[IMG] region ... region [CLS] word ... word [SEP]`, either part of which may be missing. In a batch each part is
padded to its longest. What a model generates stands behind: its words see all of the sequence and what is before them.

Shape suffixes: B sequences, I rows of images, W words, P rows before what is generated (I + W), N words that are generated,
K rows that are looked at, D hidden width, H heads, E head width, L layers, F feature width, V vocabulary, C classes.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput, Seq2SeqLMOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from .configuration_unimo import UnimoConfig

FIRST_POSITION = 2  # of a text, as RoBERTa counts
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, queries, keys, values [B, H, rows, E] -> [B, H, rows, E]


@dataclass
class UnimoOutput(ModelOutput):  # type: ignore[misc]
    """Hidden states and what is pooled from them.

    Attributes:
        last_hidden_state: [B, I + W, D], the image's rows first.
        image_hidden_state, text_hidden_state: its two parts, [B, I, D] and [B, W, D]; None where there is no such part.
        image_pooled, text_pooled: ReLU layers over [IMG] and [CLS], [B, D].
        image_embeds, text_embeds: the same as unit vectors. Of an image and of a text that were encoded alone, the cosine says
            how near they are; encoded together, how well they fit.
    """

    last_hidden_state: Tensor | None = None
    image_hidden_state: Tensor | None = None
    text_hidden_state: Tensor | None = None
    image_pooled: Tensor | None = None
    text_pooled: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


@dataclass
class UnimoPrefixOutput(ModelOutput):  # type: ignore[misc]
    """What generated words see of the sequence before them.

    Attributes:
        last_hidden_state: [B, P, D].
        keys_and_values: of every layer, [B, L, 2, H, P, E].
    """

    last_hidden_state: Tensor | None = None
    keys_and_values: Tensor | None = None


@dataclass
class UnimoForPreTrainingOutput(ModelOutput):  # type: ignore[misc]
    """What the heads of pre-training say.

    Attributes:
        logits: of every word's row, [B, W, V].
        region_features, region_logits: of every row of the image, [B, I, F] and [B, I, C].
        matching_logits: how well image and text fit by the matching head, [B]; it is untrained in a run that has CMCL alone.
        image_embeds, text_embeds: as in `UnimoOutput`.
        temperature: of CMCL, [1].
    """

    logits: Tensor | None = None
    region_features: Tensor | None = None
    region_logits: Tensor | None = None
    matching_logits: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    temperature: Tensor | None = None


class UnimoVoiceEmbedding(nn.Module):
    """Who says a word of a dialogue, and how many utterances ago."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        assert config.voices is not None
        roles, turns = config.voices
        self.role = nn.Embedding(roles, config.hidden_size)
        self.turn = nn.Embedding(turns, config.hidden_size)

    def forward(self, voice_ids: Tensor) -> Tensor:
        voice_BWD: Tensor = self.role(voice_ids[..., 0]) + self.turn(voice_ids[..., 1])
        return voice_BWD


class UnimoTextEmbedding(nn.Module):
    """`Dropout(LayerNorm(word + position))`; there are no segment embeddings."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.voice = UnimoVoiceEmbedding(config) if config.voices else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, position_ids: Tensor, voice_ids: Tensor | None) -> Tensor:
        summed_BWD = self.word(input_ids) + self.position(position_ids)
        if self.voice is not None:
            summed_BWD = summed_BWD + self.voice(input_ids.new_zeros(*input_ids.shape, 2) if voice_ids is None else voice_ids)
        embedded_BWD: Tensor = self.dropout(self.norm(summed_BWD))
        return embedded_BWD


class UnimoRegionEmbedding(nn.Module):
    """`Dropout(LayerNorm(Linear(feature) + Linear(location)))`; regions have no position embedding."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.feature = nn.Linear(config.feature_width, config.hidden_size)
        self.location = nn.Linear(5, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features_BIF: Tensor, locations_BI5: Tensor) -> Tensor:
        dtype = self.feature.weight.dtype
        summed_BID = self.feature(features_BIF.to(dtype)) + self.location(locations_BI5.to(dtype))
        embedded_BID: Tensor = self.dropout(self.norm(summed_BID))
        return embedded_BID


class UnimoEmbedding(nn.Module):
    """Texts and regions have embeddings and LayerNorms of their own."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.text = UnimoTextEmbedding(config)
        self.region = UnimoRegionEmbedding(config)


class UnimoLayer(nn.Module):
    """`h = LN(x + Dropout(Attention(x)))`, then `LN(h + Dropout(FFN(h)))`."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BKD: Tensor, number: int, attend: Attend) -> Tensor:
        batch, rows, width = hidden_BKD.shape
        qkv_3BHKE = self.query_key_value(hidden_BKD).view(batch, rows, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended_BKD = attend(number, *qkv_3BHKE.unbind(0)).transpose(1, 2).reshape(batch, rows, width)
        hidden_BKD = self.attention_norm(hidden_BKD + self.dropout(self.output(attended_BKD)))
        fed_BKD: Tensor = self.contract(F.gelu(self.expand(hidden_BKD)))
        normed_BKD: Tensor = self.feed_forward_norm(hidden_BKD + self.dropout(fed_BKD))
        return normed_BKD


class UnimoTransformer(nn.Module):
    """The stack of layers."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(UnimoLayer(config) for _ in range(config.num_hidden_layers))
        self.attention_dropout = config.attention_probs_dropout_prob

    def forward(self, hidden_BKD: Tensor, attend: Attend) -> Tensor:
        for number, layer in enumerate(self.layers):
            hidden_BKD = layer(hidden_BKD, number, attend)
        return hidden_BKD

    def attention(self, visible: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention to the rows that are `visible`, bool [B, 1, rows or 1, K]."""
        rate = self.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=rate)


class UnimoPooler(nn.Module):
    """`relu(Linear(h))`."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        return F.relu(self.dense(hidden_BD))


class UnimoLanguageHead(nn.Module):
    """`LayerNorm(gelu(Linear(h)))`, then the word embedding, transposed, and a bias."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_BWD: Tensor, word_VD: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.transform(hidden_BWD))), word_VD, self.bias)


class UnimoRegionHead(nn.Module):
    """A region's feature and its class."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.feature = nn.Linear(config.hidden_size, config.feature_width)
        self.classes = nn.Linear(config.hidden_size, config.region_classes)


class UnimoScore(nn.Module):
    """One number of a pooled image and a pooled text, multiplied."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.score = nn.Linear(config.hidden_size, 1)


class UnimoTemperature(nn.Module):
    """The learned temperature of CMCL."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([0.07]))


class UnimoPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What all classes share: configuration, and values of weights that a checkpoint lacks."""

    config_class = UnimoConfig
    base_model_prefix = "unimo"
    main_input_name = "input_ids"
    # To `Trainer`: losses are means over a micro-batch, and it must divide by their number itself.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = ["UnimoLayer"]  # noqa: RUF012

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Module:
        """Refused: words are scored with their own vectors and a bias each, and the last id is the mask."""
        raise NotImplementedError("the vocabulary of this model cannot be changed")

    def _init_weights(self, module: nn.Module) -> None:
        deviation = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm | UnimoLanguageHead):
            nn.init.zeros_(module.bias)


class UnimoModel(UnimoPreTrainedModel):
    """The Transformer with its poolers."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        self.embedding = UnimoEmbedding(config)
        self.transformer = UnimoTransformer(config)
        self.image_pooler = UnimoPooler(config) if "image_pooler" in config.parts else None
        self.text_pooler = UnimoPooler(config) if "text_pooler" in config.parts else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.text.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding.text.word = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_locations: Tensor | None = None,
        region_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        voice_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> UnimoOutput | tuple[Tensor, ...]:
        """Encodes sequences, each row of which sees its whole sequence.

        Args:
            input_ids: words, [B, W], as the processor makes them.
            attention_mask: 1 at words, 0 at padding, [B, W].
            region_features: vectors of [IMG] and of the regions, [B, I, F]; the processor puts [IMG] first.
            region_locations: `x1/W, y1/H, x2/W, y2/H, area` of each, [B, I, 5].
            region_attention_mask: 1 at regions, 0 at padding, [B, I].
            position_ids: of the words, [B, W]; by default 2, 3, ...
            voice_ids: role and turn of each word of a dialogue, [B, W, 2].
        """
        embedded_BPD, seen_BP = self.embed(
            input_ids, attention_mask, region_features, region_locations, region_attention_mask, position_ids, voice_ids
        )
        visible = seen_BP[:, None, None]
        hidden_BPD = self.transformer(embedded_BPD, lambda _, *qkv: self.transformer.attention(visible, *qkv))
        images = 0 if region_features is None else region_features.shape[1]
        image_BID = hidden_BPD[:, :images] if images else None
        text_BWD = hidden_BPD[:, images:] if images < hidden_BPD.shape[1] else None
        image_BD = text_BD = None
        if image_BID is not None and self.image_pooler is not None:
            image_BD = self.image_pooler(image_BID[:, 0])
        if text_BWD is not None and self.text_pooler is not None:
            first_B = seen_BP[:, images:].int().argmax(1)  # [CLS], wherever the padding is
            text_BD = self.text_pooler(text_BWD[torch.arange(len(first_B), device=first_B.device), first_B])
        output = UnimoOutput(
            last_hidden_state=hidden_BPD,
            image_hidden_state=image_BID,
            text_hidden_state=text_BWD,
            image_pooled=image_BD,
            text_pooled=text_BD,
            image_embeds=None if image_BD is None else F.normalize(image_BD.float(), dim=-1),
            text_embeds=None if text_BD is None else F.normalize(text_BD.float(), dim=-1),
        )
        return output.to_tuple() if return_dict is False else output

    def embed(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        region_features: Tensor | None,
        region_locations: Tensor | None,
        region_attention_mask: Tensor | None,
        position_ids: Tensor | None,
        voice_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The first layer's input, [B, P, D], and which of its rows are no padding, bool [B, P]; arguments as of `forward`."""
        rows: list[Tensor] = []
        seen: list[Tensor] = []
        if region_features is not None:
            if region_locations is None:
                raise ValueError("region_features without region_locations: the processor makes both")
            rows.append(self.embedding.region(region_features, region_locations))
            seen.append(_mask(region_attention_mask, region_features))
        if input_ids is not None and input_ids.shape[1]:
            mask_BW = _mask(attention_mask, input_ids)
            if position_ids is None:
                position_ids = (mask_BW.cumsum(1) - 1 + FIRST_POSITION) * mask_BW + ~mask_BW
            rows.append(self.embedding.text(input_ids, position_ids, voice_ids))
            seen.append(mask_BW)
        if not rows:
            raise ValueError("nothing to encode: give input_ids, region_features, or both")
        return torch.cat(rows, dim=1), torch.cat(seen, dim=1)


def _mask(given: Tensor | None, rows: Tensor) -> Tensor:
    """Which rows are no padding, bool [B, rows]."""
    return torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device) if given is None else given.bool()


class UnimoForMaskedLM(UnimoPreTrainedModel):
    """Names masked words, of a text or of a text beside an image."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        self.unimo = UnimoModel(config)
        self.language_head = UnimoLanguageHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_locations: Tensor | None = None,
        region_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        voice_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """The scores of every word at each row of the text, [B, W, V]. Arguments as of `UnimoModel.forward`, and

        Args:
            labels: what each word is to be, [B, W], -100 where nothing is asked.
        """
        encoded = self.unimo(
            input_ids, attention_mask, region_features, region_locations, region_attention_mask, position_ids, voice_ids
        )
        logits_BWV = self.language_head(encoded.text_hidden_state, self.unimo.embedding.text.word.weight)
        loss = None if labels is None else F.cross_entropy(logits_BWV.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(loss=loss, logits=logits_BWV)
        return output.to_tuple() if return_dict is False else output


class UnimoForConditionalGeneration(UnimoPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Writes a text of an image, of a text, or of both.

    `generate(**processor(regions=...))` writes captions; `generate(**processor(text=...))` texts of texts. The generated part
    begins with [CLS] at the first text position and ends with [SEP].
    """

    _supports_cache_class = True  # asked by versions of transformers before 5

    def __init__(self, config: UnimoConfig) -> None:
        config = copy.deepcopy(config)
        config.is_encoder_decoder = True  # to `generate`: what is before the generated part is encoded once
        super().__init__(config)
        self.unimo = UnimoModel(config)
        self.language_head = UnimoLanguageHead(config)
        self.post_init()

    def get_encoder(self, *_: Any, **__: Any) -> "UnimoPrefix":
        """What encodes the part before the generated one."""
        return UnimoPrefix(self.unimo)

    def generate(self, inputs: Tensor | None = None, region_features: Tensor | None = None, **others: Any) -> Any:
        """As every model of transformers generates; an image alone needs no `input_ids`."""
        input_ids = others.pop("input_ids", None) if inputs is None else inputs
        if region_features is not None:
            others["region_features"] = region_features
            if input_ids is None:
                input_ids = torch.zeros(len(region_features), 0, dtype=torch.long, device=region_features.device)
        return super().generate(inputs=input_ids, **others)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """What a step of the search looks at: of the generated words those that no step has seen."""
        names = ("past_key_values", "cache", "encoder_outputs", "attention_mask", "region_attention_mask")
        found = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return {"decoder_input_ids": input_ids[:, _length(found) :], **found}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_locations: Tensor | None = None,
        region_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        voice_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_outputs: UnimoPrefixOutput | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput | tuple[Tensor, ...]:
        """The scores of each generated word's successor, [B, N, V].

        Args:
            input_ids, attention_mask, region_features, region_locations, region_attention_mask, position_ids, voice_ids: what
                is before the generated part, as in `UnimoModel.forward`.
            decoder_input_ids: the generated part, [B, N], [CLS] first; by default `labels` moved by one.
            labels: the word after each, -100 where nothing is asked.
            encoder_outputs: of `get_encoder()`; then of the first arguments only the masks are read.
            past_key_values, cache: keys and values of generated words that were seen before; versions of transformers differ in
                the name.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("neither decoder_input_ids nor labels: to write a text call generate()")
            start_B1 = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
            decoder_input_ids = torch.cat(
                [start_B1, labels[:, :-1].masked_fill(labels[:, :-1] < 0, self.config.pad_token_id)], 1
            )
        prefix = encoder_outputs
        if prefix is None:
            prefix = self.get_encoder().forward(
                input_ids, attention_mask, region_features, region_locations, region_attention_mask, position_ids, voice_ids
            )
        past = past_key_values if cache is None else cache
        seen_BP = self._seen(prefix, attention_mask, region_attention_mask)
        hidden_BND = self._decode(decoder_input_ids, prefix.keys_and_values, seen_BP, past)
        logits_BNV = self.language_head(hidden_BND, self.unimo.embedding.text.word.weight)
        loss = None if labels is None else F.cross_entropy(logits_BNV.flatten(0, 1).float(), labels.flatten())
        output = Seq2SeqLMOutput(loss=loss, logits=logits_BNV)
        return output.to_tuple() if return_dict is False else output

    def _seen(self, prefix: UnimoPrefixOutput, words: Tensor | None, regions: Tensor | None) -> Tensor:
        """Which rows before the generated part are no padding, bool [B, P]."""
        assert prefix.last_hidden_state is not None
        rows = prefix.last_hidden_state.shape[1]
        given = [mask for mask in (regions, words) if mask is not None]
        found_BP = torch.cat(given, dim=1).bool() if given else _mask(None, prefix.last_hidden_state)
        if found_BP.shape[1] != rows:
            raise ValueError(
                f"the masks are of {found_BP.shape[1]} rows and {rows} were encoded: give attention_mask with input_ids, and "
                "region_attention_mask with region_features, as the processor makes them"
            )
        return found_BP

    def _decode(self, words_BN: Tensor, kept_BL2HPE: Tensor | None, seen_BP: Tensor, past: Any) -> Tensor:
        """Hidden states of generated words, [B, N, D]; `past` gets their keys and values, if there is one."""
        assert kept_BL2HPE is not None
        own = getattr(past, "self_attention_cache", past)
        before, new = 0 if own is None else int(own.get_seq_length()), words_BN.shape[1]
        positions_1N = torch.arange(before, before + new, device=words_BN.device)[None]
        causal_NM = torch.arange(before + new, device=words_BN.device) <= positions_1N[0][:, None]
        sequences = len(words_BN)
        visible = torch.cat([seen_BP[:, None].expand(-1, new, -1), causal_NM[None].expand(sequences, -1, -1)], dim=2)[:, None]

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if own is not None:
                key, value = own.update(key, value, number)
            kept_2BHPE = kept_BL2HPE[:, number].transpose(0, 1)
            key, value = torch.cat([kept_2BHPE[0], key], dim=2), torch.cat([kept_2BHPE[1], value], dim=2)
            return self.unimo.transformer.attention(visible, query, key, value)

        embedded_BND = self.unimo.embedding.text(words_BN, (positions_1N + FIRST_POSITION).expand(sequences, -1), None)
        hidden_BND: Tensor = self.unimo.transformer(embedded_BND, attend)
        return hidden_BND


def _length(kept: dict[str, Any]) -> int:
    """How many generated words have been seen."""
    past = kept.get("past_key_values", kept.get("cache"))
    return 0 if past is None else int(past.get_seq_length())


class UnimoPrefix:
    """Encodes what is before a generated part, and keeps what generated words will look at."""

    main_input_name = "input_ids"

    def __init__(self, unimo: UnimoModel) -> None:
        self._unimo = unimo

    def __call__(self, *given: Any, **named: Any) -> UnimoPrefixOutput:
        return self.forward(*given, **named)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_locations: Tensor | None = None,
        region_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        voice_ids: Tensor | None = None,
        **_: Any,
    ) -> UnimoPrefixOutput:
        """Arguments as in `UnimoModel.forward`."""
        embedded_BPD, seen_BP = self._unimo.embed(
            input_ids, attention_mask, region_features, region_locations, region_attention_mask, position_ids, voice_ids
        )
        visible, kept = seen_BP[:, None, None], []

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            kept.append(torch.stack([key, value], dim=1))
            return self._unimo.transformer.attention(visible, query, key, value)

        hidden_BPD = self._unimo.transformer(embedded_BPD, attend)
        return UnimoPrefixOutput(last_hidden_state=hidden_BPD, keys_and_values=torch.stack(kept, dim=1))


class UnimoForPreTraining(UnimoPreTrainedModel):
    """All heads of pre-training."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        self.unimo = UnimoModel(config)
        self.language_head = UnimoLanguageHead(config)
        self.region_head = UnimoRegionHead(config)
        self.matching_head = UnimoScore(config)
        self.temperature = UnimoTemperature()
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_locations: Tensor | None = None,
        region_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        voice_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> UnimoForPreTrainingOutput | tuple[Tensor, ...]:
        """What each head says of the rows that it reads; arguments as of `UnimoModel.forward`."""
        encoded = self.unimo(
            input_ids, attention_mask, region_features, region_locations, region_attention_mask, position_ids, voice_ids
        )
        image_BID, text_BWD = encoded.image_hidden_state, encoded.text_hidden_state
        logits_BWV = features_BIF = classes_BIC = fits_B = None
        if text_BWD is not None:
            logits_BWV = self.language_head(text_BWD, self.unimo.embedding.text.word.weight)
        if image_BID is not None:
            features_BIF, classes_BIC = self.region_head.feature(image_BID), self.region_head.classes(image_BID)
        if image_BID is not None and text_BWD is not None:
            fits_B = self.matching_head.score(encoded.image_pooled * encoded.text_pooled).squeeze(1)
        output = UnimoForPreTrainingOutput(
            logits=logits_BWV,
            region_features=features_BIF,
            region_logits=classes_BIC,
            matching_logits=fits_B,
            image_embeds=encoded.image_embeds,
            text_embeds=encoded.text_embeds,
            temperature=self.temperature.value.clamp(0.001, 0.5),
        )
        return output.to_tuple() if return_dict is False else output


class UnimoSentenceHead(nn.Module):
    """One layer on the pooled text."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classes = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, image_BD: Tensor | None, text_BD: Tensor) -> Tensor:
        scores_BC: Tensor = self.classes(self.dropout(text_BD))
        return scores_BC


class UnimoEntailmentHead(nn.Module):
    """Two layers on the sum of pooled image and text."""

    WIDTH = 2048

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, self.WIDTH)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classes = nn.Linear(self.WIDTH, config.num_labels)

    def forward(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        scores_BC: Tensor = self.classes(self.dropout(self.expand(text_BD + image_BD)))
        return scores_BC


class UnimoAnswerHead(nn.Module):
    """Two layers on the product of pooled image and text; the scores are lowered by the logarithm of their number."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.norm = nn.LayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)
        self.answers = nn.Linear(2 * config.hidden_size, config.num_labels)

    def forward(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        scores_BC: Tensor = self.answers(self.norm(F.gelu(self.expand(text_BD * image_BD))))
        return scores_BC - math.log(self.answers.out_features)


class UnimoScoreHead(UnimoScore):
    """How well an image and a text fit."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        scores_B1: Tensor = self.score(self.dropout(text_BD * image_BD))
        return scores_B1


HEADS = {
    "sentences": UnimoSentenceHead,
    "entailment": UnimoEntailmentHead,
    "vqa": UnimoAnswerHead,
    "retrieval": UnimoScoreHead,
}


class UnimoForSequenceClassification(UnimoPreTrainedModel):
    """Fine-tuned: classes of sentences, entailment by an image, answers to questions, or how well image and text fit."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        if config.head not in HEADS:
            raise ValueError(f"config.head = {config.head!r}: this is no fine-tuned model; heads are {', '.join(HEADS)}")
        self.unimo = UnimoModel(config)
        self.head = HEADS[config.head](config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_locations: Tensor | None = None,
        region_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        voice_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Scores, [B, C]; those of `vqa` become probabilities by the sigmoid. Arguments as of `UnimoModel.forward`, and

        Args:
            labels: numbers of classes; of `vqa` soft scores, [B, C]; of a regression numbers.
        """
        encoded = self.unimo(
            input_ids, attention_mask, region_features, region_locations, region_attention_mask, position_ids, voice_ids
        )
        read = ("text",) if self.config.head == "sentences" else ("image", "text")
        if lacking := [name for name in read if getattr(encoded, f"{name}_pooled") is None]:
            raise ValueError(
                f"a model for {self.config.head} reads {' and '.join(read)}: {' and '.join(lacking)} was not given"
            )
        logits_BC = self.head(encoded.image_pooled, encoded.text_pooled).float()
        output = SequenceClassifierOutput(loss=None if labels is None else self._loss(logits_BC, labels), logits=logits_BC)
        return output.to_tuple() if return_dict is False else output

    def _loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        if self.config.head == "vqa":
            return F.binary_cross_entropy_with_logits(logits_BC, labels.float(), reduction="none").sum(1).mean()
        if self.config.head == "retrieval":
            raise ValueError("retrieval is taught on an image with many texts, which this interface has not")
        if self.config.num_labels == 1:
            return F.mse_loss(logits_BC[:, 0], labels.float())
        return F.cross_entropy(logits_BC, labels)
