"""Exports a checkpoint, of pre-training or of a fine-tuned model, to be used where unimo_ds is not."""

import json
from pathlib import Path

import yaml

from unimo_ds.batch import FIRST_POSITION
from unimo_ds.config import DecodingSection, usual_decoding
from unimo_ds.convert.huggingface import Exported, write_exported
from unimo_ds.engine.checkpoint_folder import damage_of, read_checkpoint_weights, read_state
from unimo_ds.errors import CheckpointError
from unimo_ds.opening import is_finetuned, open_task, read_start


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
    labels = open_task(start, [])[1].score_names if is_finetuned(checkpoint) else ()
    most = start.model.max_positions - FIRST_POSITION
    own = run.get("task", {}).get("decoding")
    write_exported(
        Exported(
            weights=read_checkpoint_weights(checkpoint),
            model=start.model,
            state=read_state(checkpoint),
            config_yaml=run_yaml,
            tokenizer=start.tokenizer,
            decoding=DecodingSection.model_validate(own) if own else usual_decoding(most),
            labels=labels,
            numbers=_numbers(checkpoint),
            max_regions=run.get("data", {}).get("max_regions", 100),
            max_text_tokens=min(most, run.get("data", {}).get("max_text_tokens", most)),
        ),
        out,
    )
    return checkpoint


def _numbers(checkpoint: Path) -> dict[str, float]:
    """What `unimo-ds evaluate` measured; or, of a finished run's last checkpoint, the evaluation at its end."""
    run = checkpoint.parent.parent
    at_the_end = (run / "DONE").exists() and (run / "checkpoints/latest").read_text(encoding="utf-8") == checkpoint.name
    for file in (checkpoint / "evaluation.json", *([run / "evaluation.json"] if at_the_end else [])):
        if file.exists():
            content = json.loads(file.read_text(encoding="utf-8"))
            numbers: dict[str, float] = content.get("numbers", content)
            return numbers
    return {}
