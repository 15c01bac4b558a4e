"""Pixels of CLIP and BLIP against transformers' and torchvision's own preprocessing."""

import numpy as np
import pytest
from PIL import Image

import xomni_rl  # noqa: F401 - before torchvision, whose operators it declares
from xomni_rl.rewards.pixels import clip_pixels, disc_and_noise, resized_square, round_down, round_half_even

# Aspect ratios whose margins are odd, halves, nothing; enlarged and reduced.
SHAPES = [(224, 224), (32, 96), (96, 32), (301, 300), (300, 307), (225, 231), (17, 23), (1, 1), (320, 500), (5, 70)]


def picture(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_down_equals_transformers_clip_processor(shape: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    expected = CLIPImageProcessorPil()(images=[Image.fromarray(picture(shape))], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(clip_pixels([picture(shape)], 224, round_down), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_half_even_equals_torchvision(shape: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = [Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(mean, std)]
    expected = Compose(steps)(Image.fromarray(picture(shape)))[None]
    np.testing.assert_allclose(clip_pixels([picture(shape)], 224, round_half_even), expected, rtol=0, atol=1e-6)


def test_the_two_roundings_differ_at_margin_one_and_a_half() -> None:
    # 227 - 224 = 3 columns too many: margin 1.5, cut at column 1 or 2.
    image = picture((224, 227))
    np.testing.assert_array_equal(resized_square(image, 224, round_down), image[:, 1:225])
    np.testing.assert_array_equal(resized_square(image, 224, round_half_even), image[:, 2:226])


@pytest.mark.parametrize("shape", [(8, 200), (200, 8), (3, 100), (90, 2000), (2000, 90)])
def test_freak_aspect_ratio_equals_resizing_all_of_it(shape: tuple[int, int]) -> None:
    # Middle greys: Pillow chooses the order of its two passes by the sizes, which shows where the first one clips.
    image = picture(shape) // 8 + 112
    height, width = shape
    wide, high = (side * 64 // min(shape) for side in (width, height))
    left, top = (wide - 64) // 2, (high - 64) // 2
    whole = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((left, top, left + 64, top + 64))).astype(int)
    assert np.abs(resized_square(image, 64, round_down) - expected).max() <= 1  # 8-bit level
    assert np.ptp(expected) > 16  # so that a square from the wrong place would be seen


def test_longest_image_takes_little_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    assert resized_square(np.zeros((1, 60000, 3), np.uint8), 224, round_down).shape == (224, 224, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # of NumPy's; all of it, resized, would be 224 × 13 million px


def test_disc_is_red_on_white() -> None:
    disc, noise = disc_and_noise()
    assert disc.shape == noise.shape == (224, 224, 3)
    assert disc[112, 112].tolist() == [200, 30, 40]
    assert disc[0, 0].tolist() == [255, 255, 255]
