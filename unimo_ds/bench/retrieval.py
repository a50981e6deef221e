"""Scoring of image-text pairs for retrieval against a padded single-stream encoder, Hugging Face's VisualBERT: time of one thread.

Both score every caption with every image, in evaluation mode and with random weights. The peer's batches hold one caption and
many images, padded to the longest of the batch: images in random order, or sorted by their number of regions, which is the
best that padding can do. Ours is the path of `unimo-ds evaluate`, from region features to scores.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unimo_ds.bench import workload as work
from unimo_ds.bench.contenders import hugging_face_shape, shape
from unimo_ds.bench.threads import one_thread
from unimo_ds.config import RetrievalSection, TaskDataSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import FIRST_WORD
from unimo_ds.progress import track

IMAGES, CAPTIONS, AT_ONCE = 32, 2, 32
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Score = Callable[[], Tensor]
