"""Perturbed pictures are what their grades say, and nothing else changes."""

import numpy as np
import pytest

from xomni_rl.prompt_sets.signs import COLOURS, render_sign
from xomni_rl.rewards.perturbations import KINDS, Perturbation, Subject, perturbations, write_line

ALL = {each.name: each for each in perturbations(renderer=True)}
GRADED = ["blur", "jpeg", "noise", "crop", "rescale", "brightness"]
SIGN = Subject(render_sign("K7AX", "blue"), render_sign("MQ2F", "red"), ("K7AX", "blue"), ("9DK7", "Y4FX"))


def made(name: str, grade: int = 1, subject: Subject = SIGN) -> np.ndarray:
    picture = ALL[name](subject, grade, np.random.default_rng(0))
    assert picture is not None
    return picture


def letters_changed(one: np.ndarray, other: np.ndarray) -> int:
    """In how many of the four 20 px cells of a sign the pictures differ."""
    cells = [np.s_[:, left : left + 20] for left in (8, 28, 48, 68)]
    return sum(not np.array_equal(one[cell], other[cell]) for cell in cells)


@pytest.mark.parametrize("each", ALL.values(), ids=lambda each: each.name)
def test_every_grade_gives_a_picture_of_the_same_form_and_leaves_the_subject_alone(each: Perturbation) -> None:
    before = SIGN.image.copy()
    for grade in range(1, len(each.strengths) + 1):
        picture = each(SIGN, grade, np.random.default_rng(0))
        assert picture is not None
        assert (picture.dtype, picture.shape) == (np.uint8, (32, 96, 3))
        assert not np.array_equal(picture, before)
        again = each(SIGN, grade, np.random.default_rng(0))
        np.testing.assert_array_equal(picture, again)
    np.testing.assert_array_equal(SIGN.image, before)
    assert each.kind in KINDS


@pytest.mark.parametrize("name", [name for name in GRADED if name != "crop"])
def test_higher_grade_is_farther_from_the_picture(name: str) -> None:
    photo = np.random.default_rng(1).normal(128, 20, (60, 80, 3)).cumsum(axis=1) / 8 % 256
    for image in (SIGN.image, photo.astype(np.uint8)):
        distances = [np.abs(made(name, grade, Subject(image)).astype(int) - image).mean() for grade in range(1, 5)]
        assert all(np.diff(distances) > 0), distances


