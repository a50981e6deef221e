"""Files of published detectors: every container, names, settings, and what is wrong with a wrong one."""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import detection

from tests.vision.conftest import picture
from unimo_ds.errors import CheckpointError, ConfigError
from unimo_ds.vision.detector import Found
from unimo_ds.vision.detector_config import DetectorConfig, SelectionConfig
from unimo_ds.vision.detector_file import load_detector, save_detector
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.preprocessing import Frame
from unimo_ds.vision.torchvision_detector import TorchvisionDetector

State = dict[str, Tensor]
CLASSES, ATTRIBUTES = 5, 3
PREDICTOR = "roi_heads.box_predictor"


@pytest.fixture
def detectron2() -> State:
    """A small detector in the layout of Hugging Face and airsplay: background and "none" last."""
    torch.manual_seed(1)
    config = DetectorConfig(
        class_count=CLASSES,
        attribute_count=ATTRIBUTES,
        stem_width=4,
        widths=(8, 8, 16, 32),
        blocks=(1, 1, 2, 1),
        rpn_width=8,
        attribute_embedding=4,
        attribute_width=8,
        selection=SelectionConfig(kept_classes=4),
    )
    state: State = {}
    for name, value in BottomUpDetector(config, (), ()).state_dict().items():
        name = name.replace("proposal_generator.head", "proposal_generator.rpn_head")
        name = name.replace("anchor_generator.cell_A4", "anchor_generator.cell_anchors.0")
        state[name] = value.contiguous()
    state[f"{PREDICTOR}.bbox_pred.weight"] = torch.randn(4 * CLASSES, 32)
    state[f"{PREDICTOR}.bbox_pred.bias"] = torch.randn(4 * CLASSES)
    return state


def in_milvlg_layout(state: State) -> State:
    """The same tensors by MILVLG's names and counts, with rows as they come."""
    renamed = {}
    for name, value in state.items():
        for ours, theirs in (("cls_embedding", "cls_embed"), ("fc_attr", "attr_linear1"), ("attr_score", "attr_linear2")):
            name = name.replace(f"{PREDICTOR}.{ours}.", f"{PREDICTOR}.{theirs}.")
        if "objectness_logits" in name or "bbox_pred" in name:
            rows = 2 * len(value) if "objectness" in name else 4 * (CLASSES + 1)
            value = torch.randn(rows, *value.shape[1:])
        renamed[name] = value
    return renamed


