"""The README of an exported model: what it is, what is known of its run, and code to begin with."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import yaml

_WRITES = """model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True)
written = model.generate(**processor{inputs})
print(processor.batch_decode(written, skip_special_tokens=True))"""
_CHOOSES = """model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)
scores = model(**processor{inputs}).logits[0]
for number in scores.argsort(descending=True)[:5].tolist():
    print(model.config.id2label[number], float(scores[number]))"""
_NAMES = """model = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)
inputs = processor{inputs}
logits = model(**inputs).logits[0, inputs["input_ids"][0] == processor.tokenizer.mask_token_id]
print(processor.batch_decode(logits.topk(5).indices.T))"""
_ENCODES = """model = AutoModel.from_pretrained(name, trust_remote_code=True)
image = model(**processor(regions=regions)).image_embeds
text = model(**processor(text="two dogs on a beach")).text_embeds
print(float(image @ text.T))  # the cosine: how near they are, each encoded alone"""
_REGIONS = """# What the detector found in one image: boxes in pixels (x1, y1, x2, y2), and a vector of each.
regions = {{"boxes": np.zeros((1, 4)), "features": np.zeros((1, {width})), "width": 640, "height": 480}}"""
_CARD = """---
language: en
library_name: transformers
tags: [unimo, unimo_ds]
# license: to be filled in by whoever publishes the weights
---

# {name}

[UNIMO](https://arxiv.org/abs/2012.15409), one Transformer on texts, images, and images with texts, trained and exported with
`unimo_ds`.

{facts}

## Use

It needs `torch` and `transformers` only; `trust_remote_code=True` runs the code that lies beside the weights.

```python
{code}
```

## What was measured

{measured}
"""


@dataclass(frozen=True)
class _Kind:
    """How a model is used."""

    auto: str
    code: str
    image: bool
    inputs: str


def model_card(name: str, config: dict[str, Any], state: dict[str, Any], run_yaml: str, numbers: dict[str, float]) -> str:
    """The card as Markdown.

    Args:
        name: of the folder.
        config: of the exported model.
        state: of the checkpoint.
        run_yaml: the run's configuration.
        numbers: what was measured.
    """
    run = yaml.safe_load(run_yaml) or {}
    facts = [f"- {what}: {fact}" for what, fact in _facts(config, state, run).items() if fact]
    code = _code(name, config, run, (state.get("source") or {}).get("new", ()))
    return _CARD.format(name=name, facts="\n".join(facts), code=code, measured=_measured(numbers))


def _kind(config: dict[str, Any], family: str | None, new: Collection[str]) -> _Kind:
    text, regions = 'text="two dogs on a beach"', "regions=regions"
    if config["head"] is not None:
        image = config["head"] != "sentences"
        return _Kind("AutoModelForSequenceClassification", _CHOOSES, image, f"({text}, {regions})" if image else f"({text})")
    if family == "dialogue":
        return _Kind("AutoModelForSeq2SeqLM", _WRITES, False, '.dialogue("Two dogs run on a beach.", ["Where do they run?"])')
    if family is not None:
        image = family == "captioning"
        return _Kind("AutoModelForSeq2SeqLM", _WRITES, image, f"({regions})" if image else f"({text})")
    if any("pooler" in name for name in new):
        return _Kind("AutoModelForMaskedLM", _NAMES, False, '(text="two dogs on a <mask>")')
    return _Kind("AutoModel", _ENCODES, True, "")


def _code(name: str, config: dict[str, Any], run: dict[str, Any], new: Collection[str]) -> str:
    kind = _kind(config, run.get("task", {}).get("family"), new)
    lines = [
        *(["import numpy as np"] if kind.image else []),
        f"from transformers import {kind.auto}, AutoProcessor",
        "",
        f'name = "{name}"',
        "processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)",
        *([_REGIONS.format(width=config["feature_width"])] if kind.image else []),
        kind.code.format(inputs=kind.inputs),
    ]
    return "\n".join(lines)


def _facts(config: dict[str, Any], state: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    corpora = run.get("data", {}).get("corpora", [])
    return {
        "shape": f"{config['num_hidden_layers']} layers, {config['hidden_size']} wide, {config['num_attention_heads']} heads, "
        f"vocabulary {config['vocab_size']:,}, texts up to {config['max_position_embeddings'] - 2} tokens",
        "opened by": ", ".join(f"`{auto}`" for auto in config["auto_map"] if auto != "AutoConfig"),
        "regions": _detector(state.get("detector") or {}, config["feature_width"]),
        "fine-tuned for": run.get("task", {}).get("family", ""),
        "started from": _origin(state.get("source")) or str(run.get("init") or ""),
        "never trained, random": ", ".join(f"`{name}`" for name in (state.get("source") or {}).get("new", ())),
        "trained": _training(state, run.get("training", {})),
        "corpora": ", ".join(f"{each['name']} ({each['kind']}, {each['per_step']} a step)" for each in corpora),
    }


def _origin(source: dict[str, Any] | None) -> str:
    """Where converted weights came from."""
    return f"{source['kind']} ({source['folder']}, files' sha256 {source['sha256'][:16]})" if source else ""


def _training(state: dict[str, Any], training: dict[str, Any]) -> str:
    if not state.get("step"):
        return ""
    named = [f"{key} {training[key]}" for key in ("learning_rate", "weight_decay", "epochs", "precision") if key in training]
    samples = f"{state['samples']:,} samples, " if "samples" in state else ""
    return f"{state['step']:,} steps, {samples}on {state.get('world_size', 1)} ranks; {', '.join(named)}"


def _detector(detector: dict[str, Any], width: int) -> str:
    if not detector:
        return f"vectors of {width}; of which detector is not known"
    weights = str(detector.get("weights_sha256"))[:16]
    return f"vectors of {width}, of this detector and no other: {detector.get('architecture')}, weights sha256 {weights}"


def _measured(numbers: dict[str, float]) -> str:
    if not numbers:
        return "Nothing yet: `unimo-ds evaluate` measures a checkpoint before it is exported."
    rows = [f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in numbers.items()]
    return "\n".join(["| measure | value |", "|---|---|", *rows])
