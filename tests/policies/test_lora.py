"""Low-rank adapters: they alone are trained, everything sees them, and without them the model is its own reference."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.policies.small_runs import rows
from xomni_rl.config import compose
from xomni_rl.envs.rollout import rollout
from xomni_rl.experiments.run import build_parts, run_training, trained_stack
from xomni_rl.policies.lora import TARGETS, add_adapters, is_adapted, merged_tensors, without_adapters
from xomni_rl.policies.policy import StackPolicy, TokenBatch
from xomni_rl.policies.settings import SettingsError
from xomni_rl.policies.trainer import train
from xomni_rl.policies.training_state import model_tensors
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.stack.sampler import SamplingConfig
from xomni_rl.stack.stack import Stack

Change = Callable[..., dict[str, Any]]


@pytest.fixture
def adapted() -> Stack:
    """A stack with adapters; its own, since adapters stay."""
    made = Stack.tiny_random(seed=0)
    add_adapters(made.model, rank=4)
    return made


def move(stack: Stack) -> None:
    """Gives every B some values, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in stack.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_adapters_alone_take_gradients(adapted: Stack) -> None:
    policy = StackPolicy(adapted)
    names = [name for name, parameter in policy.module.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    # each of the seven projections of every layer has A and B
    assert len(names) == 2 * len(TARGETS) * adapted.model.config.num_hidden_layers


def test_adapted_model_is_at_first_the_plain_one(stack: Stack, adapted: Stack, prompts: list[Prompt], cheap_reward) -> None:
    one, other = (rollout(each, prompts[:2], cheap_reward(), group_size=1, seed=0) for each in (stack, adapted))
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.old_logprobs, other.old_logprobs, atol=1e-6, rtol=0)


def test_seed_decides_the_adapters_and_disturbs_nothing() -> None:
    models = [torch.nn.Sequential(torch.nn.Linear(8, 8)) for _ in range(3)]
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_adapters(model, rank=2, targets=["0"], seed=seed)
    assert torch.rand(()) == expected
    one, other, third = (model.state_dict()["0.lora_A.default.weight"] for model in models)
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(cfg_scale=2.0)], ids=["plain", "guided"])
def test_sampler_sees_the_adapters(adapted: Stack, prompts: list[Prompt], cheap_reward, sampling: SamplingConfig) -> None:
    policy = StackPolicy(adapted, sampling)
    move(adapted)
    batch = policy.rollout(prompts[:3], cheap_reward(), group_size=2, seed=0)
    with torch.no_grad():
        logprobs, _ = policy.logprobs(TokenBatch.of(batch))
        with without_adapters(adapted.model):
            plain, _ = policy.logprobs(TokenBatch.of(batch))
    torch.testing.assert_close(logprobs, batch.old_logprobs, atol=1e-4, rtol=0)
    assert (plain - batch.old_logprobs).abs().max() > 1e-2


def test_reference_is_the_base_weights_without_a_copy(adapted: Stack, prompts: list[Prompt], cheap_reward) -> None:
    policy = StackPolicy(adapted)
    policy.keep_reference()
    batch = policy.rollout(prompts[:3], cheap_reward(), group_size=2, seed=0)
    tokens = TokenBatch.of(batch)
    with torch.no_grad():
        initial, _ = policy.logprobs(tokens)
    move(adapted)
    assert torch.equal(policy.reference_logprobs(tokens), initial)
    with torch.no_grad():
        assert (policy.logprobs(tokens)[0] - initial).abs().max() > 1e-2
    assert policy.reference_tensors() == {}
    assert policy._reference is not None
    assert policy._reference.model is adapted.model  # no deep copy


def test_adapters_are_trained_again_after_the_reference_was_asked(adapted: Stack, prompts: list[Prompt], cheap_reward) -> None:
    policy = StackPolicy(adapted)
    policy.keep_reference()
    tokens = TokenBatch.of(policy.rollout(prompts[:1], cheap_reward(), group_size=2, seed=0))
    before = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    policy.reference_logprobs(tokens)
    assert {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad} == before
    policy.logprobs(tokens)[0].mean().backward()
    assert all(p.grad is not None for n, p in adapted.model.named_parameters() if n in before and "mm_head" not in n)


def test_head_trained_in_full_is_seen_by_the_sampler_and_forgotten_by_the_reference(
    prompts: list[Prompt], cheap_reward: Callable[..., CompositeReward]
) -> None:
    stack = Stack.tiny_random(seed=0)
    add_adapters(stack.model, rank=4, full=["mm_head"])
    policy = StackPolicy(stack)
    trained = [name for name, parameter in stack.model.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if "lora" not in name] == ["mm_head.modules_to_save.default.weight"]
    policy.keep_reference()
    first = TokenBatch.of(policy.rollout(prompts[:2], cheap_reward(), group_size=2, seed=0))
    with torch.no_grad():
        initial = policy.logprobs(first)[0]
        stack.model.mm_head.weight.mul_(3.0)  # sharper, as training would make it
    batch = policy.rollout(prompts[:2], cheap_reward(), group_size=2, seed=0)
    with torch.no_grad():
        found = policy.logprobs(TokenBatch.of(batch))[0]
    torch.testing.assert_close(found, batch.old_logprobs, atol=1e-4, rtol=0)
    assert torch.equal(policy.reference_logprobs(first), initial)
    assert {name for name, parameter in stack.model.named_parameters() if parameter.requires_grad} == set(trained)
    policy.logprobs(first)[0].mean().backward()
    assert stack.model.mm_head.modules_to_save["default"].weight.grad is not None
    plain = Stack.tiny_random(seed=0).model
    merged = merged_tensors(stack.model.state_dict(), scaling=4.0)
    assert merged.keys() == plain.state_dict().keys()
    assert torch.equal(merged["mm_head.weight"], plain.mm_head.weight * 3.0)


