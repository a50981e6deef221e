"""Our detector with published weights against the plain reference, stage by stage and from picture to regions.

Boxes are matched by place, not by index. The reference also tells whether a case is what it should be: that a second limit
was tried, that the background won, that a box is empty.
"""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vision.published_pairs import LAYOUTS, SOURCES, close, match, noise, pair, weights_of
from tests.vision.published_reference import PUBLISHED, Judged, Reference, Resized, prepared, resized, surviving
from tests.vision.published_weights import Sizes, centred, published_shapes, random_weights
from unimo_ds.vision.detector import Found
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.published import detector_from_state
from unimo_ds.vision.region_head import Judgement

PUBLISHED_TENSORS = {
    "huggingface": (640, "a101bf54c8b6c3fbeab7807fc1aa834eb56657ecdbb4427587675617f8d80d71"),
    "airsplay": (536, "f3e8e0a13df135f64fa5698d1e0804419413a621a0d1c2d6ea3866f35cf3a803"),
    "milvlg": (616, "d1b854f6e15f5cb6a9ca3cbf210b08e32f136cf30ee4c63eb74767148ce8f81f"),
}
"""How many tensors each source's built model has, and the digest of their sorted names and shapes."""


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def proposed(reference: Reference, image_3HW: Tensor) -> tuple[Resized, Tensor, Tensor]:
    """The reference's frame, map and proposals of a picture."""
    frame = resized(image_3HW.shape[1], image_3HW.shape[2], reference.rules)
    map_1CHW = reference.backbone(prepared(image_3HW, reference.rules)[None])
    return frame, map_1CHW, reference.propose(map_1CHW, frame)


def telling_picture(reference: Reference, seed: int, height: int, width: int) -> Tensor:
    """A picture no two proposals of which are pooled from the same window: their scores would be equal, and rounding decide."""
    for attempt in range(40):
        image_3HW = noise(100 * attempt + seed, height, width)
        _, map_1CHW, proposals_P4 = proposed(reference, image_3HW)
        if torch.pdist(reference.judge(map_1CHW, proposals_P4).features_PF).min() > 1e-2:
            return image_3HW
    raise AssertionError("no such picture")


def judgement_of(judged: Judged) -> Judgement:
    return Judgement(judged.features_PF, judged.class_logits_PN, judged.box_deltas_PN4)


def assert_found(found: Found, expected: dict[str, Tensor]) -> None:
    """Region by region; classes and attributes exactly."""
    order = match(
        found.boxes_R4,
        expected["boxes_R4"],
        (found.scores_R, expected["scores_R"]),
        (found.class_probabilities_RN, expected["class_probabilities_RN"]),
    )
    for name in ("boxes_R4", "scores_R", "features_RF", "class_probabilities_RN", "attribute_probabilities_RA"):
        close(getattr(found, name)[order], expected[name], name)
    assert found.classes_R[order].tolist() == expected["classes_R"].tolist()
    assert found.attribute_ids_R[order].tolist() == expected["attribute_probabilities_RA"].argmax(dim=1).tolist()
    assert not found.attribute_probabilities_RA[:, 0].any()


def assert_chosen_alike(detector: BottomUpDetector, reference: Reference, image_3HW: Tensor) -> dict[str, Tensor]:
    """The choice from the same proposals and judgements; returns the reference's."""
    frame, map_1CHW, proposals_P4 = proposed(reference, image_3HW)
    judged = reference.judge(map_1CHW, proposals_P4)
    expected = reference.find(frame, proposals_P4, judged)
    found = detector.find(detector.frame(*image_3HW.shape[1:]), proposals_P4, judgement_of(judged))
    assert_found(found, expected)
    assert sorted(found.proposals_R.tolist()) == sorted(expected["proposals_R"].tolist())
    return expected


@pytest.mark.parametrize("layout", PUBLISHED_TENSORS)
def test_the_layouts_are_those_of_the_published_files(layout: str) -> None:
    shapes = published_shapes(layout, Sizes())
    listing = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
    assert (len(shapes), hashlib.sha256(listing.encode()).hexdigest()) == PUBLISHED_TENSORS[layout]


