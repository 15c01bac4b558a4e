"""Surrogates of whole rollouts against numbers worked out by hand."""

import math
from functools import partial

import pytest
import torch

from xomni_rl.policies.losses import policy_loss
from xomni_rl.policies.losses.surrogates import gmpo, gspo, gspo_token

WIDE = {"clip_low": 0.2, "clip_high": 0.2}


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_gspo_clips_whole_rollouts():
    # row 0 (A = 1): ratios 4 and 1, s = √4 = 2, min(2, 1.2) = 1.2, no gradient
    # row 1 (A = -2), one counted token: s = 1.1, min(-2.2, -2.2), gradient 2·1.1 / 1 token / 2 rows = 1.1
    # L = (-1.2 + 2.2)/2 = 0.5;  clipped: 2 of 3 counted tokens
    mask = torch.tensor([[True, True], [True, False]])
    old = tensor([-2.0, -3.0], [-2.0, -2.0])
    logprobs = (old + tensor([4.0, 1.0], [1.1, 9.0]).log()).requires_grad_()
    advantages = torch.tensor([1.0, -2.0], dtype=torch.float64)
    loss, metrics = policy_loss(logprobs, old, advantages, mask, surrogate=partial(gspo, **WIDE), aggregation="sequence_mean")
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 3)
    assert logprobs.grad is not None
    assert logprobs.grad.flatten().tolist() == pytest.approx([0.0, 0.0, 1.1, 0.0])


def test_gspo_ratio_is_normalised_by_length():
    # every token at ratio 1.1: s = 1.1 whatever the length, not 1.1^T
    for tokens in (1, 4, 9):
        old = torch.full((1, tokens), -2.0, dtype=torch.float64)
        mask = torch.ones(1, tokens, dtype=torch.bool)
        loss, _ = policy_loss(old + math.log(1.1), old, torch.ones(1), mask, surrogate=partial(gspo, **WIDE))
        assert loss.item() == pytest.approx(-1.1)


def test_gspo_token_takes_an_advantage_per_token():
    # s = √(1.21·1) = 1.1 for both;  A = (1, -2): l = -1.1, 2.2, mean 0.55;  gradient -A_t·s/2 = -0.55, 1.1
    old = tensor([-2.0, -2.0])
    logprobs = (old + tensor([1.21, 1.0]).log()).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, metrics = policy_loss(logprobs, old, tensor([1.0, -2.0]), mask, surrogate=partial(gspo_token, **WIDE))
    loss.backward()
    assert loss.item() == pytest.approx(0.55)
    assert metrics["clip_fraction"] == 0.0
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-0.55, 1.1])


def test_gspo_token_clips_the_side_that_each_advantage_asks_for():
    # s = 2: A = 1 is clipped at 1.2, A = -1 is not: l = -1.2, 2, mean 0.4;  gradient 0 and 2/2
    old = tensor([-2.0, -2.0])
    logprobs = (old + math.log(2)).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, metrics = policy_loss(logprobs, old, tensor([1.0, -1.0]), mask, surrogate=partial(gspo_token, **WIDE))
    loss.backward()
    assert loss.item() == pytest.approx(0.4)
    assert metrics["clip_fraction"].item() == pytest.approx(1 / 2)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("seed", range(3))
def test_gspo_token_equals_gspo_for_one_advantage_per_rollout(seed, batch):
    logprobs, old, advantages, mask, _ = batch(seed)
    bounds = {"clip_low": 0.05, "clip_high": 0.1}
    results = []
    for surrogate in (gspo, gspo_token):
        values = logprobs.clone().requires_grad_()
        loss, metrics = policy_loss(
            values, old, advantages[:, 0], mask, surrogate=partial(surrogate, **bounds), aggregation="sequence_mean"
        )
        loss.backward()
        results.append((loss, values.grad, metrics["clip_fraction"]))
    torch.testing.assert_close(results[0], results[1])


def test_gmpo_clips_each_token_before_the_geometric_mean():
    # ε = 0.4 nats.  row 0 (A = 1): d = 1, -0.2 → min: 0.4, -0.2, mean 0.1: l = -e^0.1, and the first token has no gradient
    # row 1 (A = -1): d = -1, 0.3 → max: -0.4, 0.3, mean -0.05: l = e^-0.05, likewise
    # L = (e^-0.05 - e^0.1)/2;  gradient of the second tokens: -A·e^mean / 2 tokens / 2 rows
    old = tensor([-2.0, -2.0], [-2.0, -2.0])
    logprobs = (old + tensor([1.0, -0.2], [-1.0, 0.3])).requires_grad_()
    mask = torch.ones(2, 2, dtype=torch.bool)
    loss, metrics = policy_loss(
        logprobs, old, torch.tensor([1.0, -1.0], dtype=torch.float64), mask, surrogate=gmpo, aggregation="sequence_mean"
    )
    loss.backward()
    assert loss.item() == pytest.approx((math.exp(-0.05) - math.exp(0.1)) / 2)
    assert metrics["clip_fraction"].item() == pytest.approx(1 / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.flatten().tolist() == pytest.approx([0.0, -math.exp(0.1) / 4, 0.0, math.exp(-0.05) / 4])


def test_gmpo_without_a_bound_that_bites_is_gspo_without_one(batch):
    # both are then -A·exp(mean of d)
    logprobs, old, advantages, mask, _ = batch(4, spread=0.1)
    plain = policy_loss(logprobs, old, advantages, mask, surrogate=partial(gspo, clip_low=1.0, clip_high=9.0))[0]
    assert policy_loss(logprobs, old, advantages, mask, surrogate=partial(gmpo, clip_low=9.0, clip_high=9.0))[0] == plain
