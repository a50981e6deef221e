"""torchvision's Faster R-CNNs with a feature pyramid as detectors: features of width 1024, COCO's classes, no attributes.

Shape suffixes: P proposals, N classes with background at 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import clip_boxes_to_image

from unimo_ds.errors import CheckpointError
from unimo_ds.regions import Regions
from unimo_ds.vision.boxes import EDGES
from unimo_ds.vision.detector import Detector, Found
from unimo_ds.vision.detector_config import SelectionConfig
from unimo_ds.vision.preprocessing import Frame
from unimo_ds.vision.selection import select_regions

ARCHITECTURES: dict[str, Callable[..., Any]] = {
    name: getattr(detection, name)
    for name in (
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    )
}
_DIVISOR = 32  # torchvision pads to multiples of it, an image alone too
_LEAST_SIDE = 1e-2  # of a box in pixels of the resized image


class TorchvisionDetector(Detector):
    """One of `ARCHITECTURES` with the selection of torchvision's own `postprocess_detections`.

    Args:
        architecture: key of `ARCHITECTURES`; it sets the resizing and the number of proposals too.
        state: the published state dict.
        class_names: without background; empty: COCO's as torchvision lists them, when the counts agree.

    Raises:
        CheckpointError: the tensors are not those of the architecture.
    """

    def __init__(self, architecture: str, state: Mapping[str, Tensor], class_names: Sequence[str] = ()) -> None:
        selection = SelectionConfig(rule="retry_every_class", score_threshold=0.05, nms_iou=(0.5,), min_boxes=1, max_boxes=100)
        scores = state.get("roi_heads.box_predictor.cls_score.weight")
        if scores is None:
            raise CheckpointError(f"not torchvision's {architecture}: no tensor 'roi_heads.box_predictor.cls_score.weight'")
        listed = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
        names = class_names or (listed if len(listed) == len(scores) - 1 else ())
        super().__init__(selection, names, ())
        self.architecture = architecture
        self.model = ARCHITECTURES[architecture](weights=None, weights_backbone=None, num_classes=len(scores))
        try:
            self.model.load_state_dict(dict(state))
        except RuntimeError as error:
            raise CheckpointError(f"the tensors are not those of torchvision's {architecture}: {error}") from error
        if architecture == "fasterrcnn_resnet50_fpn" and not any(name.endswith("num_batches_tracked") for name in state):
            for module in self.model.modules():  # its published weights have frozen norms, which torchvision gives no epsilon
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 0.0
        self.class_count = len(scores) - 1
        self.feature_width = scores.shape[1]
        self.eval()

    def batch_shape(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the padded batch, as torchvision pads an image that is alone."""
        frame = self.frame(height, width)
        return -(-frame.rows // _DIVISOR) * _DIVISOR, -(-frame.columns // _DIVISOR) * _DIVISOR

    def frame(self, height: int, width: int) -> Frame:
        """An image of that size on disk, and as the detector sees it."""
        transform = self.model.transform
        scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
        rows, columns = int(height * scale), int(width * scale)
        return Frame(height, width, rows, columns, rows / height, columns / width)

    def settings(self) -> dict[str, Any]:
        """Architecture and sizes; for `identity`."""
        transform = self.model.transform
        return {
            "architecture": f"torchvision {self.architecture}",
            "conventions": "torchvision",
            "classes": self.class_count,
            "attributes": 0,
            "feature_width": self.feature_width,
            "short_side": transform.min_size[-1],
            "long_side": transform.max_size,
            "norm_epsilon": next(module.eps for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)),
        }

    @torch.inference_mode()
    def find_batch(self, images: Sequence[Tensor]) -> list[tuple[Frame, Found]]:
        """What is kept of each uint8 RGB image [3, H, W]; all of one batch shape."""
        model, heads = self.model, self.model.roi_heads
        prepared, _ = model.transform([image.to(self.device).float() / 255 for image in images])
        maps = model.backbone(prepared.tensors)
        proposals, _ = model.rpn(prepared, maps)
        features = heads.box_head(heads.box_roi_pool(maps, proposals, prepared.image_sizes))
        logits, deltas = heads.box_predictor(features)
        counts = [len(boxes) for boxes in proposals]
        parts = zip(features.split(counts), logits.split(counts), deltas.split(counts), strict=True)
        found = []
        for image, proposals_P4, part in zip(images, proposals, parts, strict=True):
            frame = self.frame(image.shape[1], image.shape[2])
            found.append((frame, self._find(frame, proposals_P4, *part)))
        return found

    def _find(self, frame: Frame, proposals_P4: Tensor, features_PF: Tensor, logits_PN: Tensor, deltas_PX: Tensor) -> Found:
        probabilities_PN = logits_PN.softmax(dim=1)
        boxes_PN4 = self.model.roi_heads.box_coder.decode(deltas_PX, [proposals_P4])
        boxes_PN4 = clip_boxes_to_image(boxes_PN4, (frame.rows, frame.columns))
        too_small_PN = ((boxes_PN4[..., 2:] - boxes_PN4[..., :2]) < _LEAST_SIDE).any(dim=2)
        ranked_PN = probabilities_PN.masked_fill(too_small_PN, 0)
        kept = select_regions(ranked_PN, lambda index, classes: boxes_PN4[index, classes], EDGES, self.selection)
        scale_4 = boxes_PN4.new_tensor([frame.scale_x, frame.scale_y] * 2)
        return Found(
            boxes_PN4[kept.proposals_R, kept.classes_R] / scale_4,
            *kept,
            features_PF[kept.proposals_R],
            probabilities_PN[kept.proposals_R],
            probabilities_PN.new_zeros(len(kept.proposals_R), 1),
        )

    def _detect_batch(self, images: Sequence[Tensor]) -> list[Regions]:
        kept = min(self.selection.kept_classes, self.class_count + 1)
        return [found.regions(frame, kept) for frame, found in self.find_batch(images)]
