"""Published weights of the bottom-up-attention detector, brought into our order of rows and our names.

Ours has the background at class 0 and "none" at attribute 0, as the regions store has; detectron2's descendants have both
last, Caffe's first. Sizes are read off the tensors, so that a narrower or shallower detector of a published layout loads too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unimo_ds.errors import CheckpointError, ConfigError
from unimo_ds.vision.conventions import CONVENTIONS
from unimo_ds.vision.detector_config import DetectorConfig, SelectionConfig
from unimo_ds.vision.faster_rcnn import BottomUpDetector

_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
_PREDICTOR = "roi_heads.box_predictor"
_MILVLG_NAMES = {
    f"{_PREDICTOR}.cls_embed.": f"{_PREDICTOR}.cls_embedding.",
    f"{_PREDICTOR}.attr_linear1.": f"{_PREDICTOR}.fc_attr.",
    f"{_PREDICTOR}.attr_linear2.": f"{_PREDICTOR}.attr_score.",
}
_OUR_NAMES = {
    "proposal_generator.rpn_head.": "proposal_generator.head.",
    _ANCHORS: "proposal_generator.anchor_generator.cell_A4",
}


def detector_from_state(
    state: Mapping[str, Tensor],
    conventions: str | None = None,
    class_names: Sequence[str] = (),
    attribute_names: Sequence[str] = (),
    **changes: Any,
) -> BottomUpDetector:
    """A detector from the tensors of a published file, on the CPU, in evaluation mode.

    Args:
        state: named as Hugging Face's, airsplay's or MILVLG's (`caffe` mode) detector names them.
        conventions: a key of `CONVENTIONS`; None: the one that the layout suggests.
        class_names, attribute_names: without background and "none"; may be unknown.
        changes: keys of `DetectorConfig` to set besides; `selection` may hold a few keys only.

    Raises:
        CheckpointError: tensors are missing, surplus or of a shape that does not fit the others.
        ConfigError: no such conventions, or not for weights of this layout.
    """
    state = {_plain(name): value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    milvlg = _is_milvlg(state)
    conventions = _conventions_for(milvlg, conventions)
    if milvlg and _ANCHORS not in state:
        raise CheckpointError(
            f"no tensor {_ANCHORS!r}: MILVLG's configuration has no usable anchors, its weights must hold them"
        )
    ours = _from_milvlg(state) if milvlg else _from_detectron2(state)
    settings = {**CONVENTIONS[conventions].model_dump(), **_sizes(ours)}
    settings["selection"]["kept_classes"] = min(settings["selection"]["kept_classes"], settings["class_count"] + 1)
    chosen = changes.pop("selection", {})
    settings["selection"] |= chosen.model_dump() if isinstance(chosen, SelectionConfig) else chosen
    config = DetectorConfig.model_validate({**settings, **changes})
    ours = {_renamed(name, _OUR_NAMES): value.float() for name, value in ours.items()}
    detector = BottomUpDetector(config, class_names, attribute_names)
    expected = {name: value for name, value in detector.state_dict().items() if not name.endswith("num_batches_tracked")}
    _expect(expected, ours)
    detector.load_state_dict(ours, strict=False)
    return detector.eval()


def _plain(name: str) -> str:
    """Without the wrappers' prefixes, and TensorFlow's words for a norm's weights."""
    name = re.sub(r"^(module\.|model\.)+", "", name)
    return name.replace("norm.gamma", "norm.weight").replace("norm.beta", "norm.bias")


def _is_milvlg(state: Mapping[str, Tensor]) -> bool:
    if any(name.startswith("roi_heads.attribute_predictor.") for name in state):
        raise CheckpointError(
            "these are weights of MILVLG's `d2` mode, which are not read: load those of its `caffe` mode. "
            "(What its released code extracts in `d2` mode skips class 0 and attribute 0.)"
        )
    scores = state.get(f"{_PREDICTOR}.cls_score.weight")
    boxes = state.get(f"{_PREDICTOR}.bbox_pred.weight")
    if scores is None or boxes is None or "backbone.stem.conv1.weight" not in state:
        some = ", ".join(sorted(state)[:3]) or "nothing"
        raise CheckpointError(f"neither a detector of this program's nor a published bottom-up-attention one: {some} ...")
    return len(boxes) == 4 * len(scores)


def _conventions_for(milvlg: bool, conventions: str | None) -> str:
    allowed = ["milvlg"] if milvlg else [name for name in CONVENTIONS if name != "milvlg"]
    if conventions is None:
        return allowed[0]
    if conventions not in allowed:
        layout = "MILVLG's" if milvlg else "detectron2's"
        raise ConfigError(f"conventions {conventions!r}: weights in {layout} layout go with {', '.join(allowed)}")
    return conventions


def _from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Background and "none" from the last row to the first; the background gets a box head that does nothing."""
    turned = dict(state)
    for layer in ("cls_score.weight", "cls_score.bias", "cls_embedding.weight", "attr_score.weight", "attr_score.bias"):
        if (name := f"{_PREDICTOR}.{layer}") in turned:
            turned[name] = turned[name].roll(1, dims=0)
    for layer in ("bbox_pred.weight", "bbox_pred.bias"):
        name = f"{_PREDICTOR}.{layer}"
        if name in turned:
            turned[name] = torch.cat([turned[name].new_zeros(4, *turned[name].shape[1:]), turned[name]])
    return turned


def _from_milvlg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A softmax over background and foreground is the sigmoid of their difference."""
    turned = {_renamed(name, _MILVLG_NAMES): value for name, value in state.items()}
    for kind in ("weight", "bias"):
        name = f"proposal_generator.rpn_head.objectness_logits.{kind}"
        if name in turned:
            background, foreground = turned[name].chunk(2)
            turned[name] = foreground - background
    return turned


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for theirs, ours in table.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of the configuration that the tensors show."""

    def rows(name: str, otherwise: int) -> int:
        return len(state[name]) if name in state else otherwise

    def blocks(prefix: str) -> int:
        numbers = [int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix)]
        return max(numbers, default=0) + 1

    stages = ["backbone.res2.", "backbone.res3.", "backbone.res4.", "roi_heads.res5."]
    attributes = rows(f"{_PREDICTOR}.attr_score.weight", 1) - 1
    sizes: dict[str, Any] = {
        "class_count": len(state[f"{_PREDICTOR}.cls_score.weight"]) - 1,
        "attribute_count": attributes,
        "stem_width": len(state["backbone.stem.conv1.weight"]),
        "widths": [rows(f"{stage}0.conv3.weight", 1) for stage in stages],
        "blocks": [blocks(stage) for stage in stages],
        "rpn_width": rows("proposal_generator.rpn_head.conv.weight", 1),
    }
    if attributes:
        embedding = state.get(f"{_PREDICTOR}.cls_embedding.weight")
        sizes["attribute_embedding"] = embedding.shape[1] if embedding is not None else 1
        sizes["attribute_width"] = rows(f"{_PREDICTOR}.fc_attr.weight", 1)
    return sizes


def _expect(expected: Mapping[str, Tensor], found: dict[str, Tensor]) -> None:
    """Every tensor is there, in its shape, and no other; anchors may be missing, the configuration has them too."""
    anchors = _OUR_NAMES[_ANCHORS]
    found.setdefault(anchors, expected[anchors])
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = [
        f"{name} {tuple(found[name].shape)} in place of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    problems = [("missing", missing), ("not known", surplus), ("of another shape", wrong)]
    if any(names for _, names in problems):
        words = "; ".join(f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in problems if names)
        raise CheckpointError(f"the tensors are not those of a published detector: {words}")
