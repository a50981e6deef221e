"""Opens exported folders where unimo_ds is not installed, and writes down what they say: `JOB.json RESULTS.npz`."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def regions_of(folder: Path, numbers: list[int]) -> list[dict[str, Any]]:
    return [dict(np.load(folder / f"regions-{number}.npz")) for number in numbers]


@torch.no_grad()
def outputs_of(folder: Path, auto: str, inputs: dict[str, Any], call: dict[str, Any] | None) -> dict[str, Any]:
    """What the model of a folder gives for texts and regions: its outputs by name, or what it generates."""
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model, found = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not found["missing_keys"], found
    read = processor.dialogue if "story" in inputs else processor
    given = read(**{**inputs, **({"regions": regions_of(folder.parent, inputs["regions"])} if "regions" in inputs else {})})
    if call is not None and "decoder_input_ids" not in call:
        generated = model.generate(**given, **call, return_dict_in_generate=True, output_scores=True)
        scores = {"scores": generated.sequences_scores} if "sequences_scores" in generated else {}
        return {"sequences": generated.sequences, **scores}
    further = {name: torch.tensor(value) for name, value in (call or {}).items()}
    return {name: value for name, value in model(**given, **further).items() if torch.is_tensor(value)}


def follow_the_card(folder: Path) -> None:
    """Runs the code of a model's README, as somebody would who copies it."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    os.chdir(folder.parent)
    exec(card.split("```python\n")[1].split("```")[0], {})


if __name__ == "__main__":
    assert importlib.util.find_spec("unimo_ds") is None
    jobs = json.loads(Path(sys.argv[1]).read_text())
    results = {
        f"{name}/{key}": value.numpy()
        for name, job in jobs.items()
        for key, value in outputs_of(Path(job["folder"]), job["auto"], job["inputs"], job.get("call")).items()
    }
    for folder in sorted({job["folder"] for job in jobs.values()}):
        follow_the_card(Path(folder))
    ours = {"unimo_ds", "deepspeed", "lmdb", "h5py", "xxhash", "msgpack"} & sys.modules.keys()
    assert not ours, ours
    np.savez(sys.argv[2], versions=np.array([torch.__version__, transformers.__version__]), **results)
