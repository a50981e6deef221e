"""Run on two ranks by `test_generation.py`: each generates its own sentences with the partitioned model, then trains on."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from tests.distributed.ranks_worker import build, totals_of, training
from tests.helpers import random_batch
from tests.model.prefixes import Given, pack, some
from unimo_ds import distributed
from unimo_ds.engine.engine import Engine
from unimo_ds.model.beams import Decoding, Generated
from unimo_ds.model.generation import generate
from unimo_ds.model.unimo import UnimoModel, parameter_groups
from unimo_ds.objectives.pretraining import PretrainingModel
from unimo_ds.tokenizer import CLS, SEP

SENTENCES: dict[str, list[list[Given]]] = {  # of each rank
    "both": [some("of all kinds", 3), some("images", 1, seed=1)],
    "one": [some("images and texts", 2, seed=2), []],
    "none": [[], []],
}
DECODINGS = {"greedy": Decoding(1, 9), "beams": Decoding(3, 9, 2, 0.6)}


def sharpened() -> PretrainingModel:
    """[SEP] is likely enough that texts end at different steps."""
    module = build()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        module.unimo.language_head.bias[SEP] += 2.0
    return module


def written(unimo: UnimoModel, given: list[Given]) -> dict[str, list[Generated]]:
    return {name: generate(unimo, pack(given), decoding, CLS, SEP, [0, 1, 3]) for name, decoding in DECODINGS.items()}


def run(stage: int, out: Path) -> None:
    here = distributed.initialise(timeout_seconds=120)
    weights = {name: parameter.detach().clone() for name, parameter in sharpened().named_parameters()}
    result: dict[str, object] = {}
    norms = []
    for generating in (True, False):
        engine = Engine(build, lambda module: parameter_groups(module, 0.01), training(stage), weights)
        # ZeRO-3 learns in the engine's first pass that the head reads the word embedding. Step 100, the end, has the rate 0.
        for step in (100, 0, 1):
            ranks = [random_batch(rank, pairs=2, texts=1, first_group=10 * rank) for rank in range(here.world_size)]
            norms.append(engine.step(step, [ranks[here.rank]], totals_of([ranks])).gradient_norm)
            if generating:
                made = each_case(engine, here.rank)
                result = result or made  # by the weights that we know
    result["norms"] = norms
    if here.rank == 0:
        out.write_text(json.dumps(result))
    distributed.leave(0)


def each_case(engine: Engine, rank: int) -> dict[str, object]:
    """Every rank's texts of every case."""
    module = engine.module
    assert isinstance(module, PretrainingModel)
    module.eval()
    made: dict[str, object] = {}
    for case, ranks in SENTENCES.items():
        texts = written(module.unimo, ranks[rank])
        made[case] = distributed.gather_objects({name: [asdict(text) for text in own] for name, own in texts.items()})
    module.train()
    return made


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]))