@pytest.mark.parametrize("source", SOURCES)
def test_the_backbone_s_map(source: str) -> None:
    detector, reference = pair(source, seed=1)
    for shape in ((96, 160), (97, 131), (33, 159), (64, 65)):
        images_B3HW = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(shape[1])) * 60
        expected = reference.backbone(images_B3HW)
        assert expected.std() > 0.1
        close(detector.backbone(images_B3HW), expected, f"map of {shape}")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_proposals(source: str, seed: int) -> None:
    detector, reference = pair(source, seed, proposals=40)
    clipped_4 = torch.zeros(4, dtype=torch.bool)
    for height, width in ((117, 201), (60, 70), (500, 333)):
        frame, map_1CHW, expected = proposed(reference, noise(seed, height, width))
        (found,) = detector.propose(map_1CHW, [detector.frame(height, width)])
        close(found[match(found, expected)], expected, f"proposals of {height} x {width}")
        close(found[0], expected[0], "the best one")
        edges = torch.tensor([0, 0, frame.columns, frame.rows]) - torch.tensor([0, 0, 1, 1]) * reference.rules.caffe
        clipped_4 |= (expected == edges).any(dim=0)
    assert clipped_4.all(), "no proposal at some border"


@pytest.mark.parametrize("source", SOURCES)
def test_anchors_that_clipping_empties(source: str) -> None:
    """Half of the anchors lie outside wherever they are: they use up ranks, but not with MILVLG."""
    state = dict(weights_of(source, 1))
    name = "proposal_generator.anchor_generator.cell_anchors.0"
    state[name] = state[name] + torch.tensor([[500.0], [0.0]] * 6)
    detector, reference = pair(source, 1, state, proposals_before=90)
    _, map_1CHW, expected = proposed(reference, noise(4, 117, 201))
    (found,) = detector.propose(map_1CHW, [detector.frame(117, 201)])
    close(found[match(found, expected)], expected, "proposals")

    detector, reference = pair(source, 1, {**state, name: state[name] + 700})
    _, map_1CHW, expected = proposed(reference, noise(4, 117, 201))
    assert len(expected) == 0
    (found,) = detector.propose(map_1CHW, [detector.frame(117, 201)])
    assert found.shape == (0, 4)
    assert len(detector.find(detector.frame(117, 201), found, detector.judge(map_1CHW, [found])).boxes_R4) == 0


def test_caffe_drops_small_proposals_before_it_ranks() -> None:
    """Their least side is 16 pixels of the picture on disk, and a side counts one pixel more than its edges are apart."""
    state = dict(weights_of("milvlg", 2))
    name = "proposal_generator.anchor_generator.cell_anchors.0"
    state[name] = state[name] / 2
    detector, reference = pair("milvlg", 2, state, proposals=40, proposals_before=60)
    frame, map_1CHW, expected = proposed(reference, noise(5, 61, 80))  # enlarged
    assert frame.scale_x > 1.5 and frame.scale_x == frame.scale_y
    sides_P2 = expected[:, 2:] - expected[:, :2] + 1
    assert (sides_P2 > 16 * frame.scale_x).all() and sides_P2.min() < 16 * frame.scale_x + 1
    (found,) = detector.propose(map_1CHW, [detector.frame(61, 80)])
    close(found[match(found, expected)], expected, "proposals")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_said_of_each_proposal(source: str, seed: int) -> None:
    detector, reference = pair(source, seed)
    frame, map_1CHW, proposals_P4 = proposed(reference, noise(seed, 117, 201))
    corners = [[0, 0, 9, 9], [frame.columns - 9, frame.rows - 9, frame.columns, frame.rows], [0, 0, frame.columns, frame.rows]]
    proposals_P4 = torch.cat([proposals_P4, torch.tensor(corners).float(), torch.tensor([[24.0, 40, 24, 40]])])
    judged = reference.judge(map_1CHW, proposals_P4)
    found = detector.judge(map_1CHW, [proposals_P4])
    close(found.features_PF, judged.features_PF, "features")
    close(found.class_logits_PN, judged.class_logits_PN, "class logits")
    close(found.class_logits_PN.softmax(dim=1), judged.class_logits_PN.softmax(dim=1), "class probabilities")
    close(found.box_deltas_PN4[:, 1:], judged.box_deltas_PN4[:, 1:], "box deltas")
    if source == "milvlg":
        close(found.box_deltas_PN4[:, 0], judged.box_deltas_PN4[:, 0], "the background's box deltas")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_the_kept_regions(source: str, seed: int) -> None:
    detector, reference = pair(source, seed)
    for size in ((117, 201), (90, 91), (200, 40)):
        assert_chosen_alike(detector, reference, telling_picture(reference, seed, *size))


