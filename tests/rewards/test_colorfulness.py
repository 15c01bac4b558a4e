"""colorfulness against hand-derived values of Hasler and Süsstrunk's formula."""

import colorsys

import numpy as np
import pytest

from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardResult, build_reward


def score(*images: np.ndarray) -> RewardResult:
    return build_reward("colorfulness")(list(images), [Prompt("p", "anything")] * len(images))


def flat(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array([colours], np.uint8)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_grey_image_scores_the_floor(level: int) -> None:
    assert score(flat((level, level, level))).scores.tolist() == [0.0]


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        # rg 255, yb 127.5, no spread: 0.3 * 255 * sqrt(1.25)
        ([(255, 0, 0)], 0.3 * 255 * 1.25**0.5),
        # rg 0 and 0, yb -255 and 255: deviation 255, mean 0
        ([(0, 0, 255), (255, 255, 0)], 255.0),
        # rg 255 and -255, yb 127.5 both: deviation 255, mean 127.5
        ([(255, 0, 0), (0, 255, 0)], 255 + 0.3 * 127.5),
        # rg 100 and 0, yb 50 and 0: deviations 50 and 25, means 50 and 25, each of length sqrt(3125)
        ([(100, 0, 0), (0, 0, 0)], 1.3 * 3125**0.5),
    ],
)
def test_pictures_of_flat_colours_have_the_hand_derived_value(colours: list[tuple[int, int, int]], expected: float) -> None:
    assert score(flat(*colours)).scores[0] == pytest.approx(expected, rel=1e-6)


def test_details_name_the_two_parts() -> None:
    detail = score(flat((255, 0, 0), (0, 255, 0))).details[0]
    assert detail == {"spread": 255.0, "mean": 127.5}


def test_no_picture_of_extreme_colours_exceeds_the_range() -> None:
    corners = [(255 * (i & 1), 255 * (i >> 1 & 1), 255 * (i >> 2 & 1)) for i in range(8)]
    pictures = [flat(*([a] * n + [b] * (8 - n))) for a in corners for b in corners for n in range(1, 8)]
    reward = build_reward("colorfulness")
    scores = score(*pictures).scores  # `__call__` refuses a score out of range
    assert scores.max() <= reward.range[1]
    assert scores.max() > 0.9 * reward.range[1]  # the bound is not an idle one


def test_less_saturation_lowers_the_score_step_by_step() -> None:
    hues = [i / 12 for i in range(12)]
    pictures = [
        flat(*[tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, 0.9)) for hue in hues])  # type: ignore[misc]
        for saturation in (1.0, 0.7, 0.4, 0.1)
    ]
    assert (np.diff(score(*pictures).scores) < 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1)])
def test_freak_sizes_are_scored(shape: tuple[int, int]) -> None:
    assert np.isfinite(score(np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)).scores[0])


def test_mixed_sizes_score_as_alone() -> None:
    images = [render_sign("AB", "red"), flat((1, 2, 3)), np.full((40, 8, 3), (9, 200, 7), np.uint8)]
    np.testing.assert_array_equal(score(*images).scores, [score(image).scores[0] for image in images])
