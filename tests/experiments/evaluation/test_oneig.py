"""OneIG-Bench's alignment with a tiny judge behind a real server."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.rewards.judge_server import MODEL, JudgeServer
from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.pictures import Drawing
from xomni_rl.experiments.evaluation.questions import ASKED
from xomni_rl.experiments.evaluation.run import evaluate
from xomni_rl.experiments.evaluation.suite import build_suite
from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

TEXTS = {"1": "Is there a dog?", "2": "Is it brown?", "3": "Does it run?", "4": "Is it night?", "5": "Is it a drawing?"}
PARENTS = {"1": [0], "2": [1], "3": [2], "4": [0], "5": [1, 4]}
SERVED = {"backend": "server", "url": "http://127.0.0.1:1/v1", "model": MODEL}


def question_file(tmp_path: Path) -> Path:
    """Both forms in which the published files state a graph: objects, and JSON texts."""
    plain, texts = (
        {"question": TEXTS, "dependency": PARENTS},
        {"question": json.dumps(TEXTS), "dependency": json.dumps(PARENTS)},
    )
    path = tmp_path / "anime.json"
    path.write_text(json.dumps({"000": plain, "001": texts}))
    return path


@pytest.mark.parametrize("compat", ["published", "fixed"])
def test_alignment_is_what_the_judge_says_after_dependencies(tmp_path: Path, drawing: Drawing, compat: str, rendered: Callable):
    rng = np.random.default_rng(0)
    grids = {f"anime/{name}": rng.integers(0, 256, size=(112, 112, 3), dtype=np.uint8) for name in ("000", "001")}
    (tmp_path / "images" / "anime").mkdir(parents=True)
    for name, image in grids.items():
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
    with JudgeServer(write_tiny_vlm(tmp_path / "judge")) as server:
        vlm = {**SERVED, "url": server.url, "concurrency": 2}
        suite, four = build_suite("oneig", {"compat": compat, "vlm": vlm, "grid": True}), Drawing(drawing.sampling, count=4)
        file, folder = question_file(tmp_path), str(tmp_path / "images")
        found = evaluate(suite, {"m": folder}, tmp_path / "out", four, lambda place: place, prompts=file)
        assert found.complete
        for row in found.table.itertuples():
            top, left = 56 * ((row.number - 1) // 2), 56 * ((row.number - 1) % 2)
            picture = grids[row.prompt_id][top : top + 56, left : left + 56]
            yes = [server.reference.yes_probability(picture, ASKED.format(question=text)) > 0.5 for text in TEXTS.values()]
            third = yes[2] and yes[1] and (yes[0] or compat == "published")
            assert row.alignment == pytest.approx(
                np.mean([yes[0], yes[1] and yes[0], third, yes[3], yes[4] and yes[0] and yes[3]])
            )


def test_grid_of_odd_sides_fails_its_pictures_alone(tmp_path: Path, drawing: Drawing):
    (tmp_path / "images" / "anime").mkdir(parents=True)
    for name in ("000", "001"):
        Image.fromarray(np.zeros((57, 56, 3), dtype=np.uint8)).save(tmp_path / "images" / "anime" / f"{name}.png")
    file, folder = question_file(tmp_path), str(tmp_path / "images")
    with JudgeServer(write_tiny_vlm(tmp_path / "judge")) as server:
        suite = build_suite("oneig", {"vlm": {**SERVED, "url": server.url}, "grid": True})
        found = evaluate(suite, {"m": folder}, tmp_path / "out", drawing, lambda place: place, prompts=file)
    assert found.table["error"].str.contains("a grid holds 2×2 pictures of one size").all()


def test_stack_is_refused_because_there_are_no_prompts(tmp_path: Path, drawing: Drawing):
    suite = build_suite("oneig", {"vlm": SERVED})
    with pytest.raises(EvaluationError, match="its files hold no prompts, so embedded can't draw them"):
        evaluate(suite, {"m": "embedded"}, tmp_path, drawing, lambda place: place, prompts=question_file(tmp_path))


@pytest.mark.parametrize(
    "content", ["nonsense", "[]", '{"000": {}}', '{"000": {"question": {"1": "?"}, "dependency": {"1": [7]}}}']
)
def test_file_of_another_form_is_refused_with_its_origin(tmp_path: Path, content: str):
    path = tmp_path / "anime.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=r"anime\.json: is no file .*github\.com/OneIG-Bench"):
        build_suite("oneig", {"vlm": SERVED}).prompts(path)
