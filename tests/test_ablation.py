"""The table of ablations: what a plan starts, what it reuses, what it shows."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.life.small_run import write_candidates, write_config, write_inputs
from unimo_ds.ablation import AblationPlan, _jobs, format_table, load_plan, run_ablations
from unimo_ds.config import load_config
from unimo_ds.errors import ConfigError, UnimoError

ROOT = Path(__file__).parents[1]
COLUMNS = [{"key": "eval/a", "title": "A"}, {"key": "eval/b", "title": "B"}]


def plan_of(**changes: Any) -> AblationPlan:
    content = {"base": ROOT / "recipes/demo.yaml", "folder": "runs/x", "variants": {"full": {}}, "columns": COLUMNS}
    return AblationPlan.model_validate({**content, **changes})


def test_the_table_has_means_and_spreads_and_gaps() -> None:
    plan = plan_of(variants={"full": {}, "without b": {}, "never run": {}})
    numbers = {
        "full": {1: {"eval/a": 0.5, "eval/b": 0.25}, 2: {"eval/a": 0.7, "eval/b": 0.25}},
        "without b": {1: {"eval/a": 0.1234}},
    }
    assert format_table(plan, numbers).splitlines() == [
        "|  | A | B | seeds |",
        "|---|---:|---:|---:|",
        "| full | 60.0 ± 14.1 | 25.0 ± 0.0 | 2 |",
        "| without b | 12.3 | – | 1 |",
        "",
        "| difference from full, seed by seed | A | B | seeds |",
        "|---|---:|---:|---:|",
        "| without b | -37.7 | – | 1 |",
    ]


def test_differences_are_taken_seed_by_seed() -> None:
    """Two seeds far apart, and a variant that is always a little better: the difference has no spread."""
    plan = plan_of(variants={"full": {}, "better": {}}, columns=COLUMNS[:1])
    numbers = {"full": {1: {"eval/a": 0.2}, 2: {"eval/a": 0.8}}, "better": {1: {"eval/a": 0.21}, 2: {"eval/a": 0.81}}}
    assert format_table(plan, numbers).splitlines()[-1] == "| better | +1.0 ± 0.0 | 2 |"


def test_every_variant_and_seed_is_a_run_of_its_own_and_a_changed_variant_another() -> None:
    jobs = list(_jobs(plan_of(seeds=[1, 2], variants={"full": {}, "Without texts!": {"data.corpora.texts.per_step": 0}})))
    assert len({job.folder for job in jobs}) == 4
    assert [job.seed for job in jobs] == [1, 1, 2, 2], "all variants of a seed come before the next seed"
    assert {job.folder.parent.name.rsplit("-", 1)[0] for job in jobs} == {"full", "without-texts"}
    changed = list(_jobs(plan_of(seeds=[1, 2], overrides={"training.steps": 7}, variants={"full": {}})))
    assert not {job.folder for job in jobs} & {job.folder for job in changed}


def test_all_variants_of_a_seed_go_on_from_the_start_of_that_seed() -> None:
    jobs = list(
        _jobs(plan_of(seeds=[1, 2], start={"training.steps": 70}, variants={"full": {}, "other": {"training.steps": 9}}))
    )
    begun = {(job.seed, word) for job in jobs for word in job.words if word.startswith("init=")}
    assert len(begun) == 2
    for seed, word in begun:
        assert f"/seed-{seed}/checkpoints/step-00000070" in word
    assert len({job.folder.parent for job in jobs}) == 2, "the seeds of a variant stand in one folder"


def test_the_ablations_of_the_readme_are_valid_runs() -> None:
    plan = load_plan(ROOT / "recipes/ablations.yaml")
    assert len(plan.seeds) == 3
    for job in _jobs(plan):
        config = load_config(ROOT / plan.base, job.words)
        assert config.seed == job.seed and config.folder == job.folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {}}, "variants: .*at least 1"),
        ({"seed": 3}, "seed: .*not permitted"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
        ({"variants": {"full": {"seed": 3}}}, "full: seed is given by the plan itself"),
        ({"variants": {"full": {}, "Full!": {}}}, "must differ in their folders' names"),
        ({"seeds": [1, 1]}, "must differ"),
        ({"variants": {"full": {"evaluation": None}}}, "has no section evaluation"),
        ({"variants": {"full": {"training.stepz": 3}}}, "unknown key training.stepz"),
    ],
)
def test_a_wrong_plan_starts_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = plan_of(folder=tmp_path / "runs").model_dump(mode="json")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**content, **change}))
    with pytest.raises(ConfigError, match=message):
        run_ablations(tmp_path / "plan.yaml")
    assert not (tmp_path / "runs").exists()


@pytest.mark.life
def test_a_small_table_is_run_reused_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inputs(tmp_path)
    write_candidates(tmp_path)
    base = write_config(tmp_path, "base", candidates=True, steps=3, deepspeed=str(ROOT / "ds_configs/zero0.json"))
    content = yaml.safe_load(base.read_text())
    pairs = {**content["data"]["corpora"][0], "name": "held_out", "per_step": 0}
    content["evaluation"] = {"pairs": {key: pairs[key] for key in ("name", "kind", "format", "path", "regions")}, "captions": 0}
    content["evaluation"]["choices"] = [
        {"name": "rewritten", "path": str(tmp_path / "rewrites"), "regions": str(tmp_path / "regions"), "captions": 8}
    ]
    base.write_text(yaml.safe_dump(content))
    plan = {
        "base": str(base),
        "folder": str(tmp_path / "runs"),
        "seeds": [1, 2],
        "start": {"training.steps": 2, "objectives.candidates.word_negatives": 0},
        "variants": {"full": {}, "no cmcl": {"objectives.cmcl.weight": 0, "objectives.matching": 1}},
        "columns": [{"key": "eval/rewritten_right", "title": "right"}, {"key": "eval/t2i_r1", "title": "R@1"}],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    table = run_ablations(tmp_path / "plan.yaml", parallel=2)
    rows = table.read_text().splitlines()
    names = ["", "---", "full", "no cmcl", "difference from full, seed by seed", "---", "no cmcl"]
    assert [row.split("|")[1].strip() for row in rows if row] == names
    assert all(row.endswith("| 2 |") for row in rows if row.startswith(("| full", "| no cmcl")))
    numbers = json.loads((tmp_path / "runs/ablations.json").read_text())
    assert numbers["full"]["1"]["eval/rewritten_chance"] == 0.25 and set(numbers["no cmcl"]) == {"1", "2"}
    logs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*/log.txt")}
    assert len(logs) == 6 and len(list((tmp_path / "runs").glob("start-*/seed-*/DONE"))) == 2
    plan["variants"]["broken"] = {"data.corpora.pairs.path": str(tmp_path / "nowhere.json")}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(UnimoError, match=r"2 of 6 runs failed, the first: broken, seed \d; see .*log.txt"):
        run_ablations(tmp_path / "plan.yaml", parallel=2)
    assert all(path.stat().st_mtime_ns == at for path, at in logs.items()), "finished runs were not started again"
    assert "full" in table.read_text() and "broken" not in table.read_text()
