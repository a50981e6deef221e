"""The plan as users see it, and what must hold of it whatever the numbers are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unimo_ds import cli
from unimo_ds.config import ModelSection, ObjectivesSection, load_config
from unimo_ds.errors import ConfigError
from unimo_ds.planning.gpus import GPUS, find_gpu
from unimo_ds.planning.memory import Size, Stream, Zero, memory_of
from unimo_ds.planning.plan import Cluster, Plan, make_plan, model_size
from unimo_ds.planning.report import as_text, as_values
from unimo_ds.planning.traffic import traffic_of

SIZE = Size(parameters=1000, word_table=300)
NOTHING = Stream()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(load_config(Path("recipes/base.yaml")), Cluster(find_gpu("h100"), 8, 8))


@pytest.mark.parametrize(
    ("stage", "itemsize", "expected"),
    [
        # Adam's 16 bytes of a parameter, and the copies at the fullest moment, two ranks.
        (0, 4, 4 * 1000 + 8 * 1000 + 4 * 1000 + 4 * 1000),  # all gradients copied for the all-reduce
        (0, 2, 2 * 1000 + 4 * 1000 + 8 * 1000 + 2 * 1000 + 4 * 1000),  # and in float32 for the update
        (1, 2, 2 * 1000 + 12 * 500 + 2 * 500 + 2 * 500 + 4 * 500),  # own gradients joined, and then in float32
        (2, 4, 4 * 1000 + 12 * 500 + 4 * 500 + 2 * 4 * 300 + 4 * 10),  # the word table's two gradients, a bucket
        (3, 4, 4 * 500 + 12 * 500 + 4 * 500 + 4 * 10 + 4 * 1000 + 4 * 300),  # all gathered, the head's gradient made
    ],
)
def test_memory_by_sums_of_ones_own(stage: int, itemsize: int, expected: float) -> None:
    zero = Zero(stage, bucket=10, float32_gradients=stage == 3)
    assert memory_of(SIZE, zero, 2, itemsize, NOTHING).total == pytest.approx(expected)


def test_the_norm_of_a_large_table_is_found_in_float64() -> None:
    size = Size(parameters=1000, word_table=450)
    assert memory_of(size, Zero(1, bucket=10), 2, 2, NOTHING).parts["being made"] == 8 * 450


def test_what_is_offloaded_is_elsewhere_and_all_there() -> None:
    zero = Zero(3, bucket=10, float32_gradients=True)
    moved = {place: replace(zero, optimizer_at=place, weights_at="cpu") for place in ("cpu", "nvme")}
    here = memory_of(SIZE, zero, 2, 2, NOTHING)
    host, nvme = (memory_of(SIZE, moved[place], 2, 2, NOTHING) for place in ("cpu", "nvme"))
    away = 12 * 500 + 4 * 500 + 2 * 500  # masters and moments, gradients in float32, weights
    assert host.total == nvme.total == here.total - away
    assert (host.host, host.disk) == (away, 0)
    assert nvme.disk == 12 * 500 + 4 * 500  # gradients, too
    assert nvme.host == 2 * 500 + 4 * 500 + 16 * 500  # weights, the sums of gradients, all of a sub-group
    parts = memory_of(SIZE, replace(moved["nvme"], sub_group=10, float32_gradients=False), 2, 2, NOTHING)
    assert parts.host == 2 * 500 + 2 * 500 + 16 * 10


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"offload_param.device = 'disk': allowed are none, cpu, nvme"):
        Zero.read({"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}})


def test_a_short_reuse_distance_trades_memory_for_messages() -> None:
    far, near = (Zero(3, bucket=10, reuse=reuse) for reuse in (2000, 0))
    assert traffic_of(SIZE, far, 2, 1, 12).all_gather == 2 * 1000
    assert traffic_of(SIZE, near, 2, 1, 12).all_gather == 2 * 2000
    gathered = [memory_of(SIZE, zero, 64, 2, NOTHING).parts["gathered weights"] for zero in (far, near)]
    assert gathered[0] == 2 * 1000 and gathered[1] == 2 * 300


def test_the_model_is_counted_on_the_model() -> None:
    base = model_size(ModelSection(size="base"), ObjectivesSection())
    assert base.word_table == 50265 * 768
    assert 125e6 < base.parameters < 135e6  # RoBERTa-base's 125 M with regions and poolers


def test_more_ranks_never_need_more_memory_or_time_and_share_one_step(plan: Plan) -> None:
    assert [case.cluster.ranks for case in plan.scales] == [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    for fewer, more in zip(plan.scales, plan.scales[1:], strict=False):
        assert more.needed <= fewer.needed and more.seconds <= fewer.seconds * 1.1
        assert more.flops == fewer.flops
    assert plan.scales[-1].busy == pytest.approx(3072 / 4096)
    assert plan.scales[3].seconds == plan.case.seconds


def test_the_text_fits_120_columns_and_says_what_was_never_measured(plan: Plan) -> None:
    text = as_text(plan)
    assert max(map(len, text.split("\n"))) <= 120
    assert "No GPU was ever timed" in text
    assert "unimo-ds prepare" in text  # lengths are guessed, for nothing is prepared


def test_the_command_prints_the_same_numbers_for_programs(plan: Plan) -> None:
    words = ["plan", "recipes/base.yaml", "--nodes", "8", "--gpus", "8", "--gpu", "h100", "--json"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output)
    assert printed == json.loads(json.dumps(as_values(plan)))
    assert sum(printed["run"]["memory"].values()) == pytest.approx(printed["run"]["memory_needed"])


def test_a_run_that_does_not_fit_is_said_not_to_fit() -> None:
    config = load_config(
        Path("recipes/large.yaml"), ["training.activation_checkpointing=false", "data.positions_per_micro_batch=65536"]
    )
    plan = make_plan(config, Cluster(find_gpu("V100-32"), 1, 8))
    assert not plan.case.fits and "NO" in as_text(plan)


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--gpu rtx: not known; there are v100-32, a100-40, a100-80, h100, h200, b200"):
        find_gpu("rtx")
    for gpu in GPUS.values():
        assert gpu.network < gpu.link < gpu.machine.bandwidth < gpu.machine.flops
