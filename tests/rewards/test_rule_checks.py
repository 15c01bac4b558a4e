"""Forms of checks, geometry of boxes and GenEval's decision, on boxes made by hand and by Hypothesis."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.prompt_sets.long_signs import TEMPLATES, LongSign, render_long_sign
from xomni_rl.prompt_sets.signs import COLOURS, render_sign
from xomni_rl.rewards.rule_checks import (
    BackgroundCheck,
    Box,
    CheckError,
    LinesCheck,
    ObjectCheck,
    background_outcome,
    intersection_over_union,
    kept_boxes,
    kind_of,
    lines_outcome,
    object_outcomes,
    parse_checks,
    relations,
)

MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def box(x: float, y: float, width: float = 10, height: float = 10, score: float = 0.9) -> Box:
    """By its centre."""
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2, score)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    sides = st.integers(1, 200)
    places = st.integers(-500, 500)
    return box(draw(places), draw(places), draw(sides), draw(sides), draw(st.floats(0, 1)))


# Forms


def test_published_rows_are_parsed() -> None:
    # Rows of the forms that GenEval's 553 prompts have: counts, colours, positions, exclusions.
    rows = [
        {"class": "dog", "count": 2},
        {"class": "fork", "count": 1, "position": ["above", 0]},
        {"class": "bear", "count": 1, "color": "brown"},
        {"class": "dog", "count": 3, "exclude": True},
    ]
    assert parse_checks(json.loads(json.dumps(rows))) == [
        ObjectCheck("dog", 2),
        ObjectCheck("fork", 1, None, "above", 0),
        ObjectCheck("bear", 1, "brown"),
        ObjectCheck("dog", 3, exclude=True),
    ]


def test_row_without_count_asks_for_one() -> None:
    assert parse_checks([{"class": "dog"}]) == [ObjectCheck("dog", 1)]


def test_background_is_parsed_from_tuples_and_from_json() -> None:
    for rgb in ((190, 30, 40), [190, 30, 40]):
        assert parse_checks([{"kind": "background", "colour": "red", "rgb": rgb}]) == [BackgroundCheck("red", (190, 30, 40))]


def test_background_without_rgb_takes_the_palettes() -> None:
    assert parse_checks([{"kind": "background", "colour": "teal"}]) == [BackgroundCheck("teal", COLOURS["teal"])]


def test_lines_are_parsed_beside_other_kinds() -> None:
    checks = parse_checks([{"kind": "lines", "count": 2}, {"kind": "background", "colour": "teal"}, {"class": "dog"}])
    assert checks[0] == LinesCheck(2)
    assert [kind_of(check) for check in checks] == ["lines", "background", "object"]


def test_position_may_name_only_including_checks_before_it() -> None:
    # The exclusion does not count: the cat is including check 1, the bird may name 0 and 1.
    rows = [{"class": "dog"}, {"class": "fish", "exclude": True}, {"class": "cat", "position": ["above", 0]}]
    assert parse_checks([*rows, {"class": "bird", "position": ["below", 1]}])[-1] == ObjectCheck("bird", 1, None, "below", 1)
    with pytest.raises(CheckError, match=r'checks\[3\] must name in "position" one of the 2 including checks before it, got 2'):
        parse_checks([*rows, {"class": "bird", "position": ["below", 2]}])


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({}, r'checks\[0\] has no key, but neither "kind" nor "class"'),
        ({"text": "hi"}, r'has "text", but neither "kind" nor "class"'),
        ({"class": "dog", "colour": "red"}, 'has an unknown key "colour"; nearest: color'),
        ({"class": "dog", "color": "teal"}, 'has as "color" an unknown colour "teal"'),
        ({"class": "dog", "color": 3}, 'has as "color" an unknown colour "3"'),
        ({"class": "dog", "count": 0}, 'needs a whole number from 1 as "count", got 0'),
        ({"class": "dog", "count": "two"}, "as \"count\", got 'two'"),
        ({"class": "dog", "count": True}, 'as "count", got True'),
        ({"class": " "}, 'needs a name as "class"'),
        ({"class": None}, 'needs a name as "class", got None'),
        ({"class": "dog", "exclude": 1}, 'needs true or false as "exclude", got 1'),
        ({"class": "dog", "exclude": True, "color": "red"}, 'excludes objects by .* got "color" too'),
        ({"class": "dog", "exclude": True, "position": ["above", 0]}, 'excludes objects by .* got "position" too'),
        ({"class": "dog", "position": ["near", 0]}, 'has in "position" an unknown relation "near"'),
        ({"class": "dog", "position": ["above", 0]}, "one of the 0 including checks before it, got 0"),
        ({"class": "dog", "position": "above"}, "needs .relation, index. as \"position\", got 'above'"),
        ({"kind": "foreground"}, 'unknown kind "foreground"; nearest: background'),
        ({"kind": "background", "color": "red"}, 'has an unknown key "color"; nearest: colour'),
        ({"kind": "lines"}, 'needs a whole number from 0 as "count", got None'),
        ({"kind": "lines", "count": True}, 'as "count", got True'),
        ({"kind": "lines", "number": 2}, 'has an unknown key "number"'),
        ({"kind": "background"}, 'needs a string as "colour", got None'),
        ({"kind": "background", "colour": "mauve"}, 'has no "rgb", and as "colour" an unknown colour "mauve"'),
        ({"kind": "background", "colour": "red", "rgb": [1, 2]}, 'three whole numbers from 0 to 255 as "rgb"'),
        ({"kind": "background", "colour": "red", "rgb": [1, 2, 256]}, 'three whole numbers from 0 to 255 as "rgb"'),
        ({"kind": "background", "colour": "red", "rgb": "red"}, "got 'red'"),
    ],
)
def test_check_of_another_form_is_refused_with_its_key(check: Mapping[str, Any], message: str) -> None:
    with pytest.raises(CheckError, match=message):
        parse_checks([check])


keys = st.sampled_from(["class", "count", "color", "position", "exclude", "kind", "colour", "rgb", "x"])
scraps = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda s: st.lists(s, max_size=3))


@settings(max_examples=50)
@given(st.lists(st.dictionaries(keys, scraps | st.sampled_from(["dog", "red", "background"])), max_size=3))
def test_no_check_does_anything_but_parse_or_raise_a_check_error(checks: list[dict[str, Any]]) -> None:
    with suppress(CheckError):
        assert len(parse_checks(checks)) == len(checks)


# Backgrounds


@pytest.mark.parametrize("colour", COLOURS)
def test_signs_ground_has_its_colour_and_no_other(colour: str) -> None:
    rng = np.random.default_rng(0)
    for text in ("MW8B", "K7AX", ""):
        image = render_sign(text, colour, rng, proportional=True)
        holding = [name for name in COLOURS if background_outcome(BackgroundCheck(name, COLOURS[name]), image).holds]
        assert holding == [colour]


def test_lines_hold_for_as_many_as_are_there() -> None:
    image = render_long_sign(LongSign(("K7 AX", "Q3"), "red", "wide", TEMPLATES[0]))
    assert [lines_outcome(LinesCheck(count), image).holds for count in range(4)] == [False, False, True, False]
    assert lines_outcome(LinesCheck(3), image).found == "2"


@pytest.mark.parametrize("grey", [100, 127, 200, 255])
def test_grey_ground_is_near_to_some_colour_but_holds_for_none(grey: int) -> None:
    image = np.full((32, 96, 3), grey, np.uint8)
    assert not any(background_outcome(BackgroundCheck(name, COLOURS[name]), image).holds for name in COLOURS)


def test_noise_has_no_ground() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    outcome = background_outcome(BackgroundCheck("brown", (127, 127, 127)), image)  # its mean is what is asked for
    assert not outcome.holds
    assert "no colour that many pixels share" in outcome.found


def test_noisy_sign_keeps_its_ground() -> None:
    rng = np.random.default_rng(0)
    noisy = np.clip(render_sign("MW8B", "purple") + rng.normal(0, 40, (32, 96, 3)), 0, 255).astype(np.uint8)
    assert background_outcome(BackgroundCheck("purple", COLOURS["purple"]), noisy).holds


def test_colour_of_the_users_own_is_compared_with_the_palette_too() -> None:
    yellow = np.full((8, 8, 3), (230, 220, 40), np.uint8)
    assert background_outcome(BackgroundCheck("yellow", (240, 220, 30)), yellow).holds
    assert not background_outcome(BackgroundCheck("yellow", (240, 220, 30)), render_sign("A", "orange")).holds


def test_outcome_tells_measured_colour_share_and_distance() -> None:
    # 10 of 16 rows are (193, 34, 40), (3, 4, 0) from red: distance 5; the others are black.
    image = np.zeros((16, 16, 3), np.uint8)
    image[:10] = (193, 34, 40)
    outcome = background_outcome(BackgroundCheck("red", COLOURS["red"]), image)
    assert (outcome.asked, outcome.holds) == ("red background", True)
    assert outcome.found == "(193, 34, 40) on 62% of the pixels, 5 levels from red"


# Geometry


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # Side by side, 30 apart: 30 - 0.1 * 20 = 28 beyond, more than half of 30.
        (box(0, 0), box(30, 0), {"left of"}),
        (box(30, 0), box(0, 0), {"right of"}),
        (box(0, 0), box(0, 30), {"above"}),
        (box(0, 30), box(0, 0), {"below"}),
        # Diagonal: 28 of a distance of 42.4 along each axis, 0.66: both.
        (box(0, 0), box(30, 30), {"left of", "above"}),
        # Flat diagonal: 28 of 31.6 across; 10 - 2 = 8 of 31.6 down is less than half.
        (box(0, 0), box(30, 10), {"left of"}),
        # One centre; and within a tenth of the sizes: 2 - 0.1 * 20 = 0.
        (box(5, 5), box(5, 5, 50, 2), set()),
        (box(0, 0), box(2, 0), set()),
        # Just beyond: 3 - 2 = 1 is less than half of 3. And 5 - 2 = 3 is more than half of 5.
        (box(0, 0), box(3, 0), set()),
        (box(0, 0), box(5, 0), {"left of"}),
        # Sizes count along their own axis only: 30 - 0.1 * (200 + 10) = 9 < 15.
        (box(0, 0, 200, 10), box(30, 0), set()),
        (box(0, 0, 10, 200), box(30, 0), {"left of"}),
    ],
)
def test_relation_of_two_boxes(a: Box, b: Box, expected: set[str]) -> None:
    assert relations(a, b) == expected


@given(boxes(), boxes())
def test_relation_is_the_published_one(a: Box, b: Box) -> None:
    corners = np.array([[[a.left, a.top], [a.right, a.bottom]], [[b.left, b.top], [b.right, b.bottom]]])
    centres, sizes = corners.mean(axis=1), corners[:, 1] - corners[:, 0]
    offset = centres[0] - centres[1]
    shrunk = np.sign(offset) * np.clip(np.abs(offset) - 0.1 * sizes.sum(axis=0), 0, None)
    expected: set[str] = set()
    if np.abs(shrunk).max() >= 1e-3:
        x, y = shrunk / np.sqrt((offset**2).sum())
        names = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
        if min(abs(abs(x) - 0.5), abs(abs(y) - 0.5)) < 1e-9:
            return  # on the border between two answers, where rounding decides
        expected = {name for name, true in names.items() if true}
    assert relations(a, b) == expected


@given(boxes(), boxes())
def test_relation_seen_from_the_other_box_is_the_opposite(a: Box, b: Box) -> None:
    assert relations(b, a) == {MIRRORED[name] for name in relations(a, b)}


@given(boxes(), boxes(), st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_relation_does_not_depend_on_where_both_stand(a: Box, b: Box, dx: int, dy: int) -> None:
    def moved(box: Box) -> Box:
        return Box(box.left + dx, box.top + dy, box.right + dx, box.bottom + dy, box.score)

    assert relations(moved(a), moved(b)) == relations(a, b)


@given(boxes(), boxes())
def test_mirroring_the_image_swaps_left_and_right(a: Box, b: Box) -> None:
    def mirrored(box: Box) -> Box:
        return Box(-box.right, box.top, -box.left, box.bottom, box.score)

    swapped = {MIRRORED[name] if name in ("left of", "right of") else name for name in relations(a, b)}
    assert relations(mirrored(a), mirrored(b)) == swapped


def test_overlap_of_a_quarter() -> None:
    # Two 10 × 10 boxes shifted by (5, 5): 25 shared of 175.
    assert intersection_over_union(box(0, 0), box(5, 5)) == pytest.approx(25 / 175)


@pytest.mark.parametrize(("a", "b"), [(box(0, 0), box(10, 0)), (box(0, 0), box(30, 40)), (box(0, 0, 0, 0), box(0, 0, 0, 0))])
def test_boxes_that_share_no_area_do_not_overlap(a: Box, b: Box) -> None:
    assert intersection_over_union(a, b) == 0


@given(boxes(), boxes())
def test_overlap_is_symmetric_and_one_with_itself(a: Box, b: Box) -> None:
    assert intersection_over_union(a, b) == pytest.approx(intersection_over_union(b, a))
    assert 0 <= intersection_over_union(a, b) <= 1
    assert intersection_over_union(a, a) == pytest.approx(1)


def test_of_two_boxes_of_one_object_the_more_certain_is_kept() -> None:
    # (0, 0) and (1, 0) overlap by 90 of 110 = 0.82; (30, 0) stands alone.
    worse, better, other = box(0, 0, score=0.6), box(1, 0, score=0.8), box(30, 0, score=0.7)
    assert kept_boxes([worse, better, other], threshold=0.5, overlap=0.7, most=16) == [better, other]
    assert kept_boxes([worse, better, other], threshold=0.5, overlap=0.9, most=16) == [better, other, worse]


def test_box_at_the_threshold_is_dropped_and_overlap_one_keeps_copies() -> None:
    at, above = box(0, 0, score=0.5), box(0, 0, score=0.51)
    assert kept_boxes([at, above, above], threshold=0.5, overlap=1, most=16) == [above, above]


@given(st.lists(boxes(), max_size=12), st.floats(0, 1), st.floats(0.01, 0.99), st.integers(1, 5))
def test_kept_boxes_are_certain_few_sorted_and_apart(given: list[Box], threshold: float, overlap: float, most: int) -> None:
    kept = kept_boxes(given, threshold, overlap, most)
    scores = [box.score for box in kept]
    assert scores == sorted(scores, reverse=True)
    assert len(kept) <= most
    assert all(box in given and box.score > threshold for box in kept)
    assert all(intersection_over_union(a, b) < overlap for i, a in enumerate(kept) for b in kept[i + 1 :])
    if kept or any(box.score > threshold for box in given):
        assert kept[0].score == max(box.score for box in given)


# GenEval's decision


def holds(checks: Sequence[ObjectCheck], objects: Mapping[str, Sequence[Box]], colours: Sequence[str] = ()) -> list[bool]:
    """`colours`: of the boxes by their `score`, in tenths: a box of score 0.3 has colours[3]."""
    outcomes = object_outcomes(checks, objects, lambda boxes, name: [colours[round(10 * box.score)] for box in boxes])
    return [outcome.holds for outcome in outcomes]


DOGS = [box(0, 0, score=0.9), box(50, 0, score=0.8), box(100, 0, score=0.7)]


@pytest.mark.parametrize(("count", "expected"), [(1, True), (3, True), (4, False)])
def test_count_asks_for_at_least_that_many(count: int, expected: bool) -> None:
    assert holds([ObjectCheck("dog", count)], {"dog": DOGS}) == [expected]


@pytest.mark.parametrize(("count", "expected"), [(3, False), (4, True)])
def test_exclusion_asks_for_fewer(count: int, expected: bool) -> None:
    assert holds([ObjectCheck("dog", count, exclude=True)], {"dog": DOGS}) == [expected]


def test_exactly_three_is_an_inclusion_and_an_exclusion() -> None:
    three = [ObjectCheck("dog", 3), ObjectCheck("dog", 4, exclude=True)]
    assert holds(three, {"dog": DOGS}) == [True, True]
    assert holds(three, {"dog": [*DOGS, box(0, 50)]}) == [True, False]
    assert holds(three, {"dog": DOGS[:2]}) == [False, True]


def test_class_that_is_nowhere_counts_as_none() -> None:
    assert holds([ObjectCheck("cat"), ObjectCheck("cat", exclude=True)], {"dog": DOGS}) == [False, True]


def test_colour_is_asked_of_the_most_certain_only() -> None:
    colours = ["?"] * 7 + ["red", "brown", "brown"]  # 0.7 red, 0.8 and 0.9 brown
    assert holds([ObjectCheck("dog", 2, "brown")], {"dog": DOGS}, colours) == [True]
    assert holds([ObjectCheck("dog", 3, "brown")], {"dog": DOGS}, colours) == [False]
    assert holds([ObjectCheck("dog", 1, "red")], {"dog": DOGS}, colours) == [False]  # there is one, but not the most certain


def test_every_object_must_stand_in_the_relation_to_every_target() -> None:
    cats = [box(-50, 0, score=0.9), box(-90, 0, score=0.8)]
    checks = [ObjectCheck("dog", 2), ObjectCheck("cat", 2, None, "left of", 0)]
    assert holds(checks, {"dog": DOGS, "cat": cats}) == [True, True]
    between = [cats[0], replace(cats[1], left=20, right=30)]  # right of the first dog
    assert holds(checks, {"dog": DOGS, "cat": between}) == [True, False]


def test_place_by_a_target_that_is_not_there_fails() -> None:
    checks = [ObjectCheck("dog", 4), ObjectCheck("cat", 1, None, "left of", 0)]
    outcomes = object_outcomes(checks, {"dog": DOGS, "cat": [box(-50, 0)]}, lambda boxes, name: [])
    assert [outcome.holds for outcome in outcomes] == [False, False]
    assert outcomes[1].found == "no object to compare its place with"


def test_place_by_a_target_of_the_wrong_colour_fails() -> None:
    checks = [ObjectCheck("dog", 1, "red"), ObjectCheck("cat", 1, None, "left of", 0)]
    found = {"dog": DOGS, "cat": [box(-50, 0, score=0.5)]}
    assert holds(checks, found, ["brown"] * 10) == [False, False]
    assert holds(checks, found, ["red"] * 10) == [True, True]


def test_target_index_counts_including_checks_only() -> None:
    checks = [ObjectCheck("fish", exclude=True), ObjectCheck("dog"), ObjectCheck("cat", 1, None, "left of", 0)]
    assert holds(checks, {"dog": DOGS, "cat": [box(-50, 0)]}) == [True, True, True]


def test_outcomes_say_what_was_asked_and_found() -> None:
    checks = [ObjectCheck("dog", 1, "red"), ObjectCheck("dog", 2), ObjectCheck("cat", 1, None, "above", 1)]
    outcomes = object_outcomes(checks, {"dog": DOGS, "cat": [box(-50, 0)]}, lambda boxes, name: ["brown"] * len(boxes))
    assert [(outcome.asked, outcome.found) for outcome in outcomes] == [
        ("1 red dog", "brown"),
        ("2 dog", "3"),
        ("1 cat above object 1", "left of; left of"),
    ]
