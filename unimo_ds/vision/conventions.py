"""What each published detector computes beside its weights: one named set of settings per source.

docs/detectors.md has them side by side, and what of them is not confirmed. The sources are Hugging Face's
`unc-nlp/frcnn-vg-finetuned` (the pure-PyTorch port of LXMERT's demo), airsplay/py-bottom-up-attention (a fork of
detectron2), and MILVLG/bottom-up-attention.pytorch (its `caffe` mode, which follows the original). Their plain bugs
(colour order, an image's boxes reused for the next one, padding seen as image) are not among the settings.
"""

from unimo_ds.vision.detector_config import DetectorConfig, SelectionConfig

_HUGGINGFACE = DetectorConfig(
    conventions="huggingface",
    short_side=800,
    long_side=1333,
    no_attribute="left_out",
    selection=SelectionConfig(
        rule="retry", score_threshold=0, nms_iou=(0.5, 0.6, 0.7, 0.8, 0.9), nms_over="all", min_boxes=10, max_boxes=36
    ),
)

CONVENTIONS: dict[str, DetectorConfig] = {
    "huggingface": _HUGGINGFACE,
    # The script that made LXMERT's features of COCO.
    "airsplay": _HUGGINGFACE.model_copy(
        update={
            "conventions": "airsplay",
            "short_side": 600,
            "long_side": 1000,
            "resampling": "pillow",
            "selection": SelectionConfig(
                rule="retry",
                score_threshold=0,
                nms_iou=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
                nms_over="all",
                min_boxes=36,
                max_boxes=36,
            ),
        }
    ),
    # Its demo notebook with attributes.
    "airsplay_attributes": _HUGGINGFACE.model_copy(
        update={
            "conventions": "airsplay_attributes",
            "resampling": "pillow",
            "selection": SelectionConfig(
                rule="retry_every_class", nms_iou=(0.5, 0.6, 0.7, 0.8, 0.9), min_boxes=36, max_boxes=36
            ),
        }
    ),
    "milvlg": DetectorConfig(
        conventions="milvlg",
        resampling="opencv",
        box_sides="pixels",
        box_weights=(1, 1, 1, 1),
        least_proposal_side=16,
        no_attribute="hidden",
        selection=SelectionConfig(rule="any_class", boxes="proposals"),
    ),
}