@pytest.mark.parametrize("source", SOURCES)
def test_attributes_where_the_background_wins(source: str) -> None:
    """The attribute head then sees the background's embedding, whatever class is reported."""
    state = dict(weights_of(source, 1))
    name = "roi_heads.box_predictor.cls_score.bias"
    background = 0 if source == "milvlg" else -1
    state[name] = state[name].clone()
    state[name][background] += 6
    detector, reference = pair(source, 1, state, threshold=0.02 if PUBLISHED[source].threshold else None)
    expected = assert_chosen_alike(detector, reference, noise(1, 117, 201))
    assert (expected["class_probabilities_RN"].argmax(dim=1) == 0).sum() >= 3


@pytest.mark.long
@pytest.mark.parametrize("source", ["huggingface", "airsplay", "airsplay_attributes"])
def test_limits_are_tried_in_turn(source: str) -> None:
    """For as many regions as each limit leaves, the ones before it leave too few; none leaves as many as are wanted last."""
    threshold = 0.1 if source == "airsplay_attributes" else None
    image_3HW = noise(2, 117, 201)
    frame, map_1CHW, proposals_P4 = proposed(pair(source, 2, proposals=48)[1], image_3HW)
    counts = []
    for limit in PUBLISHED[source].limits:
        reference = pair(source, 2, least=1000, most=1000, threshold=threshold)[1]
        reference.rules = replace(reference.rules, limits=(limit,))
        judged = reference.judge(map_1CHW, proposals_P4)
        counts.append(len(reference.find(frame, proposals_P4, judged)["boxes_R4"]))
    assert len({*counts}) >= 3
    for least in [*sorted({*counts}), max(counts) + 1]:
        most = least if source == "airsplay_attributes" else least + 2
        detector, reference = pair(source, 2, proposals=48, least=least, most=most, threshold=threshold)
        expected = assert_chosen_alike(detector, reference, image_3HW)
        assert min(least, max(counts)) <= len(expected["boxes_R4"]) <= most


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("proposals", [1, 3])
def test_fewer_proposals_than_regions_are_wanted(source: str, proposals: int) -> None:
    detector, reference = pair(source, 2, least=8, most=8, proposals=proposals)
    expected = assert_chosen_alike(detector, reference, noise(2, 117, 201))
    if source != "airsplay_attributes":
        assert 1 <= len(expected["boxes_R4"]) <= proposals


def test_one_proposal_returned_as_two_classes() -> None:
    detector, reference = pair("airsplay_attributes", 1, threshold=0.1)
    expected = assert_chosen_alike(detector, reference, noise(1, 117, 201))
    assert len(set(expected["proposals_R"].tolist())) < len(expected["proposals_R"])


def test_nothing_above_the_threshold() -> None:
    """The attribute demo then has nothing; MILVLG's extractor has the least number nevertheless."""
    detector, reference = pair("airsplay_attributes", 1, threshold=0.999)
    assert len(assert_chosen_alike(detector, reference, noise(1, 117, 201))["boxes_R4"]) == 0
    detector, reference = pair("milvlg", 1, threshold=0.999)
    assert len(assert_chosen_alike(detector, reference, noise(1, 117, 201))["boxes_R4"]) == 4


@pytest.mark.parametrize(("threshold", "least", "most", "count"), [(0.0, 4, 12, 12), (0.45, 10, 12, 10), (0.3, 1, 24, None)])
def test_milvlg_s_least_and_most(threshold: float, least: int, most: int, count: int | None) -> None:
    detector, reference = pair("milvlg", 1, threshold=threshold, least=least, most=most)
    expected = assert_chosen_alike(detector, reference, noise(1, 117, 201))
    if count is None:
        assert least < len(expected["boxes_R4"]) < most and (expected["scores_R"] >= threshold).all()
        assert expected["proposals_R"].tolist() == sorted(expected["proposals_R"].tolist())
    else:
        assert len(expected["boxes_R4"]) == count


