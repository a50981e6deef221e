"""Keeps code and configuration of a job as they were, so that editing the repository changes no job that waits or goes on.

    RUN/snapshots/NAME/
        code/unimo_ds/, code/start.py   the package, and the file that the job's ranks run
        code/doctor.py                  the file that they run before it
        code/slurm/                     what the batch file sources
        config.yaml, deepspeed.json     the configuration with its overrides, and the DeepSpeed file that it names

`python -m unimo_ds.snapshot pretrain|finetune NAME CONFIG.yaml [key.path=value ...]` takes one and prints its folder; one of
that name is used again, and so is the one that CONFIG.yaml itself lies in. Paths of data stay as they are, relative to where
the job runs. `slurm/` calls it.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from unimo_ds.config import FinetuneConfig, RunConfig, load_config, load_finetune_config
from unimo_ds.engine.engine import check_settings, deepspeed_file
from unimo_ds.errors import ConfigError, UnimoError

_PACKAGE = Path(__file__).parent
_LOADERS: dict[str, Callable[[Path, Sequence[str]], RunConfig | FinetuneConfig]] = {
    "pretrain": load_config,
    "finetune": load_finetune_config,
}
_START = '''"""Starts unimo_ds.{module} of the code that this folder keeps."""

from unimo_ds import distributed
from unimo_ds.{module} import main

if __name__ == "__main__":
    distributed.leave(main())
'''


def take_snapshot(kind: str, name: str, config: Path, overrides: Sequence[str]) -> Path:
    """The snapshot of a run, made if there is none of that name yet.

    Args:
        kind: pretrain or finetune.
        name: of the job.
        config, overrides: of the run; of a snapshot's own configuration the snapshot is given back.

    Raises:
        ConfigError: the configuration is wrong, or a snapshot is to be overridden.
    """
    if (config.parent / "code/start.py").exists():
        if overrides:
            raise ConfigError(f"{config}: is of a snapshot, which is not changed ({' '.join(overrides)}); submit the run anew")
        return config.parent
    run = _LOADERS[kind](config, overrides)
    check_settings(run.training)
    final = (run.folder / "snapshots" / name).absolute()
    if final.exists():
        return final
    temporary = final.with_name(f".taking-{name}-{os.getpid()}")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_PACKAGE, temporary / "code/unimo_ds", ignore=ignored)
    if (batch_files := _PACKAGE.parent / "slurm").exists():
        shutil.copytree(batch_files, temporary / "code/slurm", ignore=ignored)
    for name, module in (("start.py", kind), ("doctor.py", "doctor")):
        (temporary / "code" / name).write_text(_START.format(module=module), encoding="utf-8")
    shutil.copyfile(deepspeed_file(run.training), temporary / "deepspeed.json")
    training = run.training.model_copy(update={"deepspeed": final / "deepspeed.json"})
    kept = run.model_copy(update={"training": training}).model_dump(mode="json", exclude_unset=True)
    # What was not given is left out: a run takes some of it from its data.
    (temporary / "config.yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    temporary.rename(final)
    return final


def main(arguments: list[str]) -> int:
    """`KIND NAME CONFIG.yaml [key.path=value ...]`; prints the folder and returns the exit code."""
    if len(arguments) < 3 or arguments[0] not in _LOADERS:
        print("usage: python -m unimo_ds.snapshot pretrain|finetune NAME CONFIG.yaml [key.path=value ...]", file=sys.stderr)
        return 2
    kind, name, config, *overrides = arguments
    try:
        print(take_snapshot(kind, name, Path(config), overrides))
    except UnimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
