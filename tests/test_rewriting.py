"""From a file of captions to finished shards: processes, kills, bad input, and what is said of it."""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from unimo_ds import rewriting
from unimo_ds.errors import ConfigError, DataError
from unimo_ds.rewrites import RewrittenCaption, read_rewrites
from unimo_ds.rewriting import RewritePlan, rewrite_captions

COLOURS = ("red", "blue", "green", "black")
THINGS = ("cup", "ball", "hat", "chair", "box", "drum")

STOPS_IN_THE_FOURTH_CHUNK = """
import os, signal, sys
from pathlib import Path
from unimo_ds import rewriting

dump_caption, dumped = rewriting.dump_caption, []

def dump(caption):
    dumped.append(caption)
    if len(dumped) == 28:
        os.kill(os.getpid(), signal.SIGSTOP)
    return dump_caption(caption)

rewriting.dump_caption = dump
captions, out = map(Path, sys.argv[1:])
rewriting.rewrite_captions(rewriting.RewritePlan(captions, out, translator="none", negatives=12, chunk=8))
"""

HOLDS_A_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(1.5)
"""


class Parrot:
    """A translator whose variants are a paraphrase, the caption again, and something else; a translator in a test's hand."""

    name = "parrot"

    def __init__(self, *_: object) -> None:
        pass

    def back_translate(self, texts: Sequence[str]) -> list[list[str]]:
        return [
            [text.replace("A ", "There is a ", 1), text.upper(), "Two dogs run.", text.replace("cup", "hat")] for text in texts
        ]


@pytest.fixture
def plan(tmp_path: Path) -> RewritePlan:
    """Forty images of two captions, in chunks of eight captions."""
    records = []
    for number in range(40):
        colour, other = COLOURS[number % 4], COLOURS[(number + 1 + number // 4 % 3) % 4]
        thing, below = THINGS[number % 6], THINGS[(number + 1 + number % 5) % 6]
        records.append({"image": f"{number}.jpg", "text": f"A {colour} {thing} on a {other} {below}."})
        records.append({"image": f"{number}.jpg", "text": f"A picture of a {colour} {thing} and a {other} {below}."})
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps(record) + "\n" for record in records))
    return RewritePlan(captions, tmp_path / "out", translator="none", negatives=12, chunk=8)


def with_changes(plan: RewritePlan, **changes: object) -> RewritePlan:
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def lines(out: Path) -> list[str]:
    return sorted(line for file in out.glob("rewrites-*.jsonl") for line in file.read_text(encoding="utf-8").splitlines())


def captions(out: Path) -> dict[tuple[str, str], RewrittenCaption]:
    rejects: list[str] = []
    found = {(caption.image, caption.text): caption for caption in read_rewrites(out, rejects.append)}
    assert not rejects
    return found


def test_every_caption_gets_negatives_of_all_levels_and_never_its_own_image(plan: RewritePlan) -> None:
    result = rewrite_captions(plan)
    assert (result.captions, result.rejected, result.written, result.finished) == (80, 0, 80, True)
    found = captions(plan.out)
    assert len(found) == 80
    texts_of: dict[str, set[str]] = {}
    for image, text in found:
        texts_of.setdefault(image, set()).add(text)
    for (image, _), caption in found.items():
        negatives = [rewrite.text for rewrite in caption.negatives]
        assert 4 <= len(set(negatives)) == len(negatives) <= 12
        assert not texts_of[image] & set(negatives)
        assert {"sentence", "word"} <= {rewrite.level for rewrite in caption.negatives}
        for rewrite in caption.negatives:
            assert rewrite.reason
            if rewrite.level == "sentence":
                other = rewrite.reason.split()[2].rstrip(",")
                assert rewrite.text in texts_of[other] and other != image
    assert result.tally.rewrites.total() == sum(len(caption.negatives) for caption in found.values())
    assert sorted(path.name for path in plan.out.iterdir() if path.suffix != ".lock") == [
        "report-00000-of-00001.json",
        "rewrites-00000-of-00001.jsonl",
        "rewriting.json",
        "vocabulary.json",
    ]


