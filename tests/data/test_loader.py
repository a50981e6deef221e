"""Steps as ranks see them: the same plan everywhere, the same view of a sample everywhere, damage stepped over."""

import itertools
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.life.small_run import flip_a_byte, write_config, write_inputs
from unimo_ds.batch import Batch, Kind, Target
from unimo_ds.config import RunConfig, load_config
from unimo_ds.data.corpus import prepare_corpora
from unimo_ds.data.loader import PretrainingData, StepData, load_steps
from unimo_ds.data.order import Mixture, order
from unimo_ds.data.plan import Planner, share
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import ConfigError
from unimo_ds.regions import Regions
from unimo_ds.tokenizer import Tokenizer

WIDTH = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    write_inputs(folder)
    return folder


def config_of(inputs: Path, *overrides: str) -> RunConfig:
    return load_config(write_config(inputs, "loader"), overrides)


def data_of(config: RunConfig, rank: int = 0, world: int = 1) -> PretrainingData:
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    return PretrainingData(config, corpora, Tokenizer(config.data.tokenizer), WIDTH, rank, world)


def sequences(batch: Batch) -> Counter[tuple[object, ...]]:
    """Each sequence by what it shows and asks, wherever it stands in the stream."""
    ids, asked = torch.full((batch.positions,), -7), torch.full((batch.positions,), -7)
    ids[batch.token_rows_W] = batch.token_ids_W
    ids[batch.region_rows_L] = -1 - batch.region_hidden_L.long()
    asked[batch.language_rows_M] = batch.language_labels_M
    sums = torch.zeros(batch.positions).index_copy(
        0, batch.region_rows_L, batch.features_RF[batch.region_sources_L].float().sum(1)
    )
    starts = batch.cu_seqlens_S1.tolist()
    return Counter(
        (tuple(ids[a:b].tolist()), tuple(asked[a:b].tolist()), tuple(sums[a:b].tolist()), prefix)
        for a, b, prefix in zip(starts, starts[1:], batch.prefix_lengths_S.tolist(), strict=False)
    )


def everything(steps: list[StepData[Batch]]) -> Counter[tuple[object, ...]]:
    return sum((sequences(batch) for data in steps for batch in data.batches), Counter())


@pytest.mark.parametrize("world", [2, 3])
def test_a_sample_is_the_same_on_whichever_rank_it_falls(inputs: Path, world: int) -> None:
    config = config_of(inputs)
    for step in range(4):
        whole = everything([data_of(config)[step]])
        assert everything([data_of(config, rank, world)[step] for rank in range(world)]) == whole


def test_budget_splits_a_step_alike_on_all_ranks_and_changes_no_sample(inputs: Path) -> None:
    roomy, tight = config_of(inputs), config_of(inputs, "data.positions_per_micro_batch=260")
    ranks = [data_of(tight, rank, 2)[3] for rank in range(2)]
    assert len(ranks[0].batches) == len(ranks[1].batches) > 1
    assert all(batch.positions <= 260 for data in ranks for batch in data.batches)
    assert everything(ranks) == everything([data_of(roomy)[3]])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_over_the_budget_is_refused_with_the_key(inputs: Path, workers: int) -> None:
    """In the user's words, whichever process has met it."""
    data = data_of(config_of(inputs, "data.positions_per_micro_batch=20"))
    with pytest.raises(ConfigError, match=r"^data.positions_per_micro_batch = 20: sample .* alone needs"):
        next(load_steps(data, 0, 1, workers, 2))


def test_the_planned_length_is_never_exceeded(inputs: Path) -> None:
    config = config_of(inputs, "objectives.candidates.step_negatives=3")
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    planner = Planner(corpora, config.objectives, config.data.max_regions, config.seed)
    mixture = Mixture(tuple(c.section.per_step for c in corpora), tuple(map(len, corpora)))
    data = data_of(config)
    for step in range(12):
        items = planner.items(order(config.seed, mixture, step))
        assert data[step].batches[0].positions <= sum(item.positions for item in items)
        for item in items:
            group = corpora[item.draw.corpus].image_group(item.draw.index) if item.candidates else None
            lenders = [candidate.lender for candidate in item.candidates if candidate.lender is not None]
            assert all(corpora[n.corpus].image_group(n.index) != group for n in lenders)
        for bins in share(items, 3, 400):
            assert all(sum(item.positions for item in members) <= 400 for members in bins)


def test_worker_processes_change_nothing(inputs: Path) -> None:
    data = data_of(config_of(inputs))
    for straight, prepared in zip(load_steps(data, 2, 6, 0, 2), load_steps(data, 2, 6, 2, 2), strict=True):
        assert straight.step == prepared.step and straight.draws == prepared.draws
        for ours, theirs in zip(straight.batches, prepared.batches, strict=True):
            assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in Batch.__dataclass_fields__)


