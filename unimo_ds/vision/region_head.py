"""What is said of each proposal: its feature, class distribution, box and attribute; and the losses that teach it.

Shape suffixes: B images, C channels, H and W rows and columns of the stride-16 map, P proposals of all images together,
F feature width, N classes with background at 0, A attributes with "none" at 0.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import roi_align, roi_pool

from unimo_ds.vision.detector_config import DetectorConfig
from unimo_ds.vision.resnet import BACKBONE_STRIDE, make_stage

WINDOWS_AT_ONCE = {"cpu": 16, "cuda": 128}
"""Pooled windows that run through res5 together, by device: what fits a cache, and what fills a GPU (0.6 GB)."""

Targets = list[dict[str, Tensor]]
"""One dict an image: `boxes` float [n, 4] in pixels of the resized image, `labels` int64 [n] from 1, `attributes` int64 [n]."""


@dataclass(frozen=True)
class Judgement:
    """The region head's output for P proposals."""

    features_PF: Tensor
    class_logits_PN: Tensor
    box_deltas_PN4: Tensor


class Predictors(nn.Module):
    """Linear layers over the pooled feature, with the published detector's names."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        width, classes = config.feature_width, config.class_count + 1
        self.cls_score = nn.Linear(width, classes)
        self.bbox_pred = nn.Linear(width, 4 * classes)
        if config.attribute_count:
            self.cls_embedding = nn.Embedding(classes, config.attribute_embedding)
            self.fc_attr = nn.Linear(width + config.attribute_embedding, config.attribute_width)
            self.attr_score = nn.Linear(config.attribute_width, config.attribute_count + 1)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def attribute_logits(self, features_PF: Tensor, classes_P: Tensor) -> Tensor:
        """Attribute logits [P, A], given each region's feature and class (the true one in training)."""
        joined = torch.cat([features_PF, self.cls_embedding(classes_P)], dim=1)
        logits_PA: Tensor = self.attr_score(F.relu(self.fc_attr(joined)))
        return logits_PA


class RegionHead(RoIHeads):  # type: ignore[misc]
    """RoI pooling on res4, res5, mean over the window; then the predictors.

    Of torchvision's `RoIHeads` the matching and sampling of training proposals and the box coder are used.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(
            box_roi_pool=None,
            box_head=None,
            box_predictor=Predictors(config),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.training_regions,
            positive_fraction=0.4,
            bbox_reg_weights=config.box_weights,
            score_thresh=0.0,
            nms_thresh=0.0,
            detections_per_img=0,
        )
        self.config = config
        self.res5 = make_stage(config, 5)

    def judge(self, map_BCHW: Tensor, proposals: list[Tensor]) -> Judgement:
        """Pools and classifies the proposals ([p, 4] an image, pixels of the resized image) of all images together."""
        map_BCHW = map_BCHW.contiguous()  # as the pooling reads it; once, not once a part
        rois_P5 = torch.cat([F.pad(boxes_P4, (1, 0), value=index) for index, boxes_P4 in enumerate(proposals)])
        at_once = len(rois_P5) if self.training else WINDOWS_AT_ONCE[map_BCHW.device.type]  # statistics are over all windows
        parts = torch.split(rois_P5, max(1, at_once))
        features_PF = torch.cat([self._feature(self.pool(map_BCHW, part_P5)) for part_P5 in parts])
        deltas = self.box_predictor.bbox_pred(features_PF)
        classes = deltas.shape[1] // 4  # not -1, which no proposals leave open
        return Judgement(features_PF, self.box_predictor.cls_score(features_PF), deltas.view(len(deltas), classes, 4))

    def pool(self, map_BCHW: Tensor, rois_P5: Tensor) -> Tensor:
        """The window of each region of interest (number of the image, box), [P, C, roi_size, roi_size]."""
        size, scale = self.config.roi_size, 1 / BACKBONE_STRIDE
        if self.config.roi_pool == "align":
            windows_PCHW: Tensor = roi_align(map_BCHW, rois_P5, size, scale, sampling_ratio=2, aligned=True)
        else:
            windows_PCHW = roi_pool(map_BCHW, rois_P5, size, scale)
        return windows_PCHW.contiguous(memory_format=torch.channels_last)

    def _feature(self, windows_PCHW: Tensor) -> Tensor:
        for block in self.res5:
            windows_PCHW = block(windows_PCHW)
        return windows_PCHW.mean(dim=(2, 3))

    def losses(self, map_BCHW: Tensor, proposals: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Class, box and attribute loss on proposals sampled by their overlap with the true boxes.

        The background is taught attribute 0 ("none"); it weighs as much as the objects together.
        """
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        judgement = self.judge(map_BCHW, proposals)
        class_loss, box_loss = fastrcnn_loss(judgement.class_logits_PN, judgement.box_deltas_PN4.flatten(1), labels, deltas)
        labels_P = torch.cat(labels)
        logits_PA = self.box_predictor.attribute_logits(judgement.features_PF, labels_P)
        attributes = [
            _of_matched(target["attributes"], index).masked_fill(label == 0, 0)
            for target, index, label in zip(targets, matched, labels, strict=True)
        ]
        losses_P = F.cross_entropy(logits_PA, torch.cat(attributes), reduction="none")
        is_object_P = labels_P > 0
        attribute_loss = sum(
            (losses_P * chosen_P).sum() / chosen_P.sum().clamp(min=1) for chosen_P in (is_object_P, ~is_object_P)
        )
        return {"class": class_loss, "box": box_loss, "attribute": 0.5 * attribute_loss}


def _of_matched(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]`; zeros for an image without objects."""
    return values[index] if len(values) else torch.zeros_like(index)
