"""Activations as planned beside what autograd really keeps for the backward pass."""

import pytest
import torch

from unimo_ds.batch import Batch
from unimo_ds.bench import workload
from unimo_ds.config import ModelSection
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.planning.memory import stream_of
from unimo_ds.planning.workload import Work


def kept_bytes(model: UnimoModel, batch: Batch) -> int:
    """Of all storages that the forward pass saves, the parameters' and the batch's own aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *vars(batch).values())}
    saved: dict[int, int] = {}
    held = []  # a storage that was freed could lend its address to another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(saved.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(dropout: float, checkpointing: bool) -> None:
    model = ModelSection(hidden_size=128, layers=8, heads=4, dropout=dropout, vocabulary_size=50265)
    batch = workload.packed(workload.pairs(4))
    unimo = UnimoModel(model)
    unimo.transformer.activation_checkpointing = checkpointing
    work = Work(positions=batch.positions, vectors=len(batch.features_RF), words=len(batch.language_rows_M))
    stream = stream_of(work, model, 4, checkpointing, ranks=1, micro_batches=1)
    planned = stream.activations + stream.logits
    if checkpointing:  # the one layer that is recomputed lives in the backward pass
        planned -= batch.positions * (model.hidden_size * (16 * 4 + 2 * (dropout > 0)) + 4 * model.heads)
    assert planned == pytest.approx(kept_bytes(unimo, batch), rel=0.15)