@pytest.mark.parametrize(("grade", "kept"), [(1, 180), (2, 160), (3, 130), (4, 100)])
def test_crop_shows_the_middle(grade: int, kept: int) -> None:
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)
    shown = made("crop", grade, Subject(ramp))
    # The levels of a ramp are places: the middle `kept` of 200 columns, whose ends bicubic resampling moves by under 1.
    first = (200 - kept) // 2
    assert abs(int(shown[0, 0, 0]) - first) <= 1
    assert abs(int(shown[0, -1, 0]) - (first + kept - 1)) <= 1


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 50, 3), (17, 5, 3)])
def test_odd_sizes_keep_their_size(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for each in perturbations(renderer=False):
        for grade in range(1, len(each.strengths) + 1):
            picture = each(Subject(image, other=image), grade, np.random.default_rng(0))
            assert picture is not None
            assert picture.shape == shape, each.name


def test_levels_follow_their_definitions() -> None:
    image = np.array([[[200, 100, 50]], [[0, 10, 255]]], dtype=np.uint8)
    # brightness grade 2: halves; 25 stays whole, 127.5 rounds to even 128.
    np.testing.assert_array_equal(made("brightness", 2, Subject(image)), [[[100, 50, 25]], [[0, 5, 128]]])
    # contrast: mean level 615/6 = 102.5; 102.5 + 2·(200 − 102.5) = 297.5 → 255; 2·100 − 102.5 = 97.5 → 98; 2·50 − 102.5 < 0.
    np.testing.assert_array_equal(made("contrast", 1, Subject(image)), [[[255, 98, 0]], [[0, 0, 255]]])
    # saturation: luma of the first pixel 0.299·200 + 0.587·100 + 0.114·50 = 124.2; 124.2 + 2.5·(100 − 124.2) = 63.7.
    np.testing.assert_array_equal(made("saturation", 1, Subject(image))[0, 0], [255, 64, 0])


def test_saturation_of_grey_changes_nothing() -> None:
    grey = np.full((4, 4, 3), 90, np.uint8)
    np.testing.assert_array_equal(made("saturation", 1, Subject(grey)), grey)


def test_border_is_white_at_the_edge_only() -> None:
    framed = made("border")
    width = 3  # round(0.08 · 32)
    assert (framed[:width] == 255).all()
    assert (framed[:, -width:] == 255).all()
    np.testing.assert_array_equal(framed[width:-width, width:-width], SIGN.image[width:-width, width:-width])


def test_noise_has_its_deviation() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    change = made("noise", 2, Subject(grey)).astype(float) - 128
    # Standard error of a deviation of 20 over 40,000 pixels: 20 / √80,000 = 0.07; four of them.
    assert change[..., 0].std() == pytest.approx(20, abs=0.3)
    np.testing.assert_array_equal(change[..., 0], change[..., 2])


@pytest.mark.parametrize("grade", [1, 2, 3, 4])
def test_wrong_text_changes_as_many_letters_as_its_grade_and_grades_nest(grade: int) -> None:
    assert letters_changed(made("wrong_text", grade), SIGN.image) == grade
    if grade > 1:
        assert letters_changed(made("wrong_text", grade), made("wrong_text", grade - 1)) == 1


def test_missing_letters_end_in_a_sign_without_text() -> None:
    np.testing.assert_array_equal(made("missing_letters", 4), render_sign("", "blue"))
    white = [(made("missing_letters", grade) > 250).all(axis=2).sum() for grade in range(1, 5)]
    assert all(np.diff(white) < 0)


def test_swapped_letters_swap_disjoint_pairs() -> None:
    np.testing.assert_array_equal(made("swapped_letters", 1), render_sign("7KAX", "blue"))
    np.testing.assert_array_equal(made("swapped_letters", 2), render_sign("7KXA", "blue"))


def test_letters_that_are_all_the_same_cannot_be_swapped() -> None:
    same = Subject(render_sign("AAAA", "red"), None, ("AAAA", "red"))
    assert ALL["swapped_letters"](same, 1, np.random.default_rng(0)) is None


def test_wrong_colour_keeps_the_letters() -> None:
    changed = made("wrong_colour")
    assert tuple(changed[0, 0]) in set(COLOURS.values()) - {COLOURS["blue"]}
    np.testing.assert_array_equal((changed == 255).all(axis=2), (SIGN.image == 255).all(axis=2))


def test_what_cannot_be_made_is_none() -> None:
    alone = Subject(SIGN.image, None, ("K7AX", "blue"), ("9DK7",))
    rng = np.random.default_rng(0)
    assert ALL["other_prompt"](alone, 1, rng) is None
    assert ALL["text_spam"](alone, 1, rng) is not None
    assert ALL["text_spam"](alone, 2, rng) is None
    assert ALL["wrong_text"](Subject(SIGN.image), 1, rng) is None


def test_grade_that_is_not_there_raises() -> None:
    with pytest.raises(ValueError, match="blur has grades 1 to 4, not 5"):
        made("blur", 5)


def test_without_a_renderer_only_what_any_picture_can_undergo_is_left() -> None:
    names = {each.name for each in perturbations(renderer=False)}
    assert names == {*GRADED, "blank", "other_prompt", "contrast", "saturation", "sharpness", "texture", "border"}


def test_line_too_long_for_a_sign_is_set_smaller() -> None:
    long = write_line("WWWW MMMM WWWW MMMM", "black", 15)
    np.testing.assert_array_equal(long[:, 0], np.full((32, 3), COLOURS["black"]))
    assert (long > 200).any()
