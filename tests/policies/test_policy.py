"""The stack's model as a policy: scoring tokens again gives what the sampler gave."""

from typing import Any

import numpy as np
import pytest
import torch

from xomni_rl.envs.rollout import RolloutBatch, rollout
from xomni_rl.policies.policy import StackPolicy, TokenBatch, TokenScorer
from xomni_rl.stack.sampler import SamplingConfig
from xomni_rl.stack.stack import Stack

PLAIN = SamplingConfig()
SHAPED = SamplingConfig(temperature=0.8, top_k=200, top_p=0.95, min_p=0.001)
GUIDED = SamplingConfig(cfg_scale=2.0)


@pytest.mark.parametrize("sampling", [PLAIN, SHAPED, GUIDED], ids=["plain", "truncated", "guided"])
def test_recomputed_logprobs_equal_the_samplers(stack: Stack, prompts, cheap_reward, sampling: SamplingConfig) -> None:
    policy = StackPolicy(stack, sampling)
    batch = policy.rollout(prompts[:3], cheap_reward(), group_size=2, seed=0)
    logprobs, entropy = policy.logprobs(TokenBatch.of(batch), with_entropy=True)
    assert logprobs.requires_grad
    torch.testing.assert_close(logprobs.detach(), batch.old_logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(entropy.detach(), batch.entropy, atol=1e-4, rtol=0)


def test_some_groups_scored_alone_equal_their_rows_of_the_whole(stack: Stack, batch: RolloutBatch) -> None:
    policy, tokens = StackPolicy(stack), TokenBatch.of(batch)
    with torch.no_grad():
        whole = policy.logprobs(tokens)[0]
        some = policy.logprobs(tokens.groups([2, 0]))[0]
    # groups of two: group 2 has rows 4, 5 and group 0 has rows 0, 1
    torch.testing.assert_close(some, whole[[4, 5, 0, 1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling", [PLAIN, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"rows_at_a_time": 1},
        {"rows_at_a_time": 3},  # more than a group of two has
        {"gradient_checkpointing": True, "rows_at_a_time": 1},
    ],
    ids=["layers", "rows", "groups", "both"],
)
def test_what_is_computed_again_gives_the_same_gradient(
    stack: Stack, prompts, cheap_reward, options: dict[str, Any], sampling: SamplingConfig
) -> None:
    batch = StackPolicy(stack, sampling).rollout(prompts[:3], cheap_reward(), group_size=2, seed=0)
    gradients = []
    for again in ({}, options):
        policy = StackPolicy(stack, sampling, **again)
        stack.model.zero_grad()
        logprobs = policy.logprobs(TokenBatch.of(batch))[0]
        torch.testing.assert_close(logprobs.detach(), batch.old_logprobs, atol=1e-4, rtol=0)
        logprobs.mean().backward()
        gradients.append({name: p.grad for name, p in stack.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_layers_keep_their_inputs_alone_where_they_are_computed_again(stack: Stack, batch: RolloutBatch) -> None:
    kept = []
    for checkpointing in (False, True):
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            StackPolicy(stack, gradient_checkpointing=checkpointing).logprobs(TokenBatch.of(batch))
        kept.append(sum(sizes))
    # what is left: the head's and the norms' share, and the masks of the layers that text passes by
    assert kept[1] < kept[0] / 3


def test_offloaded_reference_goes_to_the_model_and_back_and_says_the_same(
    stack: Stack, batch: RolloutBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = TokenBatch.of(batch)
    moves: list[str] = []
    move = TokenScorer.to
    monkeypatch.setattr(TokenScorer, "to", lambda scorer, where: (moves.append(str(where)), move(scorer, where))[1])
    there, offloaded = StackPolicy(stack), StackPolicy(stack, reference_offload=True)
    for policy in (there, offloaded):
        policy.keep_reference()
        policy.move_reference(0.5)
    assert moves == ["cpu"]  # the offloaded one leaves as soon as it is kept
    expected = there.reference_logprobs(tokens)
    moves.clear()
    assert torch.equal(offloaded.reference_logprobs(tokens), expected)
    assert moves == [str(stack.device), "cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_offloaded_reference_visits_the_gpu_and_leaves_it(prompts, cheap_reward) -> None:
    stack = Stack.tiny_random(seed=0).to("cuda")
    policy = StackPolicy(stack, reference_offload=True)
    batch = policy.rollout(prompts[:2], cheap_reward(), group_size=2, seed=0)
    policy.keep_reference()
    assert policy.reference_logprobs(TokenBatch.of(batch)).device.type == "cuda"
    assert {tensor.device.type for tensor in policy.reference_tensors().values()} == {"cpu"}


def test_reference_stays_when_the_policy_moves(stack: Stack, batch: RolloutBatch) -> None:
    policy, tokens = StackPolicy(stack), TokenBatch.of(batch)
    policy.keep_reference()
    with torch.no_grad():
        for parameter in stack.model.parameters():
            parameter.mul_(1.1)
        moved = policy.logprobs(tokens)[0]
    torch.testing.assert_close(policy.reference_logprobs(tokens), batch.old_logprobs, atol=1e-4, rtol=0)
    assert (moved - batch.old_logprobs).abs().max() > 1e-2


def test_reference_asked_for_without_a_copy_is_an_error(stack: Stack, batch: RolloutBatch) -> None:
    with pytest.raises(RuntimeError, match="keep_reference"):
        StackPolicy(stack).reference_logprobs(TokenBatch.of(batch))


def test_token_batch_of_wrong_shape_is_refused(batch: RolloutBatch) -> None:
    with pytest.raises(ValueError, match=r"tokens must be \[3 prompts · 2, T\], not \[5, 8\]"):
        TokenBatch(batch.input_ids, batch.attention_mask, None, None, batch.tokens[:5], 2)


def test_policys_rollout_is_the_environments(stack: Stack, prompts, cheap_reward) -> None:
    mine = StackPolicy(stack).rollout(prompts[:2], cheap_reward(), group_size=2, seed=3)
    theirs = rollout(stack, prompts[:2], cheap_reward(), group_size=2, seed=3)
    assert torch.equal(mine.tokens, theirs.tokens)
    np.testing.assert_array_equal(mine.images, theirs.images)
