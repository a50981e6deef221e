"""One YAML, typed and validated: typos are errors with a suggestion."""

import functools
from pathlib import Path

import pytest
import yaml

from unimo_ds.config import ModelSection, RunConfig, dump_config, load_config, load_finetune_config, parse_config
from unimo_ds.engine.engine import deepspeed_config
from unimo_ds.errors import ConfigError

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in ROOT.glob("recipes/*.yaml") if path.name != "ablations.yaml")  # a table of runs


def write(folder: Path, **changes: object) -> Path:
    content: dict[str, object] = {
        "folder": "run",
        "data": {
            "tokenizer": "t",
            "corpora": [
                {"name": "texts", "kind": "texts", "format": "plain_text", "path": "a.txt", "per_step": 4},
                {"name": "images", "kind": "images", "format": "regions", "regions": "r", "per_step": 2},
            ],
        },
        "training": {"steps": 10},
        **changes,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads_and_names_an_existing_deepspeed_file(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(recipe)
    assert sum(corpus.per_step for corpus in config.data.corpora) > 0
    assert deepspeed_config(config.training)["zero_optimization"]["stage"] == 3
    assert parse_config(yaml.safe_load(dump_config(config)), "dumped") == config


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes/tasks").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_of_a_task_loads(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    config = load_finetune_config(recipe)
    assert deepspeed_config(config.training)["zero_optimization"]["stage"] == 3
    training = config.training.for_examples(1000)
    assert training.steps == config.training.epochs * 1000 // config.training.batch_size > training.warmup_steps
    assert all(0 < step < training.steps for step in training.tenth_after)
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_finetune_config(tmp_path / "dumped.yaml") == config


def test_what_is_dumped_is_read_back_equal(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["objectives.cmcl.temperature=0.1", "training.betas=[0.9, 0.95]"])
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", "unknown key training.learning_rat = 1; did you mean 'learning_rate'?"),
        ("objectives.cmcl.xyz=1", "unknown key objectives.cmcl.xyz = 1; allowed here: weight, in_batch"),
        ("data.corpora.0.per_steps=1", "unknown key data.corpora.0.per_steps = 1; did you mean 'per_step'?"),
        ("training.steps=-3", "training.steps = -3: Input should be greater than 0"),
        ("training.steps=many", "training.steps = 'many'"),
        ("training.precision=fp16", "training.precision = 'fp16': Input should be 'fp32' or 'bf16'"),
        ("model.heads=7", "hidden_size 768 is not a multiple of heads 7"),
        ("data.corpora.texts.format=regions", "format 'regions' does not fit kind 'texts'; allowed: plain_text, json_lines"),
        ("data.corpora.images.regions=null", "kind 'images' needs regions"),
        ("data.corpora.1.name=texts", "corpora must have different names"),
        ("data.corpora.nowhere.per_step=1", "data.corpora.nowhere.per_step: no entry 'nowhere'; there are texts, images"),
        ("folder.x=1", "folder.x: 'folder' is a single value"),
        ("steps", "an override has the form key.path=value"),
        ("folder=[", "'folder=[': the value is not valid YAML"),
        ("model.size=[tiny]", "model.size = ['tiny']: Input should be 'tiny', 'small', 'base' or 'large'"),
        ("model.dropout=1", "model.dropout = 1: Input should be less than 1"),
        ("model.attention_dropout=1.0", "model.attention_dropout = 1.0: Input should be less than 1"),
        ("data.max_text_tokens=513", "data.max_text_tokens = 513: model.max_positions = 514 allows 512"),
        ("model.max_positions=100", "data.max_text_tokens = 512: model.max_positions = 100 allows 98"),
        ("objectives.masking.fragment_longest=3", "fragment_longest 3 is less than fragment_shortest 4"),
        ("objectives.masking.token_rate=15", "objectives.masking.token_rate = 15: Input should be less than or equal to 1"),
        ("objectives.cmcl.temperature=0.6", "objectives.cmcl.temperature = 0.6"),
        ("training=null", "training = None"),
        ("training=5", "training = 5"),
        ("training.steps=1.5", "training.steps = 1.5"),
        ("training.learning_rate=.inf", "training.learning_rate = inf: Input should be a finite number"),
        ("training.learning_rate=.nan", "training.learning_rate = nan"),
        ("objectives.mlm=.inf", "objectives.mlm = inf: Input should be a finite number"),
        ("training.epsilon=0", "training.epsilon = 0: Input should be greater than 0"),
        ("training.betas=[0.9, 1]", "training.betas.1 = 1: Input should be less than 1"),
        ("evaluation.everyy=1", "unknown key evaluation.everyy = 1; did you mean 'every'?"),
        ("modle.size=tiny", "unknown key modle = {'size': 'tiny'}; did you mean 'model'?"),
        ("data.corpora.2.per_step=1", "no entry '2'; there are texts, images"),
        ("data.max_text_tokens=7", "data.max_text_tokens = 7: Input should be greater than or equal to 8"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path), [override])
    assert message in str(caught.value)


def test_a_run_whose_steps_would_be_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="per_step is 0 in every corpus"):
        load_config(write(tmp_path), ["data.corpora.texts.per_step=0", "data.corpora.images.per_step=0"])
    assert load_config(write(tmp_path), ["data.corpora.texts.per_step=0"]).data.corpora[0].per_step == 0


