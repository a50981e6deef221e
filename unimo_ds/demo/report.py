"""What a run has learnt, for people: one HTML page about one or several runs, and a plain table for the terminal.

The page is a single file that needs neither network nor scripts: styles, pictures (JPEG) and curves (SVG) are inside it.
Everything comes from the run folder (see `unimo_ds.engine.run_log`) and from `evaluation.json`; nothing is measured here.
The words and the looks are in `report.html`, a Jinja2 template beside this file; every string in it is escaped.
"""

import base64
import io
import json
import math
import shlex
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimo_ds.config import RunConfig, load_config
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import UnimoError
from unimo_ds.progress import format_duration
from unimo_ds.regions import BACKGROUND, Regions
from unimo_ds.vision.drawing import draw_regions

# In the order of `unimo_ds.objectives.pretraining.NAMES`: a name, and what the model must do.
OBJECTIVES = {
    "mlm": ("masked words", "name the hidden words of a text, or of a caption beside its picture"),
    "seq2seq": ("written words", "write the missing part of a text, or a whole caption after its picture"),
    "mrfr": ("region features", "restore the feature vectors of hidden picture regions"),
    "mrc": ("region classes", "say which classes the detector saw in hidden regions"),
    "cmcl": ("matching", "draw a picture and its caption together, and all others apart"),
}
_RANKS = (1, 5, 10)
_DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
_QUERIES = 10
_CAPTIONS_IN_TERMINAL = 3
_DRAWN_REGIONS = 8
_SURE = 0.3  # a region less probable is not drawn: stores keep a minimum of regions, however doubtful
_THUMBNAIL, _FIGURE = 240, 640  # pixels of the longer side; twice what is shown, for dense screens
_NONE = "–"