def test_milvlg_counts_pixels_and_drops_at_the_limit_itself() -> None:
    """Overlaps by hand: 30 of 100 pixels, exactly the limit; 61.6 of 180.4 where the edges say 46 of 154, below it."""
    detector, reference = pair("milvlg", 1, least=1)
    frame = resized(96, 96, reference.rules)
    assert frame.scale_x == 1
    at_the_limit, above_it = [[0, 0, 12, 4], [7, 0, 19, 4]], [[40, 40, 50, 50], [45.4, 40, 55.4, 50]]
    proposals_P4 = torch.tensor([*at_the_limit, *above_it, [70, 70, 90, 90]])
    logits_PN = torch.zeros(5, 21)
    logits_PN[:, 7] = torch.tensor([6.0, 5, 6, 5, 4])
    judged = Judged(torch.rand(5, 256), logits_PN, torch.zeros(5, 21, 4), torch.zeros(5, 13))
    assert reference.find(frame, proposals_P4, judged)["proposals_R"].tolist() == [0, 2, 4]
    assert detector.find(detector.frame(96, 96), proposals_P4, judgement_of(judged)).proposals_R.tolist() == [0, 2, 4]


def test_milvlg_s_regressed_boxes() -> None:
    """Its mode that extracts boxes alone: moved on disk with a pixel added to each side, clipped to the last pixel."""
    detector, reference = pair("milvlg", 3, threshold=0, least=1, most=12, boxes="regressed")
    frame, map_1CHW, proposals_P4 = proposed(reference, noise(3, 117, 201))
    judged = reference.judge(map_1CHW, proposals_P4)
    scores_PN = judged.class_logits_PN.softmax(dim=1)
    best_P = scores_PN[:, 1:].argmax(dim=1) + 1
    boxes_P4 = reference.regressed(frame, proposals_P4, judged.box_deltas_PN4[torch.arange(len(best_P)), best_P])
    confidence_P = torch.zeros(len(boxes_P4))
    for label in range(1, scores_PN.shape[1]):
        kept = surviving(boxes_P4, scores_PN[:, label], 0.3, reference.rules)
        confidence_P[kept] = torch.maximum(confidence_P[kept], scores_PN[kept, label])
    expected = boxes_P4[confidence_P.argsort(descending=True)[:12]]
    found = detector.find(detector.frame(117, 201), proposals_P4, judgement_of(judged)).boxes_R4
    close(found[match(found, expected)], expected, "boxes")
    assert expected[:, 2].max() <= 200 and (expected[:, 2] > 199.9).any()


@pytest.mark.parametrize("source", ["huggingface", "airsplay", "airsplay_attributes"])
def test_regressed_boxes_beyond_the_border(source: str) -> None:
    """Clipping may empty a box; it stays among the regions, as in the sources."""
    detector, reference = pair(source, 1, least=6, most=6)
    frame, map_1CHW, proposals_P4 = proposed(reference, noise(1, 117, 201))
    judged = reference.judge(map_1CHW, proposals_P4)
    best = int(judged.class_logits_PN.softmax(dim=1)[:, 1:].amax(dim=1).argmax())
    judged.box_deltas_PN4[best, :, 0] = 100.0  # ten widths to the right
    judged.box_deltas_PN4[(best + 1) % len(proposals_P4), :, 2:] = 60.0  # beyond the bound of growth
    expected = reference.find(frame, proposals_P4, judged)
    index = expected["proposals_R"].tolist().index(best)
    assert expected["boxes_R4"][index, 0] == expected["boxes_R4"][index, 2]
    assert_found(detector.find(detector.frame(117, 201), proposals_P4, judgement_of(judged)), expected)


