"""A user's own reward, in three ways: a file of their folder, `module:object`, and an installed package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardResult, build_reward, reward, rewards
from xomni_rl.rewards.composite import build_composite

PACKAGE = Path(__file__).parent / "plugin_package"
BRIGHTNESS = '''
import numpy as np

from xomni_rl.rewards.base import reward


@reward(range=(0, 1), needs=("text",), version="3")
def brightness(images, prompts, scale=1.0):
    """Mean brightness."""
    return [min(1.0, scale * image.mean() / 255) for image in images]


@reward(range=(0, 5), higher_is_better=False)
def too_bright(images, prompts):
    """Lower is better."""
    return [5 * image.mean() / 255 for image in images]
'''
GREY = np.full((2, 8, 8, 3), 51, np.uint8)
PROMPTS = [Prompt("a", "a"), Prompt("b", "b")]


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    """Standard output of a command of this interpreter that must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A researcher's working directory with `bright_of_a_user.py` in it."""
    (tmp_path / "bright_of_a_user.py").write_text(BRIGHTNESS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "bright_of_a_user", raising=False)
    return tmp_path


@pytest.mark.parametrize("place", ["bright_of_a_user", "bright_of_a_user.py", "./bright_of_a_user.py"])
def test_decorated_function_of_the_working_directory_is_a_reward(place: str, folder: Path) -> None:
    made = build_reward(f"{place}:brightness", scale=2.0)
    assert (made.range, made.needs, made.version) == ((0, 1), ("text",), "3")
    np.testing.assert_allclose(made(GREY, PROMPTS).scores, [0.4, 0.4])  # 2 · 51 / 255


def test_direction_and_range_of_a_decorated_function_reach_the_composite(folder: Path) -> None:
    composite = build_composite({"components": {"glare": {"reward": "bright_of_a_user:too_bright", "cap": 2.0}}})
    result = composite(GREY, PROMPTS)
    np.testing.assert_allclose(result.components[:, 0], [1, 1])  # 5 · 51 / 255
    np.testing.assert_allclose(result.scores, [-2, -2])


def test_decorator_with_a_name_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards.names()
    monkeypatch.setattr(rewards, "_entries", dict(rewards._entries))

    @reward("zeros_of_a_test", range=(0, 1))
    def zeros(images: Any, prompts: Any) -> RewardResult:
        return RewardResult(np.zeros(len(images)), [{} for _ in images])

    assert "zeros_of_a_test" in rewards.names()
    assert build_reward("zeros_of_a_test")(GREY, PROMPTS).scores.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"needs": ("txts",)}, 'unknown field of a prompt "txts"; nearest: texts'),
        ({"name": lambda images, prompts: [0.0]}, "with parentheses"),
    ],
)
def test_wrong_declaration_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward(**arguments)


def test_command_line_composes_a_reward_of_the_working_directory(folder: Path) -> None:
    shown = run(["-m", "xomni_rl", "train", "reward=bright_of_a_user:brightness", "--cfg", "job"], folder)
    assert re.search(r"brightness:\s+reward: bright_of_a_user:brightness\s+weight: 1.0\s+options: {}", shown)


@pytest.mark.slow
def test_sweep_trains_with_a_file_of_the_group_and_with_a_reward_of_the_working_directory(folder: Path) -> None:
    few = ["trainer.steps=1", "trainer.prompts_per_step=2", "trainer.group_size=2", "trainer.trackers=[]"]
    few += ["trainer.evaluate_every=null", "trainer.checkpoint_every=null", "prompts.heldout_count=0"]
    run(["-m", "xomni_rl", "train", "-m", "reward=ocr,bright_of_a_user:brightness", "run=sweep", *few], folder)
    found = []
    for metrics in sorted((folder / "sweep").glob("*/metrics.jsonl")):
        row = json.loads(metrics.read_text().splitlines()[-1])
        found.append([name for name in row if name in ("reward/ocr", "reward/brightness")])
    assert found == [["reward/ocr"], ["reward/brightness"]]


@pytest.mark.slow
def test_installed_package_offers_its_reward_by_name(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE, source)  # building leaves traces
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run(["-m", "pip", "install", "--quiet", *offline, "--target", str(target), str(source)], tmp_path)
    script = (
        "import json, numpy as np\n"
        "from xomni_rl.config import reward_config\n"
        "from xomni_rl.prompts import Prompt\n"
        "from xomni_rl.rewards.base import build_reward, rewards\n"
        "from xomni_rl.rewards.composite import build_composite\n"
        "made = build_composite(reward_config('darkness', ['+reward.components.darkness.options.power=2']))\n"
        "scores = made(np.full((1, 8, 8, 3), 51, np.uint8), [Prompt('a', 'a')]).scores\n"
        "reward = build_reward('darkness')\n"
        "good, worthless, prompt = reward.self_check()\n"
        "pair = reward([good, worthless], [prompt, prompt]).scores\n"
        "line = [line for line in rewards.describe() if line[0] == 'darkness'][0]\n"
        "print(json.dumps([float(scores[0]), pair.tolist(), reward.version, line]))\n"
    )
    answer = run(["-c", script], tmp_path, PYTHONPATH=str(target))
    score, pair, version, (name, file, summary) = json.loads(answer.splitlines()[-1])
    assert score == pytest.approx(0.64)  # (1 − 51/255)²
    assert (pair, version) == ([1.0, 0.0], "2")
    assert (name, summary) == ("darkness", "(1 − mean value) ** power, in [0, 1].")
    assert Path(file).parent == target
    listed = run(["-m", "xomni_rl", "list", "rewards"], tmp_path, PYTHONPATH=str(target), COLUMNS="200")
    assert "darkness" in listed
