"""What pre-training is worth to a task: the demo's model fine-tuned on the world's tasks, beside a model of random weights."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimo_ds.config import FinetuneConfig, load_finetune_config
from unimo_ds.data.prepared import Rejects
from unimo_ds.demo.life import ROOT
from unimo_ds.demo.task_sets import write_task_sets
from unimo_ds.engine.checkpoint_folder import checkpoint_name
from unimo_ds.errors import UnimoError
from unimo_ds.metrics.ranking import chance_both_ways
from unimo_ds.opening import read_start
from unimo_ds.processes import cores, is_finished, run_to_end
from unimo_ds.progress import Progress
from unimo_ds.tasks.families import files_of, make_task

_STARTS = {"pretrained": "false", "random": "true"}


@dataclass(frozen=True)
class _Row:
    """A row of the table: what it is called, and with which seeds its recipe is run from either start."""

    title: str
    seeds: tuple[int, ...]


_ROWS = {
    "retrieval": _Row("captions and pictures that find each other", (1, 2)),
    "vqa": _Row("questions about a picture", (1, 2)),
    "entailment": _Row("statements about a picture", (1, 2)),
    "captioning": _Row("captions of a picture", (1, 2)),
    "pairs": _Row("statements about a caption", (1,)),
    "similarity": _Row("how alike two captions are", (1,)),
    "telling": _Row("one sentence for four", (1,)),
    "questions": _Row("questions to an answer", (1,)),
}


@dataclass(frozen=True)
class _Run:
    task: str
    start: str
    seed: int

    @property
    def folder(self) -> Path:
        return Path(f"runs/demo/tasks/{self.task}-{self.start}-{self.seed}")

    @property
    def words(self) -> list[str]:
        changes = {"folder": self.folder, "seed": self.seed, "random_weights": _STARTS[self.start]}
        return [f"recipes/tasks/demo_{self.task}.yaml", *(f"{key}={value}" for key, value in changes.items())]

    def to_end(self) -> bool:
        return run_to_end("unimo_ds.finetune", self.words, self.folder)

    def scores(self) -> dict[str, float]:
        """All scores of the first dev set at the best checkpoint."""
        name = json.loads((self.folder / "checkpoints/best").read_text(encoding="utf-8"))["checkpoint"]
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [line for line in map(json.loads, lines) if checkpoint_name(line["step"]) == name]
        found = {key: value for line in logged for key, value in line.items() if key.startswith("eval/")}
        return {key.removeprefix("eval/").partition("_")[2]: value for key, value in found.items()}


def run_task_demo() -> None:
    """Fine-tunes what is not finished, as many runs at once as there are cores, and prints a table of the best dev scores.

    Raises:
        UnimoError: the demo's model is not there, or a run failed.
    """
    os.chdir(ROOT)
    if not Path("runs/demo/world/DONE").exists():
        raise UnimoError("runs/demo/world: the demo's model is not there; run `make demo` first")
    write_task_sets(Path("data/demo/world"), Path("data/demo/tasks"))
    todo = [run for run in _runs() if not is_finished(run.folder)]
    with Progress("fine-tuning", len(todo), "runs") as progress, ThreadPoolExecutor(cores()) as pool:
        futures = {pool.submit(run.to_end): run for run in todo}
        for future in as_completed(futures):
            run = futures[future]
            if not future.result():
                pool.shutdown(cancel_futures=True)
                raise UnimoError(f"{run.folder}: the run failed; see {run.folder / 'log.txt'}")
            metric, score = next(iter(run.scores().items()))
            progress.advance(note=f"{run.task} from {run.start}, seed {run.seed}: {metric} {score:.3f}")
    shown = table()
    Path("runs/demo/tasks/table.md").write_text(shown + "\n", encoding="utf-8")
    print(
        f"\n{shown}\n\nEach one's best and worst answers: unimo-ds evaluate runs/demo/tasks/vqa-pretrained-1 "
        "--images data/demo/world/images"
    )


def _runs() -> Iterator[_Run]:
    for task, row in _ROWS.items():
        yield from (_Run(task, start, seed) for seed in row.seeds for start in _STARTS)


def table() -> str:
    """The dev scores of each run at its best checkpoint, over seeds, beside those of answers that do not know their questions.

    The best checkpoint is chosen by the bold score. The last column says by how much the worst run from the pre-trained start
    is better than the best one from random weights.
    """
    head = "| task | dev score | pre-trained | random weights | blind | apart |\n|---|---|--:|--:|--:|--:|"
    rows = []
    for task, row in _ROWS.items():
        config = load_finetune_config(Path(f"recipes/tasks/demo_{task}.yaml"))
        chosen_by = make_task(config.task, read_start(config.init).tokenizer).chosen_by
        scores = {start: [_Run(task, start, seed).scores() for seed in row.seeds] for start in _STARTS}
        for metric, without in blind(config).items():
            found = {start: [run[metric] for run in runs] for start, runs in scores.items()}
            cells = [", ".join(f"{score:.3f}" for score in found[start]) for start in _STARTS]
            apart = min(found["pretrained"]) - max(found["random"])
            name = f"**{metric}**" if metric == chosen_by else metric
            rows.append(f"| {row.title} | {name} | {' | '.join(cells)} | {without:.3f} | {apart:+.3f} |")
    return "\n".join([head, *rows])


def blind(config: FinetuneConfig) -> dict[str, float]:
    """Dev scores of the answer that is most often right in training, given to everything; of retrieval, of random scores."""
    task = make_task(config.task, read_start(config.init).tokenizer)
    dev = list(task.read(next(iter(config.task.dev.values())), Rejects(), teach=False))
    if config.task.family == "retrieval":
        right = np.array([[example.image == image for image in {each.image: None for each in dev}] for example in dev])
        found = chance_both_ways(right)
        return {**found, "mean_r1": (found["t2i_r1"] + found["i2t_r1"]) / 2}
    train = [example for part in files_of(config.task.train) for example in task.read(part, Rejects(), teach=True)]
    if train[0].target:
        (answer, _), *_ = Counter(example.target for example in train).most_common(1)
        return task.score([answer] * len(dev), dev)
    targets = task.targets(train)
    if targets.is_floating_point() and targets.dim() == 1:
        return {task.chosen_by: 0.0}  # one number for all is correlated with nothing
    votes_C = targets.bincount() if targets.dim() == 1 else targets.sum(0)
    # VQA's answers are the likeliest ones and their probabilities.
    scores = np.array([[votes_C.argmax()], [1.0]]) if config.task.family == "vqa" else votes_C.float().numpy()
    return task.score([scores] * len(dev), dev)
