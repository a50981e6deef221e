"""The report of a small made-up run: whole, self-contained, and equal to the numbers that went in."""

import json
import math
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from unimo_ds.config import dump_config, load_config, parse_config
from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.demo import report, run_reader
from unimo_ds.demo.charts import Curve, draw_chart
from unimo_ds.demo.gallery import ReportSection
from unimo_ds.demo.report import OBJECTIVES, summary_table, write_report
from unimo_ds.errors import UnimoError
from unimo_ds.objectives.pretraining import NAMES
from unimo_ds.regions import Regions

CLASSES, ATTRIBUTES = ["cup", "key", "tree"], ["red", "blue"]
KEYS = [f"val/{number:03}.jpg" for number in range(7)]
START = {"mlm": 6.5, "seq2seq": 6.25, "mrfr": 0.875, "mrc": 1.5, "cmcl": 4.125, "matching": 0.75}
END = {"mlm": 2.125, "seq2seq": 1.75, "mrfr": 0.375, "mrc": 1.625, "cmcl": 0.5, "matching": 0.25}
DETECTOR = {"architecture": "none", "classes": 3, "attributes": 2, "feature_width": 4}
ROOT = Path(report.__file__).parents[2]
VOID = {"meta", "img", "br", "link", "hr", "input"}


def config(folder: Path, **changes: Any) -> str:
    pairs = {
        "name": "pairs",
        "kind": "pairs",
        "format": "coco_captions",
        "path": "train.json",
        "regions": "store",
        "per_step": 8,
    }
    content: dict[str, Any] = {
        "folder": str(folder),
        "model": {"size": "tiny"},
        "objectives": {"matching": 1.0},
        "data": {"corpora": [pairs], "tokenizer": "tokenizer"},
        "training": {"steps": 30, "deepspeed": str(folder / "zero.json")},
        "evaluation": {
            "pairs": {**pairs, "path": "val.json"},
            "choices": [{"name": "hard_ones", "path": "x", "regions": "store"}],
        },
    }
    return dump_config(parse_config({**content, **changes}, "test"))


def numbers(step: int) -> dict[str, float]:
    found = {"i2t_r1": 0.25, "i2t_r5": 0.5, "i2t_r10": 0.75, "t2i_r1": 0.3125, "t2i_r5": 0.625, "t2i_r10": 1.0}
    chance = {f"eval/{name}_chance": 0.125 for name in found}
    scaled = {f"eval/{name}": value * step / 30 for name, value in found.items()}
    choice = {"right": 0.625, "chance": 0.0625, "beaten": 0.875, "words": 0.75, "word": 0.8125, "relation": 0.5625}
    scaled |= {f"eval/hard_ones_{name}": value for name, value in choice.items()}
    return {**scaled, **chance, "eval/candidates": 7.0, "eval/mlm_accuracy": 0.4375 * step / 30}


def log_lines() -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    for step in (10, 20, 30):
        share = (step - 10) / 20
        losses = {name: START[name] + share * (END[name] - START[name]) for name in NAMES}
        common = {"lr": 1e-3 / step, "temperature": 0.07, "positions_per_second": 12000.0 + step, "data_wait": 0.04}
        lines += [
            {"step": step, "samples": 8 * step, "loss": sum(losses.values())}
            | {f"loss/{name}": value for name, value in losses.items()}
            | common,
            {"step": step, **numbers(step)},
        ]
    return lines


