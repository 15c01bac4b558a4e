"""Does the image keep the prompt's rules: objects' counts, colours and places, the ground's colour, the number of lines?

Scores      the share of the prompt's `checks` that hold, in [0, 1] (`mode: all`: 1 if all hold, else 0, as GenEval counts);
            higher is better. Both are logged as the metrics `share` and `all` whatever the mode.
Checks      `{"kind": "background", "colour": "red", "rgb": [190, 30, 40]}` and `{"kind": "lines", "count": 2}` (of text, on a
            plain ground) by plain image analysis; and GenEval's rows
            `{"class": "dog", "count": 2, "color": "brown", "position": ["left of", 0]}`, those of its `exclude` list with
            `"exclude": true`. A check of another form fails its sample, and the message names the key.
            `kinds` counts some kinds of checks alone.
Not applicable (NaN)  to a prompt without such checks.
Cost        backgrounds and lines: about 0.3 ms of one core per 32×96 sign. Objects: one detector forward per image (RT-DETR v2
            R101: 259 GFLOP at 640 px); with a zero-shot detector one per image and class.
Weights     none for backgrounds and lines. Objects: `weights` is any detector in transformers' layout (see detection.py), by
            default PekingU/rtdetr_v2_r101vd, Apache-2.0. It is loaded at the first check that needs it.
Ways to hack it  the ground's colour says nothing of what stands on it, and any marks in rows are lines. Objects pasted side
            by side, cut out or tiny, satisfy counts and positions; so do textures that this detector alone takes for objects.
            Score held-out images with another detector.
Source      GenEval, arXiv:2310.11513. Departs from it: boxes of RT-DETR or another detector instead of Mask2Former's masks, so
            thresholds differ and figures are not comparable with published ones; the colour is the commonest one in the
            middle of the box unless `colour_model` names a CLIP, which is then asked as in GenEval, but on unmasked crops;
            duplicate boxes are dropped at an overlap of 0.7 (published: never). The default thresholds are not calibrated on
            people's judgements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import Reward, RewardError, RewardResult, rewards
from xomni_rl.rewards.detection import Detector, write_tiny_detector
from xomni_rl.rewards.models import Placement, check_batch_size
from xomni_rl.rewards.open_clip_backbone import OpenClipBackbone
from xomni_rl.rewards.pixel_colours import OBJECT_COLOURS, object_colour
from xomni_rl.rewards.rule_checks import (
    KINDS,
    Box,
    Check,
    CheckError,
    ObjectCheck,
    Outcome,
    kept_boxes,
    kind_of,
    object_outcomes,
    parse_checks,
    pixel_outcome,
)

MODES = ("share", "all")
MOST_OBJECTS = 16
"""Boxes of one class that are looked at, as published."""
_NO_CHECKS = "the prompt has no checks"
_COLOUR_TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


@rewards.register("rules")
class RulesReward(Reward):
    """Share of the prompt's checks that hold: ground and lines by image analysis, objects in GenEval's sense by a detector.

    Args:
        mode: share = of the checks that hold; all = 1 if every check holds, else 0.
        weights: detector in transformers' layout, a folder or a name on the model hub; None = PekingU/rtdetr_v2_r101vd.
        threshold: confidence that a box must exceed.
        counting_threshold: the same for prompts that count, that is, ask for two or more of a class or exclude some;
            None = `threshold`.
        overlap: of two boxes of a class that overlap this much (intersection over union) the less certain one is dropped;
            1 = none is.
        colour_model: an open_clip model (name or folder) that tells the objects' colours; None = plain image analysis.
        colour_weights: its weights; None = the folder's own.
        device, dtype, offload: see `Placement`; of both models.
        batch_size: images per forward pass.
        kinds: the checks that count: background, lines or both; None = all, those of objects too.
    Raises: ValueError for an unknown mode, kind or dtype, or numbers out of range.
    """

    name = "rules"
    version = "1"
    range = (0.0, 1.0)
    needs = ("checks",)
    cost = "backgrounds and lines 0.3 ms of one core per 32×96 image; objects one detector forward per image"

    def __init__(
        self,
        mode: str = "share",
        weights: str | None = None,
        threshold: float = 0.5,
        counting_threshold: float | None = None,
        overlap: float = 0.7,
        colour_model: str | None = None,
        colour_weights: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        offload: bool = False,
        batch_size: int = 32,
        kinds: Sequence[str] | None = None,
    ) -> None:
        for kind in kinds or ():
            if kind not in KINDS:
                raise ValueError(unknown_name("kind", str(kind), KINDS))
        self.kinds = frozenset((*KINDS, "object") if kinds is None else kinds)
        if mode not in MODES:
            raise ValueError(unknown_name("mode", str(mode), MODES))
        counting_threshold = threshold if counting_threshold is None else counting_threshold
        for option, value in (("threshold", threshold), ("counting_threshold", counting_threshold), ("overlap", overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"{option} must be in [0, 1], got {value}")
        check_batch_size(batch_size)
        self.mode, self.threshold, self.counting_threshold, self.overlap = mode, threshold, counting_threshold, overlap
        placement = Placement(device, dtype, offload)
        self.detector = Detector(self.name, weights, placement, batch_size)
        self.colours = None
        if colour_model is not None:
            self.colours = OpenClipBackbone(
                self.name, colour_model, colour_weights, placement=placement, batch_size=batch_size, option="colour_weights"
            )

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: per check what was asked, whether it holds and what was found.

        Raises: RewardError for samples with checks of an unknown form, or of which the detector knows nothing;
            RewardUnavailableError if a check needs a detector that is not here.
        """
        failures: dict[int, str] = {}
        checks: dict[int, list[Check]] = {}
        for index, prompt in enumerate(prompts):
            try:
                checks[index] = [check for check in parse_checks(prompt.checks) if kind_of(check) in self.kinds]
            except CheckError as error:
                failures[index] = f'prompt "{prompt.id}": {error}'
        objects, more = self._objects(images, checks)
        failures |= {index: f'prompt "{prompts[index].id}": {reason}' for index, reason in more.items()}
        outcomes = {
            index: self._outcomes(images[index], found, objects.get(index, {}))
            for index, found in checks.items()
            if index not in failures
        }
        result = self._result(len(images), outcomes)
        if failures:
            for index, reason in failures.items():
                result.details[index]["reason"] = reason
            raise RewardError(self.name, failures, result)
        return result

    def load(self) -> None:
        """Loads the detector if one was named, and the model of colours. Raises: RewardUnavailableError.

        The default detector is left until a check needs it, so that prompts about backgrounds need no weights.
        """
        if self.detector.weights is not None:
            self.detector.load()
        if self.colours is not None:
            self.colours.load()

    def files(self) -> tuple[Path, ...]:
        """Files of the models that were named in the options. Raises: RewardUnavailableError."""
        detector = self.detector.files() if self.detector.weights is not None else ()
        return detector + (self.colours.files() if self.colours is not None else ())

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A blue sign with one line, and an empty red one, where the first is asked for."""
        from xomni_rl.prompt_sets.signs import render_sign, sign_prompt

        prompt = sign_prompt("K7AX", "blue", 'a {colour} sign that says "{text}"', "self-check")
        prompt = replace(prompt, checks=(*prompt.checks, {"kind": "lines", "count": 1}))
        return render_sign("K7AX", "blue"), render_sign("", "red"), prompt

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        """Writes a small detector of dogs, cats and benches with random weights."""
        write_tiny_detector(folder, ("dog", "cat", "bench"))
        return {"weights": str(folder)}

    def _objects(
        self, images: Sequence[np.ndarray], checks: dict[int, list[Check]]
    ) -> tuple[dict[int, dict[str, list[Box]]], dict[int, str]]:
        """Sample → class → boxes, for samples with checks of objects; and sample → why the detector failed on it."""
        asked = {index: [check for check in found if isinstance(check, ObjectCheck)] for index, found in checks.items()}
        asked = {index: found for index, found in asked.items() if found}
        if not asked:
            return {}, {}
        rows = list(asked)
        classes = [list(dict.fromkeys(check.name for check in asked[index])) for index in rows]
        found = self.detector.detect([images[index] for index in rows], classes, min(self.threshold, self.counting_threshold))
        kept = {}
        for index, objects in zip(rows, found.objects, strict=True):
            counts = any(check.exclude or check.count > 1 for check in asked[index])
            threshold = self.counting_threshold if counts else self.threshold
            kept[index] = {name: kept_boxes(boxes, threshold, self.overlap, MOST_OBJECTS) for name, boxes in objects.items()}
        return kept, {rows[position]: reason for position, reason in found.failures.items()}

    def _outcomes(self, image: np.ndarray, checks: Sequence[Check], objects: dict[str, list[Box]]) -> list[Outcome]:
        """Outcomes in the order of the checks."""
        about_objects = iter(
            object_outcomes(
                [check for check in checks if isinstance(check, ObjectCheck)],
                objects,
                lambda boxes, name: self._colours(image, boxes, name),
            )
        )
        return [next(about_objects) if isinstance(check, ObjectCheck) else pixel_outcome(check, image) for check in checks]

    def _colours(self, image: np.ndarray, boxes: Sequence[Box], name: str) -> list[str]:
        if self.colours is None:
            return [object_colour(image, box.left, box.top, box.right, box.bottom) for box in boxes]
        texts = [template.format(colour=colour, name=name) for colour in OBJECT_COLOURS for template in _COLOUR_TEMPLATES]
        by_text, _ = self.colours.text_features(texts)
        directions = by_text.reshape(len(OBJECT_COLOURS), len(_COLOUR_TEMPLATES), -1).mean(axis=1)
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        similarity = self.colours.image_features([_crop(image, box) for box in boxes]) @ directions.T
        return [OBJECT_COLOURS[best] for best in similarity.argmax(axis=1)]

    def _result(self, count: int, outcomes: dict[int, list[Outcome]]) -> RewardResult:
        shares = np.full(count, np.nan, np.float32)
        details: list[dict[str, Any]] = [{"checks": [], "reason": _NO_CHECKS} for _ in range(count)]
        for index, found in outcomes.items():
            if found:
                shares[index] = np.mean([outcome.holds for outcome in found])
                details[index] = {"checks": [vars(outcome) for outcome in found]}
        every = np.where(np.isnan(shares), np.nan, shares == 1).astype(np.float32)
        scores = shares if self.mode == "share" else every
        return RewardResult(scores.copy(), details, {"share": shares, "all": every})


def _crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The box's part of an image, at least one pixel of it."""
    height, width = image.shape[:2]
    left, top = (min(max(int(edge), 0), side - 1) for edge, side in ((box.left, width), (box.top, height)))
    right, bottom = (max(min(round(edge), side), 1) for edge, side in ((box.right, width), (box.bottom, height)))
    return image[top : max(bottom, top + 1), left : max(right, left + 1)]
