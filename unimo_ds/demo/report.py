"""What a run has learnt, for people: one HTML page about one or several runs, and a plain table for the terminal.

The page is a single file that needs neither network nor scripts: styles, pictures (JPEG) and curves (SVG) are inside it.
Everything comes from the run folder (see `unimo_ds.engine.run_log`) and from `evaluation.json`; nothing is measured here.
The words and the looks are in `report.html`, a Jinja2 template beside this file; every string in it is escaped.
"""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig
from unimo_ds.demo.charts import Chart, Curve, Kind, Point, draw_chart
from unimo_ds.demo.gallery import Found, Gallery, Query, ReportSection, Written
from unimo_ds.demo.run_reader import Numbers, Run, parameter_count, read_run, training_seconds
from unimo_ds.pages import open_template
from unimo_ds.progress import format_duration
from unimo_ds.vision.drawing import SURE

# In the order of `unimo_ds.objectives.pretraining.NAMES`: a name, and what the model must do.
OBJECTIVES = {
    "mlm": ("masked words", "name the hidden words of a text, or of a caption beside its picture"),
    "seq2seq": ("written words", "write the missing part of a text, or a whole caption after its picture"),
    "mrfr": ("region features", "restore the feature vectors of hidden picture regions"),
    "mrc": ("region classes", "say which classes the detector saw in hidden regions"),
    "cmcl": ("contrast", "draw a picture and its caption together, and all others apart"),
    "matching": ("true or false", "say whether a caption is true of its picture"),
}
_RANKS = (1, 5, 10)
_DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
_QUERIES = 10
_CAPTIONS_IN_TERMINAL = 4
_NONE = "–"


def write_report(sections: Sequence[ReportSection], out: Path) -> None:
    """Writes the page.

    Raises:
        UnimoError: a run folder is none, a run was never evaluated, or names and store are of different detectors; the
            message says what to do. A picture that is missing or damaged is named in its place on the page instead.
    """
    content = open_template(Path(__file__).with_name("report.html")).render(runs=[_view(section) for section in sections])
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(content, encoding="utf-8")


def summary_table(run_folder: Path) -> str:
    """The table of the report as text with aligned columns, and a few generated captions beside a true one.

    Raises:
        UnimoError: as `write_report`.
    """
    run = read_run(Path(run_folder))
    losses = [["loss", "", f"step {run.steps[0]['step']}", f"step {run.steps[-1]['step']}", "", ""]]
    for row in loss_rows(run.config, run.steps):
        losses.append(["  " + row.title, row.name, row.start, row.end, row.change, "falls" if row.falls else ""])
    ranks = [[f"among {_candidates(run)} {_whose(run.config)}", *(f"R@{rank}" for rank in _RANKS)]]
    for recall in recall_rows(run.evaluation["numbers"]):
        ranks += [["  " + recall.title, *recall.found], ["    by chance", *recall.chance]]
    accuracy = ["masked words named right", _percent(run.evaluation["numbers"].get("eval/mlm_accuracy"))]
    blocks = [_columns(losses, left=2), _columns(ranks), "  ".join(accuracy)]
    choices = choice_rows(run.config, run.evaluation["numbers"])
    if choices:
        heads = ["which caption is true?", "above all false ones", "by chance", "above one", "by its words"]
        blocks.append(_columns([heads, *(["  " + row.title, row.right, row.chance, row.beaten, row.words] for row in choices)]))
    if run.evaluation["captions"]:
        blocks.append(_captions_text(run.evaluation["captions"][:_CAPTIONS_IN_TERMINAL]))
    return "\n\n".join(blocks)


def _captions_text(examples: list[dict[str, Any]]) -> str:
    lines = ["captions", *(line for example in examples for line in _caption_lines(example))]
    return "\n".join(lines)


def _caption_lines(example: dict[str, Any]) -> list[str]:
    true = example["true"][0] if example["true"] else _NONE
    return [f"  {example['image']}", f"    written  {example['generated']}", f"    true     {true}"]


def _columns(rows: list[list[str]], left: int = 1) -> str:
    """Rows of cells as lines: the first `left` columns flush left, the rest flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: list[str]) -> str:
        cells = zip(row, widths, range(len(row)), strict=True)
        return "  ".join(cell.ljust(width) if i < left else cell.rjust(width) for cell, width, i in cells).rstrip()

    return "\n".join(map(line, rows))


@dataclass(frozen=True)
class LossRow:
    """An objective's loss at the first and the last logged step, ready to be shown; `change` may be a reason for none."""

    name: str
    title: str
    meaning: str
    start: str
    end: str
    change: str
    falls: bool


