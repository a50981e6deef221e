"""Finding regions: where the time of a photograph goes, against the machine's own rate and against the peers' way of computing.

The peers (detectron2's descendants) run torchvision-like modules: convolution, frozen batch normalisation, ReLU one after the
other, NCHW, all proposals through res5 at once. `_PeerHead` puts torchvision's own ResNet-101 together like that, so that the
comparison needs no detectron2. Weights are random: the number of operations does not depend on them.
"""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.models import resnet101
from torchvision.ops import FrozenBatchNorm2d, roi_pool

from unimo_ds.data.store import encode_regions
from unimo_ds.progress import track
from unimo_ds.vision.conventions import CONVENTIONS
from unimo_ds.vision.detector_file import load_detector
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.region_head import WINDOWS_AT_ONCE

T = TypeVar("T")
_HEIGHT, _WIDTH = 480, 640
_WINDOWS, _SIDE, _MATRIX = 16, 14, 2048


def measure_extraction(rounds: int = 3) -> list[dict[str, object]]:
    """Median seconds of each step of one photograph with the published detector, on one thread; rounds interleaved."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    detector = _published_size()
    peer = _PeerHead().eval()
    image = torch.randint(0, 256, (3, _HEIGHT, _WIDTH), dtype=torch.uint8)
    taken: dict[str, list[float]] = {}
    proposals = 0
    with torch.inference_mode():
        for number in track(range(rounds + 1), "finding regions", rounds + 1, "rounds"):
            seconds, proposals = _one_photograph(detector, peer, image)
            seconds["matrix rate"] = _matrix_rate()
            if number:  # the first is a warm-up
                for step, value in seconds.items():
                    taken.setdefault(step, []).append(value)
    return _rows({step: statistics.median(values) for step, values in taken.items()}, proposals)


def measure_world(images: int = 64) -> float:
    """Pictures of 256x192 a second with the packaged detector, on one thread."""
    torch.set_num_threads(1)
    detector = load_detector("world")
    pictures = [torch.randint(0, 256, (3, 192, 256), dtype=torch.uint8) for _ in range(images)]
    detector.detect(pictures[:8])
    seconds, _ = _timed(lambda: [detector.detect(pictures[start : start + 8]) for start in range(0, images, 8)])
    return images / seconds


def _one_photograph(detector: BottomUpDetector, peer: "_PeerHead", image: Tensor) -> tuple[dict[str, float], int]:
    frame = detector.frame(_HEIGHT, _WIDTH)
    seconds: dict[str, float] = {}

    def step(name: str, run: Callable[[], T]) -> T:
        seconds[name], made = _timed(run)
        return made

    prepared = step("resize, normalise", lambda: detector.prepare(image))
    batch_B3HW = prepared[None].contiguous(memory_format=torch.channels_last)
    map_BCHW = step("backbone to res4", lambda: detector.backbone(batch_B3HW))
    proposals_P4 = step("proposals", lambda: detector.propose(map_BCHW, [frame]))[0]
    rois_P5 = nn.functional.pad(proposals_P4, (1, 0))
    flat_BCHW = map_BCHW.contiguous()
    parts = torch.split(rois_P5, WINDOWS_AT_ONCE["cpu"])
    step("  of it pooling", lambda: [detector.roi_heads.pool(flat_BCHW, part_P5) for part_P5 in parts])
    judgement = step("pooling, res5, classes, boxes", lambda: detector.judge(map_BCHW, [proposals_P4]))
    found = step("suppression, attributes", lambda: detector.find(frame, proposals_P4, judgement))
    step("record", lambda: encode_regions(found.regions(frame, 16)))
    peer_map = step("peer: backbone to res4", lambda: peer.backbone(prepared[None]))
    step("peer: pooling, res5", lambda: peer.head(peer_map, rois_P5))
    return seconds, len(proposals_P4)


def _published_size() -> BottomUpDetector:
    detector = BottomUpDetector(CONVENTIONS["milvlg"], (), ()).eval()
    for name, module in detector.named_modules():
        if name.endswith("conv3.norm"):
            module.weight.data.fill_(0.3)  # 33 blocks of random weights would overflow
    return detector


class _PeerHead(nn.Module):
    """torchvision's ResNet-101 as the peers split it: strides in the 1x1 convolutions, res5 dilated."""

    def __init__(self) -> None:
        super().__init__()
        net = resnet101(weights=None, norm_layer=FrozenBatchNorm2d)
        for stage in (net.layer2, net.layer3, net.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, (1, 1)
        for block in net.layer4:
            block.conv1.stride, block.conv2.dilation, block.conv2.padding = (1, 1), (2, 2), (2, 2)
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)
        pool = nn.MaxPool2d(3, 2, 0, ceil_mode=True)
        self.backbone = nn.Sequential(net.conv1, net.bn1, net.relu, pool, net.layer1, net.layer2, net.layer3)
        self.res5 = net.layer4

    def head(self, map_BCHW: Tensor, rois_P5: Tensor) -> Tensor:
        pooled: Tensor = self.res5(roi_pool(map_BCHW, rois_P5, 14, 1 / 16)).mean(dim=(2, 3))
        return pooled


