"""RoBERTa from a local folder of Hugging Face, as the start of pre-training (unimo-spec, 9.2).

The row that RoBERTa adds to every token for its one type goes into the positions; the LayerNorm of regions starts as that of
words; the rest of what is about images is new.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimo_ds.config import ModelSection
from unimo_ds.convert.converted import Converted, listed, model_section
from unimo_ds.errors import CheckpointError

# What the model must be of, beside its sizes: UNIMO is RoBERTa's encoder in these.
_WANTED = {"model_type": "roberta", "type_vocab_size": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
_TIED = ("lm_head.decoder.weight", "lm_head.decoder.bias")  # the word embedding, and lm_head.bias
_MODULES = {
    "embedding.text.norm": "roberta.embeddings.LayerNorm",
    "embedding.region.norm": "roberta.embeddings.LayerNorm",
    "language_head.transform": "lm_head.dense",
    "language_head.norm": "lm_head.layer_norm",
}
_LAYER_MODULES = {
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_KINDS = ("weight", "bias")


def read_roberta(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """Hugging Face's `RobertaForMaskedLM` of a folder, float32, and the names of weights that it has no place for.

    Raises:
        CheckpointError: the folder has no RoBERTa, or not all of its weights.
    """
    if not (folder / "config.json").exists():
        hint = "; the original UNIMO is converted by `convert_weights.py unimo`" if (folder / "word_embedding").exists() else ""
        raise CheckpointError(f"{folder}: has no config.json: no local folder of Hugging Face{hint}")
    from transformers import AutoConfig, RobertaForMaskedLM

    local: dict[str, Any] = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    with _read_as_roberta(folder):
        given = AutoConfig.from_pretrained(**local).to_dict()
    wrong = [f"{key} is {given.get(key)!r}, expected {value!r}" for key, value in _WANTED.items() if given.get(key) != value]
    if not wrong and given["intermediate_size"] != 4 * given["hidden_size"]:
        wrong.append(f"intermediate_size is {given['intermediate_size']}, expected 4 x {given['hidden_size']}")
    if wrong:
        raise CheckpointError(f"{folder}/config.json: {'; '.join(wrong)}: a start can only be RoBERTa, or a model of its form")
    with _read_as_roberta(folder):
        network, said = RobertaForMaskedLM.from_pretrained(
            **local, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
    resized = sorted(str(each[0]) for each in said["mismatched_keys"])
    if lacking := sorted(set(said["missing_keys"]) - set(_TIED) - set(resized)):
        raise CheckpointError(f"{folder}: lacks {listed(lacking)}: needed is the whole model with its language head (lm_head)")
    if resized:
        raise CheckpointError(f"{folder}: {listed(resized)}: of another shape than config.json says; copy all files again")
    weights = network.state_dict()
    if not torch.equal(weights[_TIED[0]], weights["roberta.embeddings.word_embeddings.weight"]):
        raise CheckpointError(f"{folder}: its {_TIED[0]} is not the word embedding, with which words are scored here")
    if damaged := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise CheckpointError(f"{folder}: {listed(damaged)}: some numbers are not finite; copy it again")
    return network.eval(), tuple(sorted(said["unexpected_keys"]))


@contextmanager
def _read_as_roberta(folder: Path) -> Iterator[None]:
    """Names the folder in whatever error; what transformers would print of missing weights is said by `read_roberta`."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # of safetensors, pickle, zip, JSON or transformers, as the damage has it
        said = (str(error).splitlines() or ["no reason given"])[0]
        raise CheckpointError(f"{folder}: cannot be read as RoBERTa ({type(error).__name__}: {said}); copy it again") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def convert_roberta(
    network: Any, unused: tuple[str, ...], feature_width: int, region_classes: int
) -> tuple[ModelSection, Converted]:
    """RoBERTa under our names.

    Args:
        network, unused: as `read_roberta` gives them.
        feature_width: of the regions that the model is to see.
        region_classes: of their detector, background among them.
    """
    config, theirs = network.config, network.state_dict()
    model = model_section(
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        vocabulary_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        feature_width=feature_width,
        region_classes=region_classes,
    )
    positions = theirs["roberta.embeddings.position_embeddings.weight"]
    weights: dict[str, Tensor] = {
        "embedding.text.word.weight": theirs["roberta.embeddings.word_embeddings.weight"],
        "embedding.text.position.weight": positions + theirs["roberta.embeddings.token_type_embeddings.weight"],
        "language_head.bias": theirs["lm_head.bias"],
    }
    for kind in _KINDS:
        weights |= {f"{ours}.{kind}": theirs[f"{there}.{kind}"] for ours, there in _MODULES.items()}
        for number in range(model.layers):
            ours, there = f"transformer.layers.{number}", f"roberta.encoder.layer.{number}"
            weights |= {f"{ours}.{one}.{kind}": theirs[f"{there}.{other}.{kind}"] for one, other in _LAYER_MODULES.items()}
            parts = [theirs[f"{there}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            weights[f"{ours}.query_key_value.{kind}"] = torch.cat(parts)
    return model, Converted(weights, tuple(name for name in theirs if name not in _TIED), unused)