def evaluation() -> dict[str, Any]:
    missed = {"caption": "a cup nobody finds", "image": KEYS[6], "found": KEYS[:5]}
    return {
        "numbers": numbers(30),
        "retrieval": [
            {"caption": "a red cup", "image": KEYS[0], "found": KEYS[:5], "scores": [0.9, 0.5, 0.4, 0.3, 0.2]},
            {"caption": "a blue key", "image": KEYS[2], "found": KEYS[:5], "scores": [0.8, 0.7, 0.6, 0.5, 0.4]},
            {**missed, "scores": [0.1] * 5},
        ],
        "captions": [
            {"image": KEYS[0], "true": ["a red cup", "one cup", "the third caption"], "generated": "a red key"},
            {"image": KEYS[1], "true": ["a blue key"], "generated": ""},
        ],
        "choices": [
            {
                "test": "hard_ones",
                "image": KEYS[3],
                "true": "a <red> cup",
                "false": "a blue cup",
                "reason": "attribute: red -> blue",
            }
            | {"true_score": 0.25, "false_score": 0.5},
        ],
    }


def write_store(folder: Path) -> None:
    ids = np.array([[1, 2], [0, 3], [2, 1]], "u2")
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.1]], "f2")
    boxes = np.array([[2, 2, 20, 20], [10, 5, 38, 28], [0, 0, 5, 5]], "f4")
    attributes = np.array([1, 0, 2], "u2")
    regions = Regions(40, 30, boxes, np.zeros((3, 4), "f2"), ids, probabilities, attributes, np.ones(3, "f2"))
    with RegionStoreWriter(folder, DETECTOR, class_names=CLASSES, attribute_names=ATTRIBUTES) as writer:
        for key in KEYS:
            writer.write(key, regions)
    finish_store(folder)


def write_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config(folder))
    (folder / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    start = {
        "time": "2026-01-02T03:04:05+0000",
        "world_size": 2,
        "python": "3.11",
        "packages": {"torch": "9.8.7", "apex": None},
    }
    start |= {"git": {"commit": "0123456789abcdef", "changed": ""}, "data": {"pairs": {"samples": 1234}}}
    (folder / "receipt.json").write_text(json.dumps({"starts": [start]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log_lines()))
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))


@pytest.fixture
def section(tmp_path: Path) -> ReportSection:
    write_run(tmp_path / "run")
    write_store(tmp_path / "store")
    (tmp_path / "images" / "val").mkdir(parents=True)
    for number, key in enumerate(KEYS):
        Image.new("RGB", (40, 30), (30 * number, 100, 100)).save(tmp_path / "images" / key)
    return ReportSection("A small world", tmp_path / "run", tmp_path / "images", tmp_path / "store")


