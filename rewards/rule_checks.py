"""What a prompt's checks mean: their forms, and whether they hold for the boxes and pixels of an image. No model, no I/O.

Three forms. `{"kind": "background", "colour": "red", "rgb": [190, 30, 40]}`: the image's ground has that colour.
`{"kind": "lines", "count": 2}`: so many lines stand on it. And GenEval's `{"class": "dog", "count": 2, "color": "brown",
"position": ["left of", 0]}` with `"exclude": true` for what must not be there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xomni_rl.prompt_sets.signs import COLOURS
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.pixel_colours import OBJECT_COLOURS, dominant_colour, nearest_colour
from xomni_rl.rewards.pixel_lines import line_spans

RELATIONS = ("left of", "right of", "above", "below")
NEAR = 60.0
"""Farthest that a background may be from the colour it is called, in 8-bit levels; the palette's are at least 76 apart."""
LEAST_SHARE = 0.15
"""Least share of the pixels that must have the background's colour: of uniform noise 0.06 have the commonest one."""
_POSITION_THRESHOLD = 0.1
_OBJECT_KEYS = ("class", "count", "color", "position", "exclude")
_BACKGROUND_KEYS = ("kind", "colour", "rgb")
_LINES_KEYS = ("kind", "count")
KINDS = ("background", "lines")
"""Kinds of checks that need no detector."""


class CheckError(ValueError):
    """A check of a form that is not known; the message names its place and key."""


@dataclass(frozen=True)
class Box:
    """An object: corners in px, x to the right and y down, and the detector's confidence in [0, 1]."""

    left: float
    top: float
    right: float
    bottom: float
    score: float


@dataclass(frozen=True)
class BackgroundCheck:
    """The ground is nearest to `colour` among the palette and `rgb`, which stands for it there."""

    colour: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class LinesCheck:
    """`count` lines of text stand on the ground, whatever they say."""

    count: int


@dataclass(frozen=True)
class ObjectCheck:
    """At least `count` objects of a class are there (`exclude`: fewer than that), of a colour, in a place.

    Args:
        name: the class.
        count: how many, at least 1.
        colour: one of `OBJECT_COLOURS`, or None.
        relation: one of `RELATIONS` to each object of `target`, or None.
        target: place of the other check among the including ones.
        exclude: the check holds if there are fewer than `count`.
    """

    name: str
    count: int = 1
    colour: str | None = None
    relation: str | None = None
    target: int | None = None
    exclude: bool = False


@dataclass(frozen=True)
class Outcome:
    """Whether a check holds, what was asked and what was found, in words."""

    asked: str
    holds: bool
    found: str


PixelCheck = BackgroundCheck | LinesCheck
Check = PixelCheck | ObjectCheck
ColourOf = Callable[[Sequence[Box], str], Sequence[str]]
"""(boxes, their class) → their colours' names."""


def parse_checks(checks: Sequence[Mapping[str, Any]]) -> list[Check]:
    """The checks of a prompt. Raises: CheckError naming the place and the key of the first of another form."""
    parsed: list[Check] = []
    including = 0
    for index, check in enumerate(checks):
        try:
            if "kind" in check:
                parsed.append(_parse_pixel_check(check))
            elif "class" in check:
                found = _parse_object(check, including)
                including += not found.exclude
                parsed.append(found)
            else:
                keys = ", ".join(f'"{key}"' for key in check) or "no key"
                raise CheckError(f'has {keys}, but neither "kind" nor "class"')
        except CheckError as error:
            raise CheckError(f"checks[{index}] {error}") from None
    return parsed


def kind_of(check: Check) -> str:
    """One of `KINDS`, or object."""
    return {BackgroundCheck: "background", LinesCheck: "lines", ObjectCheck: "object"}[type(check)]


def pixel_outcome(check: PixelCheck, image: np.ndarray) -> Outcome:
    """Whether a check that needs no detector holds for an image, uint8 [H, W, 3]."""
    return background_outcome(check, image) if isinstance(check, BackgroundCheck) else lines_outcome(check, image)


def lines_outcome(check: LinesCheck, image: np.ndarray) -> Outcome:
    """Whether as many lines as asked for stand on an image, uint8 [H, W, 3]."""
    found = len(line_spans(image))
    return Outcome(f"{check.count} lines", found == check.count, str(found))


