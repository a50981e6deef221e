"""Box arithmetic, edges and counted pixels."""

import math

import torch

from unimo_ds.vision.boxes import EDGES, PIXELS


def test_deltas_move_and_scale_a_box() -> None:
    box, deltas = torch.tensor([[10.0, 20.0, 29.0, 59.0]]), torch.tensor([[1.0, -1.0, 5 * math.log(2), 0.0]])
    moved = EDGES.decode(deltas, box, (10, 10, 5, 5))
    torch.testing.assert_close(moved, torch.tensor([[21.4 - 19, 35.6 - 19.5, 21.4 + 19, 35.6 + 19.5]]))
    counted = PIXELS.decode(deltas, box, (10, 10, 5, 5))  # sides 20 and 40, centre at 20 and 40
    torch.testing.assert_close(counted, torch.tensor([[22.0 - 20, 36.0 - 20, 22.0 + 20, 36.0 + 20]]))


def test_a_side_grows_by_62_at_most() -> None:
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    sides = EDGES.decode(torch.full((1, 4), 50.0), box, (1, 1, 1, 1))
    torch.testing.assert_close(sides[0, 2] - sides[0, 0], torch.tensor(1000.0))


def test_an_image_ends_at_its_width_or_at_its_last_pixel() -> None:
    boxes = torch.tensor([[-3.0, 4.0, 200.0, 70.0]])
    assert EDGES.clip(boxes, 60, 100).tolist() == [[0, 4, 100, 60]]
    assert PIXELS.clip(boxes, 60, 100).tolist() == [[0, 4, 99, 59]]


def test_a_side_must_be_longer_than_the_least() -> None:
    boxes = torch.tensor([[0.0, 0, 15, 20], [0, 0, 15.1, 20], [0, 0, 0, 20], [0, 0, 16, 16]])
    assert PIXELS.longer_than(boxes, 16).tolist() == [False, True, False, True]
    assert EDGES.longer_than(boxes, 16).tolist() == [False, False, False, False]
    assert EDGES.longer_than(boxes, 0).tolist() == [True, True, False, True]


def test_an_overlap_at_the_limit_drops_where_pixels_are_counted() -> None:
    scores = torch.tensor([0.9, 0.8])
    edges = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU is one half
    pixels = edges - torch.tensor([0, 0, 1, 1])
    assert EDGES.suppress(edges, scores, 0.5).tolist() == [0, 1]
    assert PIXELS.suppress(pixels, scores, 0.5).tolist() == [0]
    assert EDGES.overlaps(edges, 0.5).tolist() == [[False, False], [False, False]]
    assert PIXELS.overlaps(pixels, 0.5).tolist() == [[False, True], [True, False]]