@pytest.mark.parametrize("size", [(117, 201), (83, 84), (300, 61), (24, 190)], ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_from_picture_to_regions(source: str, size: tuple[int, int]) -> None:
    """Each stage from our own one before it, so that differences would add up; the last size is extreme in shape."""
    detector, reference = pair(source, seed=2, proposals=12)
    image_3HW = telling_picture(reference, 7, *size)
    frame, map_1CHW, proposals_P4 = proposed(reference, image_3HW)
    expected = reference.find(frame, proposals_P4, reference.judge(map_1CHW, proposals_P4))
    own_frame, own_map = detector.frame(*size), detector.backbone(detector.prepare(image_3HW)[None])
    (own_proposals,) = detector.propose(own_map, [own_frame])
    found = detector.find(own_frame, own_proposals, detector.judge(own_map, [own_proposals]))
    assert_found(found, expected)

    (regions,) = detector.detect([image_3HW])
    assert (regions.width, regions.height) == size[::-1]
    order = match(
        torch.from_numpy(regions.boxes_R4),
        expected["boxes_R4"],
        (torch.from_numpy(regions.features_RF), expected["features_RF"]),
    )
    close(torch.from_numpy(regions.boxes_R4)[order], expected["boxes_R4"], "boxes", 2e-3)
    close(torch.from_numpy(regions.features_RF)[order].float(), expected["features_RF"], "features", 1e-3, 1e-3)
    probabilities_RN, kept = expected["class_probabilities_RN"].clone(), regions.class_ids_RK.shape[1]
    if source == "airsplay_attributes":  # first the class that a region was kept as, then the most probable ones
        best_R = probabilities_RN[:, 1:].argmax(dim=1) + 1
        probabilities_RN[best_R != expected["classes_R"]] += torch.eye(probabilities_RN.shape[1])[expected["classes_R"]][
            best_R != expected["classes_R"]
        ]
    ids_RK = probabilities_RN.topk(kept, dim=1).indices
    best_RK = expected["class_probabilities_RN"].gather(1, ids_RK)
    close(torch.from_numpy(regions.class_probabilities_RK)[order].float(), best_RK, "class probabilities", 1e-3, 1e-3)
    assert regions.class_ids_RK[order.numpy(), 0].tolist() == ids_RK[:, 0].tolist()
    assert regions.attribute_ids_R[order.numpy()].tolist() == expected["attribute_probabilities_RA"].argmax(dim=1).tolist()


@pytest.mark.long
@pytest.mark.parametrize("source", ["huggingface", "milvlg"])
def test_at_the_published_size(source: str) -> None:
    """ResNet-101, 1600 classes, 400 attributes; a small picture and few proposals."""
    rules = PUBLISHED[source]
    state = random_weights(LAYOUTS[source], Sizes(), seed=5, anchor_sides=(20.0, 120.0))
    image_3HW = prepared(noise(5, 601, 803), rules)[:, 200:303, 300:428].contiguous()
    reference = Reference(state, rules)
    map_1CHW = reference.backbone(image_3HW[None])
    frame = Resized(103, 128, 103, 128, 1.0, 1.0)
    proposals_P4 = reference.propose(map_1CHW, frame)[:10]
    state = centred(state, reference.judge(map_1CHW, proposals_P4).features_PF)
    reference = Reference(state, rules)
    judged = reference.judge(map_1CHW, proposals_P4)
    expected = reference.find(frame, proposals_P4, judged)
    assert 0.05 < map_1CHW.std() < 50 and 0.01 < judged.features_PF.std() < 50

    detector = detector_from_state(state, source, short_side=103, long_side=128, proposals=10)
    assert detector.config.blocks == (3, 4, 23, 3) and detector.config.feature_width == 2048
    own_map = detector.backbone(image_3HW[None])
    close(own_map, map_1CHW, "map")
    (own_proposals,) = detector.propose(own_map, [detector.frame(103, 128)])
    order = match(own_proposals, proposals_P4)
    close(own_proposals[order], proposals_P4, "proposals")
    own = detector.judge(own_map, [own_proposals])
    close(own.features_PF[order], judged.features_PF, "features")
    close(own.class_logits_PN[order], judged.class_logits_PN, "class logits")
    close(own.box_deltas_PN4[order, 1:], judged.box_deltas_PN4[:, 1:], "box deltas")
    assert_found(detector.find(detector.frame(103, 128), own_proposals, own), expected)
