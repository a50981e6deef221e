"""The region proposal network: anchors and head as the published detector has them, ranked by its conventions.

Its training (matching, sampling, losses) is torchvision's.

Shape suffixes: B images, C channels, H and W rows and columns of the stride-16 map, A anchors at one place, P proposals.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from unimo_ds.vision.boxes import BOX_RULES
from unimo_ds.vision.detector_config import DetectorConfig
from unimo_ds.vision.preprocessing import Frame
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
        return [self.grid(rows, columns)] * len(images.image_sizes)

    def grid(self, rows: int, columns: int) -> Tensor:
        """All anchors of a map, place by place; [H * W * A, 4]."""
        y = torch.arange(rows, device=self.cell_A4.device, dtype=self.cell_A4.dtype) * BACKBONE_STRIDE
        x = torch.arange(columns, device=self.cell_A4.device, dtype=self.cell_A4.dtype) * BACKBONE_STRIDE
        y_HW, x_HW = torch.meshgrid(y, x, indexing="ij")
        centres_HW14 = torch.stack([x_HW, y_HW, x_HW, y_HW], dim=-1)[:, :, None]
        return (centres_HW14 + self.cell_A4).reshape(-1, 4)


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


class ProposalGenerator(RegionProposalNetwork):  # type: ignore[misc]
    """Called with (ImageList, {"res4": map}, targets) it trains, as torchvision's does; `propose` is what detection uses."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(
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
        self.config = config

    def propose(self, map_BCHW: Tensor, frames: Sequence[Frame], map_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Proposals [P, 4] of each image, pixels of the resized image, best first.

        Args:
            map_BCHW: stride 16; zero beyond each image.
            frames: the images.
            map_sizes: rows and columns of each image's part of the map; there are no anchors beyond it.
        """
        logits, deltas = self.head([map_BCHW])
        return [
            self._of_one_image(logits_AHW[:, :rows, :columns], deltas_AHW[:, :rows, :columns], frame)
            for logits_AHW, deltas_AHW, frame, (rows, columns) in zip(logits[0], deltas[0], frames, map_sizes, strict=True)
        ]

    def _of_one_image(self, logits_AHW: Tensor, deltas_AHW: Tensor, frame: Frame) -> Tensor:
        config = self.config
        rules = BOX_RULES[config.box_sides]
        rows, columns = logits_AHW.shape[1:]
        logits_P = logits_AHW.permute(1, 2, 0).flatten()
        deltas_P4 = deltas_AHW.view(-1, 4, rows, columns).permute(2, 3, 0, 1).reshape(-1, 4)
        boxes_P4 = rules.decode(deltas_P4, self.anchor_generator.grid(rows, columns), (1.0, 1.0, 1.0, 1.0))
        boxes_P4 = rules.clip(boxes_P4, frame.rows, frame.columns)
        fits_P = rules.longer_than(boxes_P4, config.least_proposal_side * frame.scale_x)
        if config.least_proposal_side:
            boxes_P4, logits_P, fits_P = boxes_P4[fits_P], logits_P[fits_P], fits_P[fits_P]
        best_P = torch.sort(logits_P, descending=True, stable=True).indices[: config.proposals_before_nms]
        best_P = best_P[fits_P[best_P]]
        boxes_P4, logits_P = boxes_P4[best_P], logits_P[best_P]
        kept_P = rules.suppress(boxes_P4, logits_P, config.proposal_nms_iou)[: config.proposals]
        return boxes_P4[kept_P]
