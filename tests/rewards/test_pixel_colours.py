"""Names of colours: against CSS's names, on rendered objects, and under changes that must not matter."""

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageDraw

from xomni_rl.prompt_sets.signs import COLOURS, render_sign
from xomni_rl.rewards.pixel_colours import OBJECT_COLOURS, colour_names, dominant_colour, nearest_colour, object_colour

CSS = {
    "red": ("red", "darkred", "crimson", "firebrick"),
    "orange": ("orange", "darkorange", "coral"),
    "yellow": ("yellow", "gold", "khaki"),
    "green": ("green", "darkgreen", "lime", "forestgreen", "seagreen"),
    "blue": ("blue", "navy", "royalblue", "skyblue", "steelblue"),
    "purple": ("purple", "indigo", "darkviolet", "rebeccapurple"),
    "pink": ("pink", "hotpink", "lightpink", "deeppink"),
    "brown": ("saddlebrown", "sienna", "tan"),
    "black": ("black",),
    "white": ("white", "snow", "ivory"),
    "grey": ("grey", "dimgrey", "darkgrey"),
}


@pytest.mark.parametrize(("name", "css"), [(name, css) for name, many in CSS.items() for css in many])
def test_css_colour_has_its_everyday_name(name: str, css: str) -> None:
    rgb = np.array([ImageColor.getrgb(css)], np.uint8)
    assert colour_names(rgb).tolist() == [name]


def test_every_colour_that_can_be_asked_for_can_be_found() -> None:
    assert set(OBJECT_COLOURS) == set(CSS) - {"grey"}


@pytest.mark.parametrize(
    ("hue", "name"), [(0, "red"), (30, "orange"), (57, "yellow"), (120, "green"), (220, "blue"), (280, "purple")]
)
def test_vivid_hue_has_its_name(hue: int, name: str) -> None:
    rgb = np.array([colorsys.hsv_to_rgb(hue / 360, 0.9, 0.9)]) * 255
    assert colour_names(rgb.astype(np.uint8)).tolist() == [name]


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=20))
def test_every_pixel_has_a_name_of_its_own_colour_alone(pixels: list[tuple[int, int, int]]) -> None:
    together = colour_names(np.array(pixels, np.uint8)).tolist()
    assert set(together) <= {*OBJECT_COLOURS, "grey"}
    assert together == [colour_names(np.array([pixel], np.uint8))[0] for pixel in pixels]


def disc(colour: str, ground: str) -> np.ndarray:
    image = Image.new("RGB", (80, 60), ground)
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill=colour)
    return np.asarray(image)


@pytest.mark.parametrize("colour", ["red", "yellow", "green", "blue", "black", "white"])
def test_colour_of_a_disc_is_not_that_of_its_ground(colour: str) -> None:
    assert object_colour(disc(colour, "purple"), 20, 10, 60, 50) == colour


@pytest.mark.parametrize(
    "corners", [(-30, -30, 900, 900), (500, 500, 600, 600), (-9, -9, -5, -5), (3, 3, 3, 3), (79.6, 59.6, 80, 60)]
)
def test_box_outside_or_without_area_still_has_a_colour(corners: tuple[float, float, float, float]) -> None:
    assert object_colour(disc("red", "red"), *corners) == "red"


def test_one_pixel_has_a_colour() -> None:
    assert object_colour(np.array([[[0, 0, 255]]], np.uint8), 0, 0, 1, 1) == "blue"


def test_ground_is_found_under_letters_and_noise() -> None:
    rng = np.random.default_rng(0)
    image = np.clip(render_sign("MW8B", "teal") + rng.normal(0, 20, (32, 96, 3)), 0, 255).astype(np.uint8)
    rgb, share = dominant_colour(image)
    np.testing.assert_allclose(rgb, COLOURS["teal"], atol=4)
    assert 0.5 < share < 0.9


def test_flat_image_is_all_of_one_colour() -> None:
    assert dominant_colour(np.full((5, 7, 3), (9, 80, 200), np.uint8)) == ((9.0, 80.0, 200.0), 1.0)


def test_two_halves_have_no_common_colour() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = 255
    rgb, share = dominant_colour(image)
    assert rgb == (127.5, 127.5, 127.5)  # the median lies between them
    assert share == 0


def test_large_image_is_sampled_and_gives_the_same_colour() -> None:
    image = np.kron(render_sign("K7AX", "orange"), np.ones((20, 20, 1), np.uint8))  # 640 × 1920
    small, large = dominant_colour(render_sign("K7AX", "orange")), dominant_colour(image)
    np.testing.assert_allclose(large[0], small[0], atol=1)
    assert large[1] == pytest.approx(small[1], abs=0.02)


def test_nearest_colour_and_its_distance() -> None:
    palette = {"a": (0, 0, 0), "b": (10, 10, 10)}
    assert nearest_colour((3, 4, 0), palette) == ("a", 5.0)  # 3² + 4² = 5²
    assert nearest_colour((5, 5, 5), palette)[0] == "a"  # equally near: the first
