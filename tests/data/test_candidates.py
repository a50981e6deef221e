"""Rewrites and neighbours: found by what a pair is, drawn by number, never lost in silence."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.life.small_run import flip_a_byte, write_candidates, write_config, write_inputs
from unimo_ds.batch import Kind, Source
from unimo_ds.config import RunConfig, load_config
from unimo_ds.data.corpus import Corpus, prepare_corpora
from unimo_ds.data.loader import PretrainingData
from unimo_ds.errors import DataError
from unimo_ds.rewrites import Rewrite, RewrittenCaption, dump_caption, parse_caption, read_rewrites, rewrite_files
from unimo_ds.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("candidates")
    write_inputs(folder)
    write_candidates(folder)
    return folder


def config_of(inputs: Path, *overrides: str) -> RunConfig:
    return load_config(write_config(inputs, "candidates", candidates=True), overrides)


def corpus_of(config: RunConfig, show: bool = False) -> Corpus:
    return prepare_corpora(config.data, config.data.corpora[:1], show)[0]


def data_of(config: RunConfig) -> PretrainingData:
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    return PretrainingData(config, corpora, Tokenizer(config.data.tokenizer), 24, 0, 1)


def written(inputs: Path) -> list[RewrittenCaption]:
    return list(read_rewrites(inputs / "rewrites", pytest.fail))


def text(config: RunConfig, ids: np.ndarray) -> str:
    return Tokenizer(config.data.tokenizer).decode(ids)


def test_every_sample_has_its_own_rewrites_whatever_the_order_of_the_file(inputs: Path, tmp_path: Path) -> None:
    lines = [dump_caption(caption) for caption in written(inputs)]
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("".join(lines[place] for place in np.random.default_rng(0).permutation(len(lines))))
    config = config_of(inputs, f"data.corpora.pairs.rewrites={shuffled}")
    corpus = corpus_of(config)
    of = {(caption.image, caption.text): caption for caption in written(inputs)}
    assert corpus.rewrites is not None and len(corpus) == len(of) + 1
    for sample in range(len(corpus)):
        caption = of.get((corpus.image_key(sample), text(config, corpus.tokens(sample))))
        for source, level in ((Source.SENTENCE, "sentence"), (Source.PHRASE, "phrase"), (Source.WORD, "word")):
            expected = [] if caption is None else [rewrite.text for rewrite in caption.negatives if rewrite.level == level]
            count = corpus.rewrites.count(sample, source)
            assert [text(config, corpus.rewrites.tokens(sample, source, number)) for number in range(count)] == expected
            lengths = [corpus.rewrites.length(sample, source, number) for number in range(count)]
            assert lengths == [len(corpus.rewrites.tokens(sample, source, number)) for number in range(count)]
        positives = [] if caption is None else [rewrite.text for rewrite in caption.positives]
        count = corpus.rewrites.count(sample, Source.OWN)
        assert [text(config, corpus.rewrites.tokens(sample, Source.OWN, number)) for number in range(count)] == positives
    assert corpus.rewrites.manifest["samples_without"] == 1


def test_a_changed_file_is_prepared_anew_and_an_unchanged_one_is_reused(inputs: Path, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    shutil.copyfile(inputs / "rewrites/rewrites-00000-of-00001.jsonl", file)
    config = config_of(inputs, f"data.corpora.pairs.rewrites={file}", f"data.prepared={tmp_path / 'prepared'}")
    for _ in range(2):
        corpus_of(config)
        assert len(list((tmp_path / "prepared").glob("pairs-rewrites-*"))) == 1
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    rewrites = corpus_of(config).rewrites
    assert rewrites is not None and rewrites.manifest["captions"] == 1
    assert len(list((tmp_path / "prepared").glob("pairs-rewrites-*"))) == 2


def test_the_packed_batch_carries_what_was_drawn(inputs: Path) -> None:
    """Each joint candidate is a text of its pair's own record, of the source that it is said to be."""
    config = config_of(inputs, "objectives.candidates.word_negatives=1", "objectives.candidates.images=2")
    data, corpus = data_of(config), corpus_of(config)
    of = {(caption.image, caption.text): caption for caption in written(inputs)}
    seen: Counter[Source] = Counter()
    for step in range(4):
        for item in (item for item in data.items(step) if item.draw.corpus == 0):
            batch = data.pack([item], problems := [])
            assert not problems and batch.positions <= item.positions
            kinds, sources = batch.text_kinds_X.tolist(), batch.text_sources_X.tolist()
            texts = [words_at(config, batch, row) for row in batch.text_rows_X.tolist()]
            own = texts[kinds.index(Kind.PAIR)]
            assert own == text(config, corpus.tokens(item.draw.index)) == texts[kinds.index(Kind.ALONE)]
            caption = of.get((corpus.image_key(item.draw.index), own), RewrittenCaption("", ""))
            for words, kind, source in zip(texts, kinds, sources, strict=True):
                if kind == Kind.POSITIVE:
                    assert words in [rewrite.text for rewrite in caption.positives]
                elif source in (Source.WORD, Source.PHRASE, Source.SENTENCE):
                    level = Source(source).name.lower()
                    assert kind == Kind.NEGATIVE and words in [each.text for each in caption.negatives if each.level == level]
                elif kind == Kind.RETRIEVED:
                    assert words in (inputs / "neighbours/sentences.txt").read_text().splitlines()
                seen[Source(source)] += 1
            found = (batch.image_kinds_I == Kind.RETRIEVED).sum()
            assert found == 2
    assert set(seen) == set(Source) and min(seen.values()) > 5


