"""From the pixels on disk to the tensor that the first convolution sees.

Shape suffixes: H and W rows and columns.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unimo_ds.vision.detector_config import DetectorConfig


@dataclass(frozen=True)
class Frame:
    """An image's size on disk and as the detector sees it.

    Attributes:
        height, width: on disk.
        rows, columns: resized.
        scale_y, scale_x: a coordinate of the resized image is this times the coordinate on disk. With Caffe's resizing both
            are the factor that was asked for; otherwise the ratio of the sizes, which rounding makes a little different.
    """

    height: int
    width: int
    rows: int
    columns: int
    scale_y: float
    scale_x: float


def frame_of(height: int, width: int, config: DetectorConfig) -> Frame:
    """The short side becomes `short_side`, unless the long one would exceed `long_side`: then that is the limit."""
    short, long = min(height, width), max(height, width)
    scale = config.short_side / short
    if config.resampling == "opencv":
        if round(scale * long) > config.long_side:
            scale = config.long_side / long
        rows, columns = (max(1, round(side * scale)) for side in (height, width))  # half to even, as OpenCV
        return Frame(height, width, rows, columns, scale, scale)
    resized = [float(config.short_side) if side == short else scale * side for side in (height, width)]
    if max(resized) > config.long_side:
        scale = config.long_side / max(resized)
        resized = [side * scale for side in resized]
    rows, columns = (max(1, int(side + 0.5)) for side in resized)
    return Frame(height, width, rows, columns, rows / height, columns / width)


def resize(image_3HW: Tensor, frame: Frame, config: DetectorConfig) -> Tensor:
    """One uint8 RGB image as float32 grey levels 0..255 [3, rows, columns]."""
    size = (frame.rows, frame.columns)
    if config.resampling == "pillow":
        picture = Image.fromarray(image_3HW.permute(1, 2, 0).cpu().numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        pixels_HW3 = torch.from_numpy(np.array(picture))
        return pixels_HW3.permute(2, 0, 1).float().to(image_3HW.device)
    image_B3HW = image_3HW[None].float()
    if size == tuple(image_3HW.shape[1:]):
        return image_B3HW[0]
    if config.resampling == "opencv":  # the factor itself, not the ratio of the rounded sizes
        scaled: Tensor = torch.ops.aten.upsample_bilinear2d(image_B3HW, size, False, frame.scale_y, frame.scale_x)
        return scaled[0]
    antialias = config.resampling == "antialias"
    return F.interpolate(image_B3HW, size, mode="bilinear", align_corners=False, antialias=antialias)[0]


def normalise(images_B3HW: Tensor, config: DetectorConfig) -> Tensor:
    """Grey levels in RGB order to the order, mean and spread of the detector's training; one image or a batch."""
    if config.colour == "bgr":
        images_B3HW = images_B3HW.flip(-3)
    mean_311 = torch.tensor(config.pixel_mean, device=images_B3HW.device)[:, None, None]
    std_311 = torch.tensor(config.pixel_std, device=images_B3HW.device)[:, None, None]
    return (images_B3HW - mean_311) / std_311
