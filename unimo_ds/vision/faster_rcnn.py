"""The bottom-up-attention form of Faster R-CNN (Anderson et al., CVPR 2018): images to regions.

Backbone to stride 16, proposals on it, each proposal pooled through res5 and averaged: the region's feature. Class
distribution, class-specific box and attribute are read from that feature. The steps are methods of their own (`prepare`,
`backbone`, `propose`, `judge`, `find`), so that they can be compared with another implementation one by one.

Shape suffixes: B images of one padded size, C channels, H and W rows and columns, P proposals, F feature width, N classes
with background at 0, A attributes with "none" at 0, R kept regions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from unimo_ds.regions import Regions
from unimo_ds.vision.boxes import BOX_RULES
from unimo_ds.vision.detector import Detector, Found
from unimo_ds.vision.detector_config import DetectorConfig
from unimo_ds.vision.preprocessing import Frame, frame_of, normalise, resize
from unimo_ds.vision.proposals import ProposalGenerator
from unimo_ds.vision.region_head import Judgement, RegionHead, Targets
from unimo_ds.vision.resnet import Backbone, Padding
from unimo_ds.vision.selection import select_regions

_PAD_TO = 64
"""Batches hold images whose resized sizes agree when rounded up to this: few shapes, 4 % of padding on photographs."""


class BottomUpDetector(Detector):
    """Finds the regions of images.

    Args:
        config: what it computes.
        class_names: names of classes 1.. (index 0, the background, has none).
        attribute_names: names of attributes 1.. (index 0 is "none").
        facts: what its training measured (average precision, the command); carried along in its file.

    Raises:
        ValueError: the names do not match the counts in `config`.
    """

    def __init__(
        self,
        config: DetectorConfig,
        class_names: Sequence[str],
        attribute_names: Sequence[str],
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(config.selection, class_names, attribute_names, facts)
        for what, names, count in (
            ("class", class_names, config.class_count),
            ("attribute", attribute_names, config.attribute_count),
        ):
            if names and len(names) != count:
                raise ValueError(f"{len(names)} {what} names for {what}_count {count}")
        self.config = config
        self.backbone = Backbone(config)
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = RegionHead(config)
        # Channels last makes the narrow convolutions almost twice as fast on a CPU.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """The training losses `objectness`, `proposal`, `class`, `box`, `attribute` (their sum is to be minimised).

        Args:
            images: uint8 [3, H, W], RGB, all of one resized size.
            targets: one dict an image, boxes in pixels of the resized image (see `region_head.Targets`).
        """
        images_B3HW = torch.stack([self.prepare(image) for image in images]).contiguous(memory_format=torch.channels_last)
        sizes = [(images_B3HW.shape[2], images_B3HW.shape[3])] * len(images)
        map_BCHW = self.backbone(images_B3HW)
        proposals, losses = self.proposal_generator(ImageList(images_B3HW, sizes), {"res4": map_BCHW}, targets)
        return {
            "objectness": losses["loss_objectness"],
            "proposal": losses["loss_rpn_box_reg"],
            **self.roi_heads.losses(map_BCHW, proposals, targets),
        }

    def frame(self, height: int, width: int) -> Frame:
        """An image of that size on disk, and as the detector sees it."""
        return frame_of(height, width, self.config)

    def batch_shape(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the batch that an image of that size on disk belongs into."""
        frame = self.frame(height, width)
        return -(-frame.rows // _PAD_TO) * _PAD_TO, -(-frame.columns // _PAD_TO) * _PAD_TO

    def prepare(self, image_3HW: Tensor) -> Tensor:
        """One uint8 RGB image as float32 [3, rows, columns], resized and normalised as the first convolution expects."""
        image_3HW = image_3HW.to(self.device)
        frame = self.frame(image_3HW.shape[1], image_3HW.shape[2])
        return normalise(resize(image_3HW, frame, self.config), self.config)

    def propose(
        self, map_BCHW: Tensor, frames: Sequence[Frame], map_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Proposals [P, 4] of each image in pixels of the resized image, best first.

        Args:
            map_BCHW: stride 16; zero beyond each image.
            frames: of the images.
            map_sizes: rows and columns of each image's part of the map, beyond which there are no anchors; None: all of it.
        """
        whole = (map_BCHW.shape[2], map_BCHW.shape[3])
        return self.proposal_generator.propose(map_BCHW, frames, map_sizes or [whole] * len(frames))

    def judge(self, map_BCHW: Tensor, proposals: list[Tensor]) -> Judgement:
        """Features, class logits and box deltas of the proposals of all images together; the map without padding."""
        return self.roi_heads.judge(map_BCHW, proposals)

    def find(self, frame: Frame, proposals_P4: Tensor, judgement: Judgement) -> Found:
        """Which proposals of one image are kept, with boxes on disk, classes and attributes."""
        config, selection = self.config, self.selection
        rules = BOX_RULES[config.box_sides]
        scale_4 = proposals_P4.new_tensor([frame.scale_x, frame.scale_y] * 2)
        on_disk_P4 = proposals_P4 / scale_4
        probabilities_PN = judgement.class_logits_PN.softmax(dim=1)

        def boxes_of(index_n: Tensor, classes_n: Tensor) -> Tensor:
            if selection.boxes == "proposals":
                return on_disk_P4[index_n]
            deltas_n4 = judgement.box_deltas_PN4[index_n, classes_n]
            boxes_n4 = rules.decode(deltas_n4, on_disk_P4[index_n], config.box_weights)
            boxes_n4 = rules.clip(boxes_n4, frame.rows / frame.scale_y, frame.columns / frame.scale_x)
            if selection.rule != "fill":
                return boxes_n4  # the published conventions keep a box that clipping has emptied
            fits_n = rules.longer_than(boxes_n4, 0)
            return torch.where(fits_n[:, None], boxes_n4, on_disk_P4[index_n])

        kept = select_regions(probabilities_PN, boxes_of, rules, selection)
        features_RF, class_probabilities_RN = judgement.features_PF[kept.proposals_R], probabilities_PN[kept.proposals_R]
        return Found(
            boxes_of(kept.proposals_R, kept.classes_R),
            *kept,
            features_RF,
            class_probabilities_RN,
            self._attributes(features_RF, class_probabilities_RN.argmax(dim=1)),
        )

    def settings(self) -> dict[str, Any]:
        """Architecture and conventions; for `identity`."""
        config = self.config
        numbers = config.model_dump(mode="json", exclude={"training_regions", "selection", "class_count", "attribute_count"})
        return {
            "architecture": describe_architecture(config),
            "classes": config.class_count,
            "attributes": config.attribute_count,
            "feature_width": config.feature_width,
            **numbers,
        }

    def _attributes(self, features_RF: Tensor, predicted_R: Tensor) -> Tensor:
        """Attribute probabilities [R, A], "none" in column 0; the best class tells, the background too."""
        if not self.config.attribute_count:
            return features_RF.new_zeros(len(features_RF), 1)
        logits_RA = self.roi_heads.box_predictor.attribute_logits(features_RF, predicted_R)
        if self.config.no_attribute == "left_out":
            logits_RA[:, 0] = -torch.inf
        probabilities_RA: Tensor = logits_RA.softmax(dim=1)
        if self.config.no_attribute == "hidden":
            probabilities_RA[:, 0] = 0
        return probabilities_RA

    def _detect_batch(self, images: Sequence[Tensor]) -> list[Regions]:
        frames = [self.frame(image.shape[1], image.shape[2]) for image in images]
        return [
            found.regions(frame, self.selection.kept_classes)
            for frame, found in zip(frames, self.find_batch([self.prepare(image) for image in images], frames), strict=True)
        ]

    @torch.inference_mode()
    def find_batch(self, prepared: Sequence[Tensor], frames: Sequence[Frame]) -> list[Found]:
        """From prepared images, of different sizes even, to what is kept of each; padding has no influence.

        Args:
            prepared: float32 [3, rows, columns] each, from `prepare`.
            frames: of the same images.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in prepared]
        shape = (max(rows for rows, _ in sizes), max(columns for _, columns in sizes))
        images_B3HW = prepared[0].new_zeros(len(prepared), 3, *shape).contiguous(memory_format=torch.channels_last)
        for image_3HW, image, (rows, columns) in zip(images_B3HW, prepared, sizes, strict=True):
            image_3HW[:, :rows, :columns] = image
        padding = Padding(sizes, shape, self.config.ceil_pool, images_B3HW.device)
        if not all(min(size) for size in padding.map_sizes):  # as the pooling says of an image that is alone
            raise RuntimeError(f"an image of {min(map(min, sizes))} rows or columns is smaller than the backbone's pooling")
        map_BCHW = self.backbone(images_B3HW, padding if len({*sizes}) > 1 else None)
        found = []
        for index, proposals_P4 in enumerate(self.propose(map_BCHW, frames, padding.map_sizes)):
            rows, columns = padding.map_sizes[index]
            own_map_1CHW = map_BCHW[index : index + 1, :, :rows, :columns]
            found.append(self.find(frames[index], proposals_P4, self.judge(own_map_1CHW, [proposals_P4])))
        return found


def describe_architecture(config: DetectorConfig) -> str:
    """Backbone, proposals and region head in one line, for manifests and reports."""
    return (
        f"faster-rcnn-c4 {config.backbone_block}/{config.roi_block} blocks {config.blocks} widths {config.widths} "
        f"stem {config.stem_width} | {config.proposals} proposals | roi-{config.roi_pool} {config.roi_size} "
        f"stride {config.roi_stride} dilation {config.roi_dilation}"
    )
