"""One optimizer step on DeepSpeed, for every ZeRO stage, and the full state of every parameter for checkpoints."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unimo_ds import distributed, nvidia_apex
from unimo_ds.config import OptimisationSection, TrainingSection
from unimo_ds.engine.lean_zero3 import lighten
from unimo_ds.engine.memory import keep_freed_memory
from unimo_ds.engine.nvme import mend_reading
from unimo_ds.engine.partitioned_state import PartitionedState
from unimo_ds.errors import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(training: TrainingSection, step: int) -> float:
    """Linear warm-up, then linear decay to 0, or steps to a tenth: a pure function of the step (counted from 0)."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if training.tenth_after:
        return training.learning_rate * 0.1 ** sum(step >= after for after in training.tenth_after)
    return training.learning_rate * max(0, training.steps - step) / max(1, training.steps - training.warmup_steps)


def deepspeed_file(training: OptimisationSection) -> Path:
    """Where the run's DeepSpeed JSON is: as it is named; or, started from another folder, among those beside the package."""
    path = training.deepspeed
    return path if path.exists() else Path(__file__).parents[2] / path


def deepspeed_config(training: OptimisationSection) -> dict[str, Any]:
    """The plain DeepSpeed JSON of the run, completed by what the run's configuration decides.

    Raises:
        ConfigError: the file cannot be read, or sets a key that belongs to the run's configuration.
    """
    path = deepspeed_file(training)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"training.deepspeed = {training.deepspeed}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is not a JSON object but {type(content).__name__}")
    ours: dict[str, Any] = {
        # The loader splits a step into micro-batches by a budget, and losses are divided by global counts, so DeepSpeed must
        # neither count samples nor scale by an accumulation factor: the engine sets the boundary of each step itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.gradient_clipping,  # DeepSpeed clips at 1.0 when silent
        "bf16": {"enabled": training.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
    }
    for key in (*ours, "train_batch_size", "optimizer", "scheduler"):
        if key in content:
            raise ConfigError(f"{path}: {key} belongs to the run's configuration (section training), not to this file")
    _give_folder(path, content.get("zero_optimization", {}), training.offload_folder)
    return {**content, **ours}


def _give_folder(path: Path, section: dict[str, Any], folder: Path | None) -> None:
    """Names the folder of what is offloaded to NVMe, in place: it belongs to the machine, not to a file that all share."""
    for key in ("offload_optimizer", "offload_param"):
        offload = section.get(key, {})
        if "nvme_path" in offload:
            raise ConfigError(f"{path}: zero_optimization.{key}.nvme_path belongs to the run: training.offload_folder")
        if offload.get("device") == "nvme":
            if folder is None:
                raise ConfigError(
                    f"{path}: zero_optimization.{key}.device = nvme needs training.offload_folder: a folder of this run alone, "
                    "on a fast disk of each node"
                )
            offload["nvme_path"] = str(folder)


def check_settings(training: OptimisationSection) -> None:
    """Refuses, before any work is done, what the engine would refuse later.

    Raises:
        ConfigError: the DeepSpeed file is wrong, or LAMB is asked for under ZeRO.
    """
    stage = deepspeed_config(training).get("zero_optimization", {}).get("stage", 0)
    if training.optimizer == "apex_lamb" and stage:
        raise ConfigError(
            f"training.optimizer = apex_lamb with ZeRO stage {stage}: LAMB scales each parameter's update by its norm, "
            "and ZeRO shows it flat pieces of many; set training.deepspeed=ds_configs/zero0.json, or training.optimizer=adamw"
        )


class Passes(Protocol):
    """What a rank runs in a step, each of them forward and backward before the next is asked for.

    A list of micro-batches, or an object that makes a pass of what the one before it left behind.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class StepResult:
    """What a step reports.

    Attributes:
        measured: by the module, on this rank.
        loss: of the step, the same number on every rank.
        gradient_norm: of the joined gradient, the same number on every rank; inf where the step was left out.
        updated: whether weights have moved: on all ranks or on none.
    """

    measured: Tensor
    loss: float
    gradient_norm: float
    updated: bool


class Engine:
    """A module on DeepSpeed.

    Args:
        build: makes the module; under ZeRO-3 it runs where parameters are partitioned as they are made. Its forward takes
            `(batch, totals)` and returns the loss to differentiate and what it measured, numbers that add up.
        groups: makes the optimizer's parameter groups from the module.
        training: the run's section.
        weights: full tensors by parameter name to start from; what has none keeps what it was made with. Under ZeRO-3 rank 0's
            are used.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        groups: Callable[[nn.Module], list[dict[str, object]]],
        training: TrainingSection,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        check_settings(training)
        deepspeed = import_deepspeed()
        deepspeed.init_distributed(dist_init_required=False)
        if not torch.cuda.is_available():
            keep_freed_memory()
        content = deepspeed_config(training)
        self.stage = int(content.get("zero_optimization", {}).get("stage", 0))
        with _partitioned_init(deepspeed, content) if self.stage == 3 else nullcontext():
            module = build()
        if weights is not None:
            self._load(module, weights)
        self._offloaded = content.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"
        optimizer = _optimizer(groups(module), training, self._offloaded)
        self._training = training
        self._engine = deepspeed.initialize(model=module, optimizer=optimizer, config=content)[0]
        self._partitioned = PartitionedState(self._engine.optimizer) if self.stage == 3 else None
        if self.stage == 3 and self._offloaded:
            mend_reading(self._engine.optimizer)
        elif self.stage == 3:
            lighten(self._engine.optimizer)
        self._refused = False
        if self.stage > 0:
            self._let_steps_be_refused()
        self._whole = self._whole_masters()
        self._set_update_count(0)  # some of DeepSpeed's wrappers make the moments by an update of zeros

    @property
    def module(self) -> nn.Module:
        """The module itself. Under ZeRO-3 call it as a module, on all ranks; its weights are partitioned."""
        module: nn.Module = self._engine.module
        return module

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Sets the weights that the next pass computes with; `load_full_state` sets what updates go on from."""
        self._load(self.module, weights)

    def _load(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        for name, parameter in module.named_parameters():
            if name not in weights:
                continue
            with self._gathered(parameter), torch.no_grad():
                if parameter.shape == weights[name].shape:
                    parameter.copy_(weights[name])
                else:
                    raise ConfigError(
                        f"{name}: shape {tuple(weights[name].shape)} in the checkpoint, {tuple(parameter.shape)} here"
                    )

    def _gathered(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        if self.stage != 3:
            return nullcontext()
        import deepspeed  # set up when the engine was made (`import_deepspeed`)

        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)
        return gathered

    def step(self, step: int, passes: Passes, totals: Any, accept: Callable[[float], bool] = math.isfinite) -> StepResult:
        """Forward and backward of every pass, then one update at the step's learning rate.

        There is no update where `accept` says no, or where the gradient is not finite: weights, moments and Adam's count stay
        as they are, and the gradient is dropped.

        Args:
            step: counted from 0.
            passes: over this rank's micro-batches; every rank has the same number.
            totals: denominators of the losses over all ranks and micro-batches.
            accept: is given the step's loss, the same on every rank, and must answer the same on every rank.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate(self._training, step)
        measured, loss = self._backward(passes, totals)
        joined = float(distributed.sum_over_ranks(loss)) / distributed.world_size()
        self._refused = not accept(joined)
        if self.stage == 0:  # DeepSpeed clips without telling the norm, and looks for nothing
            norm = math.inf if self._refused else float(_norm(self.module))
            if not math.isfinite(norm):
                self.module.zero_grad()
                return StepResult(measured, joined, math.inf, updated=False)
            self._engine.step()
            return StepResult(measured, joined, norm, updated=True)
        self._engine.step()
        return StepResult(measured, joined, float(self._engine.get_global_grad_norm()), self._engine.was_step_applied())

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Full gradients by parameter name, float32; between backward and update, for tests. All ranks must iterate."""
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in self.module.named_parameters():
            yield name, safe_get_full_grad(parameter).detach().float()

    def backward_only(self, passes: Passes, totals: Any) -> Tensor:
        """Forward and backward without the update: leaves the gradients for `gradients`; returns what was measured."""
        return self._backward(passes, totals)[0]

    def _backward(self, passes: Passes, totals: Any) -> tuple[Tensor, Tensor]:
        """What was measured, and this rank's loss: their mean over ranks is the step's, as it is with their gradients."""
        measured: Tensor | None = None
        losses = torch.zeros((), device=distributed.device())
        for number, batch in enumerate(passes, 1):
            self._engine.set_gradient_accumulation_boundary(number == len(passes))
            loss, part = self._engine(batch, totals)
            self._engine.backward(loss)
            measured = part if measured is None else measured + part
            losses += loss.detach()
        assert measured is not None
        return measured, losses

    def _let_steps_be_refused(self) -> None:
        """Asks for refusals where ZeRO looks for overflows of fp16, which nobody has here: what it then does is what is wanted.

        It does the same where the norm of the gradient turns out not to be finite.
        """
        optimizer = self._engine.optimizer
        own_step = optimizer.step

        def look(*_: Any, **__: Any) -> bool:
            optimizer.overflow = self._refused
            return self._refused

        def step_or_drop() -> None:
            if look():
                optimizer.clear_hp_grads()
                optimizer.clear_lp_grads()
                optimizer._global_grad_norm = math.inf
            else:
                own_step()

        if self.stage == 3:
            optimizer._overflow_check_and_loss_scale_update = look
        elif hasattr(optimizer, "check_overflow"):
            optimizer.check_overflow, optimizer.check_grad_overflow = look, True
        else:  # stage 1 whose gradients are summed in float32: DeepSpeed has a class for that, which does not look
            optimizer.step = step_or_drop

    def full_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Each parameter's full float32 master weight and Adam moments, on the CPU. All ranks must iterate."""
        self._link_moments()
        for name, parameter in self.module.named_parameters():
            state = {"weight": self._read(parameter, None)}
            state.update({moment: self._read(parameter, moment) for moment in MOMENTS})
            yield name, {key: value.detach().float().cpu() for key, value in state.items()}
        if self._partitioned is not None:
            self._partitioned.let_go()

    def load_full_state(self, step: int, state_of: Callable[[str], dict[str, Tensor]]) -> None:
        """Sets master weights and moments from full tensors, and Adam's step count. All ranks must call it.

        The weights that the next pass computes with are those that the engine was made with: give it the same
        (`load_weights`).

        Args:
            step: number of updates done.
            state_of: gives a parameter's `weight`, `exp_avg` and `exp_avg_sq`.
        """
        self._link_moments()
        for name, parameter in self.module.named_parameters():
            state = state_of(name)
            self._write(parameter, state["weight"], None)
            for moment in MOMENTS:
                self._write(parameter, state[moment], moment)
        if self._partitioned is not None:
            self._partitioned.let_go()
        self._set_update_count(step)

    def _set_update_count(self, count: int) -> None:
        for state in self._basic_optimizer().state.values():
            if "step" in state:
                state["step"] = torch.full_like(state["step"], count) if isinstance(state["step"], Tensor) else count
        if self._training.optimizer == "apex_lamb":  # it counts once a group
            for group in self._basic_optimizer().param_groups:
                group["step"] = count

    def _basic_optimizer(self) -> Any:
        return self._engine.basic_optimizer

    def _whole_masters(self) -> dict[nn.Parameter, Tensor] | None:
        """Without ZeRO every rank holds whole float32 masters (in fp32 the parameters themselves); with ZeRO, None."""
        optimizer = self._engine.optimizer
        if optimizer is self._basic_optimizer():
            return {parameter: parameter for parameter in self.module.parameters()}
        if self.stage == 0:
            pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            return {low: master for lows, masters in pairs for low, master in zip(lows, masters, strict=True)}
        return None

    def _read(self, parameter: Any, moment: str | None) -> Tensor:
        if self._whole is not None:
            master = self._whole[parameter]
            return master if moment is None else self._basic_optimizer().state[master][moment]
        if self._partitioned is not None:
            return self._partitioned.read(parameter, moment)
        full: Tensor = parameter.get_full_hp_param(moment)
        return full

    def _write(self, parameter: Any, value: Tensor, moment: str | None) -> None:
        value = value.to(parameter.device)
        if self._whole is not None:
            master = self._whole[parameter]
            (master if moment is None else self._basic_optimizer().state[master][moment]).data.copy_(value)
        elif self._partitioned is not None:
            self._partitioned.write(parameter, value, moment)
        else:
            parameter.set_full_hp_param(value, moment)

    def _flat_parameters(self) -> list[Tensor]:
        """What the optimizer updates on this rank: the parameters themselves, or ZeRO's flat float32 partitions."""
        if self._whole is not None:
            return list(self._whole.values())
        names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
        found = [getattr(self._engine.optimizer, name) for name in names if hasattr(self._engine.optimizer, name)]
        return list(found[0])

    def _link_moments(self) -> None:
        """Makes the moments that Adam has not made yet, and tells ZeRO 1 and 2 where the moments of each parameter lie.

        DeepSpeed links them after the update of the first group, when those of the second do not exist yet.
        """
        state = self._basic_optimizer().state
        for group, flat in enumerate(self._flat_parameters()):
            if "exp_avg" not in state[flat]:
                if self._partitioned is not None:
                    self._partitioned.bring(group, change=True)
                count = torch.zeros((), dtype=torch.float32, device=flat.device)
                state[flat]["step"] = 0 if self._offloaded else count
                state[flat].update({moment: torch.zeros_like(flat) for moment in MOMENTS})
        link = getattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            self._engine.optimizer._hp_optimizer_states_linked = False
            link()


def _norm(module: nn.Module) -> Tensor:
    norms = [torch.linalg.vector_norm(p.grad) for p in module.parameters() if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def import_deepspeed() -> Any:
    """DeepSpeed, without the C++ shared-memory op that it would compile at start on a CPU.

    That op serves inference only; training goes through gloo. Without it no compiler is needed.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import logging

    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _partitioned_init(deepspeed: Any, content: dict[str, Any]) -> AbstractContextManager[Any]:
    partitioned: AbstractContextManager[Any] = deepspeed.zero.Init(config_dict_or_path=content)
    return partitioned


def _optimizer(groups: list[dict[str, object]], training: TrainingSection, offloaded: bool) -> torch.optim.Optimizer:
    """torch's fused AdamW, DeepSpeed's CPUAdam where the optimizer is offloaded, or apex's LAMB."""
    # The rate is set before every update; until then 0, so that no wrapper changes weights at start.
    settings: dict[str, Any] = {"lr": 0.0, "betas": training.betas, "eps": training.epsilon}
    if training.optimizer == "apex_lamb":
        # Gradients are clipped by the engine (training.gradient_clipping); apex would clip at 1.0 once more.
        lamb: torch.optim.Optimizer = nvidia_apex.fused_lamb()(groups, max_grad_norm=float("inf"), **settings)
        return lamb
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        on_host: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
        return on_host
    return torch.optim.AdamW(groups, fused=True, **settings)