def test_run_with_a_head_trained_in_full_goes_on_and_generates(tmp_path: Path) -> None:
    overrides = [
        "model.path=tiny_random",
        "model.lora={rank: 2, alpha: 4, full: [mm_head]}",
        "trainer=quick",
        "trainer.steps=1",
    ]
    overrides += ["trainer.evaluate_every=null", "prompts.heldout_count=0", "reward=contrast", "trainer.trackers=[]"]
    run_training(compose([*overrides, f"run={tmp_path / 'run'}"]), console=Console(file=io.StringIO()))
    more = compose([f"resume={tmp_path / 'run'}", "trainer.steps=2"])
    summary = run_training(more, overrides=["trainer.steps=2"], console=Console(file=io.StringIO()))
    assert summary.steps == 2
    trained, start = trained_stack(tmp_path / "run", "last").model, Stack.tiny_random().model
    assert not torch.equal(trained.mm_head.weight, start.mm_head.weight)


def test_merged_weights_are_base_plus_scaled_product() -> None:
    # W = [[1, 0], [0, 1]], A = [[1, 2]], B = [[3], [4]]: B·A = [[3, 6], [4, 8]], twice that on top of W
    tensors = {
        "q.base_layer.weight": torch.eye(2),
        "q.base_layer.bias": torch.tensor([5.0, 6.0]),
        "q.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "q.lora_B.default.weight": torch.tensor([[3.0], [4.0]]),
        "norm.weight": torch.tensor([7.0]),
    }
    merged = merged_tensors(tensors, scaling=2.0)
    assert merged.keys() == {"q.weight", "q.bias", "norm.weight"}
    torch.testing.assert_close(merged["q.weight"], torch.tensor([[7.0, 12.0], [8.0, 17.0]]))
    assert torch.equal(merged["q.bias"], tensors["q.base_layer.bias"])
    with pytest.raises(KeyError, match="lora_B"):
        merged_tensors({name: value for name, value in tensors.items() if "lora_B" not in name}, scaling=2.0)


def test_run_trains_adapters_whose_checkpoint_draws_the_same_images(
    changed: Change, prompts: list[Prompt], cheap_reward: Callable[..., CompositeReward]
) -> None:
    config = changed(
        model={"path": "tiny_random", "lora": {"rank": 4, "alpha": 32}},
        algorithm__options={"kl_coef": 0.01},
        trainer__learning_rate=3e-2,
        trainer__evaluate_every=None,
    )
    parts = build_parts(config)
    policy: StackPolicy = parts["policy"]
    base = {name: value.clone() for name, value in model_tensors(policy.model).items() if "lora_" not in name}
    train(config, **parts)
    for row in rows(config):  # at the same weights sampler and trainer say the same, adapters or not
        assert row["ratio_max_deviation"] < 1e-4
        assert row["grad_norm"] > 0
    first, *_, last = rows(config)
    assert first["kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert last["kl_reference"] > 1e-6
    now = model_tensors(policy.model)
    assert all(torch.equal(value, now[name]) for name, value in base.items())
    moments = load_file(Path(config["run"]) / "checkpoints/step_000003/optimizer.safetensors")
    assert all("lora_" in name for name in moments)
    loaded = trained_stack(config["run"], "last")
    assert not is_adapted(loaded.model)
    mine = policy.rollout(prompts[:2], cheap_reward(), group_size=2, seed=3)
    theirs = rollout(loaded, prompts[:2], cheap_reward(), group_size=2, seed=3)
    assert torch.equal(mine.tokens, theirs.tokens)
    torch.testing.assert_close(mine.old_logprobs, theirs.old_logprobs, atol=1e-4, rtol=0)


def test_command_line_asks_for_adapters(tmp_path: Path) -> None:
    sizes = ["trainer.steps=1", "trainer.prompts_per_step=2", "trainer.group_size=2", "trainer.evaluate_every=null"]
    config = compose(["model.path=tiny_random", "model.lora={rank: 4}", *sizes, "trainer.trackers=[]", f"run={tmp_path}/run"])
    run_training(config, console=Console(file=io.StringIO()))
    weights = load_file(tmp_path / "run/checkpoints/step_000001/model/model.safetensors")
    ranks = {value.shape[0] for name, value in weights.items() if ".lora_A." in name}
    assert ranks == {4}


@pytest.mark.parametrize("kind", ["ema", "reset"])
def test_reference_that_moves_is_refused_with_adapters(changed: Change, kind: str) -> None:
    config = changed(model__lora={"rank": 2}, algorithm__options={"kl_coef": 0.01, "reference": kind})
    with pytest.raises(SettingsError, match=rf"reference={kind} needs a reference that can move.*set it to frozen"):
        train(config, **build_parts(config))
    assert not Path(config["run"]).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of 1 or more"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"targets": ["q_prok"]}, r"no layer \['q_prok'\]; this model has .*q_proj"),
        ({"targets": []}, "no layer"),
    ],
)
def test_adapters_that_cannot_be_made_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"model.lora.*{message}"):
        add_adapters(Stack.tiny_random(seed=0).model, **options)
