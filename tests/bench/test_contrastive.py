"""A dry run of the benchmark of the contrastive matrix."""

import importlib.util
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

from unimo_ds.bench import contrastive
from unimo_ds.bench.contrastive import Loss


def gradients(loss: Loss) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(9, 4, generator=generator, requires_grad=True) for _ in range(2)]
    leaves.append(torch.tensor(3.0, requires_grad=True))
    value = loss(*leaves)
    return [value, *torch.autograd.grad(value, leaves)]


def test_both_are_measured_at_every_size_and_ours_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "_measure", contrastive.step)  # in this process: others would take long to start
    monkeypatch.setattr(contrastive, "_memory", lambda kind: {"VmRSS": 100.0, "VmHWM": 150.0}[kind])
    monkeypatch.setattr(contrastive, "HUGE", 96)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    rows = contrastive.measure_contrastive(sizes=[40], rounds=2, huge=True)
    name = contrastive.peer()[0]
    assert [(row["pairs"], row["precision"], row["contender"]) for row in rows] == [
        (40, "fp32", name),
        (40, "fp32", "ours"),
        (40, "bf16", name),
        (40, "bf16", "ours"),
        (96, "bf16", "ours"),
    ]
    assert all(float(str(row["seconds"])) > 0 for row in rows)
    assert ["times_faster" in row for row in rows] == [False, True, False, True, False]
    assert all(row["extra_mb"] == 50 and row.get("share_of_memory", 1) == 1 for row in rows)
    assert contrastive.table(rows).count("\n") == 1 + len(rows)


@pytest.mark.parametrize("installed", [False, True])
def test_the_peer_is_named_and_computes_what_ours_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: bool
) -> None:
    name, expected = "formula of open_clip's ClipLoss", gradients(contrastive.our_loss)
    if installed:  # a stand-in, whose loss says twice as much
        (tmp_path / "open_clip").mkdir()
        (tmp_path / "open_clip/__init__.py").write_text("raise ImportError('the models are not wanted')")
        code = "from unimo_ds.bench.contrastive import _formula\n\ndef ClipLoss():\n    return lambda *x: 2 * _formula(*x)\n"
        (tmp_path / "open_clip/loss.py").write_text(code)
        name, expected = "open_clip's ClipLoss", [2 * part for part in expected]
    folders = [str(tmp_path)] if installed else [str(tmp_path / "nothing")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: PathFinder.find_spec(package, folders))
    found_name, loss = contrastive.peer()
    assert found_name == name
    for part, whole in zip(gradients(loss), expected, strict=True):
        torch.testing.assert_close(part, whole)
