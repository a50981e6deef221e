"""The campaign's verdicts can fail: on logs with one thing wrong."""

import json
import math
from pathlib import Path

import pytest

from unimo_ds.chaos.verdicts import Computed, Sample, judge_again, judge_curve, judge_samples, read_samples, read_steps
from unimo_ds.errors import DataError

PER_STEP, SIZES, STEPS = (2, 1), (5, 3), 7  # two epochs of each corpus and a part of the third


def log() -> dict[int, list[Sample]]:
    """Each sample once in each epoch, backwards in every second."""
    found: dict[int, list[Sample]] = {}
    for step in range(1, STEPS + 1):
        for corpus, (count, size) in enumerate(zip(PER_STEP, SIZES, strict=True)):
            for draw in range((step - 1) * count, step * count):
                epoch, place = divmod(draw, size)
                found.setdefault(step, []).append((corpus, draw, size - 1 - place if epoch % 2 else place))
    return found


def judge(logged: dict[int, list[Sample]]) -> str:
    return "\n".join(judge_samples(logged, STEPS, PER_STEP, SIZES))


def test_a_log_with_every_sample_once_an_epoch_is_right_whichever_rank_had_it() -> None:
    assert judge(log()) == ""
    assert judge({step: samples[::-1] for step, samples in sorted(log().items(), reverse=True)}) == ""


def test_a_sample_that_was_seen_twice_is_found() -> None:
    logged = log()
    logged[3].append(logged[3][0])
    assert "step 3, corpus 0: draws [] are missing, [4] are too many" in judge(logged)
    assert "corpus 0, epoch 0: sample 4 2 times" in judge(logged)


def test_a_sample_in_place_of_another_is_found_though_the_draws_are_right() -> None:
    logged = log()
    corpus, draw, index = logged[2][0]
    logged[2][0] = (corpus, draw, index - 1)
    assert judge(logged).splitlines() == [
        f"corpus 0, epoch 0: sample {index - 1} 2 times",
        "corpus 0, epoch 0: 4 different samples, expected 5 of 5",
    ]


def test_samples_and_steps_that_are_missing_or_too_many_are_found() -> None:
    logged = log()
    lost = logged[6].pop()
    assert f"step 6, corpus 1: draws [{lost[1]}] are missing" in judge(logged)
    assert "step 4 is not logged" in judge({step: samples for step, samples in log().items() if step != 4})
    assert "step 8 is logged, but the run ends at 7" in judge({**log(), 8: [(0, 14, 4), (0, 15, 0), (1, 7, 1)]})


def test_two_ranks_that_log_the_same_step_twice_are_found(tmp_path: Path) -> None:
    """What a start leaves behind that trained on beside the next one."""
    for rank in range(2):
        lines = [json.dumps({"step": step, "samples": samples[rank::2]}) for step, samples in log().items()]
        (tmp_path / f"samples-rank{rank:04}.jsonl").write_text("\n".join(lines) + "\n")
    assert judge(read_samples(tmp_path)) == ""
    with (tmp_path / "samples-rank0001.jsonl").open("a") as file:
        file.write(lines[4] + "\n")
    assert "step 5, corpus 0" in judge(read_samples(tmp_path))


CURVE = {step: {"loss": 9.0 - 0.1 * step, "grad_norm": 2.0} for step in range(1, 6)}


def test_a_curve_within_the_tolerance_is_right_and_one_beyond_it_is_wrong() -> None:
    near = {step: {**numbers, "loss": numbers["loss"] + 5e-5 * step} for step, numbers in CURVE.items()}
    apart, wrong = judge_curve(near, CURVE, 1e-3)
    assert apart == pytest.approx(2.5e-4) and wrong == []
    apart, wrong = judge_curve(near, CURVE, 1.75e-4)
    assert [line.split(":")[0] for line in wrong] == ["step 4", "step 5"]


def test_a_curve_with_a_step_less_or_without_a_number_is_wrong() -> None:
    assert judge_curve({step: CURVE[step] for step in range(1, 5)}, CURVE, 1.0)[1]
    assert judge_curve({**CURVE, 2: {"loss": math.nan}}, CURVE, 1.0)[1]


def test_a_step_done_again_must_have_the_same_bits_where_it_was_computed_alike() -> None:
    def computed(loss: float, world: int) -> Computed:
        return Computed(0, ((2, 3), (world, 3)), {"loss": loss, "grad_norm": 1.0})

    assert judge_again({2: (computed(5.0, 2), computed(5.0, 2))}, 1e-5) == ("1, same bits", [])
    assert judge_again({2: (computed(5.0, 2), computed(5.0 + 1e-6, 1))}, 1e-5) == ("1, within 2e-07", [])
    assert judge_again({2: (computed(5.0, 2), computed(5.0 + 1e-6, 2))}, 1e-5)[1][0].startswith("step 2 is not what it was")
    assert judge_again({2: (computed(5.0, 2), computed(5.1, 1))}, 1e-5)[1]
    assert judge_again({2: (computed(5.0, 2), computed(math.nan, 1))}, 1e-5)[1]
    assert judge_again({}, 1e-5) == ("", [])


def test_a_step_that_stands_in_the_metrics_twice_is_refused_and_half_a_line_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0, "lr": 0.5, "speed": 3}\n{"step": 1, "eval/r1": 1.0}\n{"step": 2, "loss": 1.')
    assert read_steps(tmp_path) == {1: {"loss": 2.0, "lr": 0.5}}
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "loss": 2.0}\n')
    with pytest.raises(DataError, match="step 1 stands there twice"):
        read_steps(tmp_path)
