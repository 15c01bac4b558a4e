"""Names of colours by plain image analysis: an image's ground against a palette, an object's colour in everyday words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

OBJECT_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""Colours that a check may ask of an object: GenEval's. Grey can be found, too, but not be asked for."""
RADIUS = 60.0
"""How far pixels of one colour lie from their mean, at most, in 8-bit levels."""
_MOST_PIXELS = 1 << 16
_ROUNDS = 8


def dominant_colour(image: np.ndarray) -> tuple[tuple[float, float, float], float]:
    """The colour that most pixels share: mean shift from the median.

    The median is the ground's colour as long as the ground covers more than half of the image, whatever is drawn on it; the
    shift takes the letters' blurred edges out.

    Args:
        image: uint8 [H, W, 3].
    Returns: (red, green, blue) in 8-bit levels; share of the pixels within `RADIUS` of it, in [0, 1].
    """
    pixels = image.reshape(-1, 3)
    pixels = pixels[:: -(-len(pixels) // _MOST_PIXELS)].astype(np.float64)
    colour = np.median(pixels, axis=0)
    near = _near(pixels, colour)
    for _ in range(_ROUNDS):
        if not near.any():  # two halves, say, between which the median lies
            return _as_rgb(colour), 0.0
        shifted = pixels[near].mean(axis=0)
        if np.array_equal(shifted, colour):
            break
        colour, near = shifted, _near(pixels, shifted)
    return _as_rgb(colour), float(near.mean())


def nearest_colour(rgb: tuple[float, float, float], palette: Mapping[str, tuple[int, int, int]]) -> tuple[str, float]:
    """(name, Euclidean distance in 8-bit levels) of the palette's nearest colour; of equally near ones the first."""
    distances = {name: float(np.linalg.norm(np.subtract(rgb, colour))) for name, colour in palette.items()}
    name = min(distances, key=lambda name: distances[name])
    return name, distances[name]


def object_colour(image: np.ndarray, left: float, top: float, right: float, bottom: float) -> str:
    """The most common colour name in the middle of a box, half as wide and half as high, where the object is.

    Args:
        image: uint8 [H, W, 3].
        left, top, right, bottom: corners of the box in px, which may lie outside.
    Returns: one of `OBJECT_COLOURS`, or grey.
    """
    columns = _middle(left, right, image.shape[1])
    rows = _middle(top, bottom, image.shape[0])
    names, counts = np.unique(colour_names(image[rows, columns].reshape(-1, 3)), return_counts=True)
    return str(names[counts.argmax()])


def colour_names(pixels: np.ndarray) -> np.ndarray:
    """An everyday name for each pixel, by hue, saturation and brightness.

    Args:
        pixels: uint8 [N, 3].
    Returns: strings [N]: one of `OBJECT_COLOURS`, or grey.
    """
    levels = pixels.astype(np.float64) / 255
    bright, dark = levels.max(axis=1), levels.min(axis=1)
    chroma = bright - dark
    saturation = chroma / np.maximum(bright, 1e-9)
    hue = _hue(levels, bright, chroma)
    reddish = (hue < 15) | (hue >= 330)
    warm = (hue >= 15) & (hue < 45)
    conditions = {  # the first that is true gives the name
        "black": bright < 0.2,
        "white": (chroma < 0.12) & (bright > 0.8),
        "grey": chroma < 0.12,
        "pink": ((reddish & (saturation < 0.6)) | ((hue >= 310) & (hue < 345))) & (bright > 0.7),
        "brown": (reddish & (saturation < 0.65) & (bright <= 0.7)) | (warm & ((bright < 0.7) | (saturation < 0.45))),
        "red": reddish,
        "orange": warm,
        "yellow": hue < 70,
        "green": hue < 170,
        "blue": hue < 255,
        "purple": hue < 330,
    }
    return np.select(list(conditions.values()), list(conditions), default="red")


def _hue(levels: np.ndarray, bright: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Hue [N] in [0, 360) degrees, red at 0 and green at 120; 0 for greys."""
    red, green, blue = levels.T
    safe = np.maximum(chroma, 1e-9)
    sextant = np.where(
        bright == red,
        (green - blue) / safe % 6,
        np.where(bright == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return 60 * sextant


def _middle(start: float, end: float, size: int) -> slice:
    """The middle half of an interval, at least one pixel of the image."""
    quarter = (end - start) / 4
    first = min(max(round(start + quarter), 0), size - 1)
    return slice(first, max(min(round(end - quarter), size), first + 1))


def _near(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    near: np.ndarray = ((pixels - colour) ** 2).sum(axis=1) <= RADIUS**2
    return near


def _as_rgb(colour: np.ndarray) -> tuple[float, float, float]:
    return float(colour[0]), float(colour[1]), float(colour[2])
