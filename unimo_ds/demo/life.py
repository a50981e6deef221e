"""The whole life of a model in one command, with the tools and formats of a cluster run.

Draw a world, find regions, rewrite the captions, find neighbours, train a tokenizer, pre-train on two ranks under ZeRO-3,
evaluate on held-out pictures, the same for real photographs, and a report. Every stage is a command that a user could type;
what is finished is reused.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from unimo_ds.config import RunConfig, load_config
from unimo_ds.demo.gallery import ReportSection
from unimo_ds.demo.report import summary_table, write_report
from unimo_ds.errors import UnimoError
from unimo_ds.progress import format_duration

ROOT = Path(__file__).parents[2]
_RANKS = 2


@dataclass(frozen=True)
class Stage:
    """One command of the demo, and the file that says it was finished before (None: the command knows by itself)."""

    what: str
    command: list[str]
    done: Path | None = None


def _python(*words: str | Path) -> list[str]:
    return [sys.executable, *map(str, words)]


def _extract(listing: str | Path, images: str | Path, out: str | Path) -> list[str]:
    tool = _python("tools/extract_features.py", listing, "--images-root", images, "--out", out)
    return [*tool, "--detector", "world", "--processes", str(_RANKS)]


def _rewrite(captions: str | Path, out: str | Path) -> list[str]:
    # Apertium is a program of the system: `make demo` installs it where it can, and says so where it cannot.
    translator = "apertium" if shutil.which("apertium") else "none"
    tool = _python("tools/rewrite_captions.py", captions, "--out", out)
    return [*tool, "--translator", translator, "--processes", str(_RANKS)]


def _find_neighbours(
    captions: str | Path, regions: str | Path, images: str | Path, texts: str | Path, out: str | Path
) -> list[str]:
    tool = _python("tools/find_neighbours.py", captions, "--regions", regions, "--images", images)
    return [*tool, "--texts", str(texts), "--out", str(out)]


def launch(module: str, *words: str) -> list[str]:
    """A command that starts `module` on the demo's ranks."""
    launcher = _python("-m", "deepspeed.launcher.runner", "--num_gpus", str(_RANKS), "--log_level", "warning")
    launcher += ["--master_port", str(_free_port())]  # the default port may serve another run of this machine
    return [*launcher, "--module", module, *words]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _train_tokenizer(out: str, size: int, *texts: str) -> list[str]:
    return _python("-m", "unimo_ds.cli", "train-tokenizer", *texts, "--out", out, "--size", str(size))


def stages() -> list[Stage]:
    """The demo, command by command."""
    world, regions = "data/demo/world", "data/demo/regions"
    found = [
        Stage(
            f"find the regions of the {split} pictures",
            _extract(f"{world}/annotations/{listing}", f"{world}/images", out),
            None,
        )
        for split, listing, out in (
            ("training", "captions_train.json", f"{regions}/train"),
            ("held-out", "captions_val.json", f"{regions}/val"),
            ("uncaptioned", "instances_alone.json", f"{regions}/alone"),
        )
    ]
    captions, held_out = f"{world}/annotations/captions_train.json", f"{world}/annotations/captions_val.json"
    texts = f"{world}/text/corpus.txt"
    vocabulary = Path("data/demo/tokenizer/vocab.json"), Path("data/photos/tokenizer/vocab.json")
    photos = ("photos/captions.json", "photos/english.txt")
    return [
        Stage("draw the world", _python("tools/draw_world.py", "--out", world)),
        *found,
        Stage("rewrite the training captions", _rewrite(captions, "data/demo/rewrites/train")),
        Stage("rewrite the held-out captions, as a test", _rewrite(held_out, "data/demo/rewrites/val")),
        Stage(
            "find related pictures and texts",
            _find_neighbours(captions, f"{regions}/train", f"{regions}/alone", texts, "data/demo/neighbours"),
        ),
        Stage(
            "train a tokenizer",
            _train_tokenizer("data/demo/tokenizer", 2000, captions, texts),
            vocabulary[0],
        ),
        Stage("pre-train on the world", launch("unimo_ds.pretrain", "recipes/demo.yaml"), Path("runs/demo/world/DONE")),
        Stage("find the regions of the photographs", _extract(photos[0], "photos", "data/photos/regions")),
        Stage("rewrite the photographs' captions", _rewrite(photos[0], "data/photos/rewrites")),
        Stage(
            "find related photographs and texts",
            _find_neighbours(photos[0], "data/photos/regions", "data/photos/regions", photos[1], "data/photos/neighbours"),
        ),
        Stage("train a tokenizer for the photographs", _train_tokenizer("data/photos/tokenizer", 4000, *photos), vocabulary[1]),
        Stage(
            "pre-train on the photographs, shortly",
            launch("unimo_ds.pretrain", "recipes/photos.yaml"),
            Path("runs/demo/photos/DONE"),
        ),
    ]


def run_demo() -> None:
    """Runs every stage that is not finished, writes the report and prints the table.

    Raises:
        UnimoError: a stage failed; names its command.
    """
    os.chdir(ROOT)
    started = time.monotonic()
    todo = stages()
    for number, stage in enumerate(todo, 1):
        run_stage(stage, f"[{number}/{len(todo) + 1}]")
    print(f"\n[{len(todo) + 1}/{len(todo) + 1}] write the report", flush=True)
    _report(format_duration(time.monotonic() - started))


def run_stage(stage: Stage, number: str) -> None:
    """Runs a command of the demo and says what it is.

    Raises:
        UnimoError: it failed; names it.
    """
    if stage.done is not None and stage.done.exists():
        print(f"{number} {stage.what}: done before ({stage.done})", flush=True)
        return
    shown = shlex.join([Path(stage.command[0]).name, *stage.command[1:]])
    print(f"\n{number} {stage.what}\n    {shown}", flush=True)
    started = time.monotonic()
    threads = str(max(1, (os.cpu_count() or 1) // _RANKS))
    code = subprocess.run(stage.command, env={**os.environ, "OMP_NUM_THREADS": threads}).returncode
    # A launcher may pass on 0 for ranks that were killed, or an error of teardown after all work: the mark decides.
    if (code != 0) if stage.done is None else not stage.done.exists():
        raise UnimoError(f"the stage '{stage.what}' ended with exit code {code}; its command was: {shown}")
    print(f"    {format_duration(time.monotonic() - started)}", flush=True)


def _report(duration: str) -> None:
    out = Path("runs/demo/report.html")
    runs = {
        "The drawn world": (load_config(Path("recipes/demo.yaml")), Path("data/demo/world/images")),
        "Photographs": (load_config(Path("recipes/photos.yaml")), Path("photos")),
    }
    sections = [ReportSection(title, run.folder, images, _held_out_store(run)) for title, (run, images) in runs.items()]
    write_report(sections, out)
    for title, (run, _) in runs.items():
        print(f"\n{title}\n{summary_table(run.folder)}")
    newest = {run.folder: (run.folder / "checkpoints/latest").read_text().strip() for run, _ in runs.values()}
    print("\n" + "\n".join(f"checkpoint   {folder}/checkpoints/{name}" for folder, name in newest.items()))
    print("TensorBoard  tensorboard --logdir runs/demo")
    print(f"report       {out}  (open it in a browser)\n\nthe whole life took {duration}")


def _held_out_store(run: RunConfig) -> Path:
    assert run.evaluation is not None and run.evaluation.pairs.regions is not None
    return run.evaluation.pairs.regions
