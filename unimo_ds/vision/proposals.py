"""The region proposal network: torchvision's, with anchors and a head as the published detector has them.

Shape suffixes: B images, C channels, H and W rows and columns of the stride-16 map, A anchors at one place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from unimo_ds.vision.detector_config import DetectorConfig
from unimo_ds.vision.resnet import BACKBONE_STRIDE

_PROPOSALS_IN_TRAINING = 2  # times those at test time: the head should also see what suppression lets through rarely


class Anchors(nn.Module):
    """Anchors centred on multiples of 16, size-major and not rounded.

    torchvision's generator divides the image by the grid, which gives a stride of 15 for 600 rows, orders by ratio and
    rounds; the published weights know none of the three. The cell is a buffer because such files carry their own.
    """

    cell_A4: Tensor

    def __init__(self, sizes: tuple[float, ...], ratios: tuple[float, ...]) -> None:
        super().__init__()
        sides = [(size / ratio**0.5 / 2, size * ratio**0.5 / 2) for size in sizes for ratio in ratios]
        self.register_buffer("cell_A4", torch.tensor([[-x, -y, x, y] for x, y in sides]))

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        rows, columns = maps[0].shape[-2:]
        y = torch.arange(rows, device=self.cell_A4.device, dtype=self.cell_A4.dtype) * BACKBONE_STRIDE
        x = torch.arange(columns, device=self.cell_A4.device, dtype=self.cell_A4.dtype) * BACKBONE_STRIDE
        y_HW, x_HW = torch.meshgrid(y, x, indexing="ij")
        centres_HW14 = torch.stack([x_HW, y_HW, x_HW, y_HW], dim=-1)[:, :, None]
        anchors = (centres_HW14 + self.cell_A4).reshape(-1, 4)
        return [anchors] * len(images.image_sizes)


class ProposalHead(nn.Module):
    """3x3 convolution, then an objectness logit and four deltas for each anchor."""

    def __init__(self, inputs: int, width: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, padding=1)
        self.objectness_logits = nn.Conv2d(width, anchors, 1)
        self.anchor_deltas = nn.Conv2d(width, 4 * anchors, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias if layer.bias is not None else torch.empty(0))

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden_BCHW = F.relu_(self.conv(maps[0]))
        return [self.objectness_logits(hidden_BCHW)], [self.anchor_deltas(hidden_BCHW)]


def make_proposal_generator(config: DetectorConfig) -> RegionProposalNetwork:
    """The proposal network of `config`; called with (ImageList, {"res4": map}, targets or None)."""
    return RegionProposalNetwork(
        Anchors(config.anchor_sizes, config.anchor_ratios),
        ProposalHead(config.widths[2], config.rpn_width, config.anchors_per_place),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=64,
        positive_fraction=0.5,
        pre_nms_top_n={"training": config.proposals_before_nms, "testing": config.proposals_before_nms},
        post_nms_top_n={"training": config.proposals * _PROPOSALS_IN_TRAINING, "testing": config.proposals},
        nms_thresh=config.proposal_nms_iou,
    )
