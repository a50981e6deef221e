"""torchvision's own detectors with random weights, put together as torchvision does for a published file."""

import math
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision.models import detection

from tests.vision.published_pairs import noise

ARCHITECTURES = ("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn")

SHORT, LONG = 96, 160
"""Sides of the resized image, in place of 320 x 640 and 800 x 1333."""


def shrunk(model: Any) -> Any:
    """The same model, with pictures made smaller."""
    model.transform.min_size, model.transform.max_size = (SHORT,), LONG
    return model


def as_published(architecture: str, state: dict[str, Tensor]) -> Any:
    """What torchvision builds when it is asked for its COCO weights, were these the file that it finds."""
    with patch("torchvision.models._api.load_state_dict_from_url", return_value=state):
        model = getattr(detection, architecture)(weights="COCO_V1")
    return shrunk(model.eval())


@cache
def torchvision_weights(architecture: str) -> dict[str, Tensor]:
    """A state dict as in torchvision's files: without batch counters, and with channels of hardly any variance."""
    random = torch.Generator().manual_seed(len(architecture))
    model = getattr(detection, architecture)(weights=None, weights_backbone=None)
    names = [name for name, module in model.backbone.body.named_modules() if isinstance(module, nn.BatchNorm2d)]
    # The last norm of each block is small, so that what goes around the block counts more than what it adds.
    last_in_block = {name.split(".block.")[0].rsplit(".bn", 1)[0]: f"backbone.body.{name}" for name in names}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            deviation = math.sqrt(2 / math.prod(module.weight.shape[1:]))
            if name.endswith("bbox_pred"):
                deviation /= 8
            module.weight.data = torch.randn(module.weight.shape, generator=random) * deviation
            if module.bias is not None:
                module.bias.data = torch.randn(module.bias.shape, generator=random) * 0.1
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.weight.shape, generator=random) * 0.6 + 0.7
            if name in last_in_block.values():
                module.weight.data /= 3
            module.bias.data = torch.randn(module.bias.shape, generator=random) * 0.1
            module.running_mean.data = torch.randn(module.bias.shape, generator=random) * 0.1
            module.running_var.data = torch.rand(module.bias.shape, generator=random) + 0.5
    if architecture == "fasterrcnn_resnet50_fpn":  # where it matters that torchvision adds nothing to the variance of this one
        first = model.backbone.body.layer1[0]
        first.conv1.weight.data[::4] *= 0.01
        first.bn1.running_mean[::4] *= 0.01
        first.bn1.running_var[::4] *= 1e-4
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}

    features: list[Tensor] = []
    model = as_published(architecture, state)
    model.roi_heads.box_head.register_forward_hook(lambda module, inputs, output: features.append(output))
    with torch.no_grad():
        model([noise(1, 120, 160).float() / 255])
    mean_F, head = features[0].mean(dim=0), "roi_heads.box_predictor"
    for name, deviation in {"cls_score": 2.5, "bbox_pred": 1.0}.items():
        weight = state[f"{head}.{name}.weight"]
        weight = weight * deviation / ((features[0] - mean_F) @ weight.T).std()
        state[f"{head}.{name}.weight"] = weight
        state[f"{head}.{name}.bias"] = state[f"{head}.{name}.bias"] - weight @ mean_F
    return state
