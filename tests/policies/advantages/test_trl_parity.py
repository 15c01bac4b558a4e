"""Advantages against TRL's own statements, cut out of its GRPOTrainer and run on random rewards."""

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xomni_rl.policies.advantages import gdpo_advantages, group_advantages

torch = pytest.importorskip("torch")
found = importlib.util.find_spec("trl")
if found is None or found.origin is None:
    pytest.skip("TRL is not installed", allow_module_level=True)
TRAINER = Path(found.origin).parent / "trainer"
NAN = np.nan


def compiled_advantages() -> Any:
    """TRL's statements from the unscorable mask to the final advantages, and its nanstd, as one code object.

    They stand in the middle of a method that also generates, so they are cut out rather than called.
    """
    utils = ast.parse((TRAINER / "utils.py").read_text())
    nanstd = next(node for node in utils.body if isinstance(node, ast.FunctionDef) and node.name == "nanstd")
    trainer = ast.parse((TRAINER / "grpo_trainer.py").read_text())
    method = next(
        node
        for node in ast.walk(trainer)
        if isinstance(node, ast.FunctionDef) and node.name == "_generate_and_score_completions"
    )
    sources = [ast.unparse(statement) for statement in method.body]
    first = next(i for i, source in enumerate(sources) if source.startswith("unscorable_mask ="))
    last = next(i for i, source in enumerate(sources) if source.startswith("advantages = torch.nan_to_num("))
    statements: list[ast.stmt] = [nanstd, *method.body[first : last + 1]]
    return compile(ast.Module(statements, type_ignores=[]), str(TRAINER / "grpo_trainer.py"), "exec")


CODE = compiled_advantages()


def trl_advantages(rewards: np.ndarray, weights: np.ndarray, group_size: int, aggregation: str, scale: str) -> np.ndarray:
    """What TRL makes of rewards [N, K], whose groups are neighbours; 0 where a rollout has no reward.

    In float64: in float32 the mean of equal rewards is off by rounding, which TRL then divides by 1e-4; here that is exactly 0.
    """
    trainer = SimpleNamespace(
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        reward_weights=torch.tensor(weights, dtype=torch.float64),
        reward_funcs=[None] * rewards.shape[1],
    )
    names = {
        "torch": torch,
        "self": trainer,
        "device": "cpu",
        "num_generations": group_size,
        "rewards_per_func": torch.tensor(rewards, dtype=torch.float64),
    }
    exec(CODE, names)
    return names["advantages"].numpy()


def cases(components: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Random rewards [N, K], groups [N] and group size: some groups equal, some rollouts without any reward."""
    made = []
    for seed in range(16):
        draw = np.random.default_rng(seed)
        groups, size = int(draw.integers(1, 6)), int(draw.integers(2, 9))
        rewards = draw.normal(size=(groups * size, components)).astype(np.float32)
        if seed % 2:
            rewards[:size] = rewards[0]
        if seed % 3 == 2:
            rewards[draw.random(groups * size) < 0.2] = NAN
        made.append((rewards, np.repeat(draw.permutation(groups), size), size))
    return made


@pytest.mark.parametrize(("ours", "theirs"), [("std", "group"), ("batch", "batch"), ("none", "none")])
def test_group_advantages_are_those_of_trl(ours, theirs):
    weights = np.array([0.25, 0.75])  # summing to 1, as TRL adds where we average
    for rewards, group, size in cases(2):
        got = group_advantages(rewards, weights, group, scale=ours)
        expected = trl_advantages(rewards, weights, size, "sum_then_normalize", theirs)
        np.testing.assert_allclose(np.nan_to_num(got), expected, atol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, -0.5, 0.25), (1.0, 0.0, -3.0)])
def test_gdpo_advantages_are_those_of_trl(weights):
    for rewards, group, size in cases(3):
        got = gdpo_advantages(rewards, np.array(weights), group)
        expected = trl_advantages(rewards, np.array(weights), size, "normalize_then_sum", "group")
        np.testing.assert_allclose(np.nan_to_num(got), expected, atol=1e-6)


def test_gdpo_leaves_out_single_components_as_trl_does():
    for seed, (rewards, group, size) in enumerate(cases(3)):
        rewards[np.random.default_rng(100 + seed).random(rewards.shape) < 0.3] = NAN
        got = gdpo_advantages(rewards, np.array([1.0, 0.5, -2.0]), group)
        expected = trl_advantages(rewards, np.array([1.0, 0.5, -2.0]), size, "normalize_then_sum", "group")
        np.testing.assert_allclose(np.nan_to_num(got), expected, atol=1e-6)
