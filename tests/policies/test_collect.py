"""What a step trains on: prompts that teach in the place of dull ones, greedy images, what suits an algorithm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.policies.small_runs import rows, with_reward
from xomni_rl.experiments.run import build_parts
from xomni_rl.policies.algorithms.base import build_algorithm
from xomni_rl.policies.batches import prompts_of_step
from xomni_rl.policies.collect import Collector
from xomni_rl.policies.curriculum import PassRates
from xomni_rl.policies.policy import StackPolicy, TokenBatch
from xomni_rl.policies.settings import CurriculumSettings, SettingsError, TrainerSettings
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.stack.sampler import IncrementalSampler, SamplingConfig
from xomni_rl.stack.stack import Stack

Change = Callable[..., dict[str, Any]]
Rewards = Callable[..., CompositeReward]
SMALL_STEP = TrainerSettings(prompts_per_step=2, group_size=2, curriculum=CurriculumSettings())


@pytest.fixture
def collector(stack: Stack, prompts: list[Prompt]) -> Callable[..., Collector]:
    """collector(reward, "dapo", resample_rounds=1): two prompts a step, of six."""

    def make(reward: CompositeReward, name: str, settings: TrainerSettings = SMALL_STEP, **options: Any) -> Collector:
        return Collector(StackPolicy(stack), reward, prompts, settings, build_algorithm(name, options))

    return make


def ids(batch: Any) -> list[str]:
    return [prompt.id for prompt in batch.prompts[:: batch.group_size]]


def is_dull(prompt_id: str) -> bool:
    """Under the reward `dull_for_even`."""
    return int(prompt_id[-1]) % 2 == 0


def test_dull_groups_are_replaced_by_other_prompts_that_teach(
    collector: Callable[..., Collector], prompts: list[Prompt], cheap_reward: Rewards
) -> None:
    settings = replace(SMALL_STEP, curriculum=None)
    collect = collector(cheap_reward("dull_for_even"), "dapo", settings, resample_rounds=4).collect
    for step in (1, 2, 3):  # one pass over the prompts, so all of the dull ones come up
        first = [prompt.id for prompt in prompts_of_step(prompts, 2, step, seed=0)]
        batch, metrics, _ = collect(step, PassRates())
        found = ids(batch)
        # three of six prompts teach, and four rounds of at least one each see all of the others
        assert not any(is_dull(name) for name in found)
        assert len(set(found)) == 2
        assert all(was == now for was, now in zip(first, found, strict=True) if not is_dull(was))
        dull = sum(is_dull(name) for name in first)
        assert metrics["resampled_share"] == dull / 2
        assert (metrics["resample_rounds"] > 0) == (dull > 0)
        assert metrics["zero_variance_share"] == dull / 2  # figures are those of the step's own prompts


def test_resampling_is_decided_by_seed_and_step(collector: Callable[..., Collector], cheap_reward: Rewards) -> None:
    reward = cheap_reward("dull_for_even")
    one, other = (collector(reward, "dapo").collect(1, PassRates())[0] for _ in range(2))
    assert ids(one) == ids(other)
    assert torch.equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.images, other.images)


@pytest.mark.parametrize(("allowed", "made"), [(0, 0), (1, 1), (5, 2)])
def test_resampling_ends_with_its_rounds_or_the_prompts(
    collector: Callable[..., Collector], cheap_reward: Rewards, allowed: int, made: int
) -> None:
    collect = collector(cheap_reward("constant"), "dapo", resample_rounds=allowed).collect
    first = collector(cheap_reward("constant"), "grpo").collect(1, PassRates())[0]
    batch, metrics, seen = collect(1, PassRates())
    # six prompts, two a step and two a round: after two rounds there are none left
    assert metrics.get("resample_rounds", 0) == made
    assert metrics.get("resampled_share", 0) == 0
    assert ids(batch) == ids(first)
    # each was drawn once at most, and a curriculum remembers the ones that did not come into the batch
    assert [rate.count for rate in seen.rates.values()] == [1] * (2 + 2 * made)


def test_rollouts_of_replaced_groups_score_as_they_were_sampled(
    collector: Callable[..., Collector], cheap_reward: Rewards
) -> None:
    made = collector(cheap_reward("dull_for_even"), "dapo", replace(SMALL_STEP, sampling=SamplingConfig(cfg_scale=1.5)))
    made = replace(made, policy=StackPolicy(made.policy.stack, SamplingConfig(cfg_scale=1.5)))
    batch, metrics, _ = made.collect(1, PassRates())
    assert metrics["resampled_share"] > 0
    with torch.no_grad():
        logprobs, _ = made.policy.logprobs(TokenBatch.of(batch))
    torch.testing.assert_close(logprobs, batch.old_logprobs, atol=1e-4, rtol=0)


def test_scores_normalised_over_the_batch_are_so_after_replacing(
    collector: Callable[..., Collector], cheap_reward: Rewards
) -> None:
    reward = cheap_reward("dull_for_even", normalisation="batch")
    batch, metrics, _ = collector(reward, "dapo").collect(1, PassRates())
    assert metrics["resampled_share"] > 0
    raw = batch.rewards.components[:, 0].astype(np.float64)
    np.testing.assert_allclose(batch.rewards.normalised[:, 0], (raw - raw.mean()) / (raw.std(ddof=1) + 1e-4), atol=1e-4)


def test_greedy_image_is_that_of_the_likeliest_tokens(
    collector: Callable[..., Collector], stack: Stack, prompts: list[Prompt], cheap_reward: Rewards
) -> None:
    hot = replace(SMALL_STEP, sampling=SamplingConfig(temperature=3.0))
    batch, _, _ = collector(cheap_reward(), "remax", hot).collect(1, PassRates())
    chosen = batch.prompts[::2]
    greedy = StackPolicy(stack).rollout(chosen, cheap_reward(), group_size=1, seed=99, sampling=SamplingConfig(top_k=1))
    assert batch.greedy is not None
    np.testing.assert_array_equal(batch.greedy, greedy.rewards.components.repeat(2, axis=0))
    sampler = IncrementalSampler(stack.model, batch.input_ids, batch.attention_mask, greedy.tokens.shape[1])
    for tokens in greedy.tokens.T:
        assert torch.equal(tokens, sampler.logprobs().argmax(dim=-1))
        sampler.append(tokens)


def test_advantage_against_the_greedy_image_is_the_difference_of_rewards(
    run, stack: Stack, changed: Change, cheap_reward: Rewards
) -> None:
    config = changed(algorithm={"name": "remax", "options": {}}, trainer__steps=1, trainer__evaluate_every=None)
    prompts = prompts_of_step(build_parts(config)["train_prompts"], 2, step=1, seed=0)
    greedy = StackPolicy(stack).rollout(prompts, cheap_reward(), group_size=1, seed=5, sampling=SamplingConfig(top_k=1))
    run(config)
    table = pq.read_table(Path(config["run"]) / "rollouts/step_000001.parquet").to_pylist()
    assert [row["prompt_id"] for row in table[::2]] == [prompt.id for prompt in prompts]
    baseline = greedy.rewards.components[:, 0].repeat(2)
    expected = [row["reward_red"] - base for row, base in zip(table, baseline, strict=True)]
    assert [row["advantage"] for row in table] == pytest.approx(expected, abs=1e-6)


def test_table_and_update_are_of_the_batch_after_replacing(run, changed: Change) -> None:
    config = changed(
        algorithm={"name": "dapo", "options": {"resample_rounds": 4}}, trainer__steps=1, trainer__evaluate_every=None
    )
    run(with_reward(config, "dull_for_even"))
    (row,) = rows(config)
    table = pq.read_table(Path(config["run"]) / "rollouts/step_000001.parquet").to_pylist()
    assert row["resampled_share"] > 0
    assert row["skipped"] == 0
    assert len(table) == 4
    assert not any(is_dull(line["prompt_id"]) for line in table)
    assert all(abs(line["advantage"]) > 0 for line in table)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainer__group_size": 1}, "algorithm grpo compares at least 2 images of a prompt, but trainer.group_size is 1"),
        (
            {"trainer__group_size": 1, "algorithm": {"name": "batch", "options": {"resample_rounds": 1}}},
            "algorithm batch compares at least 2 images of a prompt, but trainer.group_size is 1",
        ),
        (
            {"algorithm": {"name": "remax", "options": {}}, "reward__normalisation": "group"},
            "remax compares rewards with those of greedy images, which a normalised reward does not allow",
        ),
    ],
)
def test_what_does_not_suit_the_algorithm_is_one_sentence_before_anything_is_loaded(
    changed: Change, values: dict[str, Any], message: str
) -> None:
    config = changed(model={"path": "not_there"}, **values)  # loading would say that there is no such stack
    with pytest.raises(SettingsError, match=message):
        build_parts(config)
    assert not Path(config["run"]).exists()


@pytest.mark.parametrize("name", ["ppo", "remax", "batch"])
def test_one_image_a_prompt_trains(run, stack: Stack, changed: Change, name: str) -> None:
    before = {key: value.clone() for key, value in stack.model.state_dict().items()}
    config = changed(
        algorithm={"name": name, "options": {}}, trainer__group_size=1, trainer__steps=1, trainer__evaluate_every=None
    )
    run(config)
    (row,) = rows(config)
    assert row["skipped"] == 0
    assert row["grad_norm"] > 0
    assert "zero_variance_share" not in row  # a group of one has nothing to vary
    assert any(not torch.equal(value, before[key]) for key, value in stack.model.state_dict().items())


@pytest.mark.parametrize("name", ["ppo", "remax", "dapo", "dpo"])
def test_step_whose_samples_were_all_dropped_is_skipped_and_the_run_goes_on(
    run, stack: Stack, changed: Change, name: str
) -> None:
    before = {key: value.clone() for key, value in stack.model.state_dict().items()}
    config = changed(algorithm={"name": name, "options": {}}, trainer__steps=2, trainer__evaluate_every=None)
    summary = run(with_reward(config, "failing", on_failure="drop"))
    assert (summary.status, summary.steps, summary.skipped_steps) == ("finished", 2, 2)
    assert [row["skipped"] for row in rows(config)] == [1.0, 1.0]
    assert all("loss" not in row and row["failed_share"] == 1.0 for row in rows(config))
    assert all(torch.equal(value, before[key]) for key, value in stack.model.state_dict().items())


def test_reward_that_turns_constant_raises_the_alarm_and_moves_nothing(run, stack: Stack, changed: Change) -> None:
    config = changed(trainer__steps=3, trainer__evaluate_every=None, trainer__keep_checkpoints=9)
    red = config["reward"]["components"]["red"]["reward"]
    fading = {"reward": red, "schedule": {1: 1.0, 2: 0.0}}  # all of it in step 1, nothing of it from step 2 on
    flat = {"reward": red.replace("redness", "constant")}
    summary = run(config | {"reward": {"components": {"red": fading, "flat": flat}}})
    assert [row["skipped"] for row in rows(config)] == [0.0, 1.0, 1.0]
    assert summary.skipped_steps == 2
    assert summary.alarms == {"zero_variance": 2, "constant_reward": 2}
    weights = [
        (Path(config["run"]) / f"checkpoints/step_{step:06d}/model/model.safetensors").read_bytes() for step in (1, 2, 3)
    ]
    assert weights[0] == weights[1] == weights[2]
