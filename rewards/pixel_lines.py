"""Lines of text on a plain ground, by plain image analysis: rows of pixels that differ from the ground."""

from __future__ import annotations

import numpy as np

from xomni_rl.rewards.pixel_colours import RADIUS, dominant_colour

LEAST_INK = 2
"""Pixels of a row that must differ from the ground."""
LEAST_CONTRAST = 0.5
"""Ink is at least this much as far from the ground as the pixels furthest from it, so that stray marks join no lines."""
FURTHEST = 0.99
"""Quantile that says how far that is."""
LEAST_HEIGHT = 0.5
"""Share of the highest line's height that a line has at least; lower ones are specks."""


def line_spans(image: np.ndarray) -> list[tuple[int, int]]:
    """(first row, one after the last row) of each line, from the top.

    Args:
        image: uint8 [H, W, 3]; letters of any colour on a ground that most pixels share.
    Returns: the runs of rows with ink, without specks; empty for a blank image.
    """
    ground, _ = dominant_colour(image)
    distance = np.sqrt(((image.astype(np.float64) - ground) ** 2).sum(axis=2))
    ink = distance > max(RADIUS, LEAST_CONTRAST * float(np.quantile(distance, FURTHEST)))
    edges = np.flatnonzero(np.diff(ink.sum(axis=1) >= LEAST_INK, prepend=False, append=False))
    spans = [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
    highest = max((end - first for first, end in spans), default=0)
    return [(first, end) for first, end in spans if end - first >= LEAST_HEIGHT * highest]