def test_a_damaged_image_costs_its_samples_and_nothing_else(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "regions", tmp_path / "regions")
    data_file = tmp_path / "regions/shard-00000/data.mdb"
    overrides = [f"data.corpora.{name}.regions={tmp_path / 'regions'}" for name in ("pairs", "images")]
    config = config_of(inputs, *overrides)
    key, whole = "0003.jpg", [data_of(config)[step] for step in range(8)]
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    store = corpora[0].store
    assert store is not None
    flip_a_byte(data_file, store.get(key).features_RF.tobytes()[:80])
    store._verified.clear()
    data = data_of(config)
    problems = 0
    for step, before in enumerate(whole):
        after = data[step]
        hurt = [
            draw
            for draw in after.draws
            if corpora[draw.corpus].section.kind != "texts" and corpora[draw.corpus].image_key(draw.index) == key
        ]
        assert len(after.problems) == len(hurt)
        named = [f"corpus {corpora[draw.corpus].name}, sample {draw.index} left out of this step: " for draw in hurt]
        assert all(problem.startswith(name) for problem, name in zip(sorted(after.problems), sorted(named), strict=True))
        assert all(f"{tmp_path / 'regions'}: image {key!r}: the checksum" in problem for problem in after.problems)
        lost = everything([before]) - everything([after])
        assert bool(lost) == bool(hurt) and not everything([after]) - everything([before])
        problems += len(hurt)
    assert problems > 0