@dataclass(frozen=True)
class RecallRow:
    """Recall of one direction at each rank beside chance, ready to be shown."""

    title: str
    found: list[str]
    chance: list[str]


def loss_rows(config: RunConfig, steps: list[Numbers]) -> list[LossRow]:
    """One row an objective, in the order of `OBJECTIVES`."""
    weights = _weights(config)
    return [_loss_row(name, weights[name], [line.get(f"loss/{name}", math.nan) for line in steps]) for name in OBJECTIVES]


def _loss_row(name: str, weight: float, values: list[float]) -> LossRow:
    title, meaning = OBJECTIVES[name]
    start, end = values[0], values[-1]
    if weight == 0 or not any(values):
        return LossRow(name, title, meaning, _NONE, _NONE, "switched off" if weight == 0 else "had no targets", False)
    comparable = math.isfinite(start) and math.isfinite(end) and start > 0
    change = f"{100 * (end - start) / start:+.1f} %" if comparable else "not finite"
    return LossRow(name, title, meaning, _loss(start), _loss(end), change, comparable and end < start)


def _weights(config: RunConfig) -> dict[str, float]:
    objectives = config.objectives
    return {name: objectives.cmcl.weight if name == "cmcl" else getattr(objectives, name) for name in OBJECTIVES}


def recall_rows(numbers: Numbers) -> list[RecallRow]:
    """Image to text and text to image."""
    return [
        RecallRow(
            title,
            [_percent(numbers.get(f"eval/{name}_r{rank}")) for rank in _RANKS],
            [_percent(numbers.get(f"eval/{name}_r{rank}_chance")) for rank in _RANKS],
        )
        for name, title in _DIRECTIONS.items()
    ]


@dataclass(frozen=True)
class ChoiceRow:
    """A test by choice: how often the true caption scores above all false ones, above one of them, and by its words alone."""

    title: str
    right: str
    chance: str
    beaten: str
    words: str
    parts: list[tuple[str, str]]  # by level and kind of change: above one


def choice_rows(config: RunConfig, numbers: Numbers) -> list[ChoiceRow]:
    """One row a test of the evaluation (`unimo_ds.choices`)."""
    rows = []
    for section in config.evaluation.choices if config.evaluation else []:
        prefix = f"eval/{section.name}_"
        own = {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}
        right, chance, beaten, words = (_percent(own.pop(key, None)) for key in ("right", "chance", "beaten", "words"))
        parts = [(key.replace("_", " "), _percent(value)) for key, value in sorted(own.items())]
        rows.append(ChoiceRow(section.name.replace("_", " "), right, chance, beaten, words, parts))
    return rows


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.1f} %"


def _candidates(run: Run) -> str:
    count = run.evaluation["numbers"].get("eval/candidates")
    return _NONE if count is None else f"{int(count):,}"


def _seen_in_training(config: RunConfig) -> bool:
    """Whether the pairs of the evaluation are a corpus of the training: then it measures memory."""
    held_out = config.evaluation.pairs.path if config.evaluation else None
    return held_out is not None and held_out in [corpus.path for corpus in config.data.corpora]


def _whose(config: RunConfig) -> str:
    return "pictures it was trained on" if _seen_in_training(config) else "held-out pictures"


_LOSS = Kind("loss", lambda value: f"{value:.2f}", from_zero=False)
_RATE = Kind("learning rate", lambda value: f"{value:.1e}")
_TEMPERATURE = Kind("temperature", lambda value: f"{value:.3f}", from_zero=False)
_SPEED = Kind("positions / s", lambda value: f"{value:,.0f}")
_WAIT = Kind("% of the time", lambda value: f"{value:.1f} %")
_SHARE = Kind("% right", lambda value: f"{value:.1f} %")
_WINS = Kind("% of them", lambda value: f"{value:.1f} %")
_COUNT = Kind("captions", lambda value: f"{value:.1f}")
_DISTANCE = Kind("lower is better", lambda value: f"{value:.2f}", from_zero=False)
_GEOMETRY = ("alignment", "uniformity")