def test_generated_captions_must_fit_the_positions(tmp_path: Path) -> None:
    pairs = {"name": "p", "kind": "pairs", "format": "json_lines", "path": "x", "regions": "r"}
    path = write(tmp_path, evaluation={"pairs": pairs, "caption_tokens": 513})
    with pytest.raises(ConfigError, match=r"evaluation\.caption_tokens = 513: model\.max_positions = 514 allows 512"):
        load_config(path)
    assert load_config(path, ["evaluation.caption_tokens=512"])


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.stepz.*folder|folder.*training\.stepz"):
        load_config(write(tmp_path), ["training.stepz=1", "folder=null"])


def test_a_corpus_is_overridden_by_its_name_or_number(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["data.corpora.images.per_step=7", "data.corpora.0.per_step=5"])
    assert [corpus.per_step for corpus in config.data.corpora] == [5, 7]


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "is not valid YAML"), ("- 1", "expected a mapping of keys, found list")]
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"folder: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: is not UTF-8 \(byte 11: "):
        load_config(path)


@pytest.mark.parametrize(
    ("size", "shape"),
    [("tiny", (128, 3, 4)), ("small", (256, 4, 4)), ("base", (768, 12, 12)), ("large", (1024, 24, 16))],
)
def test_a_size_has_its_shape(size: str, shape: tuple[int, int, int]) -> None:
    section = ModelSection.model_validate({"size": size})
    assert (section.hidden_size, section.layers, section.heads) == shape


def test_a_size_fills_what_is_not_given() -> None:
    assert ModelSection() == ModelSection.model_validate({"size": "base"})
    mixed = ModelSection.model_validate({"size": "small", "layers": 2})
    assert (mixed.hidden_size, mixed.layers, mixed.heads) == (256, 2, 4)


def test_a_section_can_be_switched_off(tmp_path: Path) -> None:
    pairs = {"name": "p", "kind": "pairs", "format": "json_lines", "path": "x", "regions": "r"}
    path = write(tmp_path, evaluation={"pairs": pairs})
    assert load_config(path).evaluation is not None
    assert load_config(path, ["evaluation=null"]).evaluation is None


def test_parse_names_its_source() -> None:
    with pytest.raises(ConfigError, match="somewhere: folder is missing"):
        parse_config({}, "somewhere")
    assert set(RunConfig.model_fields) >= {"folder", "model", "data", "objectives", "training", "evaluation"}


@pytest.mark.parametrize(("written", "value"), [("1e-4", 1e-4), ("5E-5", 5e-5), ("0.001", 1e-3)])
def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path, written: str, value: float) -> None:
    """YAML takes `1e-4`, without a point, for a text."""
    assert load_config(write(tmp_path), [f"training.learning_rate={written}"]).training.learning_rate == value


def test_a_later_override_wins_and_opens_sections_that_the_file_has_not(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["objectives.cmcl.weight=3", "objectives.cmcl.weight=0", "model.size=tiny"])
    assert config.objectives.cmcl.weight == 0 and config.model.layers == 3 and config.training.steps == 10


@pytest.mark.parametrize(("mrfr", "mrc", "hidden"), [(0, 0, False), (1, 0, True), (0, 0.5, True)])
def test_regions_are_hidden_if_any_objective_asks_for_it(tmp_path: Path, mrfr: float, mrc: float, hidden: bool) -> None:
    config = load_config(write(tmp_path), [f"objectives.mrfr={mrfr}", f"objectives.mrc={mrc}"])
    assert config.objectives.regions is hidden


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objectives.masking.token_rate", 0.15),
        ("objectives.masking.span_geometric", 0.2),
        ("objectives.masking.span_longest", 10),
        ("objectives.masking.fragment_rate", 0.25),
        ("objectives.masking.fragment_shortest", 4),
        ("objectives.masking.fragment_longest", 32),
        ("objectives.masking.region_rate", 0.15),
        ("objectives.masking.region_overlap", 0.4),
        ("objectives.cmcl.temperature", 0.07),
        ("data.max_text_tokens", 512),
        ("data.max_regions", 100),
        ("training.learning_rate", 5e-5),
        ("training.weight_decay", 0.01),
        ("training.betas", (0.9, 0.98)),
        ("training.gradient_clipping", 1.0),
        ("model.dropout", 0.1),
        ("model.attention_dropout", 0.1),
        ("model.initializer_range", 0.02),
        ("model.max_positions", 514),
    ],
)
def test_what_is_not_given_is_as_in_the_paper(tmp_path: Path, key: str, value: object) -> None:
    """A changed default would silently change every run that does not give the key."""
    assert functools.reduce(getattr, key.split("."), load_config(write(tmp_path))) == value


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (
            "flickr30k",
            "training.tenth_after=[24, 24]",
            r"training.*tenth_after \[24, 24\]: give rising epochs before the last of 40",
        ),
        ("flickr30k", "training.epochs=30", r"tenth_after \[24, 32\]: give rising epochs before the last of 30"),
        ("flickr30k", "task.train.images='{name}.jpg'", r"braces stand for the image"),
        ("vqa", "task.dev.val.images='{'", r"braces stand for the image|expected '}'"),
        ("mnli", "task.metric=matthews", r"metric 'matthews' with labels .*: it is of two classes"),
    ],
)
def test_settings_of_tasks_that_cannot_be_meant(recipe: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_finetune_config(ROOT / f"recipes/tasks/{recipe}.yaml", [override])