def words_at(config: RunConfig, batch: object, row: int) -> str:
    starts = batch.cu_seqlens_S1  # type: ignore[attr-defined]
    end = int(starts[torch.searchsorted(starts, torch.tensor(row, dtype=starts.dtype), right=True)])
    inside = (batch.token_rows_W >= row) & (batch.token_rows_W < end)  # type: ignore[attr-defined]
    return text(config, batch.token_ids_W[inside].numpy())  # type: ignore[attr-defined]


def test_without_cmcl_matching_has_joint_candidates_and_nothing_is_encoded_alone(inputs: Path) -> None:
    data = data_of(config_of(inputs, "objectives.cmcl.weight=0", "objectives.matching=1"))
    (batch,) = data[0].batches
    kinds = {*batch.image_kinds_I.tolist(), *batch.text_kinds_X.tolist()}
    assert {Kind.PAIR, Kind.NEGATIVE} <= kinds and not kinds & {Kind.ALONE, Kind.RETRIEVED}


def test_candidates_are_drawn_anew_each_time_a_pair_comes_and_alike_on_every_rank(inputs: Path) -> None:
    config = config_of(inputs, "data.corpora.pairs.per_step=47", "objectives.candidates.texts=1")
    first, again = data_of(config), data_of(config)
    epochs = [{item.draw.index: item.candidates for item in first.items(step) if item.draw.corpus == 0} for step in (0, 1)]
    assert epochs[0] == {item.draw.index: item.candidates for item in again.items(0) if item.draw.corpus == 0}
    both = epochs[0].keys() & epochs[1].keys()
    assert sum(epochs[0][sample] != epochs[1][sample] for sample in both) > len(both) // 2


# --- bad input -------------------------------------------------------------------------------------------------------


def test_lines_that_cannot_be_used_are_named_and_the_others_kept(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = written(inputs)[:3]
    lines = [
        dump_caption(good[0]),
        "{\n",
        dump_caption(RewrittenCaption("0001.jpg", "A caption of no corpus.")),
        json.dumps({"image": "0001.jpg", "text": "a", "negatives": [{"text": "b", "level": "letter"}]}) + "\n",
        json.dumps({"image": "0001.jpg", "text": "a", "negatives": [{"text": "b", "level": "word", "changed": [1]}]}) + "\n",
        dump_caption(good[1]),
        dump_caption(good[2]),
    ]
    file = tmp_path / "rewrites.jsonl"
    file.write_text("".join(lines))
    corpus = corpus_of(config_of(inputs, f"data.corpora.pairs.rewrites={file}"), show=True)
    assert corpus.rewrites is not None and corpus.rewrites.manifest["captions"] == 3
    told = capsys.readouterr().err
    assert "rewrites of pairs: 4 records left out, 3 used" in told
    for words in (
        f"{file}:2: ",
        "'A caption of no corpus.' of image '0001.jpg'",
        f"{file}:4: 'level' is 'letter'",
        ":5: 'changed'",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no file of rewritten captions, nor a folder with rewrites-\*"),
        (["rewrites-00000-of-00002.jsonl"], "the shards are not one whole"),
        (["rewrites-00000-of-00001.jsonl", "rewrites-00000-of-00002.jsonl"], "remove those of an earlier run"),
    ],
)
def test_an_unfinished_folder_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        rewrite_files(tmp_path)


