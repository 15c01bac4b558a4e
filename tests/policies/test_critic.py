"""The critic: a value for each token, learnt from returns, saved and restored to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.policies.small_runs import rows
from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.critic import Critic
from xomni_rl.policies.policy import StackPolicy, TokenBatch
from xomni_rl.policies.settings import SettingsError, TrainerSettings
from xomni_rl.stack.stack import Stack

N, T, D = 6, 4, 16


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(N, T, D, generator=torch.Generator().manual_seed(1))


def test_values_are_one_for_each_token_and_zero_before_training(features: torch.Tensor) -> None:
    values = Critic(D).values(features)
    assert (values.shape, values.dtype) == ((N, T), torch.float32)
    assert not values.requires_grad
    assert not values.any()


def test_policys_features_fit_the_critic(stack: Stack, batch: RolloutBatch) -> None:
    policy = StackPolicy(stack)
    features = policy.features(TokenBatch.of(batch))
    assert features.shape == (6, 8, policy.feature_size)  # three prompts with two rollouts of 8 tokens
    assert not features.requires_grad
    assert Critic(policy.feature_size).values(features).shape == (6, 8)


def test_fit_learns_a_target_that_the_features_tell(features: torch.Tensor) -> None:
    critic, returns, keep = Critic(D, learning_rate=1e-2, epochs=50), features[..., 0].tanh(), torch.ones(N, dtype=torch.bool)
    first = critic.fit(features, returns, keep)
    # values are 0 before the first step, so the loss there is the mean square of the returns
    assert first["value_loss"] == pytest.approx(float(returns.square().mean()), rel=1e-6)
    assert first["explained_variance"] == pytest.approx(1 - first["value_loss"] / float(returns.var(unbiased=False)), abs=1e-6)
    after = critic.fit(features, returns, keep)
    assert after["value_loss"] < 0.05 * first["value_loss"]
    assert 0.9 < after["explained_variance"] <= 1.0


def test_fit_learns_from_kept_rollouts_alone(features: torch.Tensor) -> None:
    returns, keep = features[..., 0].clone(), torch.tensor([True] * 4 + [False] * 2)
    returns[~keep] = torch.nan  # a rollout without a reward has no return
    some, few = Critic(D), Critic(D)
    assert some.fit(features, returns, keep) == few.fit(features[:4], returns[:4], keep[:4])
    assert torch.equal(some.values(features), few.values(features))


def test_returns_that_are_all_equal_explain_no_variance(features: torch.Tensor) -> None:
    found = Critic(D).fit(features, torch.full((N, T), 0.5), torch.ones(N, dtype=torch.bool))
    assert found == {"value_loss": pytest.approx(0.25)}  # (0 - 0.5)²


def test_state_restores_a_critic_to_the_last_bit(features: torch.Tensor) -> None:
    returns, keep = features[..., 0], torch.ones(N, dtype=torch.bool)
    trained, other = Critic(D, seed=0), Critic(D, seed=1)
    trained.fit(features, returns, keep)
    other.fit(features, -returns, keep)
    other.load_state({name: value.clone() for name, value in trained.state().items()})
    for critic in (trained, other):  # moments and step counts decide what more training does
        critic.fit(features, returns, keep)
    states = trained.state(), other.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_state_from_before_training_forgets_what_was_learnt(features: torch.Tensor) -> None:
    returns, keep = features[..., 0], torch.ones(N, dtype=torch.bool)
    fresh, critic = Critic(D), Critic(D)
    start = {name: value.clone() for name, value in critic.state().items()}
    first = critic.fit(features, returns, keep)
    critic.load_state(start)
    assert critic.state().keys() == fresh.state().keys()  # no moments
    assert critic.fit(features, returns, keep) == first


def test_critic_of_another_width_is_refused(features: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        Critic(D).load_state(Critic(D + 1).state())


def test_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(5)
    one = Critic(D, seed=3).state()
    torch.manual_seed(6)
    expected = torch.rand(())
    torch.manual_seed(6)
    other = Critic(D, seed=3).state()
    assert torch.rand(()) == expected  # and nothing else sees that one was made
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_ppo_trains_its_critic_and_logs_it(run, changed: Callable[..., dict[str, Any]]) -> None:
    config = changed(
        algorithm={"name": "ppo", "options": {"lam": 1.0}},  # returns are the rewards
        trainer__steps=3,
        trainer__evaluate_every=None,
        trainer__critic={"learning_rate": 1e-3, "epochs": 30},
    )
    run(config)
    found = rows(config)
    assert all({"value_loss", "explained_variance", "loss", "grad_norm"} <= row.keys() for row in found)
    assert found[2]["value_loss"] < 0.2 * found[0]["value_loss"]  # rewards lie near one number, which is soon learnt
    extras = load_file(Path(config["run"]) / "checkpoints/step_000003/extras.safetensors")
    assert {name.split("/")[0] for name in extras} == {"critic"}
    assert any(name.startswith("critic/optimizer/exp_avg/") for name in extras)


@pytest.mark.parametrize(
    ("critic", "name"), [({"epochs": 0}, "critic.epochs"), ({"learning_rate": -1.0}, "critic.learning_rate")]
)
def test_critics_setting_out_of_range_is_named(critic: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingsError, match=f"trainer.{name} must be"):
        TrainerSettings.from_config({"trainer": {"critic": critic}})
