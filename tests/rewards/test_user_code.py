"""What a user's own reward gets wrong is a sentence about that reward, and harms no other."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from xomni_rl.cli import app
from xomni_rl.images import as_image_list
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import FunctionReward, Reward, RewardError, RewardResult, build_reward, reward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward

OWN = """import numpy as np

from xomni_rl.rewards.base import Reward


class Short(Reward):
    def score(self, images, prompts):
        return [image.mean() / 255 for image in images]


class Divides(Reward):
    def __init__(self, power=1):
        self.power = 1 / 0

    def score(self, images, prompts):
        return [0.0] * len(images)


class Leaves(Divides):
    def __init__(self):
        raise SystemExit(3)


class Unfinished(Reward):
    pass
"""
PROMPTS = [Prompt("a", "a"), Prompt("b", "b")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with classes of a user in it."""
    (tmp_path / "classes_of_a_user.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "classes_of_a_user", raising=False)
    return tmp_path


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)


def test_class_with_nothing_but_score_is_a_reward(folder: Path, pictures: np.ndarray) -> None:
    made = build_reward("classes_of_a_user:Short")
    assert (made.name, made.version, made.range) == ("Short", "unversioned", (0.0, 1.0))
    np.testing.assert_allclose(made(pictures, PROMPTS).scores, pictures.mean(axis=(1, 2, 3)) / 255, rtol=1e-6)
    with pytest.raises(NotImplementedError, match='"Short" has no self_check'):
        made.self_check()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Divides", "13: ZeroDivisionError: division by zero"),
        ("Leaves", "21: SystemExit: 3"),
        ("Unfinished", "24: TypeError: Can't instantiate abstract class Unfinished"),
    ],
)
def test_class_that_cannot_be_made_is_a_sentence_with_its_line(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f'reward "classes_of_a_user:{name}" cannot be made: .*classes_of_a_user.py:{reason}'):
        build_reward(f"classes_of_a_user:{name}")


def test_command_shows_the_sentence_without_a_traceback(folder: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "reward=classes_of_a_user:Divides"], env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert "ZeroDivisionError: division by zero" in done.output
    assert "Traceback" not in done.output


def test_reward_that_writes_into_an_image_fails_and_changes_nothing(pictures: np.ndarray) -> None:
    def blackening(images: list[np.ndarray], prompts: Any) -> list[float]:
        images[0][:] = 0
        return [1.0] * len(images)

    before = pictures.copy()
    expected = build_reward("sharpness")(pictures, PROMPTS).scores
    parts = [Component("writes", FunctionReward("writes", blackening, {})), Component("sharpness", build_reward("sharpness"))]
    with pytest.raises(RewardError, match=r'"writes" failed on 2 sample.*read-only'):
        CompositeReward(parts)(pictures, PROMPTS)
    np.testing.assert_array_equal(pictures, before)
    np.testing.assert_array_equal(parts[1].scored(as_image_list(pictures), PROMPTS).scores, expected)
    assert pictures.flags.writeable


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        ([0.5, None], "NoneType"),
        (None, "NoneType"),
        ([0.5, "0.5"], "str"),
        (np.array(["1", "2"]), "str"),
        ({0: 0.5, 1: 0.5}, "dict"),
        (RewardResult([None, None], [{}, {}]), "NoneType"),  # type: ignore[arg-type]
    ],
)
def test_value_that_is_no_number_is_refused_instead_of_not_applicable(returned: Any, found: str, pictures: np.ndarray) -> None:
    made = FunctionReward("odd", lambda images, prompts: returned, {})
    with pytest.raises(ValueError, match=f'reward "odd" returned scores .* hold {found}; .* NaN where it does not apply'):
        made(pictures, PROMPTS)


@pytest.mark.parametrize("returned", [[1, 0], [True, False], np.array([1, 0], np.uint8), (np.float64(1), 0.0)])
def test_numbers_of_any_kind_are_scores(returned: Any, pictures: np.ndarray) -> None:
    scores = FunctionReward("even", lambda images, prompts: returned, {})(pictures, PROMPTS).scores
    assert (scores.tolist(), scores.dtype) == ([1.0, 0.0], np.float32)


def test_reward_that_exits_is_its_failure(pictures: np.ndarray) -> None:
    def leaving(images: Any, prompts: Any) -> None:
        sys.exit("usage: score FILE")

    with pytest.raises(RewardError, match=r'"leaves" failed .*SystemExit: usage: score FILE'):
        Component("leaves", FunctionReward("leaves", leaving, {})).scored(as_image_list(pictures), PROMPTS)


def test_interrupt_within_a_reward_stays_an_interrupt(pictures: np.ndarray) -> None:
    def interrupted(images: Any, prompts: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Component("slow", FunctionReward("slow", interrupted, {})).scored(as_image_list(pictures), PROMPTS)


@pytest.mark.parametrize("scorer", [build_reward("ocr"), CompositeReward([Component("ocr", build_reward("ocr"))])])
def test_plain_strings_as_prompts_are_answered_with_what_to_write(
    scorer: Reward | CompositeReward, pictures: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r'must be Prompt objects, got str at index 0; write Prompt\("an id", "the text"\)'):
        scorer(pictures, ["a sign", "a wall"])  # type: ignore[list-item]


def test_range_the_wrong_way_round_names_the_function_and_its_file() -> None:
    def upside_down(images: Any, prompts: Any) -> list[float]:
        return [0.0] * len(images)

    with pytest.raises(ValueError, match=r"got \(1, 0\) for upside_down at .*test_user_code\.py:\d+"):
        reward(range=(1, 0))(upside_down)
