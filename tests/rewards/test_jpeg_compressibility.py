"""jpeg_compressibility: its units, its floor, and the published figure beside it."""

import io

import numpy as np
import pytest
from PIL import Image

from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardResult, build_reward


def score(*images: np.ndarray) -> RewardResult:
    return build_reward("jpeg_compressibility")(list(images), [Prompt("p", "anything")] * len(images))


def scan_bytes(file: bytes) -> int:
    """Bytes from the start-of-scan segment to the end, found by walking over the segments before it."""
    position = 2
    while file[position + 1] != 0xDA:
        position += 2 + int.from_bytes(file[position + 2 : position + 4], "big")
    return len(file) - position


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("image", [render_sign("K7AX", "blue"), noise(20, 90)[:, :, [0, 0, 0]] // 8, noise(64, 64) // 16])
def test_score_is_one_minus_bytes_per_pixel_of_the_scan(image: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    file = buffer.getvalue()
    result = score(image)
    assert result.scores[0] == pytest.approx(1 - scan_bytes(file) / (image.shape[0] * image.shape[1]), abs=1e-6)
    assert 0 < result.scores[0] < 1
    assert result.metrics["kilobytes"][0] == pytest.approx(len(file) / 1000)
    assert result.details[0]["bytes"] == len(file)


def test_flat_image_scores_near_one_and_noise_the_floor() -> None:
    assert score(np.full((64, 64, 3), 90, np.uint8)).scores[0] > 0.95
    assert score(noise(64, 64)).scores.tolist() == [0.0]


def test_at_one_size_the_score_is_linear_in_published_kilobytes() -> None:
    # Headers are the same for every file, so score = 1 - (kB * 1000 - header) / pixels: slope -1000 / (32 * 96).
    texts = ("K7AX", "", "W", "MMMM")
    result = score(*(render_sign(text, "teal") for text in texts))
    slopes = np.diff(result.scores) / np.diff(result.metrics["kilobytes"])
    np.testing.assert_allclose(slopes, -1000 / (32 * 96), rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (7, 3)])
def test_freak_sizes_are_scored(shape: tuple[int, int]) -> None:
    result = score(np.zeros((*shape, 3), np.uint8))
    assert 0 <= result.scores[0] <= 1


def test_one_pixel_gets_the_floor_because_its_file_is_larger_than_it() -> None:
    assert score(np.zeros((1, 1, 3), np.uint8)).scores.tolist() == [0.0]


def test_image_too_long_for_a_jpeg_is_a_failure_that_keeps_the_others() -> None:
    with pytest.raises(RewardError, match="65501×1 px do not fit into a JPEG") as caught:
        score(np.zeros((1, 65501, 3), np.uint8), np.zeros((64, 64, 3), np.uint8))
    assert list(caught.value.failures) == [0]
    assert caught.value.partial is not None
    assert np.isnan(caught.value.partial.scores[0])
    assert caught.value.partial.scores[1] > 0.95


def test_grey_images_and_mixed_sizes_score_as_alone() -> None:
    images = [noise(40, 8), np.repeat(noise(16, 16)[..., :1], 3, -1), render_sign("A", "red")]
    np.testing.assert_array_equal(score(*images).scores, [score(image).scores[0] for image in images])
