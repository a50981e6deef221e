"""The C4 split of a residual network: stem and res2..res4 see the image, res5 sees each pooled region.

Parameter names are those of the published detector (`res2.0.conv1.norm.weight`), so that its files need no renaming.

Images of several sizes may share a batch, padded at the right and at the bottom: what lies beyond an image is kept at zero
before every convolution that looks sideways, which is what the convolution sees beyond an image that is alone.

Shape suffixes: B images, C channels, H and W rows and columns of a map, P proposals.
"""

from collections.abc import Sequence
from typing import Literal

import torch
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
        norm = self.norm
        if self.training or norm.running_var is None or norm.running_mean is None:
            normalised: Tensor = norm(super().forward(input))
            return normalised
        scale_C = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # folded: one pass over the map less
        weight = self.weight * scale_C[:, None, None, None]
        convolved: Tensor = self._conv_forward(input, weight, norm.bias - norm.running_mean * scale_C)
        return convolved


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

    def forward(self, map_BCHW: Tensor, padding: "Padding | None" = None) -> Tensor:
        hidden_BCHW = _clear(F.relu_(self.conv1(map_BCHW)), padding)
        hidden_BCHW = self.conv2(hidden_BCHW)
        if self.kind == "bottleneck":
            hidden_BCHW = self.conv3(F.relu_(hidden_BCHW))
        return _clear(F.relu_(hidden_BCHW.add_(self.shortcut(map_BCHW))), padding)


class Padding:
    """What lies beyond the images of a padded batch, at each resolution of the backbone.

    Args:
        sizes: rows and columns of each image.
        shape: those of the batch.
        ceil_pool: how the stem's pooling rounds.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], shape: tuple[int, int], ceil_pool: bool, device: torch.device) -> None:
        self._inside: dict[tuple[int, int], Tensor] = {}
        for level in range(4):
            pool = ceil_pool and level == 1
            sizes, shape = [_halved(size, pool) for size in sizes], _halved(shape, pool)
            rows_H, columns_W = (torch.arange(side, device=device) for side in shape)
            ends = torch.tensor(sizes, device=device)
            inside_BHW = (rows_H[:, None] < ends[:, :1, None]) & (columns_W < ends[:, 1:, None])
            self._inside[shape] = inside_BHW[:, None].float()
        self.map_sizes = sizes
        """Rows and columns of each image's part of the stride-16 map."""

    def clear_(self, map_BCHW: Tensor) -> Tensor:
        """Zeroes the padding of a map, in place; an operation that only looks sideways then sees what it sees at an edge."""
        return map_BCHW.mul_(self._inside[map_BCHW.shape[2], map_BCHW.shape[3]])


def _halved(size: tuple[int, int], ceil_pool: bool) -> tuple[int, int]:
    """After a convolution of stride 2, or torchvision's pooling, which round up; Caffe's pooling rounds down."""
    rows, columns = ((side + (not ceil_pool)) // 2 for side in size)
    return rows, columns


def _clear(map_BCHW: Tensor, padding: Padding | None) -> Tensor:
    return map_BCHW if padding is None else padding.clear_(map_BCHW)


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

    def forward(self, images_B3HW: Tensor, padding: Padding | None = None) -> Tensor:
        pooled: Tensor = self.pool(_clear(F.relu_(self.conv1(images_B3HW)), padding))
        return _clear(pooled, padding)


class Backbone(nn.Module):
    """Normalised images [B, 3, H, W] to one map [B, C, H/16, W/16]."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.stem = Stem(config)
        self.res2, self.res3, self.res4 = (make_stage(config, stage) for stage in (2, 3, 4))

    def forward(self, images_B3HW: Tensor, padding: Padding | None = None) -> Tensor:
        """The map; with `padding`, zero beyond each image."""
        map_BCHW: Tensor = self.stem(images_B3HW, padding)
        for stage in (self.res2, self.res3, self.res4):
            for block in stage:
                map_BCHW = block(map_BCHW, padding)
        return map_BCHW
