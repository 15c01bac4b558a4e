"""contrast against hand-derived deviations of luma."""

import numpy as np
import pytest

from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardResult, build_reward


def score(*images: np.ndarray) -> RewardResult:
    return build_reward("contrast")(list(images), [Prompt("p", "anything")] * len(images))


def row(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array([colours], np.uint8)


@pytest.mark.parametrize("colour", [(0, 0, 0), (90, 90, 90), (255, 255, 255), (200, 10, 60)])
def test_flat_image_scores_the_floor(colour: tuple[int, int, int]) -> None:
    assert score(row(colour, colour, colour)).scores[0] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ([(0, 0, 0), (255, 255, 255)], 0.5),
        # luma 0, 0, 0, 1: mean 1/4, mean square 1/4, variance 3/16
        ([(0, 0, 0)] * 3 + [(255, 255, 255)], (3 / 16) ** 0.5),
        # luma of pure red 0.299 and of pure green 0.587: half their difference
        ([(255, 0, 0), (0, 255, 0)], (0.587 - 0.299) / 2),
        # luma of pure blue 0.114 beside black
        ([(0, 0, 255), (0, 0, 0)], 0.057),
    ],
)
def test_pictures_of_flat_colours_have_the_hand_derived_value(colours: list[tuple[int, int, int]], expected: float) -> None:
    assert score(row(*colours)).scores[0] == pytest.approx(expected, abs=1e-6)


def test_detail_gives_the_mean() -> None:
    assert score(row((0, 0, 0), (255, 255, 255))).details == [{"mean_luma": 0.5}]


def test_halving_the_tones_halves_the_score() -> None:
    image = np.random.default_rng(0).integers(0, 128, (30, 30, 3)).astype(np.uint8) * 2
    full, half = score(image, image // 2).scores
    assert half == pytest.approx(full / 2, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1)])
def test_freak_sizes_are_scored(shape: tuple[int, int]) -> None:
    result = score(np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8))
    assert 0 <= result.scores[0] <= 0.5


def test_mixed_sizes_score_as_alone() -> None:
    images = [render_sign("AB", "red"), row((1, 2, 3)), np.full((40, 8, 3), (9, 200, 7), np.uint8)]
    np.testing.assert_array_equal(score(*images).scores, [score(image).scores[0] for image in images])
