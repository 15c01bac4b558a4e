"""Other families of models learn through the same environment and trainer."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console

from tests.policies.small_runs import rows, with_reward
from xomni_rl.envs.rollout import rollout
from xomni_rl.envs.text_to_image import TextToImageEnv
from xomni_rl.envs.vector import TextToImageVectorEnv
from xomni_rl.experiments.run import build_parts, load_stack, trained_stack
from xomni_rl.policies.policy import StackPolicy, TokenBatch
from xomni_rl.policies.settings import SettingsError
from xomni_rl.policies.trainer import train
from xomni_rl.prompts import Prompt
from xomni_rl.stack.sampler import SamplingConfig, draw_tokens, sample_uniforms

FAMILIES = ["janus", "emu3"]
PROMPTS = [Prompt("a", "a red sign"), Prompt("b", 'blue, "K7AX"')]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def learning(changed, tmp_path: Path, family: str) -> dict[str, Any]:
    """Twenty-four steps of 32 pictures each, of the model's own size; what is wanted is red in the first token's cell."""
    for split, count in (("train", 6), ("heldout", 16)):
        lines = [json.dumps({"id": f"{split}{i}", "text": f'a {split} sign, "{i}"'}) for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    made = with_reward(changed(model={"family": family, "path": "tiny_random"}, prompts__heldout_count=16), "red_corner")
    made["trainer"] |= {"steps": 24, "group_size": 16, "learning_rate": 4e-3, "evaluate_every": 24, "checkpoint_every": 24}
    return made


def trained(config: dict[str, Any]) -> Any:
    AcceleratorState._reset_state()
    return train(config, **build_parts(config), console=Console(file=io.StringIO()))


@pytest.mark.slow
def test_reward_rises_and_the_run_comes_back_from_its_checkpoint(learning: dict[str, Any]) -> None:
    summary = trained(learning)
    steps = [row for row in rows(learning) if row["step"] > 0]
    assert steps[0]["ratio_max_deviation"] < 1e-4  # before the first update the ratio is 1
    assert summary.alarms.get("ratio_off_one", 0) == 0
    first, last = (np.mean([row["reward"] for row in part]) for part in (steps[:3], steps[-3:]))
    assert last > first + 0.05
    assert summary.heldout["after"]["red"] > summary.heldout["before"]["red"] + 0.05
    begun, again = load_stack(learning["model"]), trained_stack(learning["run"], "last")
    assert again.weight_hashes()["decoder"] == begun.weight_hashes()["decoder"]  # frozen
    assert again.weight_hashes()["autoregressive"] != begun.weight_hashes()["autoregressive"]
    before, after = (each.generate(["a sign"], group_size=16).images[:, :8, :8, 0].mean() for each in (begun, again))
    assert after > before + 12  # of 255


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(cfg_scale=2.0)], ids=["plain", "guided"])
def test_stepping_the_environments_equals_the_rollout(family: str, cheap_reward, sampling: SamplingConfig) -> None:
    stack = load_stack({"family": family, "path": "tiny_random"})
    reward, count = cheap_reward(), int(np.prod(stack.grid()))
    batch = rollout(stack, PROMPTS, reward, group_size=2, seed=7, sampling=sampling)
    env = TextToImageEnv(stack=stack, prompts=PROMPTS, reward=reward, sampling=sampling)
    several = TextToImageVectorEnv(4, stack=stack, prompts=PROMPTS, reward=reward, sampling=sampling)
    observation, _ = env.reset(options={"prompt": PROMPTS[1]})
    assert env.observation_space.contains(observation)
    several.reset(options={"prompts": batch.prompts})
    uniforms = sample_uniforms(7, [prompt.id for prompt in batch.prompts], [0, 1, 0, 1], count)
    for t in range(count):
        logprobs = torch.from_numpy(several.policy_logprobs())
        tokens = draw_tokens(logprobs, uniforms[:, t])
        assert torch.equal(tokens, batch.tokens[:, t])
        torch.testing.assert_close(logprobs.gather(1, tokens[:, None])[:, 0], batch.old_logprobs[:, t], atol=1e-5, rtol=0)
        np.testing.assert_allclose(env.policy_logprobs(), logprobs[2], atol=1e-5)  # row 2 is the second prompt's first
        _, rewards, *_ = several.step(tokens.numpy())
        _, score, terminated, _, info = env.step(int(tokens[2]))
    assert terminated
    np.testing.assert_allclose(rewards, batch.rewards.scores, atol=1e-5)
    assert score == pytest.approx(float(batch.rewards.scores[2]), abs=1e-5)
    np.testing.assert_array_equal(info["image"], batch.images[2])


def test_reference_and_checkpointed_gradient_are_the_policys(family: str, cheap_reward) -> None:
    stack = load_stack({"family": family, "path": "tiny_random"})
    policy = StackPolicy(stack, SamplingConfig(cfg_scale=2.0), gradient_checkpointing=True)
    policy.keep_reference()
    tokens = TokenBatch.of(batch := policy.rollout(PROMPTS, cheap_reward(), group_size=2, seed=0))
    logprobs, _ = policy.logprobs(tokens)
    torch.testing.assert_close(logprobs.detach(), batch.old_logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.reference_logprobs(tokens), batch.old_logprobs, atol=1e-5, rtol=0)
    assert policy.features(tokens).shape == (*batch.tokens.shape, policy.feature_size)
    whole = gradient(policy, tokens)
    np.testing.assert_allclose(gradient(StackPolicy(stack, policy.sampling), tokens), whole, atol=1e-5, rtol=1e-3)


def gradient(policy: StackPolicy, tokens: TokenBatch) -> np.ndarray:
    """Of the mean log-probability, all parameters in one array."""
    policy.model.zero_grad()
    policy.logprobs(tokens)[0].mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()]).numpy()  # type: ignore[union-attr]


def test_what_is_xomnis_alone_refuses_other_families(learning: dict[str, Any], family: str) -> None:
    learning["trainer"]["engine"] = "trl"
    with pytest.raises(SettingsError, match=type(load_stack(learning["model"])).__name__):
        trained(learning)


def test_adapters_train_alone(learning: dict[str, Any]) -> None:
    learning["model"]["lora"] = {"rank": 2, "alpha": 4.0}
    learning["trainer"] |= {"steps": 2, "evaluate_every": None}
    summary = trained(learning)
    assert summary.status == "finished"
    begun, again = load_stack(learning["model"]), trained_stack(learning["run"], "last")
    moved = {name for name, value in again.model.state_dict().items() if not torch.equal(value, begun.model.state_dict()[name])}
    assert moved
    assert all(name.endswith("_proj.weight") for name in moved)
