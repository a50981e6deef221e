"""The bottom-up-attention form of Faster R-CNN (Anderson et al., CVPR 2018): images to regions.

Backbone to stride 16, proposals on it, each proposal pooled through res5 and averaged: the region's feature. Class
distribution, class-specific box and attribute are read from that feature.

Shape suffixes: B images of one size, C channels, H and W rows and columns, P proposals, F feature width, N classes with
background at 0, K kept classes, A attributes with "none" at 0, R kept regions.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from unimo_ds.regions import Regions
from unimo_ds.vision.detector_config import DetectorConfig, SelectionConfig
from unimo_ds.vision.preprocessing import describe_preprocessing, normalise, resize, resized_size
from unimo_ds.vision.proposals import make_proposal_generator
from unimo_ds.vision.region_head import Judgement, RegionHead, Targets
from unimo_ds.vision.resnet import Backbone
from unimo_ds.vision.selection import select_regions


class Detector(nn.Module):
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
        super().__init__()
        for what, names, count in (
            ("class", class_names, config.class_count),
            ("attribute", attribute_names, config.attribute_count),
        ):
            if len(names) != count:
                raise ValueError(f"{len(names)} {what} names for {what}_count {count}")
        self.config, self.selection, self.facts = config, config.selection, dict(facts or {})
        self.class_names, self.attribute_names = tuple(class_names), tuple(attribute_names)
        self.backbone = Backbone(config)
        self.proposal_generator = make_proposal_generator(config)
        self.roi_heads = RegionHead(config)
        # Channels last makes the narrow convolutions almost twice as fast on a CPU.
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, images: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """The training losses `objectness`, `proposal`, `class`, `box`, `attribute` (their sum is to be minimised).

        Args:
            images: uint8 [3, H, W], RGB, all of one resized size.
            targets: one dict an image, boxes in pixels of the resized image (see `region_head.Targets`).
        """
        images_B3HW = self._prepare(images)
        map_BCHW = self.backbone(images_B3HW)
        proposals, losses = self.proposal_generator(_image_list(images_B3HW), {"res4": map_BCHW}, targets)
        return {
            "objectness": losses["loss_objectness"],
            "proposal": losses["loss_rpn_box_reg"],
            **self.roi_heads.losses(map_BCHW, proposals, targets),
        }

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor]) -> list[Regions]:
        """The regions of each image, in the order given; what else is in the list has no influence on an image.

        Images are grouped by their size after resizing and nothing is padded: padding would bring proposals, and
        through the convolutions features, that the image alone does not have.

        Args:
            images: uint8 [3, H, W], RGB, of any sizes.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(resized_size(image.shape[1], image.shape[2], self.config), []).append(index)
        training = self.training
        self.eval()
        try:
            found = {
                index: regions
                for group in groups.values()
                for index, regions in zip(group, self._detect_same_size([images[i] for i in group]), strict=True)
            }
        finally:
            self.train(training)
        return [found[index] for index in range(len(images))]

    def identity(self) -> dict[str, Any]:
        """What a store of regions says of its detector: two stores may be mixed only when this is equal."""
        selection = self.selection.model_dump()
        return {
            "architecture": describe_architecture(self.config),
            "weights_sha256": weights_sha256(self),
            "preprocessing": describe_preprocessing(self.config),
            "classes": self.config.class_count,
            "attributes": self.config.attribute_count,
            "feature_width": self.config.feature_width,
            **selection,
        }

    def with_selection(self, **changes: Any) -> "Detector":
        """Changes which regions are kept (keys of `SelectionConfig`), and returns itself.

        Raises:
            pydantic.ValidationError: an unknown key or a value out of range.
        """
        self.selection = SelectionConfig.model_validate({**self.selection.model_dump(), **changes})
        return self

    def _prepare(self, images: Sequence[Tensor]) -> Tensor:
        resized = [resize(image.to(self.device), self.config) for image in images]
        return normalise(torch.stack(resized), self.config).contiguous(memory_format=torch.channels_last)

    def _detect_same_size(self, images: Sequence[Tensor]) -> list[Regions]:
        images_B3HW = self._prepare(images)
        size = (images_B3HW.shape[2], images_B3HW.shape[3])
        map_BCHW = self.backbone(images_B3HW)
        proposals, _ = self.proposal_generator(_image_list(images_B3HW), {"res4": map_BCHW})
        joined = self.roi_heads.judge(map_BCHW, proposals)
        counts = [len(boxes_P4) for boxes_P4 in proposals]
        parts = zip(
            torch.split(joined.features_PF, counts),
            torch.split(joined.class_logits_PN, counts),
            torch.split(joined.box_deltas_PN4, counts),
            strict=True,
        )
        return [
            self._regions(image, size, boxes_P4, Judgement(*part))
            for image, boxes_P4, part in zip(images, proposals, parts, strict=True)
        ]

    def _regions(self, image: Tensor, size: tuple[int, int], proposals_P4: Tensor, judgement: Judgement) -> Regions:
        probabilities_PN = judgement.class_logits_PN.softmax(dim=1)
        scores_P, classes_P = probabilities_PN[:, 1:].max(dim=1)
        classes_P = classes_P + 1
        boxes_P4 = proposals_P4
        if self.selection.boxes == "regressed":
            boxes_P4 = self._regressed(proposals_P4, judgement.box_deltas_PN4, classes_P, size)
        kept_R = select_regions(boxes_P4, classes_P, scores_P, self.selection)
        features_RF = judgement.features_PF[kept_R]
        predicted_R = probabilities_PN[kept_R].argmax(dim=1)
        attributes_RA = self.roi_heads.box_predictor.attribute_logits(features_RF, predicted_R).softmax(dim=1)
        attribute_scores_R, attribute_ids_R = attributes_RA.max(dim=1)
        class_scores_RK, class_ids_RK = probabilities_PN[kept_R].topk(self.selection.kept_classes, dim=1)
        height, width = image.shape[1:]
        scale_4 = torch.tensor([width / size[1], height / size[0]] * 2, device=boxes_P4.device)
        return Regions(
            width=width,
            height=height,
            boxes_R4=clip_boxes_to_image(boxes_P4[kept_R] * scale_4, (height, width)).cpu().numpy().astype(np.float32),
            features_RF=features_RF.cpu().numpy().astype(np.float16),
            class_ids_RK=class_ids_RK.cpu().numpy().astype(np.uint16),
            class_probabilities_RK=class_scores_RK.cpu().numpy().astype(np.float16),
            attribute_ids_R=attribute_ids_R.cpu().numpy().astype(np.uint16),
            attribute_probabilities_R=attribute_scores_R.cpu().numpy().astype(np.float16),
        )

    def _regressed(self, proposals_P4: Tensor, deltas_PN4: Tensor, classes_P: Tensor, size: tuple[int, int]) -> Tensor:
        """The box of each proposal's class, inside the image; the proposal itself where that box would be empty."""
        chosen_P4 = deltas_PN4[torch.arange(len(classes_P), device=classes_P.device), classes_P]
        regressed_P4: Tensor = self.roi_heads.box_coder.decode_single(chosen_P4, proposals_P4)
        clipped_P4: Tensor = clip_boxes_to_image(regressed_P4, size)
        is_empty_P = (clipped_P4[:, 2:] - clipped_P4[:, :2]).amin(dim=1) <= 0
        return torch.where(is_empty_P[:, None], proposals_P4, clipped_P4)


def describe_architecture(config: DetectorConfig) -> str:
    """Backbone, proposals and region head in one line, for manifests and reports."""
    return (
        f"faster-rcnn-c4 {config.backbone_block}/{config.roi_block} blocks {config.blocks} widths {config.widths} "
        f"stem {config.stem_width} | {config.proposals} proposals | roi-{config.roi_pool} {config.roi_size} "
        f"stride {config.roi_stride} dilation {config.roi_dilation}"
    )


def weights_sha256(model: nn.Module) -> str:
    """A digest of every weight's name, shape and fp32 value: the same for a model in memory and for its file loaded."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _image_list(images_B3HW: Tensor) -> ImageList:
    """All images of a batch have the size of the batch, because nothing is padded."""
    rows, columns = images_B3HW.shape[2], images_B3HW.shape[3]
    return ImageList(images_B3HW, [(rows, columns)] * len(images_B3HW))
