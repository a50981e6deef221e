"""Random weights in the layouts in which the bottom-up-attention detectors were published, at any size.

Layouts: `huggingface` (background and "none" last), `airsplay` (the same names without the batch counters), `milvlg` (both
first, objectness in two rows an anchor, box rows for the background too, other names in the attribute head).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

_STEM_SPREAD = 1e4
"""Running variance of the stem: its input are grey levels around the mean, not numbers of size one."""


@dataclass(frozen=True)
class Sizes:
    """Widths and counts; the defaults are the published ResNet-101 for Visual Genome."""

    stem: int = 64
    bottleneck: int = 64
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    proposal_width: int = 512
    anchors: int = 12
    classes: int = 1600
    attributes: int = 400
    embedding: int = 256
    attribute_width: int = 512

    @property
    def output(self) -> int:
        """Channels of res2; each stage has twice those of the one before, and a quarter of them inside a block."""
        return self.bottleneck * 4

    @property
    def feature(self) -> int:
        return self.output * 8


SMALL = Sizes(
    stem=8,
    bottleneck=8,
    blocks=(1, 2, 2, 2),
    proposal_width=32,
    classes=20,
    attributes=12,
    embedding=16,
    attribute_width=24,
)


def _norm(prefix: str, width: int, counted: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}.norm.{name}", (width,)
    if counted:
        yield f"{prefix}.norm.num_batches_tracked", ()


def _stage(
    prefix: str, blocks: int, inputs: int, middle: int, outputs: int, counted: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for index in range(blocks):
        own = inputs if index == 0 else outputs
        convolutions = {"conv1": (middle, own, 1, 1), "conv2": (middle, middle, 3, 3), "conv3": (outputs, middle, 1, 1)}
        if index == 0:
            convolutions["shortcut"] = (outputs, own, 1, 1)
        for name, shape in convolutions.items():
            yield f"{prefix}.{index}.{name}.weight", shape
            yield from _norm(f"{prefix}.{index}.{name}", shape[0], counted)


def published_shapes(layout: str, sizes: Sizes) -> Shapes:
    """Name and shape of every tensor of a published file."""
    shapes: Shapes = {"backbone.stem.conv1.weight": (sizes.stem, 3, 7, 7)}
    shapes.update(_norm("backbone.stem.conv1", sizes.stem, layout == "huggingface"))
    inputs = sizes.stem
    for stage, blocks in enumerate(sizes.blocks):
        prefix = "roi_heads.res5" if stage == 3 else f"backbone.res{stage + 2}"
        outputs = sizes.output * 2**stage
        counted = layout == "huggingface" or (layout == "milvlg" and stage >= 2)  # MILVLG froze the others for its training
        shapes.update(_stage(prefix, blocks, inputs, sizes.bottleneck * 2**stage, outputs, counted))
        inputs = outputs

    two_rows = layout == "milvlg"
    head = "proposal_generator.rpn_head"
    shapes["proposal_generator.anchor_generator.cell_anchors.0"] = (sizes.anchors, 4)
    for name, shape in {
        "conv": (sizes.proposal_width, sizes.output * 4, 3, 3),
        "objectness_logits": (sizes.anchors * (2 if two_rows else 1), sizes.proposal_width, 1, 1),
        "anchor_deltas": (sizes.anchors * 4, sizes.proposal_width, 1, 1),
    }.items():
        shapes[f"{head}.{name}.weight"], shapes[f"{head}.{name}.bias"] = shape, shape[:1]

    predictor = "roi_heads.box_predictor"
    embedding, hidden, score = (
        ("cls_embed", "attr_linear1", "attr_linear2") if two_rows else ("cls_embedding", "fc_attr", "attr_score")
    )
    shapes[f"{predictor}.{embedding}.weight"] = (sizes.classes + 1, sizes.embedding)
    for name, (rows, columns) in {
        "cls_score": (sizes.classes + 1, sizes.feature),
        "bbox_pred": (4 * (sizes.classes + (1 if two_rows else 0)), sizes.feature),
        hidden: (sizes.attribute_width, sizes.feature + sizes.embedding),
        score: (sizes.attributes + 1, sizes.attribute_width),
    }.items():
        shapes[f"{predictor}.{name}.weight"], shapes[f"{predictor}.{name}.bias"] = (rows, columns), (rows,)
    return shapes


def random_weights(layout: str, sizes: Sizes, seed: int, anchor_sides: tuple[float, float] = (16.0, 90.0)) -> dict[str, Tensor]:
    """A state dict whose activations neither die nor explode.

    Args:
        anchor_sides: the cell anchors' sides lie between them; they are not centred exactly, nor of the configuration's sizes.
    """
    random = torch.Generator().manual_seed(seed)
    counters = 0

    def normal(shape: tuple[int, ...], deviation: float) -> Tensor:
        return torch.randn(shape, generator=random) * deviation

    def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=random) * (high - low) + low

    def weights(name: str, shape: tuple[int, ...]) -> Tensor:
        nonlocal counters
        inputs = math.prod(shape[1:])
        if name.endswith("num_batches_tracked"):
            counters += 1
            return torch.tensor(counters)
        if "cell_anchors" in name:
            sides_A2 = uniform((shape[0], 2), *anchor_sides)
            return torch.cat([-sides_A2 / 2, sides_A2 / 2], dim=1) + uniform((shape[0], 1), -3, 3)
        if name.endswith("norm.weight"):  # in a deep stage each block adds little to what goes around it
            depth = sizes.blocks[int(name[name.index("res") + 3]) - 2] if ".conv3." in name else 0
            return uniform(shape, 0.3, 0.7) / depth if depth else uniform(shape, 0.7, 1.3)
        if name.endswith("running_var"):
            return uniform(shape, 0.5, 1.5) * (_STEM_SPREAD if ".stem." in name else 1)
        if name.endswith(("bias", "running_mean")):
            return normal(shape, 0.1)
        if len(shape) == 4 and not name.endswith(("objectness_logits.weight", "anchor_deltas.weight")):
            return normal(shape, math.sqrt(2 / inputs))
        if "objectness_logits" in name:
            return normal(shape, 1 / math.sqrt(inputs))  # far from where a softmax in fp32 is 1 for all
        if "anchor_deltas" in name:
            return normal(shape, 0.3 / math.sqrt(inputs))
        if "cls_emb" in name:
            return normal(shape, 1.0)
        return normal(shape, 2 / math.sqrt(inputs))

    return {name: weights(name, shape) for name, shape in published_shapes(layout, sizes).items()}


def centred(state: dict[str, Tensor], features_PF: Tensor) -> dict[str, Tensor]:
    """With a region head that tells those regions apart: otherwise what all have in common (features are means of rectified
    values) decides every class, and no choice among regions is ever close or surprising."""
    state, mean_F = dict(state), features_PF.mean(dim=0)
    head = "roi_heads.box_predictor"
    hidden = "attr_linear1" if f"{head}.attr_linear1.weight" in state else "fc_attr"
    divisor = 1.0 if hidden == "attr_linear1" else 7.0  # the other layouts' deltas are divided by 10 and 5
    for name, deviation in {"cls_score": 2.0, "bbox_pred": 0.25 * divisor, hidden: 1.0}.items():
        weight = state[f"{head}.{name}.weight"].clone()
        own = weight[:, : len(mean_F)]  # a view; the rest sees the class
        own *= deviation / ((features_PF - mean_F) @ own.T).std()
        state[f"{head}.{name}.weight"] = weight
        state[f"{head}.{name}.bias"] = state[f"{head}.{name}.bias"] - own @ mean_F
    return state