def test_a_hugging_face_folder_brings_its_names_and_settings(detectron2: State, tmp_path: Path) -> None:
    torch.save(OrderedDict(detectron2), tmp_path / "pytorch_model.bin")
    (tmp_path / "objects_vocab.txt").write_text("yolk\ngoal,soccer goal\nbathroom\nmacaroni\numbrella\n")
    (tmp_path / "attributes_vocab.txt").write_text("floral\nsitting\ntan\n")
    content = {"model": {"pixel_mean": [1, 2, 3]}, "RPN": {"POST_NMS_TOPK_TEST": 20}, "min_detections": 3, "max_detections": 7}
    content |= {"input": {"min_size_test": 64, "max_size_test": 96}, "roi_heads": {"nms_thresh_test": [0.4, 0.7]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    detector = load_detector(tmp_path)
    assert isinstance(detector, BottomUpDetector) and not detector.training
    assert detector.class_names == ("yolk", "goal", "bathroom", "macaroni", "umbrella")
    assert detector.attribute_names == ("floral", "sitting", "tan")
    config, selection = detector.config, detector.selection
    assert (config.conventions, config.short_side, config.long_side, config.proposals) == ("huggingface", 64, 96, 20)
    assert config.pixel_mean == (1, 2, 3) and config.blocks == (1, 1, 2, 1) and config.widths == (8, 8, 16, 32)
    assert (selection.rule, selection.nms_iou, selection.min_boxes, selection.max_boxes) == ("retry", (0.4, 0.7), 3, 7)
    regions = detector.detect([picture(1)[0]])[0]
    assert 1 <= len(regions) <= 7 and regions.features_RF.shape[1] == 32
    other = load_detector(tmp_path, "airsplay").identity()  # the folder's settings are not another's conventions
    assert (other["conventions"], other["short_side"], other["min_boxes"], len(other["nms_iou"])) == ("airsplay", 600, 36, 7)


def test_rows_are_turned_so_that_the_background_is_first(detectron2: State, tmp_path: Path) -> None:
    torch.save(detectron2, tmp_path / "weights.pth")
    predictors = load_detector(tmp_path / "weights.pth").state_dict()
    scores = detectron2[f"{PREDICTOR}.cls_score.weight"]
    torch.testing.assert_close(predictors[f"{PREDICTOR}.cls_score.weight"], torch.cat([scores[-1:], scores[:-1]]))
    boxes = predictors[f"{PREDICTOR}.bbox_pred.bias"]
    assert boxes[:4].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(boxes[4:], detectron2[f"{PREDICTOR}.bbox_pred.bias"])


def test_a_pickle_of_arrays_is_airsplays(detectron2: State, tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in detectron2.items() if not name.endswith("num_batches_tracked")}
    for protocol in (2, 4):
        path = tmp_path / f"faster_rcnn_{protocol}.pkl"
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone", "matching_heuristics": True}, protocol))
        detector = load_detector(path)
        assert detector.identity()["conventions"] == "airsplay" and detector.identity()["resampling"] == "pillow"
    other = load_detector(path, conventions="airsplay_attributes")
    assert other.identity()["rule"] == "retry_every_class"
    assert other.identity()["weights_sha256"] == detector.identity()["weights_sha256"]


def test_milvlg_is_told_by_its_layout(detectron2: State, tmp_path: Path) -> None:
    state = in_milvlg_layout(detectron2)
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "bua.pth")
    detector = load_detector(tmp_path / "bua.pth")
    assert detector.identity()["conventions"] == "milvlg" and detector.identity()["box_sides"] == "pixels"
    logits = state["proposal_generator.rpn_head.objectness_logits.bias"]
    found = detector.state_dict()["proposal_generator.head.objectness_logits.bias"]
    torch.testing.assert_close(found, logits[12:] - logits[:12])
    with pytest.raises(ConfigError, match=r"bua\.pth.*'airsplay': weights in MILVLG's layout go with milvlg"):
        load_detector(tmp_path / "bua.pth", conventions="airsplay")
    del state["proposal_generator.anchor_generator.cell_anchors.0"]
    torch.save(state, tmp_path / "bua.pth")
    with pytest.raises(CheckpointError, match="no usable anchors"):
        load_detector(tmp_path / "bua.pth")


def test_a_detector_without_attributes_has_none(detectron2: State, tmp_path: Path) -> None:
    heads = ("cls_embedding", "fc_attr", "attr_score")
    state = {name: value for name, value in detectron2.items() if not any(head in name for head in heads)}
    save_file(state, tmp_path / "model.safetensors")
    detector = load_detector(tmp_path / "model.safetensors")
    regions = detector.with_selection(min_boxes=5).detect([picture(1)[0]])[0]
    assert len(regions) > 0 and not regions.attribute_ids_R.any() and not regions.attribute_probabilities_R.any()
    assert detector.identity()["attributes"] == 0


def test_torchvisions_are_told_by_name_or_tensors(tmp_path: Path) -> None:
    state = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).state_dict()
    named = tmp_path / "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    torch.save(state, named)
    detector = load_detector(named)
    assert isinstance(detector, TorchvisionDetector) and detector.identity()["short_side"] == 320
    assert detector.identity()["norm_epsilon"] == 1e-5
    assert detector.class_names[:2] == ("person", "bicycle") and len(detector.class_names) == 90
    unnamed = named.rename(tmp_path / "mine.pth")
    with pytest.raises(ConfigError, match="say it with --conventions"):
        load_detector(unnamed)
    assert load_detector(unnamed, conventions="fasterrcnn_mobilenet_v3_large_fpn").identity()["short_side"] == 800
    with pytest.raises(ConfigError, match="torchvision's weights go with"):
        load_detector(unnamed, conventions="milvlg")


