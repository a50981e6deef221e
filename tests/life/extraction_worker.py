"""One process of an extraction, as a test starts and kills it; it notes every image whose regions were found.

python -m tests.life.extraction_worker LOG SHARDS SHARD IMAGES OUT DETECTOR
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unimo_ds.extraction import ExtractionPlan, extract_features
from unimo_ds.regions import Regions
from unimo_ds.vision.faster_rcnn import BottomUpDetector

BATCH = 3


def digest(image_3HW: Tensor) -> str:
    """Names an image by its pixels: a detector does not know keys."""
    return hashlib.sha256(image_3HW.contiguous().numpy().tobytes()).hexdigest()


def main() -> None:
    log, shards, shard, images, out, detector = sys.argv[1:]
    torch.set_num_threads(1)
    detect = BottomUpDetector.detect

    def noting(self: BottomUpDetector, batch: Sequence[Tensor]) -> list[Regions]:
        found = detect(self, batch)
        with open(log, "a") as file:
            file.write("".join(f"{shard} {digest(image)}\n" for image in batch))
        time.sleep(0.02)  # between detection and commit: the worst moment of a kill
        return found

    BottomUpDetector.detect = noting  # type: ignore[assignment, method-assign]
    plan = ExtractionPlan(
        Path(images), Path(out), detector=detector, batch=BATCH, workers=1, shards=int(shards), shard=int(shard)
    )
    print(extract_features(plan))


if __name__ == "__main__":
    main()
