"""sharpness against hand-derived variances and a Laplacian written here."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardResult, build_reward


def score(*images: np.ndarray) -> RewardResult:
    return build_reward("sharpness")(list(images), [Prompt("p", "anything")] * len(images))


def grey(values: list[list[int]] | np.ndarray) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[..., None], 3, -1)


def test_flat_image_scores_the_floor() -> None:
    assert score(grey([[77] * 9] * 5)).scores.tolist() == [0.0]


def test_step_has_the_hand_derived_variance() -> None:
    # Rows 0 0 100 100, borders mirrored about the outermost pixel: Laplacian 0, 100, -100, 0; mean 0, mean square 20000 / 4.
    assert score(grey([[0, 0, 100, 100]] * 4)).scores[0] == pytest.approx(5000)


def test_checkerboard_of_single_pixels_attains_the_top_of_the_range() -> None:
    # Every neighbour of a black pixel is white, mirrored ones too: Laplacian ±4 * 255, mean 0.
    rows, columns = np.indices((6, 6))
    reward = build_reward("sharpness")
    result = score(grey(np.where((rows + columns) % 2, 255, 0)))
    assert result.scores[0] == pytest.approx(1020**2)
    assert result.scores[0] == pytest.approx(reward.range[1])


def test_colour_image_equals_laplacian_of_its_grey_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (19, 23, 3)).astype(np.uint8)
    # OpenCV's weights 0.299, 0.587, 0.114 in 15-bit fixed point, rounded to whole levels.
    grey_levels = (image.astype(np.int64) @ np.array([9798, 19235, 3735]) + (1 << 14)) >> 15
    padded = np.pad(grey_levels, 1, mode="reflect")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    assert score(image).scores[0] == pytest.approx((around - 4 * grey_levels).var(), rel=1e-5)


def test_blur_lowers_the_score_step_by_step() -> None:
    sign = Image.fromarray(render_sign("K7AX", "blue"))
    scores = score(*(np.asarray(sign.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 0.5, 1, 2, 4))).scores
    assert (np.diff(scores) < 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (2, 2)])
def test_freak_sizes_are_scored(shape: tuple[int, int]) -> None:
    result = score(np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8))
    assert np.isfinite(result.scores[0])


def test_one_pixel_has_no_edges() -> None:
    assert score(grey([[255]])).scores.tolist() == [0.0]


def test_mixed_sizes_score_as_alone() -> None:
    images = [render_sign("AB", "red"), grey([[0, 9, 200]]), np.zeros((40, 8, 3), np.uint8)]
    np.testing.assert_array_equal(score(*images).scores, [score(image).scores[0] for image in images])


def test_image_that_is_a_view_scores_as_its_copy() -> None:
    image = render_sign("K7AX", "blue")
    assert score(image[:, ::-1]).scores[0] == score(image[:, ::-1].copy()).scores[0]