def test_names_from_files_of_ones_own(detectron2: State, tmp_path: Path) -> None:
    torch.save(detectron2, tmp_path / "weights.pth")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    assert load_detector(tmp_path / "weights.pth", class_names=names).class_names == tuple("abcde")
    names.write_text("a\nb\n")
    with pytest.raises(ConfigError, match=r"weights\.pth: 2 class names for class_count 5"):
        load_detector(tmp_path / "weights.pth", class_names=names)
    names.write_text("a\n\nb\n")
    with pytest.raises(ConfigError, match=r"names\.txt, line 2: empty"):
        load_detector(tmp_path / "weights.pth", class_names=names)


def test_missing_surplus_and_misshapen_tensors_are_named(detectron2: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    del detectron2["backbone.res3.0.conv2.weight"]
    detectron2["backbone.fpn.weight"] = torch.zeros(1)
    detectron2["backbone.res4.1.conv1.weight"] = torch.zeros(4, 7, 1, 1)
    torch.save(detectron2, path)
    message = (
        r"weights\.pth: .*1 missing: backbone\.res3\.0\.conv2\.weight; 1 not known: backbone\.fpn\.weight; "
        r"1 of another shape: backbone\.res4\.1\.conv1\.weight \(4, 7, 1, 1\) in place of \(4, 16, 1, 1\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load_detector(path)


def test_the_d2_mode_is_refused_with_its_reason(detectron2: State, tmp_path: Path) -> None:
    detectron2["roi_heads.attribute_predictor.obj_embed.weight"] = torch.zeros(1)
    torch.save(detectron2, tmp_path / "bua-d2.pth")
    with pytest.raises(CheckpointError, match="`d2` mode"):
        load_detector(tmp_path / "bua-d2.pth")


class Harmful:
    """A pickle of it would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch harmed",)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_pickle_that_would_run_something_is_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"model": Harmful()}))
    with pytest.raises(CheckpointError, match=rf"weights\{suffix}: cannot be read"):
        load_detector(path)
    assert not Path("harmed").exists()


def test_a_cut_file_an_empty_folder_and_a_bad_setting_are_named(detectron2: State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_detector(tmp_path)
    torch.save(detectron2, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.yaml").write_text("max_detections: many\n")
    with pytest.raises(ConfigError, match=r"(?s)pytorch_model\.bin.*max_boxes.*many"):
        load_detector(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        load_detector(tmp_path)
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.pth: cannot be read"):
        load_detector(tmp_path / "cut.pth")
    (tmp_path / "list.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_detector(tmp_path / "list.pth")


def test_a_region_is_stored_as_the_class_it_was_kept_as() -> None:
    """One proposal may be kept as several classes; the others follow, best first."""
    probabilities_RN = torch.tensor([[0.1, 0.5, 0.4, 0.0], [0.1, 0.5, 0.4, 0.0], [0.6, 0.1, 0.3, 0.0]])
    kept = torch.tensor([1, 2, 2])
    found = Found(torch.ones(3, 4), torch.zeros(3), kept, torch.ones(3), torch.ones(3, 2), probabilities_RN, torch.ones(3, 1))
    regions = found.regions(Frame(9, 9, 9, 9, 1.0, 1.0), 3)
    assert regions.class_ids_RK.tolist() == [[1, 2, 0], [2, 1, 0], [0, 2, 1]]
    assert regions.class_probabilities_RK[1].tolist() == pytest.approx([0.4, 0.5, 0.1], abs=1e-3)


def test_numbers_that_are_not_finite_are_refused(tiny: BottomUpDetector) -> None:
    with torch.no_grad():
        tiny.roi_heads.box_predictor.cls_score.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        tiny.detect([picture(1)[0]])


def test_our_own_files_have_conventions_of_their_own(tiny: BottomUpDetector, tmp_path: Path) -> None:
    save_detector(tiny, tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match="for published weights only"):
        load_detector(tmp_path / "own.safetensors", conventions="milvlg")


def test_convolutions_are_not_rounded_while_detecting(tiny: BottomUpDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(tiny, "_detect_batch", lambda images: seen.append(torch.backends.cudnn.allow_tf32) or [None])
    before = torch.backends.cudnn.allow_tf32
    tiny.detect([torch.zeros(3, 96, 96, dtype=torch.uint8)])
    assert seen == [False] and torch.backends.cudnn.allow_tf32 == before