def _charts(run: Run) -> list[Chart]:
    """The small multiples of a run; a quantity that was not measured has none."""
    steps, evaluations = run.steps, run.evaluations
    wanted = [("All losses, weighted", _LOSS, [Curve("", _series(steps, "loss"))])]
    for name, weight in _weights(run.config).items():
        points = _series(steps, f"loss/{name}")
        if weight and any(value for _, value in points):
            wanted.append((f"{OBJECTIVES[name][0].capitalize()} ({name})", _LOSS, [Curve("", points)]))
    recall = [Curve(title, _series(evaluations, f"eval/{name}_r1", 100)) for name, title in _DIRECTIONS.items()]
    recall.append(Curve("chance", _series(evaluations, "eval/t2i_r1_chance", 100), dashed=True))
    wanted += [
        ("Retrieval, R@1", _SHARE, recall),
        ("Masked words named right", _SHARE, [Curve("", _series(evaluations, "eval/mlm_accuracy", 100))]),
        ("Rewritten captions above the true one", _WINS, _winning(steps, "word", "phrase")),
        ("Other captions above the true one", _WINS, _winning(steps, "sentence", "step")),
        ("Hard negatives that count, a pair", _COUNT, [Curve("", _series(steps, "cmcl/effective_negatives"))]),
        ("Alignment and uniformity", _DISTANCE, [Curve(name, _series(steps, f"cmcl/{name}")) for name in _GEOMETRY]),
        ("Learning rate", _RATE, [Curve("", _series(steps, "lr"))]),
        ("Temperature of matching", _TEMPERATURE, [Curve("", _series(steps, "temperature"))]),
        ("Speed, all ranks", _SPEED, [Curve("", _series(steps, "positions_per_second"))]),
        ("Waiting for data", _WAIT, [Curve("", _series(steps, "data_wait", 100))]),
    ]
    last = max(line["step"] for line in [*steps, *evaluations])
    return [draw_chart(title, kind, curves, last) for title, kind, curves in wanted if any(curve.points for curve in curves)]


def _series(lines: list[Numbers], key: str, scale: float = 1) -> list[Point]:
    return [(line["step"], scale * line[key]) for line in lines if math.isfinite(line.get(key, math.nan))]


def _winning(steps: list[Numbers], *sources: str) -> list[Curve]:
    """How often a false caption of each source scores no lower than the true one, in the step's own batch."""
    return [Curve(f"{source} level", _series(steps, f"cmcl/winning_{source}", 100)) for source in sources]


def _query(example: dict[str, Any], gallery: Gallery) -> Query:
    right, names = example["image"], example["found"]
    pairs = zip(names, example["scores"], strict=True)
    found = [Found(gallery.thumbnail(name), f"{score:.3f}", name == right) for name, score in pairs]
    rank = names.index(right) + 1 if right in names else None
    return Query(example["caption"], found, rank, None if rank else gallery.thumbnail(right))


def _chosen(example: dict[str, Any], gallery: Gallery) -> dict[str, Any]:
    """A caption of a test beside the false one that scored best."""
    scores = [f"{example[key]:.3f}" for key in ("true_score", "false_score")]
    right = example["true_score"] > example["false_score"]
    return {**example, "picture": gallery.thumbnail(example["image"]), "scores": scores, "right": right}


def _written(example: dict[str, Any], gallery: Gallery) -> Written:
    picture, note = gallery.figure(example["image"])
    return Written(picture, example["generated"], example["true"], note)


# --- the page --------------------------------------------------------------------------------------------------------


