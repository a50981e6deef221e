"""One training step of each contender: forward, backward and fused AdamW, on one thread.

A contender is a process of its own, so that its memory can be read; it makes a step for every line on its standard input and
answers with the processor seconds the step took.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unimo_ds.batch import Batch
from unimo_ds.bench import workload as work
from unimo_ds.bench.threads import DTYPES
from unimo_ds.config import ModelSection, ObjectivesSection, TrainingSection
from unimo_ds.kernels.linear import matrix_product as fast_matrix_product
from unimo_ds.model.unimo import UnimoModel, parameter_groups
from unimo_ds.objectives.pretraining import PretrainingModel, Totals

Step = Callable[[], object]
OBJECTIVES = ObjectivesSection.model_validate({"seq2seq": 0, "mrfr": 0, "mrc": 0, "cmcl": {"weight": 0}})
_MATRIX = 2048


def shape(size: str) -> ModelSection:
    """Our model of that size, with RoBERTa's vocabulary and bottom-up features."""
    wanted = {"size": size, "vocabulary_size": work.VOCABULARY, "feature_width": work.FEATURE_WIDTH, "max_positions": 514}
    return ModelSection.model_validate(wanted)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def _trained(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimizer = _optimizer(model)

    def step() -> None:
        torch.autograd.backward(loss())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _totals(batch: Batch) -> Totals:
    return Totals(*map(float, batch.counts().tensor().tolist()))


def ours(size: str, precision: str, load: work.Workload) -> Step:
    """unimo_ds, the packed batch, without an engine."""
    batch = work.packed(load)
    model = PretrainingModel(UnimoModel(shape(size)), OBJECTIVES).to(DTYPES[precision])
    return _trained(model, lambda: model(batch, _totals(batch))[0])


def engine(size: str, precision: str, load: work.Workload) -> Step:
    """unimo_ds as its users run it: DeepSpeed, ZeRO stage 3, one rank."""
    from unimo_ds import distributed
    from unimo_ds.engine.engine import Engine

    distributed.initialise(timeout_seconds=600)
    config = Path(__file__).parents[2] / "ds_configs/cpu.json"
    training = TrainingSection.model_validate({"steps": 1000, "precision": precision, "deepspeed": config})
    batch = work.packed(load)
    wrapped = Engine(
        lambda: PretrainingModel(UnimoModel(shape(size)), OBJECTIVES), lambda m: parameter_groups(m, 0.01), training
    )
    return lambda: wrapped.step(0, [batch], _totals(batch))


def hugging_face_shape(size: str) -> dict[str, Any]:
    model = shape(size)
    return {
        "vocab_size": work.VOCABULARY,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.hidden_size,
        "max_position_embeddings": 514,
    }


def _masked(load: work.Workload) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels, padded to the longest text, masked as our views are."""
    batch = work.packed(work.Workload([], load.texts))
    starts = batch.cu_seqlens_S1.tolist()
    labels_T = torch.full((batch.positions,), -100)
    labels_T[batch.language_rows_M] = batch.language_labels_M
    pad = torch.nn.utils.rnn.pad_sequence
    parts = [slice(a, b) for a, b in pairwise(starts)]
    ids = pad([batch.token_ids_W[part] for part in parts], batch_first=True, padding_value=1)
    labels = pad([labels_T[part] for part in parts], batch_first=True, padding_value=-100)
    return ids, (ids != 1).long(), labels


def visualbert(size: str, precision: str, load: work.Workload) -> Step:
    """Hugging Face's VisualBertForPreTraining, texts and regions padded to the longest of the batch."""
    from transformers import VisualBertConfig, VisualBertForPreTraining

    model = VisualBertForPreTraining(VisualBertConfig(visual_embedding_dim=work.FEATURE_WIDTH, **hugging_face_shape(size)))
    model.to(DTYPES[precision]).train()
    ids, seen, labels = _masked(load)
    features = [torch.from_numpy(image.features_RF.astype(np.float32)) for image in load.images]
    visual = torch.nn.utils.rnn.pad_sequence(features, batch_first=True).to(DTYPES[precision])
    counts = torch.tensor([len(image) for image in load.images])
    visual_seen = (torch.arange(visual.shape[1])[None] < counts[:, None]).long()
    inputs = {
        "input_ids": ids,
        "attention_mask": seen,
        "visual_embeds": visual,
        "visual_attention_mask": visual_seen,
        "visual_token_type_ids": torch.ones_like(visual_seen),
        "labels": torch.cat([labels, torch.full(visual.shape[:2], -100)], dim=1),
    }
    return _trained(model, lambda: model(**inputs).loss)


def roberta(size: str, precision: str, load: work.Workload) -> Step:
    """Hugging Face's RobertaForMaskedLM, padded to the longest document."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    model = RobertaForMaskedLM(RobertaConfig(**hugging_face_shape(size))).to(DTYPES[precision]).train()
    ids, seen, labels = _masked(load)
    return _trained(model, lambda: model(input_ids=ids, attention_mask=seen, labels=labels).loss)


def matrix_product(size: str, precision: str, load: work.Workload) -> Step:
    """The machine's own limit: torch's product of two 2,048 x 2,048 matrices."""
    left, right = (torch.randn(_MATRIX, _MATRIX).to(DTYPES[precision]) for _ in range(2))
    return lambda: left @ right


def fastest_product(size: str, precision: str, load: work.Workload) -> Step:
    """The same product by the library that our linear layers use on this processor."""
    left, right = (torch.randn(_MATRIX, _MATRIX).to(DTYPES[precision]) for _ in range(2))
    return lambda: fast_matrix_product(left, right)


MATRIX_FLOPS = 2.0 * _MATRIX**3
CONTENDERS = {step.__name__: step for step in (ours, engine, visualbert, roberta, matrix_product, fastest_product)}


def serve(name: str, size: str, precision: str, kind: str, count: int) -> None:
    """Steps on demand: a line in, the processor seconds and the peak memory out."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = work.pairs(count) if kind == "pairs" else work.documents(count)
    step = CONTENDERS[name](size, precision, load)
    for _ in sys.stdin:
        started = time.process_time()
        step()
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
