"""What the trainer's tests share: tiny pictures, cheap rewards, a configuration of three steps."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from rich.console import Console
from torch import Tensor

from xomni_rl.envs.rollout import RolloutBatch, rollout
from xomni_rl.experiments.run import load_split
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.policies.trainer import TrainSummary, train
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.stack.stack import Stack

REWARDS = Path(__file__).parent / "cheap_rewards.py"
SMALL = (16, 32)  # px; 2 × 4 = 8 tokens


def build_cheap_reward(function: str = "redness", **config: Any) -> CompositeReward:
    return build_composite({"components": {"red": {"reward": f"{REWARDS}:{function}"}}, **config})


@pytest.fixture(scope="session")
def one_stack() -> tuple[Stack, dict[str, Tensor]]:
    """A stack and its weights as they were."""
    stack = Stack.tiny_random(seed=0)
    return stack, {name: value.clone() for name, value in stack.model.state_dict().items()}


@pytest.fixture
def stack(one_stack: tuple[Stack, dict[str, Tensor]]) -> Stack:
    """The same for every test, with its weights put back: training changes them."""
    stack, weights = one_stack
    stack.model.load_state_dict(weights)
    return stack


@pytest.fixture
def run(stack: Stack) -> Callable[..., TrainSummary]:
    """run(config): trains the tiny stack from its starting weights; console output goes to `console` if given."""
    weights = {name: value.clone() for name, value in stack.model.state_dict().items()}

    def start(config: dict[str, Any], policy: StackPolicy | None = None, console: Console | None = None) -> TrainSummary:
        stack.model.load_state_dict(weights)
        AcceleratorState._reset_state()  # it is shared by a process, and tests differ in mixed precision
        return train(
            config,
            policy=policy or StackPolicy(stack, TrainerSettings.from_config(config).sampling),
            reward=build_composite(config["reward"]),
            train_prompts=load_split(config, "train", 0),
            heldout_prompts=load_split(config, "heldout", 0),
            console=console or Console(file=io.StringIO()),
        )

    return start


@pytest.fixture
def cheap_reward() -> Callable[..., CompositeReward]:
    return build_cheap_reward


@pytest.fixture
def prompts() -> list[Prompt]:
    return [Prompt(id=f"p{i}", text=f'a red sign that says "{i}"', size=SMALL) for i in range(6)]


@pytest.fixture
def batch(stack: Stack, prompts: list[Prompt]) -> RolloutBatch:
    """Three prompts with two rollouts each."""
    return rollout(stack, prompts[:3], build_cheap_reward(), group_size=2, seed=0)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Two prompts, groups of two, three steps, 8 tokens an image; all of it as a person would write it."""
    for split, count in (("train", 6), ("heldout", 3)):
        lines = [{"id": f"{split}{i}", "text": f'a {split} sign, "{i}"', "size": SMALL} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "run": str(tmp_path / "run"),
        "resume": None,
        "seed": 0,
        "model": {"path": "tiny_random"},
        "reward": {"components": {"red": {"reward": f"{REWARDS}:redness"}}},
        "algorithm": {"name": "grpo", "options": {}},
        "prompts": {
            "set": "file",
            "options": {"path": str(tmp_path / "train.jsonl"), "heldout_path": str(tmp_path / "heldout.jsonl")},
            "train_count": 6,
            "heldout_count": 3,
        },
        "trainer": {
            "steps": 3,
            "prompts_per_step": 2,
            "group_size": 2,
            "learning_rate": 3e-4,
            "warmup_steps": 2,
            "decay_steps": None,
            "evaluate_every": 2,
            "checkpoint_every": 1,
            "trackers": [],
            "evaluation": {"grid_prompts": 2},
        },
    }


@pytest.fixture
def changed(config: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """changed(trainer__steps=5, seed=1): a copy of the configuration with those keys set."""

    def change(**values: Any) -> dict[str, Any]:
        made = copy.deepcopy(config)
        for name, value in values.items():
            *groups, key = name.split("__")
            target = made
            for group in groups:
                target = target[group]
            target[key] = value
        return made

    return change
