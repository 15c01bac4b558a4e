"""Held-out evaluation: paired, batched, and without a trace in the training's random states."""

import random

import numpy as np
import pytest
import torch

from xomni_rl.policies.evaluation import evaluate, mean
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.settings import EvaluationSettings
from xomni_rl.stack.stack import Stack


def test_same_weights_give_the_same_figures_and_rows(stack: Stack, prompts, cheap_reward) -> None:
    policy, reward = StackPolicy(stack), cheap_reward("noisy_redness")
    first, second = evaluate(policy, prompts, reward), evaluate(policy, prompts, reward)
    assert first.figures == second.figures
    assert first.table.equals(second.table)


def test_figures_are_means_over_the_table(stack: Stack, prompts, cheap_reward) -> None:
    found = evaluate(StackPolicy(stack), prompts, cheap_reward())
    assert found.figures.keys() == {"red", "red_square"}
    assert found.figures["red"] == pytest.approx(np.mean(found.table["reward_red"].to_numpy()), abs=1e-7)
    assert found.figures["red_square"] == pytest.approx(np.mean(found.table["metric_red_square"].to_numpy()), abs=1e-7)
    assert found.score == found.figures["red"]


def test_batch_size_changes_no_token(stack: Stack, prompts, cheap_reward) -> None:
    tables = [
        evaluate(StackPolicy(stack), prompts, cheap_reward(), EvaluationSettings(batch_size=size)).table for size in (64, 4)
    ]
    assert tables[0]["tokens"].to_pylist() == tables[1]["tokens"].to_pylist()
    assert tables[1]["prompt_id"].to_pylist() == [prompt.id for prompt in prompts]
    assert tables[1]["group"].to_pylist() == list(range(6))


def test_only_the_first_prompts_keep_their_image(stack: Stack, prompts, cheap_reward) -> None:
    settings = EvaluationSettings(batch_size=2, grid_prompts=3)
    images = evaluate(StackPolicy(stack), prompts, cheap_reward(), settings).table["image"].to_pylist()
    assert [image is not None for image in images] == [True, True, True, False, False, False]


def test_global_random_states_are_as_before(stack: Stack, prompts, cheap_reward) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    evaluate(StackPolicy(stack), prompts, cheap_reward("noisy_redness"))
    assert draw() == expected


def test_reward_that_applies_to_nothing_gives_no_figure(stack: Stack, prompts, cheap_reward) -> None:
    found = evaluate(StackPolicy(stack), prompts, cheap_reward("not_applicable"))
    assert found.figures == {}
    assert np.isnan(found.score)


def test_no_prompts_is_an_error(stack: Stack, cheap_reward) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        evaluate(StackPolicy(stack), [], cheap_reward())


def test_mean_leaves_out_what_does_not_apply() -> None:
    assert mean(np.array([1.0, np.nan, 0.0, 0.5], np.float32)) == 0.5
