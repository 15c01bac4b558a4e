"""The audit's figure where there is little to draw, or too much."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xomni_rl.experiments.audit_plots import draw
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.audit import score_variants, sign_samples
from xomni_rl.rewards.audit_findings import Findings, find
from xomni_rl.rewards.base import FunctionReward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward

HEAD_IN, SENTENCE_IN, DPI = 0.8, 0.6, 140


def roughness(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    """Mean squared difference of neighbours: noise buys many times what a sign has."""
    return [float((np.diff(image.astype(np.float64), axis=1) ** 2).mean()) for image in images]


def flatness(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    return [-value for value in roughness(images, prompts)]


def drawn(path: Path, **functions: Any) -> tuple[Findings, tuple[int, int]]:
    """What was found with those rewards, and (width, height) of the figure in px."""
    parts = [Component(name, FunctionReward(name, function, {})) for name, function in functions.items()]
    findings = find(score_variants(CompositeReward(parts), sign_samples(3)))
    draw(findings, path)
    with Image.open(path) as image:
        return findings, image.size


def test_reward_without_a_span_gets_a_sentence_instead_of_empty_panels(tmp_path: Path) -> None:
    findings, (_, height) = drawn(tmp_path / "figure.png", flatness=flatness)
    assert not findings.spans["flatness"].low > 0
    assert height == pytest.approx(DPI * (HEAD_IN + SENTENCE_IN), abs=1)


def test_correlations_are_drawn_though_no_reward_has_a_span(tmp_path: Path) -> None:
    _, (_, height) = drawn(tmp_path / "figure.png", flatness=flatness, again=flatness)
    assert height > DPI * (HEAD_IN + SENTENCE_IN + 2)


def test_shares_beyond_the_axis_are_drawn_with_their_number(tmp_path: Path) -> None:
    findings, (width, height) = drawn(tmp_path / "figure.png", rough=roughness, flat=flatness)
    shares: Mapping[str, float] = {e.variant.name: e.share.value for e in findings.effects if e.reward == "rough"}
    assert shares["noise"] > 2.2  # the axis ends there
    assert min(width, height) > 1000
    with Image.open(tmp_path / "figure.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
