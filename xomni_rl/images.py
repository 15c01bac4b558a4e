"""Images at the reward boundary: uint8 RGB [H, W, 3] arrays, from files, PIL images and batches."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64 * 1024 * 1024
"""Largest image that is decoded, in px; a small file can otherwise claim gigabytes."""

NO_SAMPLES = ".no-samples"
"""A folder with a file of this name holds pictures made of samples (a contact sheet, a gallery), which are not samples."""
_BACKGROUND = (255, 255, 255)


class ImageFileError(ValueError):
    """A file that is not an image that can be read; the message names it."""


def load_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image file as uint8 [H, W, 3] RGB, upright by its EXIF orientation.

    Transparency is laid on white; 16-bit greys are scaled to 8 bits; of an animation the first frame counts.

    Raises: ImageFileError with the file's name if it is no image, is damaged or has more than `max_pixels` px;
        FileNotFoundError and PermissionError as they come.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageFileError(f"{path}: is a folder, not an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            with Image.open(path) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ImageFileError(f"{path}: {width}×{height} px is more than the limit of {max_pixels} px")
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ImageFileError(f"{path}: is not an image that can be read") from error
    except (FileNotFoundError, PermissionError, ImageFileError):
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        # PIL's decoders raise SyntaxError and ValueError for damaged chunks.
        raise ImageFileError(f"{path}: is a damaged image: {error}") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """A PIL image of any mode as uint8 [H, W, 3]; transparency is laid on white, 16-bit and float greys are scaled."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        return _grey_to_rgb(np.clip((grey + 128) // 257, 0, 255).astype(np.uint8))  # 65535 / 255 = 257
    if image.mode == "F":
        return _grey_to_rgb(np.clip(np.rint(np.asarray(image)), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*_BACKGROUND, 255))
        return np.array(Image.alpha_composite(ground, layer).convert("RGB"))
    return np.array(image.convert("RGB"))


def as_image_list(images: np.ndarray | Sequence[np.ndarray] | Sequence[Image.Image]) -> list[np.ndarray]:
    """N uint8 [H, W, 3] arrays from a uint8 [N, H, W, 3] batch, or from N arrays or PIL images of any sizes.

    PIL images are turned upright by their EXIF orientation and made RGB as `to_rgb` does.

    Raises: ValueError naming the index and what was found for anything else (a single image is not a batch).
    """
    if isinstance(images, np.ndarray) and images.dtype != object:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise ValueError(f"images must be uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}")
        return list(images)
    if isinstance(images, Image.Image):
        raise ValueError("images must be a batch; put a single image into a list")
    return [_as_array(index, image) for index, image in enumerate(images)]


def as_image_array(images: Sequence[np.ndarray]) -> np.ndarray:
    """N uint8 [H, W, 3] arrays as uint8 [N, H, W, 3] or, if their sizes differ, as object [N]; none as uint8 [0, 0, 0, 3]."""
    if not len(images):
        return np.zeros((0, 0, 0, 3), dtype=np.uint8)
    if len({image.shape for image in images}) == 1:
        return np.stack(list(images))
    made = np.empty(len(images), dtype=object)
    for index, image in enumerate(images):
        made[index] = image
    return made


def _as_array(index: int, image: object) -> np.ndarray:
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"image {index} has no pixels: its size is {image.size[0]}×{image.size[1]} px")
        return to_rgb(ImageOps.exif_transpose(image))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image {index} must be an array or a PIL image, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image {index} must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    return image


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)
