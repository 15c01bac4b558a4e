"""Lines of text found by their rows."""

import numpy as np
import pytest

from xomni_rl.prompt_sets.long_signs import SIZES, TEMPLATES, LongSign, draw_sign, render_long_sign
from xomni_rl.rewards.pixel_lines import line_spans


def test_blank_image_has_no_line() -> None:
    assert line_spans(np.full((32, 96, 3), 80, np.uint8)) == []


def test_spans_are_the_rows_with_ink() -> None:
    image = np.full((40, 50, 3), 20, np.uint8)
    image[4:14, 5:40] = 255
    image[20:30, 5:12] = 255
    assert line_spans(image) == [(4, 14), (20, 30)]


def test_speck_and_faint_mark_are_no_lines() -> None:
    image = np.full((40, 50, 3), 20, np.uint8)
    image[4:14, 5:40] = 255
    image[20:23, 5:40] = 255  # 3 rows, less than half of 10
    image[27:37, 5:40] = 100  # 80 levels from the ground per channel, white is 235 away: less than half
    assert line_spans(image) == [(4, 14)]


@pytest.mark.parametrize("colour", ["black", "orange"])
def test_lines_of_a_large_sign_are_counted(colour: str) -> None:
    for count in (1, 2, 3):
        image = render_long_sign(LongSign(("I5 QJ",) * count, colour, "large", TEMPLATES[0]))
        assert len(line_spans(image)) == count


def test_drawn_signs_have_as_many_lines_as_their_prompts_ask_for() -> None:
    rng = np.random.default_rng(1)
    for size in SIZES:
        for _ in range(20):
            sign = draw_sign(rng, size, heldout=False)
            assert len(line_spans(render_long_sign(sign))) == len(sign.lines)