@pytest.mark.long
def test_processes_and_shards_change_nothing(plan: RewritePlan, tmp_path: Path) -> None:
    rewrite_captions(plan)
    two = with_changes(plan, out=tmp_path / "two", processes=2)
    assert rewrite_captions(two).finished
    three = with_changes(plan, out=tmp_path / "three")
    parts = [rewrite_captions(with_changes(three, shards=3, shard=shard)) for shard in (2, 0, 1)]
    assert [part.finished for part in parts] == [False, False, True]
    assert sum(part.written for part in parts) == 80
    assert len(list(two.out.glob("rewrites-*-of-00002.jsonl"))) == 2
    assert lines(plan.out) == lines(two.out) == lines(three.out)
    rewrite_captions(with_changes(plan, out=tmp_path / "other seed", seed=2))
    assert lines(plan.out) != lines(tmp_path / "other seed")


def test_a_finished_run_does_nothing_and_other_settings_are_refused(plan: RewritePlan) -> None:
    first = rewrite_captions(plan)
    before = {path: path.stat().st_mtime_ns for path in plan.out.glob("r*")}
    again = rewrite_captions(plan)
    assert (again.written, again.finished, again.tally) == (0, True, first.tally)
    assert {path: path.stat().st_mtime_ns for path in plan.out.glob("r*")} == before
    with pytest.raises(ConfigError, match=r"rewriting\.json.*seed was 1, is now 2"):
        rewrite_captions(with_changes(plan, seed=2))
    with pytest.raises(ConfigError, match="shards was 1, is now 3"):
        rewrite_captions(with_changes(plan, shards=3, shard=0))
    with plan.captions.open("a") as file:
        file.write(json.dumps({"image": "new.jpg", "text": "A new cup."}) + "\n")
    with pytest.raises(ConfigError, match="captions was 80, is now 81"):
        rewrite_captions(plan)


@pytest.mark.long
def test_a_kill_loses_nothing_and_doubles_nothing(plan: RewritePlan, tmp_path: Path) -> None:
    rewrite_captions(with_changes(plan, out=tmp_path / "whole"))
    process = subprocess.Popen([sys.executable, "-c", STOPS_IN_THE_FOURTH_CHUNK, str(plan.captions), str(plan.out)])
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    partial = plan.out / "rewrites-00000-of-00001.jsonl.partial"
    kept = partial.read_bytes()
    assert 24 <= kept.count(b"\n") < 28
    partial.write_bytes(kept + b'{"image": "12.jpg", "te')
    assert not list(plan.out.glob("rewrites-*.jsonl"))
    result = rewrite_captions(plan)
    assert (result.written, result.tally.captions, result.finished) == (56, 80, True)
    assert lines(plan.out) == lines(tmp_path / "whole")


def test_a_partial_file_that_lost_its_end_is_begun_anew(plan: RewritePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting._Shard, "finish", lambda self: None)
    rewrite_captions(plan)
    monkeypatch.undo()
    partial = plan.out / "rewrites-00000-of-00001.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:100])
    assert rewrite_captions(plan).written == 80
    assert len(captions(plan.out)) == 80


@pytest.mark.long
def test_positives_are_kept_only_if_they_say_the_same(plan: RewritePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "ApertiumTranslator", Parrot)
    plan = with_changes(plan, translator="apertium", chunk=80)
    result = rewrite_captions(plan)
    for caption in captions(plan.out).values():
        by_text = {rewrite.text: rewrite for rewrite in caption.positives}
        assert next(iter(by_text)) == caption.text.replace("A ", "There is a ", 1) or caption.text.startswith("A picture")
        assert all(rewrite.level == "sentence" and "similarity 0.9" in rewrite.reason for rewrite in caption.positives)
        assert not any("hat" in text for text in by_text if "hat" not in caption.text)
    assert result.tally.rejects["positive equals caption"] >= 80
    assert result.tally.rejects["meaning of positive, object missing"] >= 80
    assert 40 <= result.tally.rewrites["positives"] <= 240
    assert "positive equals caption" in result.table() and "captions/s" in result.table()
    strict = rewrite_captions(with_changes(plan, minimum_similarity=1.0, out=plan.out / "strict"))
    assert strict.tally.rejects["similarity below 1.0"] == result.tally.rewrites["positives"]


