"""GenEval's verdicts and scores against a computation of their own, on synthetic detections and a tiny detector."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.pictures import Drawing
from xomni_rl.experiments.evaluation.run import evaluate
from xomni_rl.experiments.evaluation.suite import build_suite
from xomni_rl.experiments.evaluation.summary import summarise
from xomni_rl.rewards.detection import write_tiny_detector
from xomni_rl.rewards.models import Placement
from xomni_rl.rewards.rule_checks import Box, kept_boxes, object_outcomes, parse_checks

CLASSES = ("dog", "cat", "bench")
RELATIONS = ("left of", "right of", "above", "below")


def task(tag: str, *include: dict[str, Any], exclude: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": f"{tag} {include}"}


TASKS = [
    task("single_object", {"class": "dog", "count": 1}),
    task("two_object", {"class": "dog", "count": 1}, {"class": "cat", "count": 1}),
    task("counting", {"class": "dog", "count": 2}, exclude=({"class": "dog", "count": 3},)),
    task("colors", {"class": "cat", "count": 1, "color": "red"}),
    task("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}),
    task("position", {"class": "cat", "count": 1}, {"class": "bench", "count": 1, "position": ["below", 0]}),
    task("color_attr", {"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}),
]


def colour_of(box: Box) -> str:
    return ("red", "blue")[int(box.left) % 2]


def detections(rng: np.random.Generator) -> dict[str, list[Box]]:
    found = {}
    for name in CLASSES:
        corners = rng.uniform(0, 100, size=(rng.integers(0, 5), 2))
        sizes, scores = rng.uniform(5, 60, size=corners.shape), rng.uniform(0.1, 1.0, size=len(corners))
        found[name] = [Box(*low, *(low + size), score) for low, size, score in zip(corners, sizes, scores, strict=True)]
    return found


def independent_verdict(wanted: dict[str, Any], objects: dict[str, list[Box]]) -> bool:
    """The paper's rules once more, on arrays: thresholds, then objects, colours, places, what must not be there."""
    least = 0.9 if wanted["tag"] == "counting" else 0.3
    seen = {
        name: sorted((box for box in boxes if box.score > least), key=lambda box: box.score, reverse=True)[:16]
        for name, boxes in objects.items()
    }
    taken: list[list[Box]] = []
    for each in wanted["include"]:
        chosen = seen[each["class"]][: each["count"]]
        fine = len(chosen) == each["count"]
        fine = fine and all(colour_of(box) == each["color"] for box in chosen if "color" in each)
        if fine and "position" in each:
            relation, target = each["position"]
            fine = bool(taken[target]) and all(lies(box, other, relation) for box in chosen for other in taken[target])
        taken.append(chosen if fine else [])
    return all(taken) and all(len(seen[each["class"]]) < each["count"] for each in wanted["exclude"])


def lies(a: Box, b: Box, relation: str) -> bool:
    centres, sides = (
        np.array([[(box.left + box.right) / 2, (box.top + box.bottom) / 2] for box in (a, b)]),
        np.array([[box.right - box.left, box.bottom - box.top] for box in (a, b)]),
    )
    offset = centres[0] - centres[1]
    beyond = np.sign(offset) * np.clip(np.abs(offset) - 0.1 * sides.sum(axis=0), 0, None)
    if np.abs(beyond).max() < 1e-3:
        return False
    x, y = beyond / np.linalg.norm(offset)
    return {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}[relation]


