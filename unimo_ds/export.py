"""Exports a checkpoint, of pre-training or of a fine-tuned model, to be used where unimo_ds is not."""

import json
from pathlib import Path
from typing import Any

import yaml

from unimo_ds.batch import FIRST_POSITION
from unimo_ds.config import CaptioningSection, DecodingSection
from unimo_ds.convert.huggingface import Exported, write_exported
from unimo_ds.engine.checkpoint_folder import damage_of, read_checkpoint_weights, read_state
from unimo_ds.errors import CheckpointError
from unimo_ds.opening import is_finetuned, open_finetuned, read_start


def export_huggingface(path: Path, out: Path) -> Path:
    """Writes a folder that transformers opens with `trust_remote_code=True`; returns the checkpoint that was taken.

    Args:
        path: a checkpoint, or a run folder: its best checkpoint, or else the newest.
        out: the new folder.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or `out` exists.
    """
    start = read_start(path)
    checkpoint = start.checkpoint
    if damage := damage_of(checkpoint):
        raise CheckpointError(f"{checkpoint}: {damage}; export another checkpoint of the run")
    run_yaml = (checkpoint / "config.yaml").read_text(encoding="utf-8")
    run = yaml.safe_load(run_yaml)
    labels = open_finetuned(checkpoint, []).task.score_names if is_finetuned(checkpoint) else ()
    most = start.model.max_positions - FIRST_POSITION
    write_exported(
        Exported(
            weights=read_checkpoint_weights(checkpoint),
            model=start.model,
            state=read_state(checkpoint),
            config_yaml=run_yaml,
            tokenizer=start.tokenizer,
            decoding=_decoding(run, most),
            labels=labels,
            numbers=_numbers(checkpoint),
            max_regions=run.get("data", {}).get("max_regions", 100),
            max_text_tokens=min(most, run.get("data", {}).get("max_text_tokens", most)),
        ),
        out,
    )
    return checkpoint


def _decoding(run: dict[str, Any], most: int) -> DecodingSection:
    """The run's own search; of a run that has none COCO's, with no more tokens than there are positions."""
    given = run.get("task", {}).get("decoding")
    if given is not None:
        return DecodingSection.model_validate(given)
    usual = CaptioningSection.model_fields["decoding"].default
    assert isinstance(usual, DecodingSection)
    longest = min(most, usual.longest)
    return usual.model_copy(update={"longest": longest, "shortest": min(usual.shortest, longest)})


def _numbers(checkpoint: Path) -> dict[str, float]:
    """What `unimo-ds evaluate`, or the run's last evaluation, measured."""
    for file in (checkpoint / "evaluation.json", checkpoint.parent.parent / "evaluation.json"):
        if file.exists():
            content = json.loads(file.read_text(encoding="utf-8"))
            numbers: dict[str, float] = content.get("numbers", content)
            return numbers
    return {}
