"""Trains a small detector on COCO-format annotations whose pictures all have one size, from random weights, on a CPU.

Shape suffix: n objects of one image.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimo_ds.errors import DataError
from unimo_ds.progress import Progress, track
from unimo_ds.vision.average_precision import Quality, measure_quality
from unimo_ds.vision.coco import Annotations, Objects, read_annotations
from unimo_ds.vision.detector_config import small_detector
from unimo_ds.vision.detector_file import save_detector
from unimo_ds.vision.extract import read_image
from unimo_ds.vision.faster_rcnn import BottomUpDetector


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the weights besides the pictures and the configuration.

    Attributes:
        steps, batch: pictures seen are their product.
        peak_rate: learning rate after `warmup` steps; it falls along a cosine to nothing.
        decay: AdamW's weight decay.
        seed: of the weights, the order, the flips and the sampled proposals.
        bf16: convolve in bfloat16, which is faster on CPUs that have it; the weights stay fp32.
    """

    steps: int = 4000
    batch: int = 8
    peak_rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.01
    seed: int = 1
    bf16: bool = False


def train_detector(world: Path, out: Path, plan: TrainingPlan, command: str = "") -> Quality:
    """Trains on `world/annotations/instances_train.json`, measures on `instances_val.json`, writes `out`.

    The same pictures, plan and machine give the same weights: one thread, one generator.

    Raises:
        DataError: annotations or pictures are missing or unreadable, or the pictures differ in size.
    """
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    train, held_out = (read_annotations(world / "annotations" / f"instances_{s}.json") for s in ("train", "val"))
    detector = BottomUpDetector(
        small_detector(len(train.class_names), len(train.attribute_names)), train.class_names, train.attribute_names
    )
    fit(detector, _load_images(train, world), train.images, plan)
    detector.eval()
    quality = evaluate(detector, _load_images(held_out, world), held_out.images)
    measured = {key: round(value, 4) for key, value in dataclasses.asdict(quality).items()}
    detector.facts = {**measured, "held_out_images": len(held_out.images), **dataclasses.asdict(plan), "command": command}
    save_detector(detector, out)
    return quality


def fit(detector: BottomUpDetector, images: Sequence[Tensor], objects: Sequence[Objects], plan: TrainingPlan) -> list[float]:
    """Minimises the detector's losses; returns the loss of each step.

    Args:
        images: uint8 [3, H, W], all of one size.
        objects: what is in each.
    """
    detector.train()
    decayed = [p for p in detector.parameters() if p.dim() > 1]
    others = [p for p in detector.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.peak_rate, weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    generator = torch.Generator().manual_seed(plan.seed)
    losses = []
    with Progress("training the detector", plan.steps, "steps") as progress:
        for _ in range(plan.steps):
            chosen = torch.randint(len(images), (plan.batch,), generator=generator).tolist()
            flips = (torch.rand(plan.batch, generator=generator) < 0.5).tolist()
            examples = [_example(images[i], objects[i], flip, detector) for i, flip in zip(chosen, flips, strict=True)]
            with torch.autocast(detector.device.type, torch.bfloat16, enabled=plan.bf16):
                parts = detector([image for image, _ in examples], [target for _, target in examples])
            loss = torch.stack(list(parts.values())).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.advance(note=", ".join(f"{name} {part.item():.3f}" for name, part in parts.items()))
    return losses


def evaluate(detector: BottomUpDetector, images: Sequence[Tensor], objects: Sequence[Objects], batch: int = 8) -> Quality:
    """Average precision and attribute accuracy of what `detect` returns with the detector's own selection."""
    found = []
    for start in track(range(0, len(images), batch), "measuring the detector", -(-len(images) // batch), "batches"):
        found += detector.detect(images[start : start + batch])
    return measure_quality(found, objects)


def _rate(step: int, plan: TrainingPlan) -> float:
    """Linear warm-up, then half a cosine."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))


def _example(image: Tensor, objects: Objects, flip: bool, detector: BottomUpDetector) -> tuple[Tensor, dict[str, Tensor]]:
    """The picture and its targets in pixels of the resized picture, mirrored or not."""
    height, width = image.shape[1:]
    frame = detector.frame(height, width)
    columns = frame.columns
    boxes_n4 = torch.from_numpy(objects.boxes_n4) * torch.tensor([frame.scale_x, frame.scale_y] * 2)
    if flip:
        image = image.flip(2)
        boxes_n4 = torch.stack([columns - boxes_n4[:, 2], boxes_n4[:, 1], columns - boxes_n4[:, 0], boxes_n4[:, 3]], dim=1)
    labels, attributes = torch.from_numpy(objects.labels_n), torch.from_numpy(objects.attributes_n)
    return image, {"boxes": boxes_n4, "labels": labels, "attributes": attributes}


def _load_images(annotations: Annotations, world: Path) -> list[Tensor]:
    """All pictures decoded, in memory: 150 kB each at 256x192."""
    paths = [world / "images" / objects.file_name for objects in annotations.images]
    images = [read_image(path) for path in track(paths, "reading pictures", len(paths), "images")]
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise DataError(f"{world}: pictures of {len(sizes)} sizes, e.g. {sorted(sizes)[:3]}; training wants all of one size")
    return images
