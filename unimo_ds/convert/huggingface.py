"""A checkpoint as a folder of Hugging Face's form, and such a folder as a checkpoint again.

The parameters keep their names: those of the Transformer and its poolers stand behind `unimo.`, as transformers wants the base
of a model with heads, and the rest stands as it is. Nothing is copied, split or rounded, so the way back is exact. The code in
`unimo_ds.convert.exported` goes along.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimo_ds.config import DecodingSection, ModelSection
from unimo_ds.convert.exported.configuration_unimo import UnimoConfig
from unimo_ds.convert.model_card import model_card
from unimo_ds.engine.checkpoint_folder import Extras, new_folder, read_state
from unimo_ds.errors import CheckpointError
from unimo_ds.model.embeddings import ROLES, TURNS
from unimo_ds.model.layers import EPSILON
from unimo_ds.tokenizer import CLS, PAD, SEP, UNK, Tokenizer

_BASE = ("embedding.", "transformer.", "image_pooler.", "text_pooler.")
_PARTS = ("language_head", "region_head", "image_pooler", "text_pooler", "matching_head", "temperature")
_CODE = Path(__file__).parent / "exported"
_FILES = ("configuration_unimo.py", "modeling_unimo.py", "processing_unimo.py")
_STATE, _RUN = "unimo_ds_state.json", "unimo_ds_config.yaml"  # what a checkpoint of ours says of itself, for the way back
_TOKENIZER = ("vocab.json", "merges.txt")


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        weights: by their names in the model; a task's head as `head.*`.
        model: the shape.
        state: of the checkpoint.
        config_yaml: its configuration.
        tokenizer: its own.
        decoding: how texts are searched for by default.
        labels: what the scores of a task's head stand for; none: it has none.
        numbers: what was measured of it.
        max_regions, max_text_tokens: how much of an image and of a text it was shown.
    """

    weights: dict[str, Tensor]
    model: ModelSection
    state: dict[str, Any]
    config_yaml: str
    tokenizer: Tokenizer
    decoding: DecodingSection
    labels: Sequence[str]
    numbers: dict[str, float]
    max_regions: int
    max_text_tokens: int


def write_exported(exported: Exported, out: Path) -> None:
    """Writes the folder.

    Raises:
        CheckpointError: as `new_folder`.
    """
    with new_folder(out) as temporary:
        weights = {_exported_name(name): value for name, value in exported.weights.items()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)  # safetensors makes its files private, and this one is to be shared
        for name in _FILES:
            shutil.copyfile(_CODE / name, temporary / name)
        config = _config(exported)
        contents = {
            "config.json": config,
            "generation_config.json": _generation(exported),
            "processor_config.json": _processor(exported),
            "tokenizer_config.json": _tokenizer_config(exported),
            _STATE: exported.state,
        }
        for name, content in contents.items():
            (temporary / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / _RUN).write_text(exported.config_yaml, encoding="utf-8")
        for name in _TOKENIZER:
            shutil.copyfile(exported.tokenizer.folder / name, temporary / name)
        _write_fast_tokenizer(exported.tokenizer, temporary / "tokenizer.json")
        card = model_card(out.name, config, exported.state, exported.config_yaml, exported.numbers)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def _exported_name(name: str) -> str:
    return f"unimo.{name}" if name.startswith(_BASE) else name


def _config(exported: Exported) -> dict[str, Any]:
    model = exported.model
    parts = [part for part in _PARTS if any(name.startswith(f"{part}.") for name in exported.weights)]
    head = exported.state.get("task", {}).get("family") if any(name.startswith("head.") for name in exported.weights) else None
    untrained = {name.split(".")[0] for name in exported.state.get("source", {}).get("new", ())}
    classes = _classes([part for part in parts if part not in untrained], head)
    config: dict[str, Any] = UnimoConfig(
        vocab_size=model.vocabulary_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        max_position_embeddings=model.max_positions,
        layer_norm_eps=EPSILON,
        initializer_range=model.initializer_range,
        feature_width=model.feature_width,
        region_classes=model.region_classes,
        parts=parts,
        head=head,
        voices=(ROLES, TURNS) if any(name.startswith("embedding.text.voice.") for name in exported.weights) else None,
    ).to_dict()
    config |= {
        "model_type": "unimo",
        "architectures": [list(classes.values())[-1]],
        "auto_map": {
            "AutoConfig": "configuration_unimo.UnimoConfig",
            **{auto: f"modeling_unimo.{name}" for auto, name in classes.items()},
        },
    }
    if exported.labels:
        config["id2label"] = {str(number): name for number, name in enumerate(exported.labels)}
        config["label2id"] = {name: number for number, name in enumerate(exported.labels)}
    return config


