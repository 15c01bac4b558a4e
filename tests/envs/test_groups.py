"""Batches cut and joined by whole groups: nothing of a rollout changes but its place."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from xomni_rl.envs.groups import chosen_groups, joined
from xomni_rl.envs.rollout import RolloutBatch, rollout
from xomni_rl.policies.policy import StackPolicy, TokenBatch
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeResult, CompositeReward, build_composite
from xomni_rl.stack.sampler import SamplingConfig
from xomni_rl.stack.stack import Stack

SIZE = (16, 32)
PLAIN, GUIDED = SamplingConfig(), SamplingConfig(cfg_scale=2.0)


def assert_equal(one: RolloutBatch, other: RolloutBatch) -> None:
    """Field by field, the rewards' fields too; NaN equals NaN."""
    for ours, theirs in ((one, other), (one.rewards, other.rewards)):
        for name in (entry.name for entry in fields(ours) if entry.name not in ("rewards", "times")):
            mine, its = getattr(ours, name), getattr(theirs, name)
            assert type(mine) is type(its), name
            if isinstance(mine, torch.Tensor):
                assert torch.equal(mine, its), name
            elif isinstance(mine, np.ndarray):
                np.testing.assert_array_equal(mine, its, err_msg=name)
            elif name == "metrics":
                assert mine.keys() == its.keys()
                assert all(np.array_equal(mine[key], its[key], equal_nan=True) for key in mine)
            else:
                assert mine == its, name


@pytest.fixture(params=[PLAIN, GUIDED], ids=["plain", "guided"])
def batch(request: pytest.FixtureRequest, stack: Stack, prompts: list[Prompt]) -> RolloutBatch:
    """Five prompts of different lengths, of which one fails, with two rollouts each, and greedy scores."""
    components = {"red": {"reward": "picture_rewards:failing_on_blue"}}
    reward = build_composite({"components": components, "on_failure": "drop"})
    made = rollout(stack, prompts, reward, group_size=2, seed=0, sampling=request.param, size=SIZE)
    return replace(made, greedy=np.arange(10, dtype=np.float32)[:, None])


def test_batch_cut_into_groups_and_joined_again_is_the_same(batch: RolloutBatch) -> None:
    pieces = [chosen_groups(batch, groups) for groups in ([0], [1, 2], [3, 4])]
    assert_equal(joined(pieces), batch)


def test_groups_taken_in_another_order_and_back_are_the_same(batch: RolloutBatch) -> None:
    # group 2 stands first, so in the other order it is group 0; group 0 stands third, and so on
    there, back = [2, 4, 0, 3, 1], [2, 4, 0, 3, 1]
    for place, group in enumerate(there):
        back[group] = place
    assert_equal(chosen_groups(chosen_groups(batch, there), back), batch)


def test_chosen_groups_keep_their_rows_and_are_counted_from_zero(batch: RolloutBatch) -> None:
    chosen = chosen_groups(batch, [3, 1])
    rows = [6, 7, 2, 3]  # groups of two: group 3 has rows 6, 7 and group 1 has rows 2, 3
    assert [prompt.id for prompt in chosen.prompts] == ["p3", "p3", "p1", "p1"]
    np.testing.assert_array_equal(chosen.group, [0, 0, 1, 1])
    assert torch.equal(chosen.tokens, batch.tokens[rows])
    assert torch.equal(chosen.input_ids, batch.input_ids[[3, 1]])
    np.testing.assert_array_equal(chosen.images, batch.images[rows])
    np.testing.assert_array_equal(chosen.rewards.components, batch.rewards.components[rows])
    assert batch.greedy is not None
    assert chosen.greedy is not None
    np.testing.assert_array_equal(chosen.greedy, batch.greedy[rows])


def test_failures_follow_their_rows(batch: RolloutBatch) -> None:
    # p1 and p4 ask for blue: rows 2, 3 and 8, 9
    assert sorted(batch.rewards.failures) == [2, 3, 8, 9]
    chosen = chosen_groups(batch, [4, 0, 1])  # rows 8, 9, 0, 1, 2, 3 stand at 0 … 5
    assert sorted(chosen.rewards.failures) == [0, 1, 4, 5]
    np.testing.assert_array_equal(chosen.rewards.failed, [True, True, False, False, True, True])
    both = joined([chosen_groups(batch, [0]), chosen])  # two rows more before them
    assert both.rewards.failures == dict.fromkeys((2, 3, 6, 7), "red: blue is beyond it")


def test_prompts_of_another_length_are_padded_left_and_score_the_same(batch: RolloutBatch, stack: Stack) -> None:
    policy = StackPolicy(stack, GUIDED if batch.negative_ids is not None else PLAIN)
    parts = []
    for group, prompt in enumerate(batch.prompts[::2]):  # drawn alone, a prompt is as long as it is
        ids, mask = stack.encode_prompts([prompt.text], SIZE)
        parts.append(replace(chosen_groups(batch, [group]), input_ids=ids, attention_mask=mask))
    lengths = [part.input_ids.shape[1] for part in parts]
    assert len(set(lengths)) > 1
    both = joined(parts)
    assert both.input_ids.shape == both.attention_mask.shape == (5, max(lengths))
    assert both.attention_mask.sum(dim=1).tolist() == lengths
    assert bool(both.attention_mask[:, -1].all())
    with torch.no_grad():
        whole, _ = policy.logprobs(TokenBatch.of(both))
        alone = torch.cat([policy.logprobs(TokenBatch.of(part))[0] for part in parts])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, batch.old_logprobs, atol=1e-4, rtol=0)


def test_metric_that_one_part_lacks_is_not_a_number_there(stack: Stack, prompts: list[Prompt], reward: CompositeReward) -> None:
    batch = rollout(stack, prompts[:2], reward, group_size=1, seed=0, size=SIZE)
    first, second = chosen_groups(batch, [0]), chosen_groups(batch, [1])
    bare: CompositeResult = replace(second.rewards, metrics={})
    values = joined([first, replace(second, rewards=bare)]).rewards.metrics["red_square"]
    assert values[0] == batch.rewards.metrics["red_square"][0]
    assert np.isnan(values[1])
    assert values.dtype == np.float32


def test_seconds_of_joined_parts_are_added(batch: RolloutBatch) -> None:
    one, two = (replace(batch, times={"sample": seconds}) for seconds in (1.0, 2.5))
    assert joined([one, two]).times == {"sample": 3.5}


def test_batches_that_do_not_fit_are_refused(stack: Stack, prompts: list[Prompt], reward: CompositeReward) -> None:
    one = rollout(stack, prompts[:1], reward, group_size=1, seed=0, size=SIZE)
    two = rollout(stack, prompts[1:2], reward, group_size=2, seed=0, size=SIZE)
    with pytest.raises(ValueError, match="one group size and reward"):
        joined([one, two])
    guided = rollout(stack, prompts[1:2], reward, group_size=1, seed=0, size=SIZE, sampling=GUIDED)
    with pytest.raises(ValueError, match="all or none must be guided, but 1 of 2 are"):
        joined([one, guided])