def test_an_image_that_its_store_has_lost_costs_its_samples_and_nothing_else(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed byte of a key inside LMDB looks like that."""
    config = config_of(inputs)
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    lost, get = "0003.jpg", RegionStore.get

    def get_or_lose(store: RegionStore, key: str) -> Regions:
        if key == lost:
            raise KeyError(key)
        return get(store, key)

    monkeypatch.setattr(RegionStore, "get", get_or_lose)
    seen = 0
    for step in range(6):
        data = data_of(config)[step]
        with_images = [draw for draw in data.draws if corpora[draw.corpus].section.kind != "texts"]
        hurt = [draw for draw in with_images if corpora[draw.corpus].image_key(draw.index) == lost]
        assert len(data.problems) == len(hurt)
        assert all(f"image '{lost}' is no longer found" in problem for problem in data.problems)
        assert sum(batch.counts().pairs for batch in data.batches) == 6 - sum(draw.corpus == 0 for draw in hurt)
        seen += len(hurt)
    assert seen > 0


@pytest.mark.parametrize(
    ("override", "count"),
    [("objectives.mlm=0", "mlm"), ("objectives.seq2seq=0", "seq2seq"), ("objectives.cmcl.weight=0", "pairs")],
)
def test_an_objective_that_is_off_has_no_targets(inputs: Path, override: str, count: str) -> None:
    data = data_of(config_of(inputs, override))
    assert sum(getattr(batch.counts(), count) for step in range(4) for batch in data[step].batches) == 0
    on = data_of(config_of(inputs))
    assert sum(getattr(batch.counts(), count) for step in range(4) for batch in on[step].batches) > 0


def test_a_text_too_short_to_lose_a_fragment_has_words_masked(inputs: Path, tmp_path: Path) -> None:
    """Else half of the short texts would be drawn and give nothing."""
    (tmp_path / "short.txt").write_text("\n\n".join(["a"] * 6))
    texts_alone = ["data.corpora.pairs.per_step=0", "data.corpora.images.per_step=0"]
    data = data_of(config_of(inputs, f"data.corpora.texts.path={tmp_path / 'short.txt'}", *texts_alone))
    for step in range(6):
        (batch,) = data[step].batches
        assert batch.sequences == 3 and batch.counts().mlm == 3 and batch.counts().seq2seq == 0


def test_regions_are_hidden_unless_both_objectives_are_off(inputs: Path) -> None:
    off = data_of(config_of(inputs, "objectives.mrfr=0", "objectives.mrc=0"))
    assert sum(batch.counts().regions for step in range(4) for batch in off[step].batches) == 0
    half = data_of(config_of(inputs, "objectives.mrfr=0"))
    assert sum(batch.counts().regions for step in range(4) for batch in half[step].batches) > 0


def test_nothing_that_cmcl_sees_is_masked(inputs: Path) -> None:
    data = data_of(config_of(inputs))
    mask = Tokenizer(config_of(inputs).data.tokenizer).mask
    for step in range(4):
        for batch in data[step].batches:
            ids = torch.full((batch.positions,), -1)
            ids[batch.token_rows_W] = batch.token_ids_W
            hidden = torch.zeros(batch.positions, dtype=torch.bool)
            hidden[batch.region_rows_L] = batch.region_hidden_L
            starts = set(batch.image_rows_I.tolist()) | set(batch.text_rows_X[batch.text_kinds_X == Kind.ALONE].tolist())
            for a, b in zip(batch.cu_seqlens_S1.tolist(), batch.cu_seqlens_S1.tolist()[1:], strict=False):
                if a in starts:
                    assert not (ids[a:b] == mask).any() and not hidden[a:b].any()


SETTINGS = {
    "everything": [],
    "many hard negatives": ["objectives.candidates.step_negatives=9"],
    "no contrast": ["objectives.cmcl.weight=0"],
    "contrast alone": [f"objectives.{name}=0" for name in ("mlm", "seq2seq", "mrfr", "mrc")],
    "generation alone": [f"objectives.{name}=0" for name in ("mlm", "mrfr", "mrc", "cmcl.weight")],
    "few regions": ["data.max_regions=3"],
    "many short fragments": ["objectives.masking.fragment_shortest=1", "objectives.masking.fragment_longest=2"],
}


@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS)
def test_no_sample_is_longer_than_planned(inputs: Path, overrides: list[str]) -> None:
    """One by one, where another sample's slack hides nothing; and the plan is no wild guess."""
    config = config_of(inputs, *overrides)
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    planner = Planner(corpora, config.objectives, config.data.max_regions, config.seed)
    mixture = Mixture(tuple(c.section.per_step for c in corpora), tuple(map(len, corpora)))
    data, reached = data_of(config), 0
    for step in range(15):
        for item in planner.items(order(config.seed, mixture, step)):
            packed = data.pack([item], []).positions
            assert packed <= item.positions
            reached += packed == item.positions
    assert reached > 0


def test_with_contrast_alone_texts_and_single_images_give_nothing(inputs: Path) -> None:
    data = data_of(config_of(inputs, *SETTINGS["contrast alone"], "objectives.candidates.step_negatives=0"))
    for step in range(3):
        (batch,) = data[step].batches
        assert (batch.sequences, batch.counts().pairs) == (3 * 6, 6)
        assert batch.counts().mlm == batch.counts().seq2seq == batch.counts().regions == 0


def test_a_rank_without_a_sample_has_an_empty_batch(inputs: Path) -> None:
    config = config_of(
        inputs, "data.corpora.pairs.per_step=1", "data.corpora.texts.per_step=0", "data.corpora.images.per_step=0"
    )
    ranks = [data_of(config, rank, 3)[0] for rank in range(3)]
    assert sorted(len(data.draws) for data in ranks) == [0, 0, 1]
    assert [len(data.batches) for data in ranks] == [1, 1, 1] and sorted(d.batches[0].positions > 0 for d in ranks) == [0, 0, 1]


def test_two_corpora_of_one_store_never_lend_an_image_its_own_captions(inputs: Path) -> None:
    """As when COCO's captions and another file's describe the same photographs."""
    config = config_of(inputs, "objectives.candidates.step_negatives=20", "data.corpora.pairs.per_step=20")
    pairs = config.data.corpora[0]
    sections = [pairs, pairs.model_copy(update={"name": "again"})]
    corpora = prepare_corpora(config.data, sections, show=False)
    planner = Planner(corpora, config.objectives, 36, 1)
    same = 0
    for step in range(4):
        draws = order(1, Mixture((20, 20), (len(corpora[0]), len(corpora[1]))), step)
        images = {draw: corpora[draw.corpus].image_key(draw.index) for draw in draws}
        same += sum(images[a] == images[b] and a.corpus < b.corpus for a in draws for b in draws)
        for item in planner.items(draws):
            lenders = {candidate.lender for candidate in item.candidates}
            assert len(lenders) == 20 and images[item.draw] not in {images[lender] for lender in lenders if lender}
    assert same > 0, "the case occurred"


def test_damage_found_by_a_worker_process_is_told_by_the_run(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "regions", tmp_path / "regions")
    config = config_of(inputs, *[f"data.corpora.{name}.regions={tmp_path / 'regions'}" for name in ("pairs", "images")])
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    assert corpora[0].store is not None
    flip_a_byte(tmp_path / "regions/shard-00000/data.mdb", corpora[0].store.get("0003.jpg").features_RF.tobytes()[:80])
    straight, prepared = ([step.problems for step in load_steps(data_of(config), 0, 8, workers, 2)] for workers in (0, 2))
    assert straight == prepared and any(straight)


@dataclass
class Packed:
    """What one sequence of a batch shows and asks."""

    length: int
    image: int  # rows, [IMG] included
    prefix: int
    hidden: int
    asks: dict[int, list[int]]  # by target: rows counted from the start of the sequence
    member: bool


def taken_apart(batch: Batch) -> list[Packed]:
    found = []
    members = {*batch.image_rows_I.tolist(), *batch.text_rows_X.tolist()}
    for number, (a, b) in enumerate(itertools.pairwise(batch.cu_seqlens_S1.tolist())):
        here = (batch.region_rows_L >= a) & (batch.region_rows_L < b)
        asks: dict[int, list[int]] = {target: [] for target in Target}
        for row, kind in zip(batch.language_rows_M.tolist(), batch.language_kinds_M.tolist(), strict=True):
            if a <= row < b:
                asks[kind].append(row - a)
        hidden = int(batch.region_hidden_L[here].sum())
        found.append(Packed(b - a, int(here.sum()), int(batch.prefix_lengths_S[number]), hidden, asks, a in members))
    return found


@pytest.fixture(scope="module")
def packed(inputs: Path) -> list[Packed]:
    """All sequences of 60 steps: of 360 pairs, 180 texts, 180 images."""
    data = data_of(config_of(inputs))
    return [sequence for step in range(60) for batch in data[step].batches for sequence in taken_apart(batch)]


def test_no_word_is_seen_by_the_row_that_generates_it(packed: list[Packed]) -> None:
    """Row i sees row j when j < max(prefix, i + 1): what row i predicts is row i + 1."""
    generating = [sequence for sequence in packed if sequence.asks[Target.SEQ2SEQ]]
    assert generating and all(s.prefix <= row + 1 for s in generating for row in s.asks[Target.SEQ2SEQ])
    captions = [sequence for sequence in generating if sequence.image]
    assert captions and all(sequence.prefix == sequence.image for sequence in captions)
    assert all(s.asks[Target.SEQ2SEQ] == list(range(s.image, s.length - 1)) for s in captions), "the whole caption"
    texts = [sequence for sequence in generating if not sequence.image]
    assert texts and all(3 <= sequence.prefix < sequence.length for sequence in texts), "a source before the fragments"


def test_what_generates_nothing_sees_its_whole_sequence(packed: list[Packed]) -> None:
    assert all(sequence.prefix == sequence.length for sequence in packed if not sequence.asks[Target.SEQ2SEQ])


def test_one_modality_of_a_pair_is_masked_and_the_other_whole(packed: list[Packed]) -> None:
    for sequence in packed:
        asked = [bool(sequence.hidden), *map(bool, sequence.asks.values())]
        assert sum(asked) == (0 if sequence.member else 1), "of CMCL's views nothing is asked, of others one thing"


def test_each_task_has_its_share_of_the_samples(packed: list[Packed]) -> None:
    """A pair has one of three tasks, a text one of two, uniformly; an image always hides regions."""
    tasks: Counter[str] = Counter()
    for sequence in packed:
        if not sequence.member:
            kind = "text" if not sequence.image else "pair" if sequence.image < sequence.length else "image"
            tasks[f"{kind} {'regions' if sequence.hidden else 'words' if sequence.asks[Target.MLM] else 'generation'}"] += 1
    assert sum(tasks.values()) == 720 and tasks["image regions"] == 180
    for task in ("pair regions", "pair words", "pair generation"):
        assert tasks[task] == pytest.approx(120, abs=30), tasks
    for task in ("text words", "text generation"):
        assert tasks[task] == pytest.approx(90, abs=25), tasks


def test_a_pair_has_its_own_views_and_its_hard_negatives_in_cmcl(inputs: Path) -> None:
    config = config_of(inputs, "objectives.candidates.step_negatives=2")
    (batch,) = data_of(config)[0].batches
    kinds = {kind: int((batch.image_kinds_I == kind).sum()) for kind in Kind}
    assert kinds == {Kind.PAIR: 6, Kind.POSITIVE: 0, Kind.NEGATIVE: 12, Kind.ALONE: 6, Kind.RETRIEVED: 0}
    joint_i, joint_x = batch.image_kinds_I != Kind.ALONE, batch.text_kinds_X != Kind.ALONE
    assert torch.equal(batch.image_pairs_I[joint_i], batch.text_pairs_X[joint_x])
    assert torch.equal(batch.image_kinds_I[joint_i], batch.text_kinds_X[joint_x])
    for kinds_of, pairs_of in ((batch.image_kinds_I, batch.image_pairs_I), (batch.text_kinds_X, batch.text_pairs_X)):
        assert pairs_of[kinds_of == Kind.ALONE].tolist() == list(range(6))
    assert batch.pair_groups_P.shape == (6,)
