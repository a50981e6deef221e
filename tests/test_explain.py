"""`unimo-ds explain`: what it says of a step is what the batches hold and what the loss computes."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import xxhash
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.helpers import random_batch, random_regions
from tests.life import small_run
from unimo_ds.batch import Counts, Kind, Source, Target
from unimo_ds.cli import app
from unimo_ds.config import CmclSection, RunConfig, dump_config, load_config
from unimo_ds.data.corpus import prepare_corpora
from unimo_ds.data.loader import PretrainingData
from unimo_ds.data.order import Draw
from unimo_ds.data.plan import Item
from unimo_ds.data.sequences import IGNORED
from unimo_ds.engine.checkpoint_folder import checkpoint_name, read_model_weights
from unimo_ds.engine.run_log import RunLog, SampleLog
from unimo_ds.errors import CheckpointError, ConfigError, DataError, StoreError
from unimo_ds.explain.command import explain_step
from unimo_ds.explain.page import render_page
from unimo_ds.explain.run import OpenedRun, open_run
from unimo_ds.explain.scores import Scorer, nearest_checkpoint
from unimo_ds.explain.step import Sample, SampleReader, Share, ShownImage, ShownRegion, Summary, choose_samples, summarise
from unimo_ds.explain.terminal import marked, sample_lines
from unimo_ds.explain.views import take_apart
from unimo_ds.explain.words import Piece, find_fragments, pieces_of_difference
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.contrastive import contrastive_losses, score_candidates
from unimo_ds.tokenizer import SEP, Tokenizer

MASKED = ("masked", "random", "kept")
STEP = 5


def write_run(inputs: Path, name: str, **objectives: Any) -> Path:
    """A run folder as pre-training leaves it after step 8, without checkpoints."""
    config = resolved(load_config(small_run.write_config(inputs, name, candidates=True)), objectives)
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    log = RunLog(config.folder, enabled=True)
    log.start(dump_config(config), {corpus.name: corpus.manifest for corpus in corpora}, 2, 0)
    log.write({"step": 8, "loss": 1.0})
    log.close()
    return config.folder


def resolved(config: RunConfig, objectives: dict[str, Any]) -> RunConfig:
    found = {"vocabulary_size": Tokenizer(config.data.tokenizer).size, "feature_width": 24, "region_classes": 20}
    content = config.model_dump(mode="json")
    content["objectives"] |= objectives
    content["model"] |= found
    return RunConfig.model_validate(content)


def state_of(config: RunConfig, step: int) -> dict[str, Any]:
    return {"step": step, "detector": small_run.DETECTOR, "model": config.model.model_dump(mode="json")}


def write_checkpoint(run: Path, step: int, seed: int = 0) -> Path:
    """A whole checkpoint with random weights."""
    config = load_config(run / "config.yaml")
    folder = run / "checkpoints" / checkpoint_name(step)
    shutil.copytree(config.data.tokenizer, folder / "tokenizer")
    torch.manual_seed(seed)
    save_file(UnimoModel(config.model, 0.1).state_dict(), folder / "model.safetensors")
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "state.json").write_text(json.dumps(state_of(config, step)))
    files = {
        path.name: {"bytes": path.stat().st_size, "xxh3_128": xxhash.xxh3_128(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.is_file()
    }
    (folder / "MANIFEST.json").write_text(json.dumps({"step": step, "files": files}))
    return folder


def model_of(checkpoint: Path) -> UnimoModel:
    unimo = UnimoModel(load_config(checkpoint / "config.yaml").model)
    unimo.load_state_dict(read_model_weights(checkpoint))
    return unimo.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For tensors so small, threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    small_run.write_inputs(folder)
    small_run.write_candidates(folder)
    return folder


@pytest.fixture(scope="module")
def run(inputs: Path) -> Path:
    folder = write_run(inputs, "run")
    write_checkpoint(folder, 4)
    return folder


@pytest.fixture(scope="module")
def opened(run: Path) -> OpenedRun:
    return open_run(run, STEP, None)


@pytest.fixture(scope="module")
def samples(run: Path, opened: OpenedRun) -> list[Sample]:
    reader = SampleReader(opened, Scorer(run / "checkpoints/step-00000004", CmclSection()), ["cup", "ball"])
    return [sample for sample in map(reader.read, opened.items) if sample is not None]


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A run folder that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def samples_made_into(run: Path, view: str) -> Iterator[tuple[OpenedRun, Sample, Item]]:
    """Samples of the run that were made into `view`."""
    for step in range(1, 9):
        opened = open_run(run, step, None)
        reader = SampleReader(opened, None, [])
        for item in opened.items:
            sample = reader.read(item)
            if sample is not None and sample.view == view:
                yield opened, sample, item


# Views


def test_a_batch_is_taken_apart_into_what_was_packed() -> None:
    batch = random_batch(3, pairs=3, texts=2, images=2, candidates=True)
    views = take_apart(batch)
    assert len(views) == batch.sequences
    assert np.concatenate([view.ids_n for view in views]).tolist() == batch.token_ids_W.tolist()
    labels = np.concatenate([view.labels_n for view in views])
    assert labels[labels != IGNORED].tolist() == batch.language_labels_M.tolist()
    targets = [
        target for view in views if view.target is not None for target in [view.target] * (view.labels_n != IGNORED).sum()
    ]
    assert targets == batch.language_kinds_M.tolist()
    assert sum(int(view.hidden_r.sum()) for view in views) == len(batch.target_rows_G) > 0
    assert (
        np.concatenate([view.class_ids_hK for view in views if view.hidden_r.any()]).tolist()
        == batch.target_class_ids_GK.tolist()
    )
    lengths = [len(view.ids_n) + (1 + len(view.hidden_r) if len(view.hidden_r) else 0) for view in views]
    assert lengths == batch.cu_seqlens_S1.diff().tolist()
    for kind in Kind:
        texts = [view for view in views if view.kind == kind and len(view.ids_n)]
        assert [view.source for view in texts] == batch.text_sources_X[batch.text_kinds_X == kind].tolist()
        images = sum(view.kind == kind and len(view.hidden_r) > 0 for view in views)
        assert images == int((batch.image_kinds_I == kind).sum())


def test_hidden_regions_keep_their_places() -> None:
    batch = random_batch(5, images=3)
    for view, start in zip(take_apart(batch), batch.cu_seqlens_S1.tolist(), strict=False):
        rows = (np.flatnonzero(view.hidden_r) + start + 1).tolist()
        assert rows == [row for row in batch.target_rows_G.tolist() if start <= row < start + 1 + len(view.hidden_r)]
        vectors = batch.target_sources_G[torch.isin(batch.target_rows_G, torch.tensor(rows))]
        assert np.array_equal(view.boxes_r4[view.hidden_r], batch.boxes_R5[vectors, :4].numpy())


# Words


@pytest.mark.parametrize("view", ["words masked", "words masked, image whole"])
def test_the_masked_words_are_the_labels_of_the_batch(run: Path, view: str) -> None:
    marks: set[str] = set()
    for opened, sample, item in samples_made_into(run, view):
        batch = opened.data.pack([item], [])
        mlm = batch.language_kinds_M == Target.MLM
        true = [opened.tokenizer.token(label).strip() for label in batch.language_labels_M[mlm].tolist()]
        row_of = {row: place for place, row in enumerate(batch.token_rows_W.tolist())}
        seen_ids = [int(batch.token_ids_W[row_of[row]]) for row in batch.language_rows_M[mlm].tolist()]
        seen = ["[MASK]" if seen == opened.tokenizer.mask else opened.tokenizer.token(seen).strip() for seen in seen_ids]
        hidden = [piece for piece in sample.pieces if piece.mark in MASKED]
        assert [piece.other for piece in hidden] == true
        assert [piece.text for piece in hidden] == seen
        tokens = opened.corpora[item.draw.corpus].tokens(item.draw.index)
        assert "".join(
            piece.other if piece.mark in MASKED else piece.text for piece in sample.pieces
        ) == opened.tokenizer.decode(tokens)
        marks |= {piece.mark for piece in hidden}
    assert marks >= {"masked"}


def test_generated_fragments_stand_where_they_were_taken_out(run: Path) -> None:
    found = 0
    for opened, sample, item in samples_made_into(run, "fragments generated"):
        tokens = opened.corpora[item.draw.corpus].tokens(item.draw.index)
        assert "".join(piece.text for piece in sample.pieces) == opened.tokenizer.decode(tokens)
        batch = opened.data.pack([item], [])
        ends = np.flatnonzero(batch.language_labels_M.numpy() == SEP)  # the end of a fragment is generated too
        fragments = [part for part in np.split(batch.language_labels_M.numpy(), ends + 1) if len(part)]
        generated = [piece.text for piece in sample.pieces if piece.mark == "generated"]
        assert generated == [opened.tokenizer.decode(fragment) for fragment in fragments]
        found += 1
    assert found > 3


def test_a_generated_caption_is_marked_whole(run: Path) -> None:
    opened, sample, item = next(samples_made_into(run, "caption generated after the image"))
    caption = opened.tokenizer.decode(opened.corpora[0].tokens(item.draw.index))
    assert sample.pieces == [Piece(caption, "", "generated")]


def test_fragments_are_found_where_words_repeat() -> None:
    assert find_fragments([1, 2, 1, 2, 3], [1, 2], [[1, 2, 3]]) == [2]
    assert find_fragments([1, 1, 1, 2], [1, 1], [[1, 2]]) == [2]
    assert find_fragments([5, 6, 7, 8], [], [[5, 6], [7, 8]]) == [0, 2]
    assert find_fragments([9, 5, 9, 5, 4], [9, 4], [[5, 9], [5]]) == [1, 3]
    with pytest.raises(ValueError, match="do not fit"):
        find_fragments([1, 2, 3], [1], [[3, 2]])


@pytest.mark.parametrize(
    ("caption", "text", "shown"),
    [
        ("A red cup on a table.", "A blue cup on a table.", "A {red→blue} cup on a table."),
        ("A red cup on a table.", "A cup on a table.", "A {red→} cup on a table."),
        ("A cup on a table.", "A cup on a small table.", "A cup on a {→small} table."),
        ("A cup, on a table.", "A cup on a table!", "A cup{,→} on a table{.→!}"),
        ("A red cup on a table.", "Two green fish swim.", "Two green fish swim."),
        ("A red cup.", "A red cup.", "A red cup."),
    ],
)
def test_changed_words_are_marked(caption: str, text: str, shown: str) -> None:
    assert marked(pieces_of_difference(caption, text)) == shown


# Samples and scores


def test_every_sample_of_the_step_is_read(opened: OpenedRun, samples: list[Sample]) -> None:
    assert [(sample.corpus, sample.draw, sample.index) for sample in samples] == [
        (opened.corpora[item.draw.corpus].name, item.draw.number, item.draw.index) for item in opened.items
    ]
    assert {sample.kind: bool(sample.candidates) for sample in samples} == {"pairs": True, "texts": False, "images": False}
    for sample, item in zip(samples, opened.items, strict=True):
        assert item.draw in data_of(opened, sample.rank)[STEP - 1].draws


def data_of(opened: OpenedRun, rank: int) -> PretrainingData:
    return PretrainingData(opened.config, opened.corpora, opened.tokenizer, 24, rank, 2)


@pytest.mark.parametrize(("in_batch", "positives"), [(1.0, "each"), (0.0, "each"), (1.0, "summed")])
def test_scores_are_those_of_the_loss(
    run: Path, opened: OpenedRun, in_batch: float, positives: Literal["each", "summed"]
) -> None:
    """All pairs in one batch, through the loss's own functions, against one pair at a time."""
    cmcl, checkpoint = CmclSection(in_batch=in_batch, positives=positives), run / "checkpoints/step-00000004"
    unimo, reader = model_of(checkpoint), SampleReader(opened, Scorer(checkpoint, cmcl), [])
    pairs = [item for item in opened.items if item.candidates]
    samples = [sample for sample in map(reader.read, pairs) if sample is not None]
    batch = opened.data.pack(pairs, [])
    with torch.no_grad():
        outputs = unimo(batch)
        candidates = score_candidates(outputs, batch)
        loss, _ = contrastive_losses(outputs, batch, candidates, cmcl)
    assert len(samples) == len(pairs)
    for pair, sample in enumerate(samples):
        mine = candidates.pairs_J == pair
        fits = (candidates.scores_J[mine] * outputs.temperature).tolist()
        assert [candidate.fit for candidate in sample.candidates] == pytest.approx(fits, abs=1e-5)
        assert [candidate.positive for candidate in sample.candidates] == (candidates.kinds_J[mine] != Kind.NEGATIVE).tolist()
        shares = [candidate.share is not None for candidate in sample.candidates]
        apart = in_batch > 0 and positives == "each"
        assert shares == [not (apart and candidate.role.startswith("retrieved")) for candidate in sample.candidates]
        assert math.fsum(candidate.share or 0 for candidate in sample.candidates) == pytest.approx(1)
        if positives == "summed":
            assert sample.loss == pytest.approx(-math.log(sample.positive_share), rel=1e-4)
        words = (candidates.sources_J[mine] == Source.WORD).tolist()
        assert [candidate.role == "negative, word" for candidate in sample.candidates] == words
    assert math.fsum(sample.loss or 0 for sample in samples) == pytest.approx(float(loss), rel=1e-4)


