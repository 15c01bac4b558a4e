"""stable-baselines3's PPO runs on the environment unchanged."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from xomni_rl.experiments.sb3_ppo import train
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import build_composite
from xomni_rl.stack.stack import Stack

pytest.importorskip("stable_baselines3", reason="the extra sb3 is not installed")


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """Real OCR on the pictures of a tiny random stack, 2 × 4 tokens each."""
    return {
        "stack": Stack.tiny_random(seed=0),
        "prompts": [Prompt(id="a", text='a red sign that says "A"'), Prompt(id="b", text='"B" on blue')],
        "reward": build_composite({"components": {"ocr": {"reward": "ocr", "weight": 1.0, "options": {"layout": "line"}}}}),
        "size": (16, 32),
        "reward_at": (4,),
    }


def test_environment_passes_the_checker_of_stable_baselines3(options: dict[str, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env

    check_env(gymnasium.make("xomni_rl/TextToImage-v0", **options).unwrapped)


def test_ppo_trains_for_a_few_hundred_steps(options: dict[str, Any]) -> None:
    summary = train(steps=256, seed=0, **options)
    assert summary.steps == 256
    assert summary.episodes == 32  # 256 tokens, 8 per image
    assert 0.0 <= summary.mean_return <= 1.0
    assert np.isfinite(summary.first_mean_return)


def test_fewer_steps_than_a_rollout_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 128"):
        train(steps=10, **options)
