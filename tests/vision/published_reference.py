"""The published detectors a second time, written plainly from what their sources compute, one image at a time.

Nothing here comes from `unimo_ds.vision`; where the sources have plain bugs (colour order, another image's boxes, padding taken
for image) it does the right thing. Sources: Hugging Face's LXMERT example (`modeling_frcnn.py`, `processing_image.py`),
airsplay/py-bottom-up-attention (a detectron2 of 2019), MILVLG/bottom-up-attention.pytorch in `caffe` mode.

Outputs are in one common form, whatever the layout: background is class 0, "none" is attribute 0.
Shape suffixes: P proposals, R kept regions, N classes with the background, A attributes with "none", F feature width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FloatArray = npt.NDArray[np.floating]

MEAN_BGR = (102.9801, 115.9465, 122.7717)
LARGEST_GROWTH = math.log(1000 / 16)


@dataclass(frozen=True)
class Published:
    """What one published detector does; the numbers may be made smaller.

    Attributes:
        source: `huggingface`, `airsplay`, `airsplay_attributes` or `milvlg`.
        limits: overlaps to try in turn when regions are chosen.
    """

    source: str
    short_side: int
    long_side: int
    limits: tuple[float, ...]
    least: int
    most: int
    threshold: float = 0.0
    proposals_before: int = 6000
    proposals: int = 300

    @property
    def caffe(self) -> bool:
        """Coordinates are pixels that are counted, so a side is x2 - x1 + 1."""
        return self.source == "milvlg"


PUBLISHED = {
    "huggingface": Published("huggingface", 800, 1333, (0.5, 0.6, 0.7, 0.8, 0.9), 10, 36),
    "airsplay": Published("airsplay", 600, 1000, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 36, 36),
    "airsplay_attributes": Published("airsplay_attributes", 800, 1333, (0.5, 0.6, 0.7, 0.8, 0.9), 36, 36, threshold=0.2),
    "milvlg": Published("milvlg", 600, 1000, (0.3,), 10, 100, threshold=0.2),
}


@dataclass(frozen=True)
class Resized:
    """An image on disk and as the network sees it; a coordinate of the latter divided by the scale is one of the former."""

    height: int
    width: int
    rows: int
    columns: int
    scale_y: float
    scale_x: float


@dataclass(frozen=True)
class Judged:
    """Of all proposals; the deltas are as the layer gives them.

    Attributes:
        attribute_probabilities_PA: "none" is zero: the sources leave it out before (`huggingface`) or after (`milvlg`).
    """

    features_PF: Tensor
    class_logits_PN: Tensor
    box_deltas_PN4: Tensor
    attribute_probabilities_PA: Tensor


@dataclass
class Kept:
    """Lists that grow region by region."""

    boxes: list[Tensor] = field(default_factory=list)
    proposals: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


# Preprocessing


def resized(height: int, width: int, rules: Published) -> Resized:
    """New size: detectron2's rule rounds half up, Caffe's follows OpenCV (half to even) and keeps the factor."""
    short, long = min(height, width), max(height, width)
    if rules.caffe:
        factor = rules.short_side / short
        if np.round(factor * long) > rules.long_side:
            factor = rules.long_side / long
        return Resized(height, width, int(np.rint(height * factor)), int(np.rint(width * factor)), factor, factor)
    factor = rules.short_side * 1.0 / short
    rows, columns = (rules.short_side, factor * width) if height < width else (factor * height, rules.short_side)
    if max(rows, columns) > rules.long_side:
        factor = rules.long_side * 1.0 / max(rows, columns)
        rows, columns = rows * factor, columns * factor
    rows, columns = int(rows + 0.5), int(columns + 0.5)
    return Resized(height, width, rows, columns, rows / height, columns / width)


def interpolated(pixels_HWC: FloatArray, rows: int, columns: int, scale_y: float, scale_x: float) -> FloatArray:
    """Bilinear, of the four nearest pixels whatever the factor; pixel centres are at halves, the border is repeated."""

    def neighbours(count: int, size: int, scale: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], FloatArray]:
        places = np.clip((np.arange(count) + 0.5) / scale - 0.5, 0, size - 1)
        before = np.floor(places).astype(np.int64)
        return before, np.minimum(before + 1, size - 1), places - before

    top, bottom, down = neighbours(rows, pixels_HWC.shape[0], scale_y)
    left, right, along = neighbours(columns, pixels_HWC.shape[1], scale_x)
    down, along = down[:, None, None], along[None, :, None]
    upper = pixels_HWC[top][:, left] * (1 - along) + pixels_HWC[top][:, right] * along
    lower = pixels_HWC[bottom][:, left] * (1 - along) + pixels_HWC[bottom][:, right] * along
    return upper * (1 - down) + lower * down


def prepared(image_3HW: Tensor, rules: Published) -> Tensor:
    """uint8 RGB [3, H, W] as the float32 BGR tensor [3, rows, columns] of the first convolution."""
    rgb_HW3 = image_3HW.permute(1, 2, 0).numpy()
    bgr_HW3 = rgb_HW3[:, :, ::-1]
    size = resized(*bgr_HW3.shape[:2], rules)
    mean = np.array(MEAN_BGR)
    if rules.caffe:
        pixels = interpolated(bgr_HW3.astype(np.float64) - mean, size.rows, size.columns, size.scale_y, size.scale_x)
    elif rules.source == "huggingface":
        pixels = interpolated(bgr_HW3.astype(np.float64), size.rows, size.columns, size.scale_y, size.scale_x) - mean
    else:
        picture = Image.fromarray(np.ascontiguousarray(bgr_HW3)).resize((size.columns, size.rows), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture).astype(np.float64) - mean
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))


# Boxes


def sides(boxes_P4: Tensor, rules: Published) -> tuple[Tensor, Tensor]:
    extra = 1 if rules.caffe else 0
    return boxes_P4[:, 2] - boxes_P4[:, 0] + extra, boxes_P4[:, 3] - boxes_P4[:, 1] + extra


def moved(boxes_P4: Tensor, deltas_P4: Tensor, rules: Published) -> Tensor:
    """Deltas: shift of the centre in sides, logarithm of the growth, which is bounded."""
    widths, heights = sides(boxes_P4, rules)
    centre_x = boxes_P4[:, 0] + widths / 2 + deltas_P4[:, 0] * widths
    centre_y = boxes_P4[:, 1] + heights / 2 + deltas_P4[:, 1] * heights
    widths = widths * deltas_P4[:, 2].clamp(max=LARGEST_GROWTH).exp()
    heights = heights * deltas_P4[:, 3].clamp(max=LARGEST_GROWTH).exp()
    return torch.stack([centre_x - widths / 2, centre_y - heights / 2, centre_x + widths / 2, centre_y + heights / 2], dim=1)


def clipped(boxes_P4: Tensor, rows: float, columns: float, rules: Published) -> Tensor:
    last = 1 if rules.caffe else 0
    x1, y1, x2, y2 = boxes_P4.unbind(dim=1)
    inside = [x1.clamp(0, columns - last), y1.clamp(0, rows - last), x2.clamp(0, columns - last), y2.clamp(0, rows - last)]
    return torch.stack(inside, dim=1)


def surviving(boxes_P4: Tensor, scores_P: Tensor, limit: float, rules: Published) -> list[int]:
    """Greedy suppression, best first; Caffe's also drops at the limit itself and counts pixels."""
    extra = 1 if rules.caffe else 0
    widths, heights = sides(boxes_P4, rules)
    areas_P = widths * heights
    left = scores_P.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        others_n4 = boxes_P4[left]
        width = torch.minimum(boxes_P4[best, 2], others_n4[:, 2]) - torch.maximum(boxes_P4[best, 0], others_n4[:, 0]) + extra
        height = torch.minimum(boxes_P4[best, 3], others_n4[:, 3]) - torch.maximum(boxes_P4[best, 1], others_n4[:, 1]) + extra
        shared = width.clamp(min=0) * height.clamp(min=0)
        overlap = shared / (areas_P[best] + areas_P[left] - shared)  # two empty boxes: NaN, which is neither
        left = left[~(overlap >= limit if rules.caffe else overlap > limit)]
    return kept


