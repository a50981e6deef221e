"""A small RoBERTa of random weights, saved by Hugging Face, with its tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from unimo_ds.tokenizer import Tokenizer


def write_roberta(folder: Path, tokenizer: Tokenizer, form: str = "safetensors", **config: Any) -> RobertaForMaskedLM:
    """Saves it as `safetensors`, as old checkpoints are (`bin`), or `sharded`; returns the model.

    Args:
        folder: to write.
        tokenizer: whose files are copied.
        form: of the weights.
        config: what is to differ.
    """
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    kind = {"max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    ids = {"vocab_size": tokenizer.size, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    network = RobertaForMaskedLM(RobertaConfig(**{**sizes, **kind, **ids, **config})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(folder, max_shard_size="200KB" if form == "sharded" else "1GB")
    if form == "bin":
        (folder / "model.safetensors").unlink()
        # Old files have the tied matrix, the pooler, and positions as a buffer.
        pooler = {"roberta.pooler.dense.weight": torch.zeros(64, 64), "roberta.embeddings.position_ids": torch.arange(66)[None]}
        torch.save({**network.state_dict(), **pooler}, folder / "pytorch_model.bin")
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(tokenizer.folder / name, folder / name)
    return network


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes what config.json says."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