def background_outcome(check: BackgroundCheck, image: np.ndarray) -> Outcome:
    """Whether an image, uint8 [H, W, 3], has the ground that is asked for."""
    asked = f"{check.colour} background"
    rgb, share = dominant_colour(image)
    if share < LEAST_SHARE:
        return Outcome(asked, False, f"no colour that many pixels share (the most common one: {share:.0%})")
    name, distance = nearest_colour(rgb, COLOURS | {check.colour: check.rgb})
    red, green, blue = (round(level) for level in rgb)
    found = f"({red}, {green}, {blue}) on {share:.0%} of the pixels, {distance:.0f} levels from {name}"
    return Outcome(asked, name == check.colour and distance <= NEAR, found)


def object_outcomes(checks: Sequence[ObjectCheck], objects: Mapping[str, Sequence[Box]], colours_of: ColourOf) -> list[Outcome]:
    """Whether each check holds, as GenEval defines it.

    Only the `count` most certain objects of a class are looked at. All of them must have the colour, and each must stand in
    the relation to each object that the target check found; a target check that does not hold itself has found none.

    Args:
        checks: in the prompt's order.
        objects: class → its boxes, the most certain first.
        colours_of: names of boxes' colours.
    """
    outcomes: list[Outcome] = []
    groups: list[Sequence[Box] | None] = []  # of the including checks: the boxes that satisfy each
    for check in checks:
        boxes = objects.get(check.name, ())
        if check.exclude:
            outcomes.append(Outcome(f"fewer than {check.count} {check.name}", len(boxes) < check.count, f"{len(boxes)}"))
            continue
        looked_at = boxes[: check.count]
        holds, found = _including(check, looked_at, groups, colours_of)
        groups.append(looked_at if holds else None)
        outcomes.append(Outcome(_in_words(check), holds, found or f"{len(boxes)}"))
    return outcomes


def kept_boxes(boxes: Sequence[Box], threshold: float, overlap: float, most: int) -> list[Box]:
    """The most certain boxes, best first: those above the threshold, the first `most`, then without duplicates.

    Args:
        boxes: of one class, in any order.
        threshold: confidence that must be exceeded.
        overlap: a box that covers a better one by this intersection over union or more is dropped; 1 = none is.
        most: number of boxes that are looked at.
    """
    kept: list[Box] = []
    candidates = sorted((box for box in boxes if box.score > threshold), key=lambda box: -box.score)[:most]
    for box in candidates:
        if overlap >= 1 or all(intersection_over_union(box, other) < overlap for other in kept):
            kept.append(box)
    return kept


