"""Weights that come with the package; each folder's README is its card: what it is, how it was made, figures, licence."""

from pathlib import Path

SIGNS_CLIP = Path(__file__).parent / "signs_clip"
"""The embedded open_clip model, which rewards look at signs with; open_clip loads it as `local-dir:`."""
PPOCRV4 = Path(__file__).parent / "ppocrv4"
"""The second reader: PP-OCRv4's recognition model."""
EMBEDDED = {"embedded": "signs", "embedded_long": "signs_long"}
"""Stacks that come with the package, and their folders here."""