def _view(section: ReportSection) -> dict[str, Any]:
    """Everything the template shows of one run."""
    run, gallery = read_run(Path(section.run_folder)), Gallery(section)
    numbers = run.evaluation["numbers"]
    return {
        "title": section.title,
        "folder": _shown(run.folder),
        "facts": _facts(run),
        "losses": loss_rows(run.config, run.steps),
        "first_step": run.steps[0]["step"],
        "last_step": run.steps[-1]["step"],
        "total": (_loss(run.steps[0]["loss"]), _loss(run.steps[-1]["loss"])),
        "recalls": recall_rows(numbers),
        "candidates": _candidates(run),
        "accuracy": _percent(numbers.get("eval/mlm_accuracy")),
        "choices": choice_rows(run.config, numbers),
        "chosen": [_chosen(example, gallery) for example in run.evaluation.get("choices", [])],
        "seen": _seen_in_training(run.config),
        "whose": _whose(run.config),
        "charts": _charts(run),
        "queries": [_query(example, gallery) for example in run.evaluation["retrieval"][:_QUERIES]],
        "captions": [_written(example, gallery) for example in run.evaluation["captions"]],
        "sure": SURE,
        "classes": gallery.classes,
        "commands": _commands(run),
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    """Name and value of what was run."""
    model, training, last = run.config.model, run.config.training, run.starts[-1]
    parameters, seconds = parameter_count(run.folder), training_seconds(run.folder)
    shape = f"{model.size}: {model.layers} layers, {model.hidden_size} wide, {model.heads} heads"
    done, samples = int(run.steps[-1]["step"]), int(run.steps[-1].get("samples", 0))
    starts = len(run.starts)
    return [
        ("Model", shape + (f", {parameters / 1e6:.1f} M parameters" if parameters else "")),
        ("Parallel", f"{_ranks(run)} · {_zero_stage(training.deepspeed)} · {training.precision}"),
        ("Steps", f"{done:,} of {training.steps:,}, {samples:,} samples"),
        ("Each step", _mixture(run)),
        ("Optimizer", f"AdamW, rate {training.learning_rate:g} after {training.warmup_steps:,} warm-up steps"),
        ("Duration", _duration(seconds)),
        ("Started", run.starts[0].get("time", "unknown").replace("T", " ") + (f", {starts} starts" if starts > 1 else "")),
        ("Code", _commit(last.get("git"))),
        ("Packages", _packages(last)),
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return format_duration(seconds) + (" hours" if seconds >= 3600 else " minutes")


def _ranks(run: Run) -> str:
    """`2 ranks`; `2, then 4 ranks` where a resumed run had another number."""
    sizes = [start.get("world_size", "?") for start in run.starts]
    changes = [str(size) for number, size in enumerate(sizes) if number == 0 or size != sizes[number - 1]]
    return ", then ".join(changes) + (" rank" if changes == ["1"] else " ranks")


def _zero_stage(path: Path) -> str:
    """The stage in a DeepSpeed file; if that is not at hand, its name says what there is to say."""
    try:
        return f"ZeRO stage {json.loads(path.read_text(encoding='utf-8'))['zero_optimization']['stage']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"DeepSpeed file {path.name}"


def _mixture(run: Run) -> str:
    sizes = run.starts[-1].get("data", {})
    parts = []
    for corpus in run.config.data.corpora:
        of = f" of {sizes[corpus.name]['samples']:,}" if "samples" in sizes.get(corpus.name, {}) else ""
        parts.append(f"{corpus.per_step}{of} {corpus.name}")
    return ", ".join(parts)


def _commit(git: dict[str, str] | None) -> str:
    if not git:
        return "not in a git repository"
    return f"git {git['commit'][:12]}" + (" with uncommitted changes" if git.get("changed") else "")


def _packages(start: dict[str, Any]) -> str:
    packages = {"python": start.get("python"), **start.get("packages", {})}
    return " · ".join(f"{name} {version}" for name, version in packages.items() if version)


def _shown(path: Path) -> str:
    """As a user would type it: relative where possible."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _commands(run: Run) -> list[tuple[str, str]]:
    """What to try next: what it is for, and the command, or the lines that lead up to it."""
    folder, ranks = shlex.quote(_shown(run.folder)), run.starts[-1].get("world_size", 1)
    return [
        (
            "Train on your own folder: find the regions of its pictures, make a vocabulary of your texts, pre-train. "
            'Captions are JSON Lines, {"text": …, "image": path below the folder}; start it in the folder of unimo_ds.',
            _OWN_FOLDER.format(ranks=ranks),
        ),
        (
            "Evaluate again and read more of what it writes: 50 captions, in evaluation.json beside the newest checkpoint.",
            f"unimo-ds evaluate {folder} evaluation.captions=50",
        ),
        ("Look at every curve more closely, also while a run goes on.", f"tensorboard --logdir {folder}"),
    ]


# As in the README. Not from the run's own config.yaml: that holds the size of its vocabulary, which a new one would not fit.
_OWN_FOLDER = """\
python tools/extract_features.py my_pictures --out data/mine/regions --processes {ranks}
unimo-ds train-tokenizer my_captions.jsonl my_texts.txt --out data/mine/tokenizer
deepspeed --num_gpus {ranks} --module unimo_ds.pretrain recipes/photos.yaml folder=runs/mine evaluation=null \\
    data.tokenizer=data/mine/tokenizer data.prepared=data/mine/prepared data.corpora.photographs.path=my_captions.jsonl \\
    data.corpora.photographs.format=json_lines data.corpora.photographs.regions=data/mine/regions \\
    data.corpora.english.path=my_texts.txt"""