def test_a_negative_that_scores_no_lower_is_marked(samples: list[Sample]) -> None:
    marks = []
    for sample in samples:
        for candidate in sample.candidates:
            own, fit = sample.candidates[0].fit, candidate.fit
            assert own is not None and fit is not None
            assert candidate.beats == (candidate.role.startswith("negative") and fit >= own)
            marks += [candidate.beats] if not candidate.positive else []
    assert any(marks) and not all(marks)


def test_candidates_are_what_the_files_hold(inputs: Path, opened: OpenedRun, samples: list[Sample]) -> None:
    rewrites = [json.loads(line) for line in (inputs / "rewrites/rewrites-00000-of-00001.jsonl").read_text().splitlines()]
    sentences = (inputs / "neighbours/sentences.txt").read_text().splitlines()
    by_pair = {(line["image"], line["text"]): line for line in rewrites}
    roles: set[str] = set()
    for sample in samples:
        if not sample.candidates or sample.image is None:
            continue
        key, caption = sample.image.key, "".join(piece.text for piece in sample.candidates[0].pieces)
        line = by_pair.get((key, caption), {"positives": [], "negatives": []})
        for candidate in sample.candidates[1:]:
            text = "".join(piece.text for piece in candidate.pieces)
            level = candidate.role.removeprefix("negative, ")
            if candidate.role == "positive, rewritten":
                assert text in [rewrite["text"] for rewrite in line["positives"]]
            elif level in ("sentence", "phrase", "word"):
                assert text in [rewrite["text"] for rewrite in line["negatives"] if rewrite["level"] == level]
            elif candidate.role == "retrieved text":
                assert text in sentences
            elif candidate.image is not None:
                own = int(key.split(".")[0])
                assert candidate.image.key in [f"{(own + step) % 24:04}.jpg" for step in (1, 2, 3)]
            roles.add(candidate.role)
        changed = [candidate for candidate in sample.candidates if candidate.role == "negative, word"]
        assert all(any(piece.mark == "changed" for piece in candidate.pieces) for candidate in changed)
    assert len(roles) == 7