def _matrix_rate() -> float:
    """Operations a second of a product [3136, 2048] x [2048, 2048] in the library that convolves: a 1x1 convolution."""
    windows = torch.full((_WINDOWS, _MATRIX, _SIDE, _SIDE), 0.5).contiguous(memory_format=torch.channels_last)
    weight = torch.full((_MATRIX, _MATRIX, 1, 1), 0.5)
    seconds = min(_timed(lambda: nn.functional.conv2d(windows, weight))[0] for _ in range(3))
    return 2 * _WINDOWS * _SIDE * _SIDE * _MATRIX**2 / seconds


def _timed(run: Callable[[], T]) -> tuple[float, T]:
    started = time.process_time()
    made = run()
    return time.process_time() - started, made


def _operations(proposals: int) -> dict[str, float]:
    """Multiplications and additions of the convolutions of each part, at the size that `_HEIGHT` x `_WIDTH` is resized to."""
    rows, columns = 600, 800
    backbone = rows * columns / 4 * 64 * 3 * 49.0
    places, inputs = rows * columns / 16, 64
    for stage, blocks in enumerate((3, 4, 23)):
        outputs = 256 << stage
        places = places / 4 if stage else places
        backbone += places * _block(inputs, outputs, blocks)
        inputs = outputs
    taps = 9 * (12 + 14 + 12) ** 2 / (3 * 14) ** 2  # dilated by two: the outer ones fall off a window of 14 at its borders
    head = proposals * _SIDE * _SIDE * _block(1024, 2048, 3, taps)
    proposal = places * (1024 * 512 * 9 + 512 * 60.0)
    return {"backbone to res4": 2 * backbone, "proposals": 2 * proposal, "pooling, res5, classes, boxes": 2 * head}


def _block(inputs: int, outputs: int, blocks: int, taps: float = 9) -> float:
    """Multiplications for one place of a stage: its first block with the shortcut, then the others."""
    inner = outputs // 4
    first = inputs * inner + taps * inner * inner + inner * outputs + inputs * outputs
    return first + (blocks - 1) * (outputs * inner + taps * inner * inner + inner * outputs)


def _rows(seconds: dict[str, float], proposals: int) -> list[dict[str, object]]:
    rate = seconds.pop("matrix rate")
    operations = _operations(proposals)
    ours = [step for step in seconds if not step.startswith(("peer", " "))]
    total = sum(seconds[step] for step in ours)
    peer = sum(value for step, value in seconds.items() if step.startswith("peer"))
    same_part = seconds["backbone to res4"] + seconds["pooling, res5, classes, boxes"]
    rows: list[dict[str, object]] = []
    for step, value in seconds.items():
        share = operations[step] / value / rate if step in operations else None
        rows.append({"step": step, "seconds": value, "share": value / total if step in ours else None, "of_rate": share})
    every = sum(operations.values())
    rows.append({"step": "all of ours", "seconds": total, "share": 1.0, "of_rate": every / total / rate})
    rows.append({"step": "facts", "proposals": proposals, "rate": rate, "peer_over_ours": peer / same_part})
    return rows


def table(rows: list[dict[str, object]], world: float) -> str:
    """The rows as Markdown."""
    lines = ["| step | seconds | share of the time | share of the matrix rate |", "|---|--:|--:|--:|"]
    *steps, facts = rows
    for row in steps:
        cells = ["" if row[key] is None else f"{row[key]:.0%}".replace("%", " %") for key in ("share", "of_rate")]
        lines.append(f"| {row['step']} | {row['seconds']:.2f} | {cells[0]} | {cells[1]} |")
    rate, slower = float(str(facts["rate"])) / 1e9, float(str(facts["peer_over_ours"]))
    lines += [
        "",
        f"One photograph of {_WIDTH}x{_HEIGHT}, {facts['proposals']} proposals. Matrix rate: {rate:,.0f} GFLOP/s. "
        f"The peers' way takes {slower:.2f} times as long for backbone, pooling and res5. "
        f"The packaged detector reads {world:.0f} pictures of 256x192 a second.",
    ]
    return "\n".join(lines)