def _classes(parts: Sequence[str], head: str | None) -> dict[str, str]:
    """Which class each of transformers' auto classes opens, by the parts that were trained; the last one has most of them."""
    classes = {"AutoModel": "UnimoModel"}
    if "language_head" in parts:
        classes["AutoModelForMaskedLM"] = "UnimoForMaskedLM"
        classes["AutoModelForSeq2SeqLM"] = classes["AutoModelForImageTextToText"] = "UnimoForConditionalGeneration"
    if set(_PARTS) <= set(parts):
        classes["AutoModelForPreTraining"] = "UnimoForPreTraining"
    if head is not None:
        classes["AutoModelForSequenceClassification"] = "UnimoForSequenceClassification"
    return classes


def _generation(exported: Exported) -> dict[str, Any]:
    """How `generate` searches by default: as near to our own search as its rules can come (docs/weights.md)."""
    decoding = exported.decoding
    return {
        "bos_token_id": CLS,
        "decoder_start_token_id": CLS,
        "eos_token_id": SEP,
        "pad_token_id": PAD,
        "num_beams": decoding.beams,
        "max_new_tokens": decoding.longest,
        "min_new_tokens": decoding.shortest,
        "length_penalty": decoding.length_penalty,
        "no_repeat_ngram_size": 3 if decoding.block_trigrams else 0,
        "suppress_tokens": [CLS, PAD, UNK, exported.tokenizer.mask],
        "renormalize_logits": True,  # ours leaves forbidden ids out of the softmax
    }


def _processor(exported: Exported) -> dict[str, Any]:
    return {
        "processor_class": "UnimoProcessor",
        "auto_map": {"AutoProcessor": "processing_unimo.UnimoProcessor"},
        "max_regions": exported.max_regions,
        "max_length": exported.max_text_tokens,
    }


def _tokenizer_config(exported: Exported) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "UnimoProcessor",
        "auto_map": {"AutoProcessor": "processing_unimo.UnimoProcessor"},
        "bos_token": "<s>",
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "model_max_length": exported.max_text_tokens,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def _write_fast_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """`<s> a </s>`, and for two texts `<s> a </s> b </s>`, which is UNIMO's layout and not RoBERTa's (unimo-spec, 1.2)."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Fast

    fast = Fast(models.BPE.from_file(*(str(tokenizer.folder / name) for name in _TOKENIZER)))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [AddedToken(name, special=True) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    fast.add_special_tokens([*special, AddedToken("<mask>", lstrip=True, special=True)])
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", CLS), ("</s>", SEP)]
    )
    fast.save(str(path))


def read_exported(folder: Path) -> tuple[dict[str, Tensor], Extras]:
    """What a checkpoint is made of, from an exported folder; weights of any precision become float32.

    Raises:
        CheckpointError: it is no exported folder of this model, or a file is missing or damaged.
        DataError: its tokenizer is damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        ours = config.get("model_type") == "unimo" and "parts" in config
        weights = load_file(folder / "model.safetensors")
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no exported model: {error}; give a folder that `unimo-ds export` wrote") from error
    if not ours:
        raise CheckpointError(
            f"{folder}/config.json: model_type {config.get('model_type')!r} is not a model that `unimo-ds export` wrote"
        )
    if missing := [name for name in (*_TOKENIZER, _STATE, _RUN) if not (folder / name).exists()]:
        raise CheckpointError(f"{folder}: no {', no '.join(missing)}; copy them from where the model was exported to")
    state = read_state(folder, _STATE)
    words, vectors = Tokenizer(folder).size, int(state["model"]["vocabulary_size"])
    if words != vectors:
        raise CheckpointError(
            f"{folder}/vocab.json: has {words:,} tokens, and the model vectors for {vectors:,}; copy it again"
        )
    extras = Extras((folder / _RUN).read_text(encoding="utf-8"), state, folder)
    return {name.removeprefix("unimo."): value.float() for name, value in weights.items()}, extras
