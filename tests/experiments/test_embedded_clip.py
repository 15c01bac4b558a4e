"""The open_clip model that comes with the package tells signs apart as well as its card says."""

import re

import open_clip
import pytest

from xomni_rl.experiments.pretraining.clip_card import evaluate_clip
from xomni_rl.weights import SIGNS_CLIP


def card() -> dict[str, float]:
    rows = re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \|$", (SIGNS_CLIP / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: float(value) for name, value in rows}


def test_shipped_model_is_under_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in SIGNS_CLIP.iterdir()) < 10e6


def test_shipped_model_has_the_figures_of_its_card() -> None:
    folder = f"local-dir:{SIGNS_CLIP}"
    model, _, _ = open_clip.create_model_and_transforms(folder)
    found = evaluate_clip(model.eval(), open_clip.get_tokenizer(folder).tokenizer)  # the card's count and seed
    assert card()["near misses"] > 0.9
    for name, value in card().items():
        assert getattr(found, name.replace(" ", "_")) == pytest.approx(value, abs=0.004), name  # 2 of 512 signs
