"""The C4 split of a residual network: stem and res2..res4 see the image, res5 sees each pooled region.

Parameter names are those of the published detector (`res2.0.conv1.norm.weight`), so that its files need no renaming.

Shape suffixes: B images, C channels, H and W rows and columns of a map, P proposals.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from unimo_ds.vision.detector_config import DetectorConfig

BACKBONE_STRIDE = 16


class NormalisedConv(nn.Conv2d):
    """A convolution without bias, followed by its batch normalisation.

    In evaluation mode the statistics are fixed, so that no image sees its batch.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, input: Tensor) -> Tensor:
        normalised: Tensor = self.norm(super().forward(input))
        return normalised


class Block(nn.Module):
    """A residual block: two 3x3 convolutions ("basic"), or 1x1, 3x3, 1x1 with a quarter of the channels inside."""

    def __init__(
        self,
        kind: Literal["basic", "bottleneck"],
        inputs: int,
        outputs: int,
        stride: int,
        dilation: int,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        inner = outputs if kind == "basic" else outputs // 4
        first, second = (stride, 1) if kind == "basic" or stride_in_1x1 else (1, stride)
        self.shortcut = NormalisedConv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else nn.Identity()
        if kind == "basic":
            self.conv1 = NormalisedConv(inputs, inner, 3, first, dilation)
            self.conv2 = NormalisedConv(inner, inner, 3, second, dilation)
        else:
            self.conv1 = NormalisedConv(inputs, inner, 1, first)
            self.conv2 = NormalisedConv(inner, inner, 3, second, dilation)
            self.conv3 = NormalisedConv(inner, outputs, 1)
        self.kind = kind

    def forward(self, map_BCHW: Tensor) -> Tensor:
        hidden_BCHW = self.conv2(F.relu_(self.conv1(map_BCHW)))
        if self.kind == "bottleneck":
            hidden_BCHW = self.conv3(F.relu_(hidden_BCHW))
        return F.relu_(hidden_BCHW + self.shortcut(map_BCHW))


def make_stage(config: DetectorConfig, stage: int) -> nn.Sequential:
    """Stage `stage` of res2..res5 as the configuration describes it; res5 takes the region head's stride and dilation."""
    index = stage - 2
    inputs = config.stem_width if stage == 2 else config.widths[index - 1]
    if stage == 5:
        kind, stride, dilation = config.roi_block, int(config.roi_stride), int(config.roi_dilation)
    else:
        kind, stride, dilation = config.backbone_block, 1 if stage == 2 else 2, 1
    outputs = config.widths[index]
    blocks = [
        Block(kind, inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, dilation, config.stride_in_1x1)
        for i in range(config.blocks[index])
    ]
    return nn.Sequential(*blocks)


class Stem(nn.Module):
    """7x7 convolution and max-pool, each of stride 2."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.conv1 = NormalisedConv(3, config.stem_width, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 0, ceil_mode=True) if config.ceil_pool else nn.MaxPool2d(3, 2, 1)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        pooled: Tensor = self.pool(F.relu_(self.conv1(images_B3HW)))
        return pooled


class Backbone(nn.Module):
    """Normalised images [B, 3, H, W] to one map [B, C, H/16, W/16]."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.stem = Stem(config)
        self.res2, self.res3, self.res4 = (make_stage(config, stage) for stage in (2, 3, 4))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        map_BCHW: Tensor = self.res4(self.res3(self.res2(self.stem(images_B3HW))))
        return map_BCHW
