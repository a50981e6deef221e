"""What a step holds: the same as the planner of the data shares out, and operations by sums of their own."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_plan import StandInCorpus, StandInNeighbours, StandInRewrites, planner
from unimo_ds.batch import Source
from unimo_ds.bench import workload as bench
from unimo_ds.config import CorpusSection, DataSection, ModelSection, ObjectivesSection
from unimo_ds.data.order import Draw
from unimo_ds.planning.workload import DEFAULT_REGIONS, Lengths, Work, lengths_of, micro_batches, sample_work, step_flops

TOKENS, REGIONS = 9, 20


class EvenRewrites(StandInRewrites):
    """All as long as the captions."""

    def length(self, sample: int, source: Source, number: int) -> int:
        return TOKENS


class EvenNeighbours(StandInNeighbours):
    """All as long as the corpus's own."""

    def region_count(self, image: int) -> int:
        return REGIONS

    def length(self, text: int) -> int:
        return TOKENS


def section(kind: str, **more: object) -> CorpusSection:
    formats = {"pairs": "coco_captions", "texts": "plain_text", "images": "regions"}
    return CorpusSection.model_validate(
        {"name": "a", "kind": kind, "format": formats[kind], "path": "x", "regions": "r", **more}
    )


@pytest.mark.parametrize(
    "objectives",
    [
        {},
        {"cmcl": {"weight": 0}},
        {"mlm": 0, "seq2seq": 0, "mrfr": 0, "mrc": 0},
        {"cmcl": {"weight": 0}, "matching": 1},
        {"candidates": {"step_negatives": 3, "word_negatives": 2, "positives": 0, "images": 2, "texts": 3}},
    ],
    ids=["default", "without CMCL", "CMCL alone", "matching", "candidates"],
)
@pytest.mark.parametrize("found", [False, True], ids=["captions alone", "rewrites and neighbours"])
def test_a_pair_has_the_positions_that_the_planner_of_the_data_gives_it(objectives: dict[str, object], found: bool) -> None:
    corpus = StandInCorpus("pairs", [TOKENS] * 8, [REGIONS] * 8)
    corpus.tokens = lambda index: np.full(TOKENS, index)  # type: ignore[method-assign]
    if found:
        corpus.rewrites = EvenRewrites(dict.fromkeys(Source, 5))
        corpus.neighbours = EvenNeighbours(5, 5)
    items = planner(corpus, **objectives).items([Draw(0, index, index) for index in range(8)])
    files = {"rewrites": "r", "neighbours": "n"} if found else {}
    work = sample_work(section("pairs", **files), Lengths(TOKENS, REGIONS), ObjectivesSection.model_validate(objectives))
    assert {item.positions for item in items} == {round(work.positions)}


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_so_do_texts_and_images(kind: str) -> None:
    corpus = StandInCorpus(kind, [100], [REGIONS])
    (item,) = planner(corpus).items([Draw(0, 0, 0)])
    assert item.positions == sample_work(section(kind), Lengths(100, REGIONS), ObjectivesSection()).positions


def test_operations_are_those_of_the_bench_but_for_the_last_layer() -> None:
    model = ModelSection(size="small")
    batch = bench.packed(bench.pairs(6))
    lengths = np.diff(batch.cu_seqlens_S1.numpy()).astype(float)
    words = len(batch.language_rows_M)
    work = Work(positions=batch.positions, attended=float((lengths**2).sum()), vectors=len(batch.features_RF), words=words)
    saved = 3 * 2 * 9 * model.hidden_size**2 * (batch.positions - words)
    assert step_flops(work, model, recomputed=False) == pytest.approx(bench.useful_flops(batch, model) + saved, rel=1e-12)
    layers = model.layers * (24 * model.hidden_size**2 * work.positions + 4 * model.hidden_size * work.attended)
    assert step_flops(work, model, True) - step_flops(work, model, False) == pytest.approx(layers, rel=1e-9)


def test_lengths_are_read_from_the_newest_prepared_folder_of_that_name(tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    manifests = {
        "a-0123": {"name": "a", "samples": 10, "tokens": 50, "images": 4},
        "ab-0123": {"name": "ab", "samples": 10, "tokens": 9, "images": 4},
        "a-rewrites-0123": {"corpus": "a", "captions": 10},
    }
    for name, manifest in manifests.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text(json.dumps(manifest))
        np.save(folder / name / "region_counts.npy", np.array([10, 20, 200, 30]))
    corpora = [section("pairs").model_dump()]
    data = DataSection.model_validate({"corpora": corpora, "tokenizer": "t", "prepared": folder, "max_regions": 36})
    assert lengths_of(section("pairs"), data) == Lengths(5.0, (10 + 20 + 36 + 30) / 4, 4, prepared=True)
    assert lengths_of(section("pairs", name="c"), data).regions == DEFAULT_REGIONS
    assert not lengths_of(section("pairs", name="c"), data).prepared


def test_a_step_is_split_as_the_budget_wants() -> None:
    assert [micro_batches(1000, ranks, budget=100) for ranks in (1, 3, 10, 64)] == [10, 4, 1, 1]
