"""The whole-sequence rollout: equal to stepping, independent of the batch, laid out group-major."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from picture_rewards import same_pictures

from xomni_rl.envs.rollout import rollout, stream_indices
from xomni_rl.envs.text_to_image import TextToImageEnv
from xomni_rl.envs.vector import TextToImageVectorEnv
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import FunctionReward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.stack.sampler import SamplingConfig, draw_tokens, sample_uniforms
from xomni_rl.stack.stack import Stack

SIZE, T = (16, 32), 8
SAMPLINGS = {
    "plain": SamplingConfig(),
    "truncated": SamplingConfig(temperature=0.8, top_k=100, top_p=0.95, min_p=0.02),
    "guided": SamplingConfig(cfg_scale=2.0),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_stepping_one_environment_equals_the_rollout(
    stack: Stack, prompts: list[Prompt], reward: CompositeReward, sampling: SamplingConfig
) -> None:
    batch = rollout(stack, prompts[:2], reward, group_size=2, seed=7, sampling=sampling, size=SIZE)
    env = TextToImageEnv(stack=stack, prompts=prompts, reward=reward, size=SIZE, sampling=sampling)
    for row, (prompt, index) in enumerate(zip(batch.prompts, [0, 1, 0, 1], strict=True)):
        uniforms = sample_uniforms(7, [prompt.id], [index], T)
        env.reset(options={"prompt": prompt})
        for t in range(T):
            logprobs = env.policy_logprobs()
            token = int(draw_tokens(torch.from_numpy(logprobs)[None], uniforms[:, t])[0])
            assert token == int(batch.tokens[row, t])
            assert logprobs[token] == pytest.approx(float(batch.old_logprobs[row, t]), abs=1e-4)
            _, score, terminated, _, info = env.step(token)
        assert terminated
        assert score == pytest.approx(float(batch.rewards.scores[row]), abs=1e-4)
        assert same_pictures(info["image"], batch.images[row])


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_rollout_with_a_compiled_step_is_the_same_batch(
    stack: Stack,
    prompts: list[Prompt],
    reward: CompositeReward,
    sampling: SamplingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sized = [replace(prompt, size=size) for prompt, size in zip(prompts[:3], [SIZE, (8, 48), SIZE], strict=True)]
    asked = {"group_size": 2, "seed": 5, "sampling": sampling}
    expected = rollout(stack, sized, reward, **asked)
    monkeypatch.setattr(stack.model, "sampling_backend", "eager")
    found = rollout(stack, sized, reward, **asked)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.old_logprobs, expected.old_logprobs, atol=5e-5, rtol=0)
    assert (found.rewards.scores == expected.rewards.scores).all()


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_stepping_the_batched_environment_equals_the_rollout(
    stack: Stack, prompts: list[Prompt], reward: CompositeReward, sampling: SamplingConfig
) -> None:
    group_size = 2
    batch = rollout(stack, prompts, reward, group_size=group_size, seed=3, sampling=sampling, size=SIZE)
    rows = len(batch.prompts)
    env = TextToImageVectorEnv(rows, stack=stack, prompts=prompts, reward=reward, size=SIZE, sampling=sampling)
    env.reset(options={"prompts": batch.prompts})
    uniforms = sample_uniforms(3, [p.id for p in batch.prompts], list(range(group_size)) * len(prompts), T)
    for t in range(T):
        logprobs = torch.from_numpy(env.policy_logprobs())
        tokens = draw_tokens(logprobs, uniforms[:, t])
        torch.testing.assert_close(tokens, batch.tokens[:, t])
        chosen = logprobs.gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(chosen, batch.old_logprobs[:, t], atol=1e-4, rtol=0)
        _, rewards, terminated, _, infos = env.step(tokens.numpy())
    assert terminated.all()
    np.testing.assert_allclose(rewards, batch.rewards.scores, atol=1e-4)
    assert same_pictures(infos["image"], batch.images)


def test_group_is_laid_out_prompt_by_prompt(stack: Stack, prompts: list[Prompt], reward: CompositeReward) -> None:
    batch = rollout(stack, prompts[:3], reward, group_size=2, seed=0, size=SIZE)
    assert [prompt.id for prompt in batch.prompts] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    np.testing.assert_array_equal(batch.group, [0, 0, 1, 1, 2, 2])
    assert (batch.tokens.shape, batch.tokens.dtype) == ((6, T), torch.int64)
    assert (batch.old_logprobs.shape, batch.entropy.shape) == ((6, T), (6, T))
    assert (batch.images.shape, batch.images.dtype) == ((6, *SIZE, 3), np.uint8)
    assert batch.input_ids.shape[0] == 3
    assert (batch.negative_ids, batch.negative_mask) == (None, None)
    assert set(batch.times) == {"sample", "decode", "reward"}
    assert (batch.old_logprobs <= 0).all()
    assert not torch.equal(batch.tokens[0], batch.tokens[1])  # one prompt, two random streams


def test_cutting_the_batch_another_way_gives_the_same_images(
    stack: Stack, prompts: list[Prompt], reward: CompositeReward
) -> None:
    whole = rollout(stack, prompts, reward, group_size=3, seed=11, size=SIZE)
    alone = rollout(stack, prompts[1:2], reward, group_size=1, seed=11, size=SIZE, indices=[2])
    torch.testing.assert_close(alone.tokens[0], whole.tokens[5])  # row 1 · 3 + 2
    np.testing.assert_allclose(alone.rewards.scores[0], whole.rewards.scores[5], atol=1e-4)


def test_another_seed_gives_other_images(stack: Stack, prompts: list[Prompt], reward: CompositeReward) -> None:
    one, same, other = (rollout(stack, prompts[:1], reward, group_size=1, seed=s, size=SIZE) for s in (0, 0, 1))
    assert torch.equal(one.tokens, same.tokens)
    assert not torch.equal(one.tokens, other.tokens)


def test_prompt_that_occurs_twice_gets_new_random_streams(stack: Stack, prompts: list[Prompt], reward: CompositeReward) -> None:
    assert stream_indices([prompts[0], prompts[1], prompts[0]], 2) == [0, 1, 0, 1, 2, 3]
    batch = rollout(stack, [prompts[0], prompts[0]], reward, group_size=1, seed=0, size=SIZE)
    assert not torch.equal(batch.tokens[0], batch.tokens[1])


def test_guided_rollout_keeps_negative_prompts(stack: Stack, prompts: list[Prompt], reward: CompositeReward) -> None:
    batch = rollout(stack, prompts[:2], reward, group_size=1, seed=0, size=SIZE, sampling=SAMPLINGS["guided"])
    assert batch.negative_ids is not None
    assert batch.negative_mask is not None
    assert batch.negative_ids.shape == batch.negative_mask.shape
    assert len(batch.negative_ids) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_size": 0}, "group size of 1"),
        ({"indices": [0, 1, 2]}, "one entry per image, got 3 for 4"),
        ({"size": (20, 32)}, "multiple"),
    ],
)
def test_wrong_argument_is_answered_with_one_sentence(
    stack: Stack, prompts: list[Prompt], reward: CompositeReward, wrong: dict[str, Any], message: str
) -> None:
    arguments = {"group_size": 2, "seed": 0, "size": SIZE, **wrong}
    with pytest.raises(ValueError, match=message):
        rollout(stack, prompts[:2], reward, **arguments)


def test_embedded_stack_steps_to_what_the_ocr_reads_in_the_rollout() -> None:
    """The defaults: the trained stack, held-out signs, real OCR."""
    env = TextToImageVectorEnv(4, prompts={"set": "signs", "split": "heldout", "count": 4}, sampling={"min_p": 0.1})
    batch = rollout(env.stack, env.task.prompts, env.task.reward, group_size=1, seed=5, sampling=env.task.sampling)
    env.reset(options={"prompts": [0, 1, 2, 3]})
    uniforms = sample_uniforms(5, [p.id for p in batch.prompts], [0] * 4, env.task.num_tokens)
    for t in range(env.task.num_tokens):
        tokens = draw_tokens(torch.from_numpy(env.policy_logprobs()), uniforms[:, t])
        torch.testing.assert_close(tokens, batch.tokens[:, t])
        _, rewards, _, _, infos = env.step(tokens.numpy())
    np.testing.assert_array_equal(rewards, batch.rewards.scores.astype(np.float64))
    assert list(infos["read"]) == [details["ocr"]["read"] for details in batch.rewards.details]
    assert rewards.mean() > 0.4  # a random stack's pictures score near 0; these are signs


def test_reward_is_scored_outside_the_callers_mixed_precision(stack: Stack, prompts: list[Prompt]) -> None:
    seen = []

    def precision(images: Any, pictured: Any) -> list[float]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return [0.0] * len(images)

    reward = CompositeReward([Component("precision", FunctionReward("precision", precision, {}))])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollout(stack, prompts[:1], reward, group_size=1, seed=0, size=SIZE)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False]