def test_captions_that_cannot_be_rewritten_keep_their_record(plan: RewritePlan, capsys: pytest.CaptureFixture[str]) -> None:
    with plan.captions.open("a") as file:
        file.write('{"image": "0.jpg", "text": ""}\n{"image": "0.jpg"\n{"text": "No image."}\n')
        for text in ("Beautiful!", "Beautiful!", "…", "word " * 1000):
            file.write(json.dumps({"image": "odd.jpg", "text": text}) + "\n")
    result = rewrite_captions(plan)
    assert (result.captions, result.rejected) == (82, 5)
    assert captions(plan.out)["odd.jpg", "…"] == RewrittenCaption("odd.jpg", "…")
    assert ("odd.jpg", "Beautiful!") in captions(plan.out)
    assert result.tally.without["no noun"] == 2 and result.tally.without["no negative"] >= 1
    told = capsys.readouterr().err
    assert f"{plan.captions}: 5 " in told and "captions.jsonl:82:" in told and "is there twice for odd.jpg" in told


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "nowhere.jsonl", "nowhere.jsonl: cannot be read"),
        ("", "empty.jsonl", "empty.jsonl: holds no caption that can be used"),
        ("{", "captions.json", "captions.json:1: is not valid JSON"),
        ("A cup.", "captions.txt", r"expected COCO captions \(.json\) or JSON Lines \(.jsonl\)"),
    ],
)
def test_a_file_without_captions_is_named(plan: RewritePlan, content: str | None, name: str, message: str) -> None:
    path = plan.captions.with_name(name)
    if content is not None:
        path.write_text(content)
    with pytest.raises((DataError, ConfigError), match=message):
        rewrite_captions(with_changes(plan, captions=path))
    assert not plan.out.exists()


def test_wrong_settings_are_named(plan: RewritePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, message in (
        ({"negatives": -1}, "--negatives -1: must be 0 or more"),
        ({"minimum_similarity": 80}, "--minimum-similarity 80: a cosine is between"),
        ({"shards": 2}, "both or neither"),
        ({"shards": 2, "shard": 2}, "--shard 2 of --shards 2"),
        ({"translator": "marian"}, "--marian THERE BACK"),
    ):
        with pytest.raises(ConfigError, match=message):
            rewrite_captions(with_changes(plan, **changes))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"apertium` is not installed(.|\n)*go on without positives: --translator none"):
        rewrite_captions(with_changes(plan, translator="apertium"))


@pytest.mark.parametrize("lock", ["parsed/chunk-000003.lock", "shard-00000.lock"])
def test_what_another_process_does_is_waited_for(plan: RewritePlan, lock: str) -> None:
    (plan.out / "parsed").mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLDS_A_LOCK, str(plan.out / lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    assert rewrite_captions(plan).written == 80
    assert holder.wait(timeout=1) == 0  # it ended first


def test_the_tool_prints_the_table(
    plan: RewritePlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rewrite_captions", str(plan.captions), "--out", str(plan.out), "--negatives", "12", "--translator"]
    monkeypatch.setattr(sys, "argv", [*arguments, "none"])
    runpy.run_path("tools/rewrite_captions.py", run_name="__main__")
    told = capsys.readouterr().out
    assert "rewrote 80 of 80 captions (finished)" in told and "negatives, word" in told
    monkeypatch.setattr(sys, "argv", [*arguments, "marian"])
    with pytest.raises(SystemExit, match=r"^rewrite_captions: --translator marian wants --marian THERE BACK"):
        runpy.run_path("tools/rewrite_captions.py", run_name="__main__")
