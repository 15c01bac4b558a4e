"""Every YAML of the group `algorithm` says what the code says, and trains."""

import inspect
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from omegaconf import OmegaConf
from rich.console import Console

from xomni_rl.config import compose
from xomni_rl.experiments.algorithm_pages import built, measured
from xomni_rl.experiments.run import load_split
from xomni_rl.policies.algorithms.base import COMMON_OPTIONS, algorithms, build_algorithm, policy_gradient
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.policies.trainer import train
from xomni_rl.rewards.composite import build_composite
from xomni_rl.stack.stack import Stack

CONF = Path(__file__).parents[3] / "experiments" / "conf" / "algorithm"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml"))
ALONE = {"best_worst": "grpo", "pods": "grpo"}
"""Choices that are another algorithm with other options."""


@cache
def chosen(choice: str) -> dict[str, Any]:
    """`name` and `options` of a choice, composed."""
    found = OmegaConf.to_container(compose([f"algorithm={choice}"]).algorithm)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Keywords of a function with their defaults; mappings that are left out count as empty ones."""
    parameters = inspect.signature(function).parameters.values()
    found = {entry.name: entry.default for entry in parameters if entry.default is not entry.empty}
    return {name: {} if name == "filter_options" else value for name, value in found.items()}


def test_every_algorithm_has_a_choice_of_its_name_and_the_rest_are_known_variants() -> None:
    assert set(CHOICES) == {*algorithms.names(), *ALONE}
    assert {choice: chosen(choice)["name"] for choice in ALONE} == ALONE


@pytest.mark.parametrize("name", algorithms.names())
def test_options_of_a_yaml_are_the_defaults_of_the_code(name: str) -> None:
    factory = algorithms.get(name)
    expected = defaults(factory)
    if "common" in inspect.signature(factory).parameters:
        shared = {option: value for option, value in defaults(policy_gradient).items() if option in COMMON_OPTIONS}
        expected = shared | expected
    assert chosen(name) == {"name": name, "options": expected}


@pytest.mark.parametrize(("choice", "name"), ALONE.items())
def test_variant_differs_from_its_algorithm_in_its_filter_alone(choice: str, name: str) -> None:
    options, base = chosen(choice)["options"], chosen(name)["options"]
    assert options.keys() == base.keys()
    assert {key for key in base if options[key] != base[key]} <= {"filter", "filter_options", "compare_kept"}


def test_shared_options_of_the_yaml_are_those_of_the_code_in_its_order() -> None:
    shared = yaml.safe_load((CONF / "shared" / "common.yaml").read_text())["options"]
    assert list(shared) == list(COMMON_OPTIONS)
    assert shared == {option: defaults(policy_gradient)[option] for option in COMMON_OPTIONS}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_line_of_a_card_is_filled_and_names_its_choice(choice: str) -> None:
    head = [line for line in (CONF / f"{choice}.yaml").read_text().splitlines() if line.startswith("# ")]
    card = {key: value.strip() for key, colon, value in (line[2:].partition(":") for line in head) if colon}
    assert card.keys() >= {"Question", "When", "Run", "Expect", "Hardware", "Override"}
    assert card["Run"] == f"xomni-rl train algorithm={choice}"
    assert all(card.values())


# ablation by hand: best_worst keeps the two best and the two worst of six; pods the four most spread, compared with each other
SIX = np.array([[0.0], [0.1], [0.5], [0.6], [0.9], [1.0]], np.float32)


def test_best_worst_leaves_the_middle_out_but_compares_with_it() -> None:
    algorithm = build_algorithm(**chosen("best_worst"))
    arguments = SIX, np.ones(1, np.float32), np.zeros(6, int)
    assert algorithm.filter(*arguments).tolist() == [True, True, False, False, True, True]
    np.testing.assert_array_equal(algorithm.advantage(*arguments), build_algorithm("grpo").advantage(*arguments))


def test_pods_compares_the_most_spread_with_each_other() -> None:
    algorithm = build_algorithm(**chosen("pods"))
    arguments = SIX, np.ones(1, np.float32), np.zeros(6, int)
    assert algorithm.filter(*arguments).tolist() == [True, True, False, False, True, True]
    # of 0, 0.1, 0.9, 1: mean 0.5, squares 2·(0.25 + 0.16) = 0.82, over 3
    expected = np.array([-0.5, -0.4, np.nan, np.nan, 0.4, 0.5]) / (np.sqrt(0.82 / 3) + 1e-4)
    np.testing.assert_allclose(algorithm.advantage(*arguments), expected, atol=1e-6)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_trains(choice: str, stack: Stack, changed: Callable[..., dict[str, Any]]) -> None:
    AcceleratorState._reset_state()  # it is shared by a process, and tests differ in mixed precision
    small = {"trainer__steps": 1, "trainer__group_size": 5, "trainer__minibatches": 2, "trainer__evaluate_every": None}
    # a tiny stack's pictures have 0.49 to 0.52 of red: some pass, some do not
    options = chosen(choice)["options"] | ({"k": 2, "threshold": 0.51} if choice == "pass_at_k" else {})
    config = changed(algorithm=chosen(choice) | {"options": options}, trainer__checkpoint_every=None, **small)
    before = {name: value.clone() for name, value in stack.model.state_dict().items()}
    summary = train(
        config,
        policy=StackPolicy(stack, TrainerSettings.from_config(config).sampling),
        reward=build_composite(config["reward"]),
        train_prompts=load_split(config, "train", 0),
        console=Console(file=io.StringIO()),
    )
    assert (summary.status, summary.steps, summary.skipped_steps) == ("finished", 1, 0)
    [row] = [json.loads(line) for line in (summary.folder / "metrics.jsonl").read_text().splitlines()]
    assert set(measured(built(choice))) <= row.keys()
    assert np.isfinite(row["loss"])
    assert row["grad_norm"] > 0
    assert any(not value.equal(before[name]) for name, value in stack.model.state_dict().items())
