"""Pictures of any size, resized to what the image tokenizer was trained on.

Source: the public checkpoint's preprocessing (`vision_config.transform`); arXiv 2507.22058, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class AnyResolution:
    """Bounds of a picture's sides, px.

    Attributes:
        short_size: the short side is enlarged to this.
        long_size: the long side is then reduced to this.
        patch_size: both become multiples of this.
        min_short_size: a picture whose short side is less is refused.
        max_aspect_ratio: so is one whose sides differ by a larger factor.
    """

    short_size: int = 384
    long_size: int = 1152
    patch_size: int = 16
    min_short_size: int = 128
    max_aspect_ratio: float = 3.0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) px that a picture of that size is resized to.

        Raises: ValueError for a picture that is too small or too long.
        """
        short, long = min(height, width), max(height, width)
        if short < self.min_short_size:
            raise ValueError(f"an image of {height}x{width} px is too small: its short side must be {self.min_short_size} px")
        if long / short > self.max_aspect_ratio:
            raise ValueError(f"an image of {height}x{width} px is too long: its sides may differ by {self.max_aspect_ratio:g}")
        sides = np.array([height, width], dtype=np.float64)
        if short < self.short_size:
            sides *= self.short_size / short
        if sides.max() > self.long_size:
            sides *= self.long_size / sides.max()
        rows, columns = (round(float(side) / self.patch_size) * self.patch_size for side in sides)
        return rows, columns

    def resize(self, image: Image.Image) -> np.ndarray:
        """The picture as uint8 [H, W, 3], bicubically resized. Raises: ValueError as `size` does."""
        image = image.convert("RGB")
        height, width = self.size(image.height, image.width)
        return np.asarray(image.resize((width, height), resample=Image.Resampling.BICUBIC))