def test_rewrites_of_another_corpus_are_refused(inputs: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(dump_caption(RewrittenCaption("x.jpg", "Another caption.", (), (Rewrite("A third.", "word", ""),))))
    with pytest.raises(DataError, match=r"not one rewritten caption belongs to corpus pairs: .*'Another caption.'"):
        corpus_of(config_of(inputs, f"data.corpora.pairs.rewrites={file}"))


def test_neighbours_of_another_corpus_are_refused(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "neighbours", tmp_path / "neighbours")
    pairs = np.load(tmp_path / "neighbours/pairs.npy")
    np.save(tmp_path / "neighbours/pairs.npy", pairs + np.uint64(1))
    with pytest.raises(DataError, match="holds neighbours of no sample of corpus pairs"):
        corpus_of(config_of(inputs, f"data.corpora.pairs.neighbours={tmp_path / 'neighbours'}"))


def test_a_neighbour_that_points_to_no_image_is_told_and_its_pair_keeps_the_others(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(inputs / "neighbours", tmp_path / "neighbours")
    lines = (inputs / "neighbours/found_images.jsonl").read_text().splitlines()
    lines[3], lines[5] = '[0, "gone.jpg"]', '[4, "0005.jpg"]'
    (tmp_path / "neighbours/found_images.jsonl").write_text("\n".join(lines) + "\n")
    config = config_of(inputs, f"data.corpora.pairs.neighbours={tmp_path / 'neighbours'}")
    corpus = corpus_of(config, show=True)
    told = capsys.readouterr().err
    assert "'gone.jpg' is not in" in told and "store number 4 of 1" in told and "2 records left out" in told
    assert corpus.neighbours is not None
    for sample in range(len(corpus)):
        image = int(corpus.image_key(sample)[:4])
        expected = [(image + step) % 24 for step in (1, 2, 3)]
        assert corpus.neighbours.images(sample).tolist() == [number for number in expected if number not in (3, 5)]


def test_a_damaged_neighbour_costs_itself_and_is_told(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "regions", tmp_path / "regions")
    shutil.copytree(inputs / "neighbours", tmp_path / "neighbours")
    manifest = json.loads((tmp_path / "neighbours/manifest.json").read_text())
    (tmp_path / "neighbours/manifest.json").write_text(json.dumps({**manifest, "stores": [str(tmp_path / "regions")]}))
    config = config_of(inputs, f"data.corpora.pairs.neighbours={tmp_path / 'neighbours'}", "objectives.candidates.images=3")
    neighbours = corpus_of(config).neighbours
    assert neighbours is not None
    flip_a_byte(tmp_path / "regions/shard-00000/data.mdb", neighbours.stores[0].get("0003.jpg").features_RF.tobytes()[:80])
    data = data_of(config)
    steps = [data[step] for step in range(6)]
    problems = [problem for step in steps for problem in step.problems]
    assert problems and all("found image '0003.jpg'" in problem and "left out of this step" in problem for problem in problems)
    assert all(batch.counts().pairs == 6 for step in steps for batch in step.batches)


@pytest.mark.parametrize("broken", ["manifest.json", "pairs.npy", "text_rows.npy"])
def test_unfinished_neighbours_are_refused(inputs: Path, tmp_path: Path, broken: str) -> None:
    shutil.copytree(inputs / "neighbours", tmp_path / "neighbours")
    (tmp_path / "neighbours" / broken).unlink()
    with pytest.raises(DataError, match="not a finished folder of neighbours"):
        corpus_of(config_of(inputs, f"data.corpora.pairs.neighbours={tmp_path / 'neighbours'}"))


def test_a_rewritten_caption_is_read_back_as_it_was_written() -> None:
    caption = RewrittenCaption(
        "tüte.jpg",
        'Ein "Zitat", 1 Zeile.',
        (Rewrite("a", "sentence", "b"),),
        (Rewrite("c d", "word", "object: x -> d", (2, 3)), Rewrite("e", "phrase", "")),
    )
    line = dump_caption(caption)
    assert line.endswith("\n") and line.count("\n") == 1 and "tüte" in line
    assert parse_caption(line) == caption


@pytest.mark.parametrize(
    "line",
    [
        "3",
        "{}",
        '{"image": "a", "text": ""}',
        '{"image": "a", "text": "\\ud800"}',
        '{"image": "a", "text": "b", "negatives": 3}',
    ],
)
def test_what_is_no_rewritten_caption_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"expected|encode"):
        parse_caption(line)