def test_class_names_are_used_where_known(opened: OpenedRun, samples: list[Sample]) -> None:
    labels = {region.label for sample in samples if sample.image for region in sample.image.regions}
    assert {"cup", "ball", "background"} < labels
    assert "class 3" in labels and "class 1" not in labels


def test_the_summary_counts_all_ranks(opened: OpenedRun) -> None:
    summary = summarise(opened)
    assert [(name, count) for name, _, count, _ in summary.corpora] == [("pairs", 6), ("texts", 3), ("images", 3)]
    assert sum(count for _, count in summary.views) == 12
    parts = [data_of(opened, rank)[STEP - 1] for rank in (0, 1)]
    counts = sum((batch.counts() for part in parts for batch in part.batches), Counts(0, 0, 0, 0, 0))
    assert summary.counts == counts
    assert [part.samples for part in summary.shares] == [len(part.draws) for part in parts]
    assert dict(summary.candidates)["negative, word"] == sum(
        candidate.source == Source.WORD for item in opened.items for candidate in item.candidates
    )


def test_a_run_without_cmcl_shows_the_matching_head(inputs: Path) -> None:
    folder = write_run(inputs, "matching", cmcl={"weight": 0.0}, matching=1.0)
    checkpoint = write_checkpoint(folder, 4)
    opened = open_run(folder, STEP, None)
    item = next(item for item in opened.items if item.candidates)
    sample = SampleReader(opened, Scorer(checkpoint, opened.config.objectives.cmcl), []).read(item)
    assert sample is not None and sample.loss is None
    batch = opened.data.pack([item], [])
    with torch.no_grad():
        logits = model_of(checkpoint)(batch).matching_logits_J
    assert [candidate.fit for candidate in sample.candidates] == pytest.approx(logits.sigmoid().tolist())
    assert "P(true)" in explain_step(folder, STEP).text


