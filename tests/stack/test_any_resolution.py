import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from xomni_rl.stack.any_resolution import AnyResolution

BOUNDS = AnyResolution()


@pytest.mark.parametrize(
    ("given_size", "expected"),
    [
        ((384, 384), (384, 384)),
        ((200, 400), (384, 768)),  # short side to 384: factor 1.92
        ((1000, 2000), (576, 1152)),  # long side to 1152: factor 0.576
        ((500, 700), (496, 704)),  # only rounded: 31.25 → 31, 43.75 → 44 patches
        ((130, 390), (384, 1152)),  # 384 × 1152 after the first step
        ((1536, 1536), (1152, 1152)),
        ((392, 520), (384, 512)),  # 24.5 and 32.5 patches: halves go to the even number, as Python rounds
    ],
)
def test_size_follows_the_published_rule(given_size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert BOUNDS.size(*given_size) == expected


@given(st.integers(128, 4000), st.integers(128, 4000))
def test_every_accepted_size_is_within_bounds(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > 3:
        with pytest.raises(ValueError, match="too long"):
            BOUNDS.size(height, width)
        return
    rows, columns = BOUNDS.size(height, width)
    assert rows % 16 == columns % 16 == 0
    assert max(rows, columns) <= 1152
    assert min(rows, columns) >= 384  # 3:1 at most, and 1152 / 3 = 384


def test_small_picture_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"100x300 px is too small.*128 px"):
        BOUNDS.size(100, 300)


def test_picture_is_resized_bicubically_as_rgb() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (130, 200, 4), dtype=np.uint8), "RGBA")
    resized = AnyResolution(short_size=32, long_size=64, patch_size=8, min_short_size=16).resize(image)
    expected = np.asarray(image.convert("RGB").resize((64, 40), resample=Image.Resampling.BICUBIC))
    assert np.array_equal(resized, expected)  # 200 → 64 is a factor of 0.32: 130 → 41.6, 5.2 patches, 40