def intersection_over_union(a: Box, b: Box) -> float:
    """Shared area over joint area, in [0, 1]; 0 for two boxes without area."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    shared = max(width, 0.0) * max(height, 0.0)
    joint = (a.right - a.left) * (a.bottom - a.top) + (b.right - b.left) * (b.bottom - b.top) - shared
    return shared / joint if joint > 0 else 0.0


def relations(a: Box, b: Box) -> set[str]:
    """How `a` lies to `b`: none, one or two of `RELATIONS`.

    Along each axis the distance of the centres counts as far as it exceeds a tenth of the sum of both boxes' sizes. That part
    must be more than half of the (whole) distance of the centres.

    Source: GenEval, arXiv:2310.11513, section 3.
    """
    dx, dy = (a.left + a.right - b.left - b.right) / 2, (a.top + a.bottom - b.top - b.bottom) / 2
    beyond_x = max(abs(dx) - _POSITION_THRESHOLD * (a.right - a.left + b.right - b.left), 0.0)
    beyond_y = max(abs(dy) - _POSITION_THRESHOLD * (a.bottom - a.top + b.bottom - b.top), 0.0)
    if max(beyond_x, beyond_y) < 1e-3:  # px; also two boxes of one centre
        return set()
    far = math.hypot(dx, dy) / 2
    found = set()
    if beyond_x > far:
        found.add("left of" if dx < 0 else "right of")
    if beyond_y > far:
        found.add("above" if dy < 0 else "below")
    return found


def _including(
    check: ObjectCheck, boxes: Sequence[Box], groups: Sequence[Sequence[Box] | None], colours_of: ColourOf
) -> tuple[bool, str]:
    """Whether the check holds for its most certain boxes, and what was found instead (or beside, if it holds)."""
    if len(boxes) < check.count:
        return False, f"{len(boxes)}"
    found = ""
    if check.colour is not None:
        colours = colours_of(boxes, check.name)
        found = ", ".join(colours)
        if any(colour != check.colour for colour in colours):
            return False, found
    if check.relation is None or check.target is None:
        return True, found
    targets = groups[check.target]
    if targets is None:
        return False, "no object to compare its place with"
    places = [relations(box, target) for box in boxes for target in targets]
    found = "; ".join(" and ".join(sorted(place)) or "no clear relation" for place in places)
    return all(check.relation in place for place in places), found


def _in_words(check: ObjectCheck) -> str:
    words = [str(check.count), *([check.colour] if check.colour else []), check.name]
    return " ".join([*words, *([check.relation, f"object {check.target}"] if check.relation else [])])


def _parse_pixel_check(check: Mapping[str, Any]) -> PixelCheck:
    if check["kind"] == "background":
        return _parse_background(check)
    if check["kind"] != "lines":
        raise CheckError(unknown_name("kind", str(check["kind"]), KINDS))
    _refuse_unknown(check, _LINES_KEYS)
    count = check.get("count")
    if type(count) is not int or count < 0:
        raise CheckError(f'needs a whole number from 0 as "count", got {count!r}')
    return LinesCheck(count)


def _parse_background(check: Mapping[str, Any]) -> BackgroundCheck:
    _refuse_unknown(check, _BACKGROUND_KEYS)
    colour, rgb = check.get("colour"), check.get("rgb")
    if not isinstance(colour, str):
        raise CheckError(f'needs a string as "colour", got {colour!r}')
    if rgb is None:
        if colour not in COLOURS:
            raise CheckError(f'has no "rgb", and as "colour" an {unknown_name("colour", colour, COLOURS)}')
        rgb = COLOURS[colour]
    if not isinstance(rgb, list | tuple) or len(rgb) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in rgb):
        raise CheckError(f'needs three whole numbers from 0 to 255 as "rgb", got {rgb!r}')
    return BackgroundCheck(colour, (rgb[0], rgb[1], rgb[2]))


def _parse_object(check: Mapping[str, Any], including: int) -> ObjectCheck:
    """`including`: number of including checks before it, which it may be placed by."""
    _refuse_unknown(check, _OBJECT_KEYS)
    name, count, exclude = check["class"], check.get("count", 1), check.get("exclude", False)
    if not isinstance(name, str) or not name.strip():
        raise CheckError(f'needs a name as "class", got {name!r}')
    if type(count) is not int or count < 1:
        raise CheckError(f'needs a whole number from 1 as "count", got {count!r}')
    if type(exclude) is not bool:
        raise CheckError(f'needs true or false as "exclude", got {exclude!r}')
    colour, position = check.get("color"), check.get("position")
    if exclude and (colour is not None or position is not None):
        raise CheckError(
            f'excludes objects by "class" and "count" alone, got "{"position" if colour is None else "color"}" too'
        )
    if colour is not None and colour not in OBJECT_COLOURS:
        raise CheckError(f'has as "color" an {unknown_name("colour", str(colour), OBJECT_COLOURS)}')
    relation, target = _parse_position(position, including)
    return ObjectCheck(name, count, colour, relation, target, exclude)


def _parse_position(position: Any, including: int) -> tuple[str | None, int | None]:
    if position is None:
        return None, None
    if not isinstance(position, list | tuple) or len(position) != 2:
        raise CheckError(f'needs [relation, index] as "position", got {position!r}')
    relation, target = position
    if relation not in RELATIONS:
        raise CheckError(f'has in "position" an {unknown_name("relation", str(relation), RELATIONS)}')
    if type(target) is not int or not 0 <= target < including:
        raise CheckError(f'must name in "position" one of the {including} including checks before it, got {target!r}')
    return relation, target


def _refuse_unknown(check: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in check:
        if key not in known:
            raise CheckError(f"has an {unknown_name('key', str(key), known)}")
