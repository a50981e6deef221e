"""Scoring of image-text pairs against a padded single-stream encoder, Hugging Face's VisualBERT: processor time of one thread.

Both score every caption with every image, in evaluation mode and with random weights. The peer's batches hold one caption and
many images, padded to the longest of the batch: images in random order, or sorted by their number of regions, which is the
best that padding can do. Ours is the path of `unimo-ds evaluate`, from region features to scores.
"""

from collections.abc import Callable

import torch
from torch import Tensor

IMAGES, CAPTIONS, AT_ONCE = 32, 2, 32
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Score = Callable[[], Tensor]
