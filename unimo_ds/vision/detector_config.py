"""Everything that decides what a detector computes, as validated data; it is stored inside the detector's own file."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Triple = tuple[float, float, float]
Widths = tuple[int, int, int, int]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SelectionConfig(_Settings):
    """Which regions of an image are kept; the defaults are those of UNIMO (section 3.2 of the paper: 0.2, 10 to 100).

    Rules:
        fill: a proposal has one class, its best. Those that survive suppression and reach the threshold are kept, best first,
            at most `max_boxes`; when they are fewer than `min_boxes`, the best of the other survivors follow, then the best
            of the suppressed. So an image has `min_boxes` regions whenever it has that many proposals: a model can count on
            them, and a picture of nothing is still described.
        retry: a proposal has one class, its best; suppression regardless of the class, with each limit of `nms_iou` in turn
            until `min_boxes` survive (the last limit's survivors are what there is); kept are those that reach the threshold,
            best first, at least `min_boxes` of the survivors and at most `max_boxes`.
        retry_every_class: every class of a proposal above the threshold is a region of its own, suppressed within its class,
            with each limit in turn; one proposal may be returned as several classes, and fewer than `min_boxes` be left.
        any_class: suppression in every class separately; a proposal counts with the best score that survives anywhere. Those
            that reach the threshold are kept in the order of the proposals; fewer than `min_boxes` or more than `max_boxes`:
            that many of the best, by score.

    Attributes:
        score_threshold: least probability of a region's best class (background not counted); 0: none.
        nms_iou: of two regions that overlap by more than this, the less probable one is dropped; `retry` takes several.
        nms_over: with `fill`, suppress within the predicted class, or regardless of the class.
        min_boxes, max_boxes: an image gets at least and at most so many regions, as far as the rule can.
        kept_classes: K, how many classes of the distribution are kept, the background counted as one.
        boxes: report the box as regressed for its class, or the proposal whose feature was pooled.
    """

    rule: Literal["fill", "retry", "retry_every_class", "any_class"] = "fill"
    score_threshold: float = Field(default=0.2, ge=0, le=1)
    nms_iou: tuple[float, ...] = Field(default=(0.3,), min_length=1)
    nms_over: Literal["class", "all"] = "class"
    min_boxes: int = Field(default=10, ge=1)
    max_boxes: int = Field(default=100, ge=1)
    kept_classes: int = Field(default=16, ge=2)
    boxes: Literal["regressed", "proposals"] = "regressed"

    @model_validator(mode="after")
    def _limits_fit(self) -> "SelectionConfig":
        if self.min_boxes > self.max_boxes:
            raise ValueError(f"min_boxes {self.min_boxes} is above max_boxes {self.max_boxes}")
        wrong = [limit for limit in self.nms_iou if not 0 <= limit <= 1]
        if wrong:
            raise ValueError(f"nms_iou {wrong[0]}: an overlap is between 0 and 1")
        if self.rule == "retry_every_class" and len(self.nms_iou) == 1 and self.min_boxes > 1:
            raise ValueError(
                f"min_boxes {self.min_boxes}: rule {self.rule!r} keeps what is above the threshold and cannot fill up"
            )
        if len(self.nms_iou) > 1 and not self.rule.startswith("retry"):
            raise ValueError(f"nms_iou {self.nms_iou}: rule {self.rule!r} takes one limit, only retry tries several")
        return self


class DetectorConfig(_Settings):
    """The published detector (ResNet-101, Visual Genome) is the default; small ones change the numbers.

    Attributes:
        conventions: whose settings these are (`conventions.py`); a name, the settings themselves are below.
        class_count, attribute_count: without background and "none", which take index 0; no attributes: no attribute head.
        short_side, long_side: an image is scaled so that its short side is `short_side`, unless its long side would
            exceed `long_side`.
        resampling: `bilinear` on floats without a filter when shrinking; `antialias`, with one; `pillow`, Pillow's bilinear on
            uint8, filtered and rounded to uint8; `opencv`, unfiltered, with the factor itself in place of the ratio of sizes.
        colour: order of the channels that the first convolution expects.
        pixel_mean, pixel_std: in grey levels 0..255, in the order of `colour`.
        stem_width, widths: output channels of the stem and of res2..res5; the last is the feature width F.
        blocks: residual blocks of res2..res5.
        backbone_block, roi_block: kind of block in res2..res4, and in res5.
        stride_in_1x1: Caffe's ResNet strides in a block's first convolution, torchvision's in its second.
        ceil_pool: Caffe's max-pool (no padding, rounds up) after the stem, or torchvision's (padding 1).
        roi_stride, roi_dilation: of res5.
        roi_pool: quantised RoIPool as published, or RoIAlign.
        roi_size: side of the pooled window.
        anchor_sizes, anchor_ratios: square root of the area in pixels of the resized image, and height / width.
        rpn_width: channels of the proposal network's hidden layer.
        box_sides: coordinates as `edges`, or as counted `pixels` (Caffe): see `boxes.BoxRules`.
        box_weights: what the region head's deltas are divided by.
        proposals_before_nms, proposals: proposals kept by score, and after suppression by `proposal_nms_iou`.
        least_proposal_side: proposals must be longer than this, in pixels of the image on disk, to be ranked at all; 0: empty
            ones are dropped after the ranking.
        no_attribute: whether "none" competes with the attributes, is left out of their softmax, or is hidden after it.
        attribute_embedding, attribute_width: width of the class embedding and of the hidden layer before the attributes.
        training_regions: proposals of an image that the region head learns from in a step, 40 % of them on objects at most.
        selection: which regions of an image are kept.
    """

    conventions: str = "unimo_ds"
    class_count: int = Field(default=1600, ge=1)
    attribute_count: int = Field(default=400, ge=0)
    short_side: int = Field(default=600, ge=32)
    long_side: int = Field(default=1000, ge=32)
    resampling: Literal["bilinear", "antialias", "pillow", "opencv"] = "bilinear"
    colour: Literal["rgb", "bgr"] = "bgr"
    pixel_mean: Triple = (102.9801, 115.9465, 122.7717)
    pixel_std: Triple = (1.0, 1.0, 1.0)
    stem_width: int = Field(default=64, ge=1)
    widths: Widths = (256, 512, 1024, 2048)
    blocks: Widths = (3, 4, 23, 3)
    backbone_block: Literal["basic", "bottleneck"] = "bottleneck"
    roi_block: Literal["basic", "bottleneck"] = "bottleneck"
    stride_in_1x1: bool = True
    ceil_pool: bool = True
    roi_stride: Literal[1, 2] = 1
    roi_dilation: Literal[1, 2] = 2
    roi_pool: Literal["pool", "align"] = "pool"
    roi_size: int = Field(default=14, ge=1)
    anchor_sizes: tuple[float, ...] = Field(default=(64, 128, 256, 512), min_length=1)
    anchor_ratios: tuple[float, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    rpn_width: int = Field(default=512, ge=1)
    proposals_before_nms: int = Field(default=6000, ge=1)
    proposals: int = Field(default=300, ge=1)
    proposal_nms_iou: float = Field(default=0.7, ge=0, le=1)
    least_proposal_side: float = Field(default=0.0, ge=0)
    box_sides: Literal["edges", "pixels"] = "edges"
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    no_attribute: Literal["competes", "left_out", "hidden"] = "competes"
    attribute_embedding: int = Field(default=256, ge=1)
    attribute_width: int = Field(default=512, ge=1)
    training_regions: int = Field(default=128, ge=2)
    selection: SelectionConfig = SelectionConfig()

    @property
    def feature_width(self) -> int:
        """F, the width of a pooled region feature."""
        return self.widths[-1]

    @property
    def anchors_per_place(self) -> int:
        """Anchors at each place of the stride-16 grid."""
        return len(self.anchor_sizes) * len(self.anchor_ratios)

    @model_validator(mode="after")
    def _counts_fit(self) -> "DetectorConfig":
        if self.short_side > self.long_side:
            raise ValueError(f"short_side {self.short_side} is above long_side {self.long_side}")
        if self.selection.kept_classes > self.class_count + 1:
            most = self.class_count + 1
            raise ValueError(f"selection.kept_classes {self.selection.kept_classes}: the distribution has only {most} classes")
        return self


def small_detector(class_count: int, attribute_count: int) -> DetectorConfig:
    """The detector of the drawn world: some 1.5 million weights, tens of images a second on one core."""
    return DetectorConfig(
        class_count=class_count,
        attribute_count=attribute_count,
        short_side=192,
        long_side=320,
        resampling="antialias",
        colour="rgb",
        pixel_mean=(127.5, 127.5, 127.5),
        pixel_std=(64.0, 64.0, 64.0),
        stem_width=24,
        widths=(32, 64, 128, 256),
        blocks=(1, 2, 2, 1),
        backbone_block="basic",
        roi_block="bottleneck",
        stride_in_1x1=False,
        ceil_pool=False,
        roi_stride=2,
        roi_dilation=1,
        roi_pool="align",
        roi_size=7,
        anchor_sizes=(32, 56, 96),
        rpn_width=128,
        proposals_before_nms=300,
        proposals=64,
        attribute_embedding=32,
        attribute_width=128,
        training_regions=32,
        selection=SelectionConfig(nms_iou=(0.5,), kept_classes=min(8, class_count + 1)),
    )
