"""What the environment's tests share: a tiny random stack, five prompts, a cheap reward."""

import sys
from pathlib import Path
from typing import Any

import pytest

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.stack.stack import Stack

sys.path.insert(0, str(Path(__file__).parent))  # so that `picture_rewards:redness` is found by its name

SMALL = (16, 32)  # px; 2 × 4 = 8 tokens


@pytest.fixture(scope="session")
def stack() -> Stack:
    return Stack.tiny_random(seed=0)


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    texts = ('a red sign that says "A"', 'a blue sign that says "LONGER TEXT"', "a red sign", '"Z" on green', "blue")
    return [Prompt(id=f"p{i}", text=text) for i, text in enumerate(texts)]


def composite(function: str, **config: Any) -> CompositeReward:
    return build_composite({"components": {"red": {"reward": f"picture_rewards:{function}", "weight": 1.0}}, **config})


@pytest.fixture(scope="session")
def reward() -> CompositeReward:
    return composite("redness")


@pytest.fixture
def options(stack: Stack, prompts: list[Prompt], reward: CompositeReward) -> dict[str, Any]:
    """Keyword arguments of a small, quick environment: 8 tokens an episode."""
    return {"stack": stack, "prompts": prompts, "reward": reward, "size": SMALL}