Numbers = dict[str, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class ReportSection:
    """One run of the report.

    Attributes:
        title: heading of its part of the page.
        run_folder: made by pre-training; holds or finds an evaluation.
        images_root: the folder that keys of the store are paths below.
        regions: the regions store of the evaluated pairs.
        class_names, attribute_names: without background and "none", as a detector has them.
    """

    title: str
    run_folder: Path
    images_root: Path
    regions: Path
    class_names: Sequence[str]
    attribute_names: Sequence[str]


def write_report(sections: Sequence[ReportSection], out: Path) -> None:
    """Writes the page.

    Raises:
        UnimoError: a run folder is none, a run was never evaluated, or names and store are of different detectors; the
            message says what to do. A picture that is missing or damaged is named in its place on the page instead.
    """
    content = _template().render(runs=[_view(section) for section in sections])
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(content, encoding="utf-8")


def summary_table(run_folder: Path) -> str:
    """The table of the report as text with aligned columns, and a few generated captions beside a true one.

    Raises:
        UnimoError: as `write_report`.
    """
    run = _read_run(Path(run_folder))
    losses = [["loss", "", f"step {run.steps[0]['step']}", f"step {run.steps[-1]['step']}", "", ""]]
    for row in loss_rows(run.config, run.steps):
        losses.append(["  " + row.title, row.name, row.start, row.end, row.change, "falls" if row.falls else ""])
    ranks = [[f"among {_candidates(run)} {_whose(run.config)}", *(f"R@{rank}" for rank in _RANKS)]]
    for recall in recall_rows(run.evaluation["numbers"]):
        ranks += [["  " + recall.title, *recall.found], ["    by chance", *recall.chance]]
    accuracy = ["masked words named right", _percent(run.evaluation["numbers"].get("eval/mlm_accuracy"))]
    blocks = [_columns(losses, left=2), _columns(ranks), "  ".join(accuracy)]
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


# --- reading a run folder --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """What a run folder says.

    Attributes:
        starts: entries of the receipt, one a start.
        steps: the logged steps in order, at least one.
        evaluations: the evaluations in the log, in order.
        evaluation: `evaluation.json`: `numbers`, `retrieval`, `captions`.
    """

    folder: Path
    config: RunConfig
    starts: list[dict[str, Any]]
    steps: list[Numbers]
    evaluations: list[Numbers]
    evaluation: dict[str, Any]


def _read_run(folder: Path) -> _Run:
    for name in ("config.yaml", "receipt.json", "metrics.jsonl"):
        if not (folder / name).exists():
            raise UnimoError(f"{folder}: has no {name}: not the folder of a run, or of one that did not start training")
    lines = _read_metrics(folder / "metrics.jsonl")
    steps = _by_step(line for line in lines if "loss" in line)
    if not steps:
        raise UnimoError(f"{folder / 'metrics.jsonl'}: holds no logged step; let the run go on past training.log_every")
    return _Run(
        folder,
        load_config(folder / "config.yaml"),
        _read_json(folder / "receipt.json", "starts")["starts"],
        steps,
        _by_step(line for line in lines if "eval/candidates" in line),
        _read_evaluation(folder),
    )


def _read_metrics(path: Path) -> list[Numbers]:
    """The whole lines of a log: a run that is going on, or was killed, may have half a line."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return lines


def _by_step(lines: Iterable[Numbers]) -> list[Numbers]:
    """In order of steps; of two lines of one step the later counts."""
    last = {line["step"]: line for line in lines}
    return [last[step] for step in sorted(last)]


def _read_json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnimoError(f"{path}: cannot be read ({error}); make it again") from error
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise UnimoError(f"{path}: was not written by this program, which writes an object with {', '.join(keys)}")
    return content


def _read_evaluation(folder: Path) -> dict[str, Any]:
    """The run's own evaluation, or the one that `unimo-ds evaluate` has put beside the newest checkpoint."""
    newest = _newest_checkpoint(folder)
    for place in (folder, *([newest] if newest else [])):
        if (place / "evaluation.json").exists():
            return _read_json(place / "evaluation.json", "numbers", "retrieval", "captions")
    raise UnimoError(
        f"{folder}: was never evaluated (no evaluation.json there or in its newest checkpoint). "
        f"Run `unimo-ds evaluate {shlex.quote(str(folder))}`; a run without a section evaluation needs evaluation.pairs.* too."
    )


def _newest_checkpoint(folder: Path) -> Path | None:
    pointer = folder / "checkpoints" / "latest"
    return pointer.with_name(pointer.read_text(encoding="utf-8").strip()) if pointer.exists() else None


def _parameters(folder: Path) -> int | None:
    """Parameters in the newest checkpoint, from the header of its file alone."""
    checkpoint = _newest_checkpoint(folder)
    path = checkpoint / "model.safetensors" if checkpoint else None
    if path is None or not path.exists():
        return None
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    count: int = sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return count


def _training_seconds(folder: Path) -> float | None:
    """Time between the first and the last TensorBoard event, summed over starts: waits in a queue do not count."""
    spans = []
    for path in sorted(folder.glob("tensorboard/events.out.tfevents.*")):
        times = list(_event_times(path))
        if times:
            spans.append(times[-1] - times[0])
    return sum(spans) if spans else None


def _event_times(path: Path) -> Iterator[float]:
    """Wall times of an event file: TFRecords of protobufs whose first field is the time, a double with tag 0x09."""
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            length = struct.unpack_from("<Q", head)[0]
            event = file.read(length + 4)
            if len(event) < length + 4:
                return  # half written
            if event[:1] == b"\x09" and length >= 9:
                yield struct.unpack_from("<d", event, 1)[0]


# --- the table -------------------------------------------------------------------------------------------------------


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


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.1f} %"


def _candidates(run: _Run) -> str:
    return f"{int(run.evaluation['numbers']['eval/candidates']):,}"


def _seen_in_training(config: RunConfig) -> bool:
    """Whether the pairs of the evaluation are a corpus of the training: then it measures memory."""
    held_out = config.evaluation.pairs.path if config.evaluation else None
    return held_out is not None and held_out in [corpus.path for corpus in config.data.corpora]


def _whose(config: RunConfig) -> str:
    return "pictures it was trained on" if _seen_in_training(config) else "held-out pictures"


# --- curves ----------------------------------------------------------------------------------------------------------

