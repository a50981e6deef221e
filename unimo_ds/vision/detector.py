"""What every detector offers: regions of images, and an identity that says where they came from.

Shape suffixes: P proposals, N classes with background at 0, A attributes with "none" at 0, F feature width, R kept regions.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from unimo_ds.regions import Regions
from unimo_ds.vision.detector_config import SelectionConfig
from unimo_ds.vision.preprocessing import Frame


@dataclass(frozen=True)
class Found:
    """The kept regions of one image in full precision and with whole distributions.

    Attributes:
        boxes_R4: pixels of the image on disk.
        proposals_R: which proposal each region is.
        classes_R: its class, from 1; the best one, or with `retry_every_class` the one that it was kept as.
        scores_R: what it was ranked by.
        features_RF, class_probabilities_RN.
        attribute_probabilities_RA: column 0 is "none", all zero where the conventions leave it out.
    """

    boxes_R4: Tensor
    proposals_R: Tensor
    classes_R: Tensor
    scores_R: Tensor
    features_RF: Tensor
    class_probabilities_RN: Tensor
    attribute_probabilities_RA: Tensor

    @property
    def attribute_ids_R(self) -> Tensor:
        """The most probable attribute of each region; 0 is "none"."""
        return self.attribute_probabilities_RA.argmax(dim=1)

    def regions(self, frame: Frame, kept_classes: int) -> Regions:
        """As it is stored: fp16, and the `kept_classes` most probable classes; first the one that a region was kept as, if that
        is not its most probable one.

        Raises:
            RuntimeError: a number is not finite in fp16: wrong weights, or features that overflow.
        """
        probabilities_RN = self.class_probabilities_RN
        otherwise_R = probabilities_RN[:, 1:].argmax(dim=1) + 1 != self.classes_R
        ranked_RN = probabilities_RN.scatter_add(1, self.classes_R[:, None], 2 * otherwise_R[:, None].to(probabilities_RN))
        ids_RK = ranked_RN.topk(kept_classes, dim=1).indices
        scores_RK = probabilities_RN.gather(1, ids_RK)
        boxes_R4 = clip_boxes_to_image(self.boxes_R4, (frame.height, frame.width))
        if not all(torch.isfinite(values).all() for values in (boxes_R4, self.features_RF.half(), scores_RK)):
            raise RuntimeError("it computed numbers that are not finite: are its weights whole?")
        return Regions(
            width=frame.width,
            height=frame.height,
            boxes_R4=boxes_R4.cpu().numpy().astype(np.float32),
            features_RF=self.features_RF.cpu().numpy().astype(np.float16),
            class_ids_RK=ids_RK.cpu().numpy().astype(np.uint16),
            class_probabilities_RK=scores_RK.cpu().numpy().astype(np.float16),
            attribute_ids_R=self.attribute_ids_R.cpu().numpy().astype(np.uint16),
            attribute_probabilities_R=self.attribute_probabilities_RA.amax(dim=1).cpu().numpy().astype(np.float16),
        )


class Detector(nn.Module, ABC):
    """Finds the regions of images.

    Args:
        selection: which regions are kept.
        class_names: names of classes 1.. (index 0, the background, has none).
        attribute_names: names of attributes 1.. (index 0 is "none").
        facts: what its training measured (average precision, the command); carried along in its file.
    """

    def __init__(
        self,
        selection: SelectionConfig,
        class_names: Sequence[str],
        attribute_names: Sequence[str],
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.selection, self.facts = selection, dict(facts or {})
        self.class_names, self.attribute_names = tuple(class_names), tuple(attribute_names)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def batch_shape(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the batch that an image of that size on disk belongs into."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides its results besides weights and selection, as JSON has it; for `identity`."""

    @abstractmethod
    def _detect_batch(self, images: Sequence[Tensor]) -> list[Regions]:
        """The regions of images of one batch shape."""

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor]) -> list[Regions]:
        """The regions of each image, in the order given; what else is in the list has no influence on an image.

        Images of one `batch_shape` run together.

        Args:
            images: uint8 [3, H, W], RGB, of any sizes.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(self.batch_shape(image.shape[1], image.shape[2]), []).append(index)
        training = self.training
        self.eval()
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 keeps three digits; features have four
                found = {
                    index: regions
                    for group in groups.values()
                    for index, regions in zip(group, self._detect_batch([images[i] for i in group]), strict=True)
                }
        finally:
            self.train(training)
        return [found[index] for index in range(len(images))]

    def identity(self) -> dict[str, Any]:
        """What a store of regions says of its detector: two stores may be mixed only when this is equal."""
        return {**self.settings(), "weights_sha256": weights_sha256(self), **self.selection.model_dump(mode="json")}

    def with_selection(self, **changes: Any) -> "Detector":
        """Changes which regions are kept (keys of `SelectionConfig`), and returns itself.

        Raises:
            pydantic.ValidationError: an unknown key or a value out of range.
        """
        self.selection = SelectionConfig.model_validate({**self.selection.model_dump(), **changes})
        return self


def weights_sha256(model: nn.Module) -> str:
    """A digest of every weight's name, shape and fp32 value: the same for a model in memory and for its file loaded."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
