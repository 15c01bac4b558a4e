"""Folders of images with their prompts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes a folder of `count` noise pictures of 8 × 8 px, named by the ids of the prompts beside them."""

    def make(name: str = "images", count: int = 10, seed: int = 0, contrast: float = 1.0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(seed)
        lines = []
        for index in range(count):
            pixels = 128 + contrast * (rng.integers(256, size=(8, 8, 3)) - 128)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"p{index}.png")
            lines.append(json.dumps({"id": f"p{index}", "text": f"noise number {index}"}))
        (folder / "prompts.jsonl").write_text("\n".join(lines))
        return folder

    return make