# The plot's frame inside the drawing, in the units of its viewBox.
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 326.0, 8.0, 152.0
_MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """A line of a chart; `label` is empty where the chart's title says it all."""

    label: str
    points: list[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve in the coordinates of the drawing, with its first and last value in words."""

    label: str
    start: str
    end: str
    dashed: bool
    path: str
    dots: list[Point]


@dataclass(frozen=True)
class Chart:
    """Everything the template needs to draw one chart."""

    title: str
    axis: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Kind:
    """How one kind of quantity is shown."""

    axis: str
    text: Callable[[float], str]
    from_zero: bool = True


_LOSS = Kind("loss", lambda value: f"{value:.2f}", from_zero=False)
_RATE = Kind("learning rate", lambda value: f"{value:.1e}")
_TEMPERATURE = Kind("temperature", lambda value: f"{value:.3f}", from_zero=False)
_SPEED = Kind("positions / s", lambda value: f"{value:,.0f}")
_WAIT = Kind("% of the time", lambda value: f"{value:.1f} %")
_SHARE = Kind("% right", lambda value: f"{value:.1f} %")


def _charts(run: _Run) -> list[Chart]:
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
        ("Learning rate", _RATE, [Curve("", _series(steps, "lr"))]),
        ("Temperature of matching", _TEMPERATURE, [Curve("", _series(steps, "temperature"))]),
        ("Speed, all ranks", _SPEED, [Curve("", _series(steps, "positions_per_second"))]),
        ("Waiting for data", _WAIT, [Curve("", _series(steps, "data_wait", 100))]),
    ]
    last = max(line["step"] for line in [*steps, *evaluations])
    return [draw_chart(title, kind, curves, last) for title, kind, curves in wanted if any(curve.points for curve in curves)]


def _series(lines: list[Numbers], key: str, scale: float = 1) -> list[Point]:
    return [(line["step"], scale * line[key]) for line in lines if math.isfinite(line.get(key, math.nan))]


def draw_chart(title: str, kind: Kind, curves: list[Curve], last_step: float) -> Chart:
    """Places curves in a frame from step 0 to `last_step`."""
    curves = [curve for curve in curves if curve.points]
    low, high = _range([value for curve in curves for _, value in curve.points], kind.from_zero)

    def x(step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * step / max(last_step, 1), 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low), 1)

    return Chart(
        title,
        kind.axis,
        [_line(curve, kind, x, y) for curve in curves],
        [Tick(x(step), f"{step:,.0f}") for step in _ticks(0, last_step, 5) if step == int(step)],
        [Tick(y(value), _tick_text(value)) for value in _ticks(low, high, 5)],
    )


def _line(curve: Curve, kind: Kind, x: Callable[[float], float], y: Callable[[float], float]) -> Line:
    every = -(-len(curve.points) // _MOST_POINTS)
    shown = [*curve.points[:-1:every], curve.points[-1]]
    placed = [(x(step), y(value)) for step, value in shown]
    if curve.dashed:
        placed, dots = [(_LEFT, placed[0][1]), *placed, (_RIGHT, placed[-1][1])], []
    else:
        dots = placed if len(placed) <= 12 else [placed[0], placed[-1]]
    path = "M" + " L".join(f"{across:g} {up:g}" for across, up in placed)
    first, last = kind.text(curve.points[0][1]), kind.text(curve.points[-1][1])
    return Line(curve.label, "" if len(curve.points) == 1 or curve.dashed else first, last, curve.dashed, path, dots)


def _range(values: list[float], from_zero: bool) -> Point:
    """Bounds of an axis: all values, a little air, and zero where a length should mean an amount."""
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (min(0.0, low), high + air) if from_zero else (low - air, high + air)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers from `low` to `high`."""
    rough = max(high - low, 1e-12) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _tick_text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


# --- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture inside the page; without `source`, `problem` says in its place what is wrong."""

    name: str
    source: str
    problem: str = ""
    width: int = 4
    height: int = 3


@dataclass(frozen=True)
class Found:
    """A picture that a caption has found."""

    picture: Picture
    score: str
    right: bool


@dataclass(frozen=True)
class Query:
    """A caption with what it has found; `own` is its own picture where that is not among them."""

    caption: str
    found: list[Found]
    rank: int | None
    own: Picture | None


@dataclass(frozen=True)
class Written:
    """A picture with its regions drawn, what was written about it, and a remark on what is drawn."""

    picture: Picture
    generated: str
    true: list[str]
    note: str


class Gallery:
    """Pictures of one section, read from its folder and encoded for the page."""

    def __init__(self, section: ReportSection) -> None:
        self._section = section
        self._store = RegionStore(section.regions)
        names = len(section.class_names), len(section.attribute_names)
        expected = tuple(
            self._store.detector.get(key, count) for key, count in zip(("classes", "attributes"), names, strict=True)
        )
        if names != expected:
            raise UnimoError(
                f"{section.regions}: its detector has {expected[0]} classes and {expected[1]} attributes, but {names[0]} and "
                f"{names[1]} names were given (background and 'none' have no name); take the names of that detector"
            )
        self._thumbnails: dict[str, Picture] = {}

    def thumbnail(self, key: str) -> Picture:
        """The picture `key`, small."""
        if key not in self._thumbnails:
            image = self._open(key)
            small = image if isinstance(image, Picture) else _encode(key, _fit(image, _THUMBNAIL))
            self._thumbnails[key] = small
        return self._thumbnails[key]

    def figure(self, key: str) -> tuple[Picture, str]:
        """The picture `key` with its best regions drawn, and a remark on what is drawn."""
        image = self._open(key)
        if isinstance(image, Picture):
            return image, ""
        image = _fit(image, _FIGURE)  # before drawing: then boxes and letters are sharp
        if key not in self._store:
            return _encode(key, image), "not in the regions store"
        regions = self._store.get(key)
        drawn = _surest(regions)
        across, down = image.width / regions.width, image.height / regions.height
        boxes_R4 = (drawn.boxes_R4 * [across, down, across, down]).astype("f4")
        placed = replace(drawn, width=image.width, height=image.height, boxes_R4=boxes_R4)
        names = self._section.class_names, self._section.attribute_names
        note = f"{len(drawn)} of {len(regions)} regions drawn"
        return _encode(key, draw_regions(image, placed, *names, most=len(drawn))), note

    def _open(self, key: str) -> Image.Image | Picture:
        """The picture, or what to show instead."""
        path = self._section.images_root / key
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except FileNotFoundError:
            return Picture(key, "", f"missing: {path}")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return Picture(key, "", f"cannot be read: {path} ({type(error).__name__})")


def _surest(regions: Regions) -> Regions:
    """The best regions, of those whose class is sure enough; the very best one if none is."""
    probability_R = np.where(regions.class_ids_RK != BACKGROUND, regions.class_probabilities_RK, 0).max(axis=1, initial=0)
    sure = np.flatnonzero(probability_R >= _SURE)[:_DRAWN_REGIONS]
    kept = sure if len(sure) else np.arange(min(1, len(regions)))
    return Regions(
        regions.width,
        regions.height,
        regions.boxes_R4[kept],
        regions.features_RF[kept],
        regions.class_ids_RK[kept],
        regions.class_probabilities_RK[kept],
        regions.attribute_ids_R[kept],
        regions.attribute_probabilities_R[kept],
    )


def _fit(image: Image.Image, side: int) -> Image.Image:
    """Scaled, up or down, to `side` pixels on the longer side."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _encode(name: str, image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(name, source, "", image.width, image.height)


def _query(example: dict[str, Any], gallery: Gallery) -> Query:
    right, names = example["image"], example["found"]
    pairs = zip(names, example["scores"], strict=True)
    found = [Found(gallery.thumbnail(name), f"{score:.3f}", name == right) for name, score in pairs]
    rank = names.index(right) + 1 if right in names else None
    return Query(example["caption"], found, rank, None if rank else gallery.thumbnail(right))


def _written(example: dict[str, Any], gallery: Gallery) -> Written:
    picture, note = gallery.figure(example["image"])
    return Written(picture, example["generated"], example["true"], note)


# --- the page --------------------------------------------------------------------------------------------------------


def _template() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise UnimoError("the report needs jinja2; install it with `pip install 'unimo_ds[report]'`") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


def _view(section: ReportSection) -> dict[str, Any]:
    """Everything the template shows of one run."""
    run, gallery = _read_run(Path(section.run_folder)), Gallery(section)
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
        "seen": _seen_in_training(run.config),
        "whose": _whose(run.config),
        "charts": _charts(run),
        "queries": [_query(example, gallery) for example in run.evaluation["retrieval"][:_QUERIES]],
        "captions": [_written(example, gallery) for example in run.evaluation["captions"]],
        "sure": _SURE,
        "classes": len(section.class_names),
        "commands": _commands(run),
    }


def _facts(run: _Run) -> list[tuple[str, str]]:
    """Name and value of what was run."""
    model, training, last = run.config.model, run.config.training, run.starts[-1]
    parameters, seconds = _parameters(run.folder), _training_seconds(run.folder)
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


def _ranks(run: _Run) -> str:
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


def _mixture(run: _Run) -> str:
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


def _commands(run: _Run) -> list[tuple[str, str]]:
    """What to try next: what it is for, and the command."""
    folder = _shown(run.folder)
    ranks = run.starts[-1].get("world_size", 1)
    pretrain = f"deepspeed --num_gpus {ranks} --module unimo_ds.pretrain {shlex.quote(folder + '/config.yaml')}"
    other = shlex.quote(f"{folder}-without-cmcl")
    return [
        (
            "Train twice as long; the run goes on from its newest checkpoint.",
            f"{pretrain} training.steps={2 * run.config.training.steps}",
        ),
        (
            "See what contrastive learning is for: the same run without it. Retrieval should stay near chance.",
            f"{pretrain} folder={other} objectives.cmcl.weight=0",
        ),
        (
            "Read more of what it writes: 50 captions, in evaluation.json beside the newest checkpoint.",
            f"unimo-ds evaluate {shlex.quote(folder)} evaluation.captions=50",
        ),
    ]
