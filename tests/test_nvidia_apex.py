"""apex by stand-ins: NVIDIA's as its sources lay it out, without its CUDA extensions, and the other package of that name."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unimo_ds import distributed, nvidia_apex
from unimo_ds.config import ModelSection, TrainingSection
from unimo_ds.engine.engine import Engine
from unimo_ds.errors import ConfigError
from unimo_ds.model.layers import layer_norm

# LAMB as its paper has it (You et al. 2020, algorithm 2), with apex's names, and its one step count for each group.
LAMB = """
import torch
class FusedLAMB(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, amsgrad=False,
                 adam_w_mode=True, grad_averaging=True, set_grad_none=True, max_grad_norm=1.0, use_nvlamb=False):
        self.max_grad_norm = max_grad_norm
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                mean = state["exp_avg"] / (1 - first ** group["step"])
                square = state["exp_avg_sq"] / (1 - second ** group["step"])
                update = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p
                p.sub_(update * p.norm() / update.norm(), alpha=group["lr"])
"""
LAYER_NORM = """
import torch
class FusedLayerNorm(torch.nn.LayerNorm):
    pass
"""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("apex", "amp_C", "fused_layer_norm_cuda")]:
        del sys.modules[name]


@pytest.fixture
def apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NVIDIA's layout, built whole."""
    for part, source in (("normalization", LAYER_NORM), ("optimizers", LAMB)):
        (tmp_path / "apex" / part).mkdir(parents=True)
        (tmp_path / "apex" / part / "__init__.py").write_text(source)
    (tmp_path / "apex" / "__init__.py").write_text("")
    for extension in ("amp_C", "fused_layer_norm_cuda"):
        (tmp_path / f"{extension}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_fused_layer_norm_is_taken_where_it_is_chosen(apex: Path) -> None:
    chosen = layer_norm(ModelSection.model_validate({"size": "tiny", "layer_norm": "apex"}))
    plain = layer_norm(ModelSection.model_validate({"size": "tiny"}))
    assert type(chosen) is nvidia_apex.fused_layer_norm() and type(plain) is nn.LayerNorm
    assert chosen.eps == plain.eps and chosen.normalized_shape == plain.normalized_shape


def test_lamb_trains_through_the_engine_and_goes_on_from_its_moments(apex: Path) -> None:
    """Two steps, and one step with another from its full state, give the same weights."""
    distributed.initialise(60)
    target = torch.arange(6.0).reshape(2, 3)

    class Fit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight, self.bias = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.ones(3))

        def forward(self, batch: Any, totals: Any) -> tuple[torch.Tensor, torch.Tensor]:
            loss = (self.weight + self.bias - target).square().sum()
            return loss, loss.detach()[None]

    def engine() -> Engine:
        training = TrainingSection.model_validate(
            {
                "steps": 4,
                "learning_rate": 0.1,
                "precision": "fp32",
                "optimizer": "apex_lamb",
                "deepspeed": "ds_configs/zero0.json",
            }
        )
        return Engine(Fit, lambda m: [{"params": [m.weight]}, {"params": [m.bias], "weight_decay": 0.0}], training)

    whole = engine()
    assert type(whole._basic_optimizer()) is nvidia_apex.fused_lamb()
    assert whole._basic_optimizer().max_grad_norm == float("inf"), "the engine clips; apex must not clip once more"
    losses = [float(whole.step(step, [None], None).measured) for step in range(2)]
    first = engine()
    first.step(0, [None], None)
    state = {name: {key: value.clone() for key, value in parts.items()} for name, parts in first.full_state()}
    second = engine()
    second.load_full_state(1, state.__getitem__)
    second.step(1, [None], None)
    assert losses[1] < losses[0]
    for (name, found), (_, expected) in zip(second.full_state(), whole.full_state(), strict=True):
        for key in expected:
            assert torch.equal(found[key], expected[key]), (name, key)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_lamb_is_refused_under_zero(apex: Path, stage: int) -> None:
    distributed.initialise(60)
    training = TrainingSection.model_validate(
        {"steps": 1, "optimizer": "apex_lamb", "deepspeed": f"ds_configs/zero{stage}.json"}
    )
    with pytest.raises(ConfigError, match=f"ZeRO stage {stage}.*zero0.json"):
        Engine(lambda: nn.Linear(2, 2), lambda m: [{"params": list(m.parameters())}], training)


def test_lamb_needs_a_gpu(apex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"apex_lamb needs a GPU.*optimizer=adamw"):
        nvidia_apex.check("apex", "apex_lamb")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    nvidia_apex.check("apex", "apex_lamb")


def test_nothing_is_looked_for_where_nothing_is_asked_for() -> None:
    nvidia_apex.check("torch", "adamw")


@pytest.mark.parametrize(
    ("layer_norm", "optimizer", "key"), [("apex", "adamw", "model.layer_norm"), ("torch", "apex_lamb", "training.optimizer")]
)
def test_where_apex_is_missing_the_error_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, layer_norm: str, optimizer: str, key: str
) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setattr(nvidia_apex.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{key} = apex.*is not installed.*pip install.*or set {key}="):
        nvidia_apex.check(layer_norm, optimizer)


def test_the_other_package_of_that_name_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is on PyPI: a web toolkit, which cannot even be imported without its framework."""
    (tmp_path / "apex" / "lib").mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").write_text("import pyramid_that_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"is not NVIDIA's.*web toolkit.*pip uninstall apex.*layer_norm=torch"):
        nvidia_apex.check("apex", "adamw")


@pytest.mark.parametrize("extension", ["amp_C", "fused_layer_norm_cuda"])
def test_apex_without_its_cuda_extensions(apex: Path, extension: str) -> None:
    (apex / f"{extension}.py").unlink()
    chosen = ("torch", "apex_lamb") if extension == "amp_C" else ("apex", "adamw")
    with pytest.raises(ConfigError, match=f"{extension}.*without its CUDA extensions.*or set"):
        nvidia_apex.check(*chosen)
