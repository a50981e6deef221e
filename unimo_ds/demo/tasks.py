"""What pre-training is worth to a task: the demo's model fine-tuned on the world's tasks, beside a model of random weights."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from unimo_ds.config import FinetuneConfig, load_finetune_config
from unimo_ds.data.prepared import Rejects
from unimo_ds.demo.life import ROOT, Stage, launch, run_stage
from unimo_ds.errors import UnimoError
from unimo_ds.finetune import read_start
from unimo_ds.tasks.families import files_of, make_task

_TASKS = {"vqa": "VQA", "entailment": "entailment", "captioning": "captions"}
_STARTS = {"pretrained": "false", "random": "true"}
_SEEDS = (1, 2)


def run_task_demo() -> None:
    """Fine-tunes what is not finished, and prints a table of the best dev scores.

    Raises:
        UnimoError: the demo's model is not there, or a run failed.
    """
    os.chdir(ROOT)
    if not Path("runs/demo/world/DONE").exists():
        raise UnimoError("runs/demo/world: the demo's model is not there; run `make demo` first")
    stages = list(_stages())
    for number, stage in enumerate(stages, 1):
        run_stage(stage, f"[{number}/{len(stages)}]")
    print(f"\n{table()}")


def _folder(task: str, start: str, seed: int) -> Path:
    return Path(f"runs/demo/tasks/{task}-{start}-{seed}")


def _stages() -> Iterator[Stage]:
    for task, name in _TASKS.items():
        for start, random in _STARTS.items():
            for seed in _SEEDS:
                folder = _folder(task, start, seed)
                words = (f"recipes/tasks/demo_{task}.yaml", f"folder={folder}", f"seed={seed}", f"random_weights={random}")
                yield Stage(f"{name} from {start}, seed {seed}", launch("unimo_ds.finetune", *words), folder / "DONE")


def table() -> str:
    """The best dev score of each run, over seeds, beside that of the commonest answer."""
    head = "| task | dev score | pre-trained | random weights | the commonest answer |\n|---|---|--:|--:|--:|"
    rows = []
    for task, name in _TASKS.items():
        config = load_finetune_config(Path(f"recipes/tasks/demo_{task}.yaml"))
        metric = make_task(config.task, read_start(config.init).tokenizer).chosen_by
        scores = [", ".join(f"{_best(_folder(task, start, seed)):.3f}" for seed in _SEEDS) for start in _STARTS]
        rows.append(f"| {name} | {metric} | {scores[0]} | {scores[1]} | {commonest(config):.3f} |")
    return "\n".join([head, *rows])


def _best(folder: Path) -> float:
    score: float = json.loads((folder / "checkpoints/best").read_text(encoding="utf-8"))["score"]
    return score


def commonest(config: FinetuneConfig) -> float:
    """The dev score of one answer to everything: the one that is right most often in training."""
    task = make_task(config.task, read_start(config.init).tokenizer)
    train = [example for part in files_of(config.task.train) for example in task.read(part, Rejects(), teach=True)]
    dev = list(task.read(next(iter(config.task.dev.values())), Rejects(), teach=False))
    if train[0].target:
        (answer, _), *_ = Counter(example.target for example in train).most_common(1)
        return task.score([answer] * len(dev), dev)[task.chosen_by]
    targets = task.targets(train)
    votes_C = targets.bincount() if targets.dim() == 1 else targets.sum(0)
    return task.score([votes_C.float().numpy()] * len(dev), dev)[task.chosen_by]