class Page(HTMLParser):
    """A parsed page: fails where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.commands: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}, line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-2:] == ["pre", "code"]:
            self.commands.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*sections: ReportSection) -> tuple[str, Page]:
    out = sections[0].run_folder.parent / "out" / "report.html"
    write_report(sections, out)
    html = out.read_text(encoding="utf-8")
    return html, Page(html)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_part_is_there(section: ReportSection) -> None:
    _, page = page_of(section)
    for heading in ("A small world", "Results", "Curves", "A caption looks for its picture", "What to try next"):
        assert heading in page.text
    for fact in ("2 ranks · ZeRO stage 3 · bf16", "30 of 30", "8 of 1,234 pairs", "git 0123456789ab", "torch 9.8.7"):
        assert fact in page.text
    assert "apex" not in page.text
    for value in ("6.500", "2.125", "↓ −67.3 %", "31.2 %", "12.5 %", "43.8 %"):
        assert value in page.text
    assert page.text.count("↓ −") == 5, "five losses fall, one rises"
    labels = [svg["aria-label"] or "" for svg in page.all("svg")]
    for name in NAMES:
        assert any(f"({name})" in label and f"{START[name]:.2f} → {END[name]:.2f}" in label for label in labels)
    for what in ("Learning rate", "Temperature", "Speed", "Waiting", "R@1", "Masked words named right"):
        assert any(what in label for label in labels)


def test_tests_by_choice_have_a_row_and_their_examples(section: ReportSection) -> None:
    _, page = page_of(section)
    assert "Which caption is true?" in page.text and "relation 56.2 %" in page.text
    for value in ("62.5 %", "6.2 %", "87.5 %", "75.0 %", "a <red> cup", "0.250", "attribute: red -> blue"):
        assert value in page.text
    assert "hard ones" in summary_table(section.run_folder)


def test_two_runs_make_two_sections_with_links_to_both(section: ReportSection) -> None:
    _, page = page_of(section, replace(section, title="The other"))
    assert [link["href"] for link in page.all("a")] == ["#run-1", "#run-2"]
    assert [part["id"] for part in page.all("section")] == ["run-1", "run-2"]


def test_the_page_needs_nothing_from_outside(section: ReportSection) -> None:
    html, page = page_of(section)
    images = page.all("img")
    assert len(images) == 3 * 5 + 1 + 2 + 1
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") and image["alt"] for image in images)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "url(" not in html and "@import" not in html and "http://" not in html and "https://" not in html


def test_the_right_picture_is_framed_and_its_rank_is_said(section: ReportSection) -> None:
    _, page = page_of(section)
    frames = [figure.get("class") for figure in page.all("figure")]
    assert (frames.count("right"), frames.count("own")) == (2, 1)
    assert "its picture came at rank 1" in page.text and "its picture came at rank 3" in page.text
    assert "its picture is not among the 5" in page.text


def test_only_regions_that_the_detector_is_sure_of_are_drawn(section: ReportSection) -> None:
    _, page = page_of(section)
    assert page.text.count("2 of 3 regions drawn") == 2


def test_captions_are_escaped(section: ReportSection) -> None:
    attack = '<script>alert("1")</script> & "quotes"'
    content = evaluation()
    content["captions"][0] |= {"generated": attack, "true": [attack]}
    content["retrieval"][0] |= {"caption": attack}
    (section.run_folder / "evaluation.json").write_text(json.dumps(content))
    html, page = page_of(replace(section, title="a < b"))
    assert "<script" not in html and page.text.count(attack) == 3 and "a < b" in page.text


def test_pictures_seen_in_training_are_called_so(section: ReportSection) -> None:
    assert "held-out" in page_of(section)[1].text
    content = (section.run_folder / "config.yaml").read_text()
    (section.run_folder / "config.yaml").write_text(content.replace("val.json", "train.json"))
    text = page_of(section)[1].text
    assert "also trained on" in text and "held-out" not in text
    assert "among 7 pictures it was trained on" in summary_table(section.run_folder)


def test_an_objective_that_is_off_has_a_reason_and_no_curve(section: ReportSection) -> None:
    (section.run_folder / "config.yaml").write_text(config(section.run_folder, objectives={"mrfr": 0}))
    _, page = page_of(section)
    assert "switched off" in page.text
    assert not any("(mrfr)" in (svg["aria-label"] or "") for svg in page.all("svg"))


def test_objectives_are_those_of_pretraining() -> None:
    assert tuple(OBJECTIVES) == NAMES


def test_duration_is_the_sum_over_starts(section: ReportSection) -> None:
    for start in (1000.0, 9000.0):
        writer = SummaryWriter(str(section.run_folder / "tensorboard"), filename_suffix=f".{start}")
        for seconds in (0.0, 100.0):
            writer.add_scalar("loss", 1.0, 1, walltime=start + seconds)
        writer.close()
    files = sorted((section.run_folder / "tensorboard").iterdir())
    times = [list(run_reader.event_times(path))[1:] for path in files]  # the first event is the file's own header
    assert times == [[1000.0, 1100.0], [9000.0, 9100.0]]
    files[0].write_bytes(files[0].read_bytes()[:-3])
    assert list(run_reader.event_times(files[0]))[1:] == [1000.0]


def test_parameters_are_counted_in_the_newest_checkpoint(section: ReportSection) -> None:
    assert "M parameters" not in page_of(section)[1].text
    checkpoint = section.run_folder / "checkpoints" / "step-00000030"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest").write_text(checkpoint.name + "\n")
    save_file({"a": torch.zeros(500, 400), "b": torch.zeros(7), "c": torch.tensor(1.0)}, checkpoint / "model.safetensors")
    assert run_reader.parameter_count(section.run_folder) == 200_008
    assert "0.2 M parameters" in page_of(section)[1].text


def test_the_commands_are_ones_that_the_program_takes(section: ReportSection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(section.run_folder.parent)
    own, evaluate, board = page_of(section)[1].commands
    extract, tokenizer, pretrain = map(shlex.split, own.replace("\\\n", " ").splitlines())
    assert (ROOT / extract[1]).exists() and extract[2:] == ["my_pictures", "--out", "data/mine/regions", "--processes", "2"]
    assert tokenizer[:2] == ["unimo-ds", "train-tokenizer"]
    assert pretrain[:5] == ["deepspeed", "--num_gpus", "2", "--module", "unimo_ds.pretrain"]
    mine = load_config(ROOT / pretrain[5], pretrain[6:])
    assert mine.evaluation is None and mine.data.tokenizer == Path(tokenizer[tokenizer.index("--out") + 1])
    pairs, texts = mine.data.corpora
    assert [str(pairs.path), str(texts.path)] == tokenizer[2:4] and pairs.regions == Path(extract[4])
    assert evaluate.split()[:3] == ["unimo-ds", "evaluate", "run"]
    assert load_config(Path("run/config.yaml"), evaluate.split()[3:]).evaluation is not None
    assert board == "tensorboard --logdir run"


# --- the table -------------------------------------------------------------------------------------------------------


def test_summary_table_says_what_went_in(section: ReportSection) -> None:
    lines = summary_table(section.run_folder).splitlines()
    assert lines[0].split() == ["loss", "step", "10", "step", "30"]
    for name, line in zip(NAMES, lines[1:7], strict=True):
        assert f" {name} " in line and line.split(name)[1].split()[:2] == [f"{START[name]:.3f}", f"{END[name]:.3f}"]
        assert line.endswith("falls") == (END[name] < START[name])
    assert lines[8].split() == ["among", "7", "held-out", "pictures", "R@1", "R@5", "R@10"]
    assert lines[9].split()[3:] == ["25.0", "%", "50.0", "%", "75.0", "%"]
    assert lines[11].split()[3:] == ["31.2", "%", "62.5", "%", "100.0", "%"]
    assert lines[12].split()[2:] == ["12.5", "%"] * 3
    assert "masked words named right  43.8 %" in lines
    assert lines[-6:] == [
        "  val/000.jpg",
        "    written  a red key",
        "    true     a red cup",
        "  val/001.jpg",
        "    written  ",
        "    true     a blue key",
    ]
    assert len({len(line) for line in lines[8:13]}) == 1, "columns are not aligned"


def test_summary_table_shows_four_captions(section: ReportSection) -> None:
    captions = [{"image": f"{number}.jpg", "true": ["one", "two"], "generated": f"cap {number}"} for number in range(6)]
    change_json(section.run_folder / "evaluation.json", captions=captions)
    text = summary_table(section.run_folder)
    assert [f"written  cap {number}" in text for number in range(6)] == [True] * 4 + [False] * 2
    assert text.count("true     one") == 4 and "two" not in text


def test_an_evaluation_without_numbers_is_shown_with_gaps(section: ReportSection) -> None:
    change_json(section.run_folder / "evaluation.json", numbers={}, retrieval=[], captions=[])
    assert "among – held-out pictures" in summary_table(section.run_folder)
    assert "no examples of retrieval" in page_of(section)[1].text


def test_half_a_line_and_foreign_lines_are_ignored(section: ReportSection) -> None:
    before = summary_table(section.run_folder)
    with (section.run_folder / "metrics.jsonl").open("a") as log:
        log.write('[1]\n{"step": 40, "loss": 1.0, "loss/ml')
    assert summary_table(section.run_folder) == before


def test_a_later_line_of_the_same_step_counts(section: ReportSection) -> None:
    line = {**log_lines()[4], "loss/mlm": 1.0625}
    with (section.run_folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    assert "1.062" in summary_table(section.run_folder)


def test_a_loss_that_is_not_a_number_is_shown_as_such(section: ReportSection) -> None:
    with (section.run_folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({**log_lines()[4], "loss": math.nan, "loss/mlm": math.nan}) + "\n")
    assert re.search("mlm .* nan +not finite\n", summary_table(section.run_folder))
    page_of(section)


# --- what is missing -------------------------------------------------------------------------------------------------


def test_a_run_without_evaluation_is_told_how_to_get_one(section: ReportSection) -> None:
    (section.run_folder / "evaluation.json").unlink()
    for call in (lambda: page_of(section), lambda: summary_table(section.run_folder)):
        with pytest.raises(UnimoError, match=r"never evaluated.*`unimo-ds evaluate .*run`"):
            call()


def test_the_evaluation_beside_the_newest_checkpoint_serves_as_well(section: ReportSection) -> None:
    expected = summary_table(section.run_folder)
    checkpoint = section.run_folder / "checkpoints" / "step-00000030"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    (section.run_folder / "evaluation.json").rename(checkpoint / "evaluation.json")
    assert summary_table(section.run_folder) == expected


@pytest.mark.parametrize("name", ["config.yaml", "receipt.json", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_named(section: ReportSection, name: str) -> None:
    (section.run_folder / name).unlink()
    with pytest.raises(UnimoError, match=f"run: has no {name}"):
        page_of(section)


def test_a_run_that_logged_nothing_yet(section: ReportSection) -> None:
    (section.run_folder / "metrics.jsonl").write_text('{"step": 1')
    with pytest.raises(UnimoError, match=r"metrics\.jsonl: holds no logged step"):
        page_of(section)


@pytest.mark.parametrize("content", ["{", "[]", '{"numbers": {}}'])
def test_a_damaged_evaluation_is_named(section: ReportSection, content: str) -> None:
    (section.run_folder / "evaluation.json").write_text(content)
    with pytest.raises(UnimoError, match=r"evaluation\.json: "):
        page_of(section)


def test_a_missing_or_damaged_picture_is_named_in_its_place(section: ReportSection) -> None:
    (section.images_root / KEYS[0]).unlink()
    (section.images_root / KEYS[1]).write_bytes(b"no picture")
    _, page = page_of(section)
    assert "missing: " in page.text and KEYS[0] in page.text
    assert "cannot be read: " in page.text and KEYS[1] in page.text
    assert len(page.all("img")) == 3 * 3 + 1 + 1


def test_a_picture_that_the_store_does_not_have(section: ReportSection) -> None:
    content = evaluation()
    content["captions"][0]["image"] = "other.jpg"
    Image.new("RGB", (30, 40)).save(section.images_root / "other.jpg")
    (section.run_folder / "evaluation.json").write_text(json.dumps(content))
    assert "not in the regions store" in page_of(section)[1].text


# --- curves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [1e-6, 3e-5], [-5.0, 20000.0], list(range(5000))])
def test_a_chart_keeps_its_frame_and_its_ends(values: list[float]) -> None:
    points = [(10.0 * (number + 1), float(value)) for number, value in enumerate(values)]
    for kind in (report._LOSS, report._SPEED):
        chart = draw_chart("title", kind, [Curve("", points)], points[-1][0])
        places = [tuple(map(float, place.split())) for place in chart.lines[0].path[1:].split(" L")]
        assert len(places) <= 402
        assert all(64 <= x <= 326 and 8 <= y <= 152 for x, y in places)
        assert places[-1][0] == 326 and chart.lines[0].end == kind.text(points[-1][1])
        assert chart.lines[0].start == (kind.text(points[0][1]) if len(points) > 1 else "")
        assert 2 <= len(chart.y_ticks) <= 8 and all(8 <= tick.at <= 152 for tick in chart.y_ticks)
