"""Images as CLIP and BLIP take them: Pillow's bicubic to the shortest side, centre crop, CLIP's normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LONGEST = 16
"""Beyond this aspect ratio only the part that is kept is resized: a 1×4000 image would otherwise take 600 MB."""


def round_down(margin: float) -> int:
    """Where transformers' CLIP image processor crops."""
    return int(margin)


def round_half_even(margin: float) -> int:
    """Where torchvision's CenterCrop crops; one pixel further at margins such as 1.5."""
    return round(margin)


def clip_pixels(images: Sequence[np.ndarray], size: int, rounding: Callable[[float], int]) -> torch.Tensor:
    """Normalised pixels of N images.

    Args:
        images: N uint8 [H, W, 3] of any sizes.
        size: side of the square that is kept, in px.
        rounding: margin in px → first column (or row) of the crop: `round_down` or `round_half_even`.
    Returns: float32 [N, 3, size, size] on the CPU.
    """
    import torch

    squares = np.stack([resized_square(image, size, rounding) for image in images])
    pixels = squares.astype(np.float32) / 255
    pixels = (pixels - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def resized_square(image: np.ndarray, size: int, rounding: Callable[[float], int]) -> np.ndarray:
    """The centre square of an image whose shortest side is made `size` px long: uint8 [size, size, 3]."""
    height, width = image.shape[:2]
    shortest = min(height, width)
    wide, high = (side * size // shortest for side in (width, height))
    left, top = rounding((wide - size) / 2), rounding((high - size) / 2)
    picture = Image.fromarray(np.ascontiguousarray(image))
    if max(wide, high) > _LONGEST * size:
        x, y = width / wide, height / high  # source px per resized px
        return _resized_part(picture, (left * x, top * y, (left + size) * x, (top + size) * y), size)
    resized = picture.resize((wide, high), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _resized_part(picture: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part of a picture inside `box`, in px of it, as a square of `size` px; what lies out of reach is not looked at."""
    reach = 2 * max(1.0, min(picture.size) / size) + 1  # of the bicubic
    left, top = (max(0, int(edge - reach)) for edge in box[:2])
    right, bottom = (min(side, int(edge + reach) + 1) for side, edge in zip(picture.size, box[2:], strict=True))
    inside = (box[0] - left, box[1] - top, min(box[2], right) - left, min(box[3], bottom) - top)
    return np.asarray(picture.crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BICUBIC, inside))


def disc_and_noise() -> tuple[np.ndarray, np.ndarray]:
    """(a red disc on white, noise): uint8 [224, 224, 3], the self-check pair of preference models."""
    rows, columns = np.indices((224, 224)) - 111.5
    disc = np.where((rows**2 + columns**2 < 70**2)[..., None], np.array([200, 30, 40], np.uint8), np.uint8(255))
    return disc, np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