def checks_of(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    return [*wanted["include"], *({**each, "exclude": True} for each in wanted["exclude"])]


def our_verdict(wanted: dict[str, Any], objects: dict[str, list[Box]]) -> bool:
    least = 0.9 if wanted["tag"] == "counting" else 0.3
    kept = {name: kept_boxes(boxes, least, 1.0, 16) for name, boxes in objects.items()}
    outcomes = object_outcomes(parse_checks(checks_of(wanted)), kept, lambda boxes, _: [colour_of(box) for box in boxes])
    return all(outcome.holds for outcome in outcomes)


def test_verdicts_and_scores_on_synthetic_detections_are_those_of_an_independent_computation():
    rng = np.random.default_rng(0)
    rows, by_tag, by_prompt = [], defaultdict(list), defaultdict(list)
    for image in range(1400):
        which = image % len(TASKS)
        wanted, objects = TASKS[which], detections(rng)
        expected = independent_verdict(wanted, objects)
        assert our_verdict(wanted, objects) == expected
        by_tag[wanted["tag"]].append(expected)
        by_prompt[which].append(expected)
        row = {"model": "m", "prompt_id": str(which), "number": image // len(TASKS), "correct": float(expected), "error": None}
        rows.append(row | {"category": wanted["tag"]})
    assert all(0 < np.mean(verdicts) < 1 for verdicts in by_tag.values())  # no task is decided beforehand
    suite = build_suite("geneval", {})
    suite.finish(rows)
    cells = summarise(pd.DataFrame(rows), ["m"], suite.figures(), "category")
    scores = {tag: np.mean(verdicts) for tag, verdicts in by_tag.items()}
    assert cells["models"]["m"]["score"]["mean"] == pytest.approx(np.mean(list(scores.values())))
    assert cells["models"]["m"]["images"]["mean"] == pytest.approx(np.mean([row["correct"] for row in rows]))
    assert cells["models"]["m"]["prompts"]["mean"] == pytest.approx(np.mean([any(each) for each in by_prompt.values()]))
    for tag, score in scores.items():
        assert cells["categories"][tag]["m"]["score"]["mean"] == pytest.approx(score)


def prompt_file(tmp_path: Path, tasks: list[dict[str, Any]]) -> Path:
    path = tmp_path / "geneval.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in tasks))
    return path


def noise(prompt: Any, number: int) -> np.ndarray:
    return np.random.default_rng([int(prompt.id), number]).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)


def test_suite_runs_from_file_and_detector_to_scores(tmp_path: Path, drawing: Drawing, rendered: Callable):
    """Every verdict of the run is that of the independent rules on what the detector itself says."""
    write_tiny_detector(tmp_path / "detector", CLASSES)
    tasks = [each for each in TASKS if not any("color" in entry for entry in each["include"])]
    file = prompt_file(tmp_path, tasks)
    # Random weights are never sure: below every threshold of the published script.
    options = {"weights": str(tmp_path / "detector"), "threshold": 0.02, "counting_threshold": 0.02, "device": "cpu"}
    suite = build_suite("geneval", options)
    prompts = suite.prompts(file)
    folder = rendered(suite, prompts, 2, tmp_path / "images", noise)
    two = Drawing(drawing.sampling, count=2)
    found = evaluate(suite, {"m": str(folder)}, tmp_path / "out", two, lambda place: place, prompts=file)
    detector = suite.rules.detector
    assert detector.placement == Placement("cpu", "float32", False)
    for row, prompt in zip(found.table.itertuples(), [p for p in prompts for _ in range(2)], strict=True):
        objects = detector.detect([noise(prompt, row.number)], [CLASSES], 0.02).objects[0]
        wanted = tasks[int(prompt.id)] | {"tag": "all sure"}
        sure = {name: [Box(b.left, b.top, b.right, b.bottom, 1 + b.score) for b in boxes] for name, boxes in objects.items()}
        assert row.correct == independent_verdict(wanted, sure)
    assert found.complete
    assert set(found.summary["categories"]) == {each["tag"] for each in tasks}


def test_images_in_the_published_layout_are_found(tmp_path: Path):
    suite = build_suite("geneval", {})
    prompt = suite.prompts(prompt_file(tmp_path, TASKS))[3]
    assert suite.names(prompt, 1, 4) == ("00003_1", "00003_1", "00003/samples/0000")


def test_missing_prompt_file_says_where_to_get_it(tmp_path: Path):
    for path in (None, tmp_path / "none.jsonl"):
        with pytest.raises(EvaluationError, match=r"evaluation_metadata\.jsonl of github\.com/djghosh13/geneval"):
            build_suite("geneval", {}).prompts(path)
