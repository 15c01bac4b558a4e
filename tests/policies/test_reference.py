"""References that stay, follow the policy, or are renewed every so often; and none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.policies.small_runs import rows
from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.policy import StackPolicy, TokenBatch
from xomni_rl.policies.settings import SettingsError
from xomni_rl.stack.stack import Stack

Change = Callable[..., dict[str, Any]]


def add_to_weights(policy: StackPolicy, value: float) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(value)


def test_average_of_two_moves_is_the_hand_computed_one(stack: Stack) -> None:
    policy = StackPolicy(stack)
    policy.keep_reference()
    start = {name: value.detach().clone() for name, value in policy.model.named_parameters()}
    add_to_weights(policy, 1.0)  # w + 1
    policy.move_reference(0.9)  # 0.9·w + 0.1·(w + 1) = w + 0.1
    add_to_weights(policy, 2.0)  # w + 3
    policy.move_reference(0.5)  # 0.5·(w + 0.1) + 0.5·(w + 3) = w + 1.55
    for name, value in policy.reference_tensors().items():
        torch.testing.assert_close(value, start[name] + 1.55, atol=1e-5, rtol=0, msg=name)


def test_reference_that_follows_weights_of_16_bits_takes_small_shares(batch: RolloutBatch) -> None:
    policy = StackPolicy(Stack.tiny_random(seed=0).to("cpu", torch.bfloat16))
    policy.keep_reference(follows=True)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.fill_(2.0)
        for value in policy.reference_tensors().values():
            value.fill_(1.0)
    for _ in range(3):
        policy.move_reference(0.999)
    # 2 - 0.999³ = 1.002997; above 1 bfloat16 numbers are 2⁻⁷ apart, so that 1.001 would be 1 again
    for value in policy.reference_tensors().values():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, torch.full_like(value, 1.002997), atol=1e-6, rtol=0)
    assert torch.isfinite(policy.reference_logprobs(TokenBatch.of(batch))).all()


def test_decay_of_nothing_renews_and_of_one_stays(stack: Stack, batch: RolloutBatch) -> None:
    policy, tokens = StackPolicy(stack), TokenBatch.of(batch)
    policy.keep_reference()
    before = policy.reference_logprobs(tokens)
    add_to_weights(policy, 0.1)
    policy.move_reference(1.0)
    assert torch.equal(policy.reference_logprobs(tokens), before)
    policy.move_reference(0.0)
    with torch.no_grad():
        assert torch.equal(policy.reference_logprobs(tokens), policy.logprobs(tokens)[0])
    named = dict(policy.model.named_parameters())
    assert all(torch.equal(value, named[name]) for name, value in policy.reference_tensors().items())


@pytest.fixture
def trained(
    run, changed: Change
) -> Callable[..., tuple[list[dict[str, Any]], list[dict[str, Tensor]], list[dict[str, Tensor]]]]:
    """trained(kl_coef=…, reference=…): metrics of three steps, weights after 0 … 3 of them, references after 1 … 3."""

    def start(**options: Any) -> Any:
        config = changed(
            algorithm__options=options,
            trainer__evaluate_every=None,
            trainer__keep_checkpoints=9,
            trainer__learning_rate=1e-2,
            trainer__warmup_steps=0,
            trainer__alarms={"nonfinite_action": "rollback"},  # a checkpoint before the first step
        )
        run(config)
        folders = [Path(config["run"]) / f"checkpoints/step_{step:06d}" for step in range(4)]
        weights = [load_file(folder / "model/model.safetensors") for folder in folders]
        extras = [folder / "extras.safetensors" for folder in folders[1:]]
        references = [
            {name.removeprefix("reference/"): value for name, value in load_file(file).items()} if file.exists() else {}
            for file in extras
        ]
        return rows(config), weights, references

    return start


def test_average_follows_the_policy_through_a_run(trained) -> None:
    found, weights, references = trained(kl_coef=0.01, reference="ema", reference_decay=0.75)
    expected = weights[0]
    for after, reference in zip(weights[1:], references, strict=True):
        expected = {name: 0.75 * value + 0.25 * after[name] for name, value in expected.items()}
        for name, value in reference.items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=name)
    assert found[0]["kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert all(row["kl_reference"] > 1e-5 for row in found[1:])


def test_renewed_reference_is_the_policy_of_that_step(trained) -> None:
    found, weights, references = trained(kl_coef=0.01, reference="reset", reference_every=2)
    for reference, renewed_at in zip(references, (0, 2, 2), strict=True):
        assert all(torch.equal(value, weights[renewed_at][name]) for name, value in reference.items())
    # measured before each update: step 1 and 3 stand where the reference does, step 2 is one update away
    assert [row["kl_reference"] > 1e-5 for row in found] == [False, True, False]


def test_reference_that_stays_is_not_saved(trained) -> None:
    found, _, references = trained(kl_coef=0.01)
    assert references == [{}, {}, {}]
    assert all(row["kl_reference"] > 1e-5 for row in found[1:])


def test_no_kl_means_no_reference(trained) -> None:
    found, _, references = trained(kl_coef=0.0, reference="ema")
    assert references == [{}, {}, {}]
    assert all("kl_reference" not in row for row in found)


def test_reference_that_begins_to_move_when_a_run_goes_on_is_refused(run, changed: Change) -> None:
    values: dict[str, Any] = {"trainer__steps": 1, "trainer__evaluate_every": None}
    config = changed(algorithm__options={"kl_coef": 0.01}, **values)
    run(config)
    moving = changed(algorithm__options={"kl_coef": 0.01, "reference": "ema"}, **values)
    with pytest.raises(SettingsError, match=r"algorithm\.options\.reference=ema .* began without it"):
        run(moving | {"resume": config["run"]})
