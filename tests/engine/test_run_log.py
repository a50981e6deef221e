"""The pure parts of the engine room: schedule, DeepSpeed's file, logs, signals."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from unimo_ds.config import TrainingSection
from unimo_ds.engine.engine import deepspeed_config, learning_rate
from unimo_ds.engine.run_log import RunLog, SampleLog, forget_after
from unimo_ds.engine.signals import StopRequest
from unimo_ds.errors import ConfigError, UnimoError

ROOT = Path(__file__).parents[2]


def training(**changes: object) -> TrainingSection:
    return TrainingSection.model_validate({"steps": 100, "learning_rate": 1.0, "warmup_steps": 10, **changes})


def test_the_rate_rises_then_falls_to_zero_and_is_never_zero_before() -> None:
    rates = [learning_rate(training(), step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and rates[99] == pytest.approx(1 / 90) and rates[100] == 0
    assert min(rates[:100]) > 0


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(training(warmup_steps=0), 0) == 1.0


@pytest.mark.parametrize("path", sorted(ROOT.glob("ds_configs/*.json")), ids=lambda path: path.name)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_deepspeed_file_is_completed(path: Path, precision: str) -> None:
    content = deepspeed_config(training(deepspeed=path, precision=precision, gradient_clipping=0.5))
    assert content["gradient_clipping"] == 0.5 and content["bf16"]["enabled"] == (precision == "bf16")
    assert content["zero_optimization"]["stage"] in (0, 1, 2, 3)


def test_keys_that_belong_to_the_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"optimizer": {"type": "Adam"}}')
    with pytest.raises(ConfigError, match="optimizer belongs to the run's configuration"):
        deepspeed_config(training(deepspeed=path))
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        deepspeed_config(training(deepspeed=path))
    with pytest.raises(ConfigError, match=r"nowhere.json: cannot be read"):
        deepspeed_config(training(deepspeed=tmp_path / "nowhere.json"))


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path: Path) -> None:
    log, samples = RunLog(tmp_path, enabled=True), SampleLog(tmp_path, 0, enabled=True)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1.0 / step})
        samples.write(step, [(0, step, step)])
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a kill in the middle of a line
    forget_after(tmp_path, 3)
    for name in ("metrics.jsonl", "samples-rank0000.jsonl"):
        lines = (tmp_path / name).read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_full_disk_costs_a_line_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, enabled=True)

    class FullDisk:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    log._metrics = FullDisk()  # type: ignore[assignment]
    log.write({"step": 7, "loss": 1.0})
    assert "step 7 is missing in the metrics: No space left on device" in capsys.readouterr().out


def test_the_receipt_has_an_entry_a_start(tmp_path: Path) -> None:
    for start in range(2):
        log = RunLog(tmp_path, enabled=True)
        log.start("folder: x\n", {"pairs": {"samples": 3}}, world_size=2, step=10 * start)
        log.close()
    starts = json.loads((tmp_path / "receipt.json").read_text())["starts"]
    assert [entry["from_step"] for entry in starts] == [0, 10] and starts[0]["packages"]["torch"]
    (tmp_path / "receipt.json").write_text("[]")
    with pytest.raises(UnimoError, match="is not a receipt of this program"):
        RunLog(tmp_path, enabled=True).start("", {}, 1, 0)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", enabled=False)
    log.start("", {}, 2, 0)
    log.write({"step": 1})
    log.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    assert stop.received is None
    os.kill(os.getpid(), number)
    assert stop.received == number.name
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    stop.restore()
    assert signal.getsignal(number) is before