# The network


class Reference:
    """A published detector from its published tensors.

    Args:
        state: in the layout of `rules.source`.
    """

    def __init__(self, state: Mapping[str, Tensor], rules: Published) -> None:
        self.state = state
        self.rules = rules

    def backbone(self, images_B3HW: Tensor) -> Tensor:
        """res4 [B, C, H/16, W/16]; the pool after the stem has no padding and rounds up."""
        map_BCHW = F.relu(self._convolved(images_B3HW, "backbone.stem.conv1", stride=2, padding=3))
        map_BCHW = F.max_pool2d(map_BCHW, kernel_size=3, stride=2, padding=0, ceil_mode=True)
        for stage in ("res2", "res3", "res4"):
            map_BCHW = self._stage(map_BCHW, f"backbone.{stage}", stride=1 if stage == "res2" else 2, dilation=1)
        return map_BCHW

    def propose(self, map_1CHW: Tensor, frame: Resized) -> Tensor:
        """[P, 4] in pixels of the resized image, best first."""
        rules, head = self.rules, "proposal_generator.rpn_head"
        hidden = F.relu(F.conv2d(map_1CHW, self.state[f"{head}.conv.weight"], self.state[f"{head}.conv.bias"], padding=1))
        scores = F.conv2d(hidden, self.state[f"{head}.objectness_logits.weight"], self.state[f"{head}.objectness_logits.bias"])[
            0
        ]
        deltas = F.conv2d(hidden, self.state[f"{head}.anchor_deltas.weight"], self.state[f"{head}.anchor_deltas.bias"])[0]
        cell_A4 = self.state["proposal_generator.anchor_generator.cell_anchors.0"]
        if rules.caffe:
            background, foreground = scores[: len(cell_A4)], scores[len(cell_A4) :]
            scores = torch.stack([background, foreground]).softmax(dim=0)[1]

        anchors, anchor_scores, anchor_deltas = [], [], []
        for row in range(map_1CHW.shape[2]):
            for column in range(map_1CHW.shape[3]):
                place = torch.tensor([16.0 * column, 16.0 * row, 16.0 * column, 16.0 * row], dtype=cell_A4.dtype)
                anchors.append(cell_A4 + place)
                anchor_scores.append(scores[:, row, column])
                anchor_deltas.append(deltas[:, row, column].reshape(len(cell_A4), 4))
        boxes_P4 = moved(torch.cat(anchors), torch.cat(anchor_deltas), rules)
        boxes_P4 = clipped(boxes_P4, frame.rows, frame.columns, rules)
        scores_P = torch.cat(anchor_scores)

        widths, heights = sides(boxes_P4, rules)
        if rules.caffe:  # small ones never get a rank
            least = 16 * frame.scale_y
            edges_fit = (boxes_P4[:, 2] > boxes_P4[:, 0]) & (boxes_P4[:, 3] > boxes_P4[:, 1])
            fits = edges_fit & (widths > least) & (heights > least)
            boxes_P4, scores_P = boxes_P4[fits], scores_P[fits]
            best = scores_P.argsort(descending=True, stable=True)[: rules.proposals_before]
        else:  # empty ones have used up a rank
            best = scores_P.argsort(descending=True, stable=True)[: rules.proposals_before]
            best = best[(widths[best] > 0) & (heights[best] > 0)]
        boxes_P4, scores_P = boxes_P4[best], scores_P[best]
        return boxes_P4[surviving(boxes_P4, scores_P, 0.7, rules)[: rules.proposals]]

    def judge(self, map_1CHW: Tensor, proposals_P4: Tensor) -> Judged:
        windows = torch.zeros(len(proposals_P4), map_1CHW.shape[1], 14, 14)
        for window, box_4 in zip(windows, proposals_P4, strict=True):
            window[:] = self._pooled(map_1CHW[0], box_4)
        windows = self._stage(windows, "roi_heads.res5", stride=1, dilation=2)
        features_PF = windows.mean(dim=(2, 3))
        head, caffe = "roi_heads.box_predictor", self.rules.caffe
        names = ("cls_embed", "attr_linear1", "attr_linear2") if caffe else ("cls_embedding", "fc_attr", "attr_score")

        def linear(inputs: Tensor, name: str) -> Tensor:
            return inputs @ self.state[f"{head}.{name}.weight"].T + self.state[f"{head}.{name}.bias"]

        logits_PN = linear(features_PF, "cls_score")
        deltas_PN4 = linear(features_PF, "bbox_pred").reshape(len(features_PF), -1, 4)
        embedded = self.state[f"{head}.{names[0]}.weight"][logits_PN.argmax(dim=1)]  # the background may win
        attributes_PA = linear(F.relu(linear(torch.cat([features_PF, embedded], dim=1), names[1])), names[2])
        none_P1 = torch.zeros(len(features_PF), 1, dtype=features_PF.dtype)
        if caffe:
            probabilities_PA = torch.cat([none_P1, attributes_PA.softmax(dim=1)[:, 1:]], dim=1)
        else:
            probabilities_PA = torch.cat([none_P1, attributes_PA[:, :-1].softmax(dim=1)], dim=1)
            logits_PN = torch.cat([logits_PN[:, -1:], logits_PN[:, :-1]], dim=1)
            deltas_PN4 = F.pad(deltas_PN4, (0, 0, 1, 0))
        return Judged(features_PF, logits_PN, deltas_PN4, probabilities_PA)

    def find(self, frame: Resized, proposals_P4: Tensor, judged: Judged) -> dict[str, Tensor]:
        """The chosen regions, with boxes in pixels of the image on disk."""
        scores_PN = judged.class_logits_PN.softmax(dim=1)
        kept = {
            "huggingface": self._best_class_any_limit,
            "airsplay": self._best_class_any_limit,
            "airsplay_attributes": self._every_class_any_limit,
            "milvlg": self._best_surviving_class,
        }[self.rules.source](frame, proposals_P4, scores_PN, judged.box_deltas_PN4)
        index = torch.tensor(kept.proposals, dtype=torch.long)
        return {
            "boxes_R4": torch.stack(kept.boxes) if kept.boxes else torch.zeros(0, 4),
            "proposals_R": index,
            "classes_R": torch.tensor(kept.classes, dtype=torch.long),
            "scores_R": torch.tensor(kept.scores),
            "features_RF": judged.features_PF[index],
            "class_probabilities_RN": scores_PN[index],
            "attribute_probabilities_RA": judged.attribute_probabilities_PA[index],
        }

    def regressed(self, frame: Resized, proposals_P4: Tensor, deltas_P4: Tensor) -> Tensor:
        """Boxes on disk. Caffe's scales the proposals first, so that its pixel of width is one of the image on disk."""
        scale_4 = torch.tensor([frame.scale_x, frame.scale_y, frame.scale_x, frame.scale_y], dtype=proposals_P4.dtype)
        if self.rules.caffe:
            boxes_P4 = moved(proposals_P4 / scale_4, deltas_P4, self.rules)
            return clipped(boxes_P4, frame.rows / frame.scale_y, frame.columns / frame.scale_x, self.rules)
        boxes_P4 = moved(proposals_P4, deltas_P4 / torch.tensor([10.0, 10.0, 5.0, 5.0]), self.rules)
        boxes_P4 = clipped(boxes_P4, frame.rows, frame.columns, self.rules)
        return boxes_P4 / scale_4

    def _best_class_any_limit(self, frame: Resized, proposals_P4: Tensor, scores_PN: Tensor, deltas_PN4: Tensor) -> Kept:
        """Hugging Face's choice and that of airsplay's COCO script: one class a proposal, suppression among all."""
        scores_P, classes_P = scores_PN[:, 1:].max(dim=1)
        classes_P = classes_P + 1
        boxes_P4 = self.regressed(frame, proposals_P4, deltas_PN4[torch.arange(len(classes_P)), classes_P])
        for limit in self.rules.limits:
            index = surviving(boxes_P4, scores_P, limit, self.rules)[: self.rules.most]
            if len(index) >= self.rules.least:
                break
        return Kept([boxes_P4[i] for i in index], index, classes_P[index].tolist(), scores_P[index].tolist())

    def _every_class_any_limit(self, frame: Resized, proposals_P4: Tensor, scores_PN: Tensor, deltas_PN4: Tensor) -> Kept:
        """airsplay's attribute demo: every class above the threshold, suppression within it; a proposal may come twice."""
        for limit in self.rules.limits:
            found = []
            for label in range(1, scores_PN.shape[1]):
                above = torch.nonzero(scores_PN[:, label] > self.rules.threshold)[:, 0]
                boxes_n4 = self.regressed(frame, proposals_P4[above], deltas_PN4[above, label])
                for n in surviving(boxes_n4, scores_PN[above, label], limit, self.rules):
                    found.append((float(scores_PN[above[n], label]), int(above[n]), label, boxes_n4[n]))
            found = sorted(found, key=lambda one: -one[0])[: self.rules.most]
            if len(found) >= self.rules.least:  # published with 36 for the least and the most
                break
        return Kept([one[3] for one in found], [one[1] for one in found], [one[2] for one in found], [one[0] for one in found])

    def _best_surviving_class(self, frame: Resized, proposals_P4: Tensor, scores_PN: Tensor, deltas_PN4: Tensor) -> Kept:
        """MILVLG's: a proposal counts with the best score that survives in any class; its box is the proposal itself."""
        boxes_P4 = proposals_P4 / torch.tensor([frame.scale_x, frame.scale_y, frame.scale_x, frame.scale_y])
        confidence_P = torch.zeros(len(boxes_P4))
        for label in range(1, scores_PN.shape[1]):
            for index in surviving(boxes_P4, scores_PN[:, label], self.rules.limits[0], self.rules):
                confidence_P[index] = max(confidence_P[index], scores_PN[index, label])
        kept = torch.nonzero(confidence_P >= self.rules.threshold)[:, 0]
        if len(kept) < self.rules.least:
            kept = confidence_P.argsort(descending=True, stable=True)[: self.rules.least]
        elif len(kept) > self.rules.most:
            kept = confidence_P.argsort(descending=True, stable=True)[: self.rules.most]
        classes = scores_PN[kept, 1:].argmax(dim=1) + 1
        return Kept(list(boxes_P4[kept]), kept.tolist(), classes.tolist(), confidence_P[kept].tolist())

    def _convolved(self, inputs: Tensor, name: str, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        """A convolution without bias, then the norm with its stored statistics."""
        outputs = F.conv2d(inputs, self.state[f"{name}.weight"], None, stride, padding, dilation)
        weight, bias, mean, variance = (
            self.state[f"{name}.norm.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (outputs - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def _stage(self, map_BCHW: Tensor, prefix: str, stride: int, dilation: int) -> Tensor:
        """Bottleneck blocks that stride in their first 1x1 convolution."""
        block = 0
        while f"{prefix}.{block}.conv1.weight" in self.state:
            name, step = f"{prefix}.{block}", stride if block == 0 else 1
            inner = F.relu(self._convolved(map_BCHW, f"{name}.conv1", stride=step))
            inner = F.relu(self._convolved(inner, f"{name}.conv2", padding=dilation, dilation=dilation))
            inner = self._convolved(inner, f"{name}.conv3")
            around = self._convolved(map_BCHW, f"{name}.shortcut", stride=step) if block == 0 else map_BCHW
            map_BCHW = F.relu(inner + around)
            block += 1
        return map_BCHW

    def _pooled(self, map_CHW: Tensor, box_4: Tensor) -> Tensor:
        """RoIPool: corners rounded to the grid, both included; maxima of 14 x 14 windows that may share a row.

        The windows' limits are computed in single precision, as published: there 14 * (57 / 14) is above 57, so that a window
        reaches one row further than it should.
        """
        corners = np.floor(box_4.numpy().astype(np.float32) / np.float32(16) + np.float32(0.5)).astype(np.int64)
        left, top, right, bottom = (int(value) for value in corners)

        def windows(first: int, last: int, size: int) -> list[tuple[int, int]]:
            step = np.float32(max(last - first + 1, 1)) / np.float32(14)
            starts = [first + int(np.floor(np.float32(i) * step)) for i in range(14)]
            ends = [first + int(np.ceil(np.float32(i + 1) * step)) for i in range(14)]
            return [(min(max(start, 0), size), min(max(end, 0), size)) for start, end in zip(starts, ends, strict=True)]

        pooled = torch.zeros(map_CHW.shape[0], 14, 14, dtype=map_CHW.dtype)
        for i, (above, below) in enumerate(windows(top, bottom, map_CHW.shape[1])):
            for j, (before, behind) in enumerate(windows(left, right, map_CHW.shape[2])):
                if above < below and before < behind:  # an empty window is zero
                    pooled[:, i, j] = map_CHW[:, above:below, before:behind].amax(dim=(1, 2))
        return pooled
