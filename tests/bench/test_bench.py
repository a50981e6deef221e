"""The benchmark's own arithmetic, and a dry run of every contender at a tiny size."""

import numpy as np
import pytest

from unimo_ds import distributed
from unimo_ds.bench import contenders, regions, step_profile, training, workload


def test_the_standard_workload_is_what_the_documents_say() -> None:
    load = workload.pairs(training.PAIRS)
    counts = [len(image) for image in load.images]
    assert min(counts) >= 10 and max(counts) <= 100
    assert np.mean([len(text) for text in workload.pairs(400).texts]) == pytest.approx(13, abs=0.5)
    assert workload.packed(load).positions == pytest.approx(2000, abs=150)


def test_useful_operations_of_a_known_case() -> None:
    """One document of n tokens through one layer, counted by hand."""
    model = contenders.shape("tiny").model_copy(update={"layers": 1})
    batch = workload.packed(workload.documents(1))
    positions, width, targets = batch.positions, model.hidden_size, len(batch.language_labels_M)
    layer = 6 * width**2 * positions + 4 * width * positions**2 + 18 * width**2 * targets
    forward = layer + 2 * targets * (width**2 + width * model.vocabulary_size)
    assert workload.useful_flops(batch, model) == pytest.approx(3 * forward)


@pytest.mark.parametrize("name", ["ours", "visualbert", "roberta"])
def test_every_contender_makes_a_step(name: str) -> None:
    kind = workload.documents(1) if name == "roberta" else workload.pairs(2)
    contenders.CONTENDERS[name]("tiny", "fp32", kind)()


def test_reads_are_measured_for_every_layout() -> None:
    rows = regions.measure_reads(rounds=1, images=3)
    assert {"ours", "UNITER: msgpack in LMDB"} <= {row["layout"] for row in rows}
    assert regions.table(rows).count("\n") == 1 + len(rows)


@pytest.mark.long
def test_a_profile_gives_every_operation_to_a_part() -> None:
    distributed.initialise(60)
    rows = step_profile.measure_profile("tiny", "bf16")
    shares = {row["part"]: row["share"] for row in rows}
    assert sum(map(float, shares.values())) == pytest.approx(1)
    assert {"encoder: matrix products", "attention", "AdamW", "dropout", "feature projection", "LayerNorm"} <= set(shares)
    assert float(shares["other operations"]) < 0.1
    shown = step_profile.table(rows)
    assert shown.count("\n") == 2 + len(rows) and "| tiny bf16 |" in shown
