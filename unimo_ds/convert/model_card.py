"""The README of an exported model: what it is, what is known of its run, and how to use it."""

from typing import Any

import yaml

_USES = {
    "AutoModelForSeq2SeqLM": """model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True)
written = model.generate(**processor({inputs}))
print(processor.batch_decode(written, skip_special_tokens=True))""",
    "AutoModelForSequenceClassification": """model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)
scores = model(**processor({inputs})).logits[0]
print({{model.config.id2label[n]: round(float(scores[n]), 3) for n in scores.topk(min(5, len(scores))).indices.tolist()}})""",
    "AutoModel": """model = AutoModel.from_pretrained(name, trust_remote_code=True)
image = model(**processor(regions=regions)).image_embeds
text = model(**processor(text="two dogs on a beach")).text_embeds
print(float(image @ text.T))  # how near they are, each encoded alone""",
}
_REGIONS = """# What a detector found in one image: R boxes in pixels (x1, y1, x2, y2) with their vectors.
regions = {{"boxes": np.zeros((1, 4)), "features": np.zeros((1, {width})), "width": 640, "height": 480}}
"""


def model_card(
    name: str, config: dict[str, Any], state: dict[str, Any], run_yaml: str, numbers: dict[str, float]
) -> str:
    """The card as Markdown.

    Args:
        name: of the folder.
        config: of the exported model.
        state: of the checkpoint.
        run_yaml: the run's configuration.
        numbers: what was measured.
    """
    run = yaml.safe_load(run_yaml) or {}
    auto = _auto(config)
    images = config["head"] != "sentences" and run.get("task", {}).get("family") not in ("writing", "dialogue")
    texts = config["head"] is not None or run.get("task", {}).get("family") in ("writing", "dialogue")
    front = {"language": "en", "library_name": "transformers", "tags": ["unimo", "unimo_ds"]}
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "# license: to be filled in by whoever publishes the weights",
        "---",
        "",
        f"# {name}",
        "",
        "[UNIMO](https://aclanthology.org/2021.acl-long.202) (one Transformer on texts, images, and images with texts), trained and "
        "exported with `unimo_ds`.",
        "",
        *_facts(config, state, run),
        "",
        "## Use",
        "",
        "Needs `torch` and `transformers` only; the code beside the weights is what `trust_remote_code=True` runs.",
        "",
        "```python",
        *(["import numpy as np"] if images else []),
        f"from transformers import {auto}, AutoProcessor",
        "",
        f'name = "{name}"',
        "processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)",
        *([_REGIONS.format(width=config["feature_width"]).rstrip()] if images else []),
        _USES[auto].format(inputs=", ".join([*(['text="..."'] if texts else []), *(["regions=regions"] if images else [])])),
        "```",
        "",
        "## What was measured",
        "",
        *_measured(numbers),
    ]
    return "\n".join(lines) + "\n"


def _auto(config: dict[str, Any]) -> str:
    """The class that a reader most likely wants."""
    if config["head"] is not None:
        return "AutoModelForSequenceClassification"
    if "image_pooler" not in config["parts"] and "language_head" in config["parts"]:
        return "AutoModelForSeq2SeqLM"
    return "AutoModel"


def _facts(config: dict[str, Any], state: dict[str, Any], run: dict[str, Any]) -> list[str]:
    training, task = run.get("training", {}), run.get("task", {})
    facts = {
        "shape": f"{config['num_hidden_layers']} layers, {config['hidden_size']} wide, {config['num_attention_heads']} heads, "
        f"vocabulary {config['vocab_size']:,}, texts up to {config['max_position_embeddings'] - 2} tokens",
        "classes": ", ".join(f"`{auto}`" for auto in config["auto_map"] if auto != "AutoConfig"),
        "regions": _detector(state.get("detector") or {}, config),
        "fine-tuned for": _task(task),
        "came from": str(state.get("source") or run.get("init") or ""),
        "trained": _training(state, training),
        "corpora": ", ".join(
            f"{corpus['name']} ({corpus['kind']}, {corpus['per_step']} a step)" for corpus in run.get("data", {}).get("corpora", [])
        ),
    }
    return [f"- {name}: {fact}" for name, fact in facts.items() if fact]


def _training(state: dict[str, Any], training: dict[str, Any]) -> str:
    if not state.get("step"):
        return ""
    kept = {key: training[key] for key in ("learning_rate", "batch_size", "epochs", "weight_decay", "precision") if key in training}
    settings = ", ".join(f"{key} {value}" for key, value in kept.items())
    return f"{state['step']:,} steps, {state.get('samples', 0):,} samples, on {state.get('world_size', 1)} ranks; {settings}"


def _task(task: dict[str, Any]) -> str:
    return str(task.get("family", ""))


def _detector(detector: dict[str, Any], config: dict[str, Any]) -> str:
    if not detector:
        return f"vectors of {config['feature_width']}; the detector is not known"
    return (
        f"vectors of {config['feature_width']} from this detector and no other: {detector.get('architecture')}, weights sha256 "
        f"{str(detector.get('weights_sha256'))[:16]}"
    )


def _measured(numbers: dict[str, float]) -> list[str]:
    if not numbers:
        return ["Nothing yet: `unimo-ds evaluate` measures a checkpoint before it is exported."]
    rows = [f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in numbers.items()]
    return ["| measure | value |", "|---|---|", *rows]