@pytest.mark.parametrize(
    ("limit", "kept"), [(1, [1, 0, 0]), (3, [1, 1, 1]), (8, [6, 1, 1]), (40, [32, 4, 4]), (99, [32, 4, 4])]
)
def test_every_corpus_has_its_part_of_the_shown_samples(limit: int, kept: list[int]) -> None:
    items = [Item(Draw(corpus, number, 0), (), 1) for corpus, count in ((0, 4), (1, 32), (2, 4)) for number in range(count)]
    chosen = choose_samples(items, ["texts", "pairs", "images"], limit)
    assert [sum(item.draw.corpus == corpus for item in chosen) for corpus in (1, 0, 2)] == kept
    assert [item.draw.corpus for item in chosen[: kept[0]]] == [1] * kept[0]


# Checkpoints


def test_the_nearest_whole_checkpoint_is_chosen(copied: Path) -> None:
    folder = copied / "checkpoints"
    for step in (8, 12):
        write_checkpoint(copied, step)
    notes: list[str] = []
    assert [str(nearest_checkpoint(folder, step, notes))[-2:] for step in (1, 4, 7, 8, 11)] == ["04", "04", "04", "08", "08"]
    assert not notes
    (folder / "step-00000008/model.safetensors").write_bytes(b"")
    assert str(nearest_checkpoint(folder, 11, notes)).endswith("04")
    assert len(notes) == 1 and "step-00000008" in notes[0]
    assert nearest_checkpoint(copied / "nothing", 3, notes) is None


