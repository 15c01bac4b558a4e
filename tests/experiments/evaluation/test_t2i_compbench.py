"""T2I-CompBench's attributes with a tiny judge behind a real server, and its relations with the embedded CLIP."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.rewards.judge_server import MODEL, JudgeServer
from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.pictures import Drawing
from xomni_rl.experiments.evaluation.questions import ASKED
from xomni_rl.experiments.evaluation.run import evaluate
from xomni_rl.experiments.evaluation.suite import build_suite
from xomni_rl.experiments.evaluation.suites.t2i_compbench import phrase_questions
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.clip import ClipReward
from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

FILES = {"color": ["a red book and a yellow vase", "a blue bench"], "shape": ["a round clock"], "non_spatial": ["A man waves."]}
SERVED = {"backend": "server", "url": "http://127.0.0.1:1/v1", "model": MODEL}


def picture(prompt: Prompt, number: int) -> np.ndarray:
    return np.random.default_rng([len(prompt.text), number]).integers(0, 256, size=(56, 56, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "dataset"
    place.mkdir()
    for part, texts in FILES.items():
        (place / f"{part}_val.txt").write_text("\n".join(texts))
    (place / "spatial_val.txt").write_text("a cat on the left of a dog")
    return place


def test_parts_are_scored_by_judge_and_clip(tmp_path: Path, folder: Path, drawing: Drawing, rendered: Callable):
    with JudgeServer(write_tiny_vlm(tmp_path / "judge")) as server:
        suite = build_suite("t2i_compbench", {"vlm": {**SERVED, "url": server.url, "concurrency": 2}})
        prompts = suite.prompts(folder)
        images = rendered(suite, prompts, 1, tmp_path / "images", picture)
        found = evaluate(suite, {"m": str(images)}, tmp_path / "out", drawing, lambda place: place, prompts=folder)
        assert found.complete
        products = {}
        for prompt in prompts[:3]:
            asked = [ASKED.format(question=question.text) for question in phrase_questions(prompt.text)]
            products[prompt.id] = np.prod([server.reference.yes_probability(picture(prompt, 1), text) for text in asked])
    table = found.table.set_index("prompt_id")
    assert table["attributes"].dropna().to_dict() == pytest.approx(products, abs=1e-4)
    colour, shape = np.mean([products["color-0000"], products["color-0001"]]), products["shape-0000"]
    cells = found.summary["models"]["m"]
    assert cells["attributes"]["mean"] == pytest.approx((colour + shape) / 2, abs=1e-4)  # parts count alike
    cosine = ClipReward()([picture(prompts[3], 1)], [prompts[3]]).scores[0]
    assert cells["clip"]["mean"] == pytest.approx(cosine, abs=1e-5)
    assert (cells["clip"]["scored"], cells["clip"]["not_applicable"]) == (1, 3)


def test_left_out_part_is_refused_by_name(folder: Path):
    with pytest.raises(EvaluationError, match="this suite scores color, shape, texture, non_spatial"):
        build_suite("t2i_compbench", {"vlm": SERVED}).prompts(folder / "spatial_val.txt")


def test_folder_without_its_files_says_where_to_get_them(tmp_path: Path):
    with pytest.raises(EvaluationError, match=r"holds none of color_val\.txt, .*github\.com/Karine-Huang"):
        build_suite("t2i_compbench", {"vlm": SERVED}).prompts(tmp_path)
