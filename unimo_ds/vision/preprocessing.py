"""From the pixels on disk to the tensor that the first convolution sees.

Shape suffixes: B images of one size, H and W rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.vision.detector_config import DetectorConfig


def resized_size(height: int, width: int, config: DetectorConfig) -> tuple[int, int]:
    """Rows and columns after scaling the short side to `short_side`, or the long side to `long_side` if that is smaller."""
    scale = min(config.short_side / min(height, width), config.long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image_3HW: Tensor, config: DetectorConfig) -> Tensor:
    """One uint8 RGB image as float32 grey levels 0..255 [3, H', W'] of the size that the detector wants."""
    image_B3HW = image_3HW[None].float()
    size = resized_size(image_3HW.shape[1], image_3HW.shape[2], config)
    if size != tuple(image_3HW.shape[1:]):
        image_B3HW = F.interpolate(image_B3HW, size, mode="bilinear", align_corners=False, antialias=config.antialias)
    return image_B3HW[0]


def normalise(images_B3HW: Tensor, config: DetectorConfig) -> Tensor:
    """Grey levels in RGB order to the order, mean and spread of the detector's training."""
    if config.colour == "bgr":
        images_B3HW = images_B3HW.flip(1)
    mean_311 = torch.tensor(config.pixel_mean, device=images_B3HW.device)[:, None, None]
    std_311 = torch.tensor(config.pixel_std, device=images_B3HW.device)[:, None, None]
    return (images_B3HW - mean_311) / std_311


def describe_preprocessing(config: DetectorConfig) -> str:
    """The same in one line, for a store's manifest."""
    filtered = "antialias" if config.antialias else "no antialias"
    return (
        f"{config.colour} mean {config.pixel_mean} std {config.pixel_std} | short {config.short_side} "
        f"long {config.long_side} bilinear, {filtered}"
    )
