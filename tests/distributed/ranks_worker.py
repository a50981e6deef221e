"""Run by torchrun in `test_ranks.py`: gradients, updates and restored state of every ZeRO stage, printed as JSON by rank 0."""

import json
import sys
from pathlib import Path

import torch

from tests.helpers import TINY, random_batch
from unimo_ds import distributed
from unimo_ds.batch import Batch, Counts
from unimo_ds.config import ObjectivesSection, TrainingSection
from unimo_ds.engine.engine import Engine
from unimo_ds.model.unimo import UnimoModel, parameter_groups
from unimo_ds.objectives.pretraining import NAMES, PretrainingModel, Totals


def training(stage: int, precision: str = "fp32", checkpointing: bool = False) -> TrainingSection:
    return TrainingSection(
        steps=100,
        learning_rate=1e-3,
        precision=precision,
        gradient_clipping=1.0,
        activation_checkpointing=checkpointing,
        deepspeed=Path(__file__).parents[2] / f"ds_configs/zero{stage}.json",
    )


def totals_of(micro_batches: list[list[Batch]]) -> Totals:
    counts = Counts(0, 0, 0, 0, 0)
    for ranks in micro_batches:
        for batch in ranks:
            counts += batch.counts()
    return Totals(*map(float, counts.tensor().tolist()))


def steps(world: int) -> dict[str, list[list[Batch]]]:
    """`[micro-batch][rank]` of each case; the batches of all ranks together are the same whatever the world."""
    mixed = [
        [
            random_batch(1, pairs=3, first_group=0, candidates=True),
            random_batch(2, pairs=2, texts=1, images=1, first_group=10, candidates=True),
        ],
        [random_batch(3, pairs=2, first_group=20, candidates=True), random_batch(4, pairs=3, texts=1, first_group=30)],
    ]
    split = [[random_batch(5, texts=3), random_batch(6, images=3)]]
    return {"mixed": mixed, "split": split}


def build(checkpointing: bool = False) -> PretrainingModel:
    torch.manual_seed(0)
    unimo = UnimoModel(TINY)
    unimo.transformer.activation_checkpointing = checkpointing
    return PretrainingModel(unimo, ObjectivesSection(matching=1.0))


def run(stage: int, precision: str, checkpointing: bool, out: Path) -> None:
    here = distributed.initialise(timeout_seconds=120)
    section = training(stage, precision, checkpointing)
    groups = lambda module: parameter_groups(module, 0.01)  # noqa: E731
    result: dict[str, object] = {}
    for name, micro_batches in steps(here.world_size).items():
        engine = Engine(lambda: build(checkpointing), groups, section)
        mine = [ranks[here.rank] for ranks in micro_batches]
        shares = engine.backward_only(mine, totals_of(micro_batches))[: len(NAMES)]
        result[name] = {
            "losses": distributed.sum_over_ranks(shares).tolist(),
            "gradients": {key: value.flatten().tolist() for key, value in engine.gradients()},
        }
    engine = Engine(lambda: build(checkpointing), groups, section)
    both = [steps(here.world_size)[name] for name in ("mixed", "split", "mixed", "split")]
    for number, micro_batches in enumerate(both):
        done = engine.step(number, [ranks[here.rank] for ranks in micro_batches], totals_of(micro_batches))
    result["norm"] = done.gradient_norm
    state = dict(engine.full_state())
    result["weights"] = {name: value["weight"].flatten().tolist() for name, value in state.items()}
    again = Engine(lambda: build(checkpointing), groups, section, {name: value["weight"] for name, value in state.items()})
    again.load_full_state(4, state.__getitem__)
    losses = []
    for which in (engine, again):
        for number in (4, 5):
            shares = which.step(number, [r[here.rank] for r in both[0]], totals_of(both[0])).measured
        losses.append(distributed.sum_over_ranks(shares).tolist())
    result["resumed_equal"] = losses[0] == losses[1]
    if here.rank == 0:
        out.write_text(json.dumps(result))
    distributed.leave(0)


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1", Path(sys.argv[4]))