def test_an_earlier_step_says_that_the_checkpoint_is_later(run: Path) -> None:
    assert "the first one after this step" in flat(explain_step(run, 2).text)
    assert "the newest one up to this step" in flat(explain_step(run, 4).text)


def test_without_a_checkpoint_the_similarities_are_left_out(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    explanation = explain_step(copied, STEP)
    assert "left out, because the run has no whole checkpoint" in flat(explanation.text)
    assert "%" not in explanation.text and "negative, word" in explanation.text
    page = explanation.page.read_text()
    assert "left out, because" in page and '<th scope="col">d</th>' not in page


def test_a_chosen_checkpoint_must_be_whole_and_of_the_same_inputs(copied: Path) -> None:
    other = write_checkpoint(copied, 12, seed=1)
    assert "at step-00000012, after 12 updates (as chosen)" in flat(explain_step(copied, STEP, checkpoint=other).text)
    (other / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        explain_step(copied, STEP, checkpoint=other)
    (other / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        explain_step(copied, STEP, checkpoint=other)


def test_a_checkpoint_of_another_detector_is_refused(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    checkpoint = write_checkpoint(copied, 4)
    state = state_of(load_config(copied / "config.yaml"), 4)
    rewrite_state(checkpoint, {**state, "detector": {**small_run.DETECTOR, "weights_sha256": "1" * 64}})
    with pytest.raises(StoreError, match="another detector"):
        explain_step(copied, STEP)


def rewrite_state(checkpoint: Path, state: dict[str, Any]) -> None:
    path, manifest = checkpoint / "state.json", checkpoint / "MANIFEST.json"
    path.write_text(json.dumps(state))
    content = json.loads(manifest.read_text())
    content["files"]["state.json"] = {"bytes": path.stat().st_size, "xxh3_128": xxhash.xxh3_128(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(content))


def test_a_checkpoint_of_another_version_costs_the_similarities(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    config = load_config(copied / "config.yaml")
    checkpoint, state = write_checkpoint(copied, 4), state_of(config, 4)
    rewrite_state(checkpoint, {**state, "model": {**state["model"], "layers": 3}})
    assert "left out" in explain_step(copied, STEP).text
    with pytest.raises(CheckpointError, match="another version"):
        explain_step(copied, STEP, checkpoint=checkpoint)


# The run and its data


@pytest.mark.parametrize("step", [0, -1, 13])
def test_an_unknown_step_is_an_error(run: Path, step: int) -> None:
    with pytest.raises(ConfigError, match=rf"--step {step}: .* from 1 to 12"):
        explain_step(run, step)


def test_a_step_that_the_log_has_not_reached_is_said_so(run: Path) -> None:
    assert "ends at step 8: step 9 may not" in flat(explain_step(run, 9).text)
    assert "may not" not in explain_step(run, 8).text


def test_no_run_and_no_pictures_are_errors(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        explain_step(tmp_path, 1)
    with pytest.raises(ConfigError, match="--images"):
        explain_step(run, 1, images=tmp_path / "none")


def test_changed_data_is_noticed(tmp_path: Path) -> None:
    small_run.write_inputs(tmp_path, images=8)
    small_run.write_candidates(tmp_path)
    folder = write_run(tmp_path, "run")
    assert "note:" not in explain_step(folder, STEP).text
    captions = tmp_path / "captions.json"
    later = captions.stat().st_mtime + 60
    os.utime(captions, (later, later))
    assert f"note: written again since the run was started: {captions};" in flat(explain_step(folder, STEP, width=400).text)
    content = json.loads(captions.read_text())
    captions.write_text(json.dumps({**content, "annotations": content["annotations"][:-1]}))
    with pytest.raises(DataError, match=r"corpus pairs .*samples: 16 then, 15 now"):
        explain_step(folder, STEP)
    captions.unlink()
    with pytest.raises(DataError, match=r"its data is gone, or was moved: .*captions\.json"):
        explain_step(folder, STEP)


def test_a_damaged_image_costs_its_samples(tmp_path: Path) -> None:
    small_run.write_inputs(tmp_path, images=8)
    small_run.write_candidates(tmp_path)
    folder = write_run(tmp_path, "run")
    assert "not shown" not in explain_step(folder, STEP).text
    rng = np.random.default_rng(0)
    victim = random_regions(rng, int(rng.integers(5, 12))).features_RF.tobytes()[:64]  # of the first image written
    small_run.flip_a_byte(tmp_path / "regions/shard-00000/data.mdb", victim)
    assert "'0000.jpg'" in explain_step(folder, STEP).text
    steps = [flat(explain_step(folder, step, width=400).text) for step in range(1, 9)]
    assert any("note: left out in training: corpus pairs, sample" in text and "not shown" in text for text in steps)
    assert any("found image '0000.jpg'" in text for text in steps)


def test_other_samples_than_were_logged_are_an_error(copied: Path, opened: OpenedRun) -> None:
    log = SampleLog(copied, 0, enabled=True)
    log.write(STEP, [(item.draw.corpus, item.draw.number, item.draw.index) for item in opened.items])
    assert open_run(copied, STEP, None).items == opened.items
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace("seed: 1", "seed: 2"))
    with pytest.raises(DataError, match="trained on other samples"):
        open_run(copied, STEP, None)


def test_ranks_are_those_of_the_start_that_did_the_step(copied: Path) -> None:
    receipt = json.loads((copied / "receipt.json").read_text())
    receipt["starts"].append({**receipt["starts"][0], "from_step": 4, "world_size": 3})
    (copied / "receipt.json").write_text(json.dumps(receipt))
    assert [open_run(copied, step, None).ranks for step in (4, 5)] == [2, 3]
    assert open_run(copied, 5, 1).ranks == 1
    assert "over 3 ranks" in flat(explain_step(copied, 5).text)


# Text and page


def flat(text: str) -> str:
    return " ".join(text.split())


class Balanced(HTMLParser):
    """Checks that tags are closed in order, and collects tags and text."""

    void = frozenset({"meta", "link", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_and_text_tell_of_the_same_samples(run: Path) -> None:
    explanation = explain_step(run, STEP, samples=7)
    assert explanation.page == run / "explain/step-00000005.html"
    page = explanation.page.read_text()
    parsed = Balanced(page)
    assert parsed.tags.count("section") == 7 and "5 more samples of this step are not shown" in explanation.text
    assert "7 of 12; the others are not shown" in parsed.text
    assert "<image" not in page and "http" not in page.replace("http-equiv", "") and "<script" not in page
    for item in open_run(run, STEP, None).items[:3]:
        assert f"(draw {item.draw.number:,})" in explanation.text and f"draw {item.draw.number:,} of" in parsed.text


def test_terminal_lines_keep_to_the_width(samples: list[Sample]) -> None:
    for width in (60, 100):
        for sample in samples:
            lines = sample_lines(1, sample, width)
            table = [line for line in lines if line.startswith("   + ") or line.startswith("   - ")]
            assert len(table) == len(sample.candidates)
            assert all(len(line) <= max(width, 75) for line in lines)


def test_pictures_are_in_the_page_where_there_are_any(run: Path, tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (200, 160), "green").save(tmp_path / f"{number:04}.jpg")
    page = explain_step(run, STEP, images=tmp_path).page.read_text()
    Balanced(page)
    assert page.count("data:image/jpeg;base64,") > 5 and "missing: " in page


def test_everything_in_the_page_is_escaped() -> None:
    evil = '<script>alert("&")</script>'
    region = ShownRegion((0.1, 0.1, 0.5, 0.5), evil, 0.5, hidden=True)
    image = ShownImage(f'"{evil}.jpg', 200, 160, [region])
    marks = ("", "masked", "random", "kept", "generated", "changed")
    sample = Sample(evil, "pairs", 1, 2, 0, 0, 9, evil, [Piece(evil, evil, mark) for mark in marks], image, [], None)
    counts = Counts(1, 2, 3, 4, 5)
    summary = Summary([(evil, "pairs", 1, 2)], [(evil, 1)], [(evil, 1)], counts, 1, 1, [Share(0, 0, 1, counts)], [])
    page = render_page(evil, Path(evil), summary, evil, [evil], [sample], Path("nowhere"))
    assert "<script" not in page
    assert Balanced(page).text.count(evil) > 12


def test_the_command_line(run: Path) -> None:
    result = CliRunner().invoke(app, ["explain", str(run), "--step", "4", "--samples", "2", "--ranks", "3"])
    assert result.exit_code == 0 and "over 3 ranks" in flat(result.output) and "step-00000004.html" in result.output
    assert isinstance(CliRunner().invoke(app, ["explain", str(run), "--step", "0"]).exception, ConfigError)
