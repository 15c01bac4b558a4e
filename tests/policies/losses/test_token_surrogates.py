"""Surrogates of single tokens against numbers worked out by hand."""

import math
from functools import partial

import pytest
import torch

from xomni_rl.policies.losses import policy_loss
from xomni_rl.policies.losses.surrogates import cispo, clipped, log_likelihood, reinforce, sapo


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def everything(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(tensor, dtype=torch.bool)


def test_dual_clip_bounds_what_a_bad_token_costs():
    # ε = 0.2, c = 3;  A = -1: r = 4: min(-4, -1.2) = -4, then max(-4, -3) = -3;  r = 0.5: min(-0.5, -0.8) = -0.8;
    # r = 1: -1;  A = +1, r = 4: min(4, 1.2) = 1.2, which the dual clip leaves alone.  L = (3 + 0.8 + 1 - 1.2) / 4 = 0.9
    # without gradient: all but r = 1, so 3/4; by the dual clip: 1/4
    logprobs, old = logs([0.8, 0.4, 0.3, 0.8]).requires_grad_(), logs([0.2, 0.8, 0.3, 0.2])
    advantages = torch.tensor([[-1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)
    loss, metrics = policy_loss(logprobs, old, advantages, everything(old), surrogate=partial(clipped, dual_clip=3.0))
    loss.backward()
    assert loss.item() == pytest.approx(0.9)
    assert metrics["clip_fraction"].item() == pytest.approx(3 / 4)
    assert metrics["dual_clip_fraction"].item() == pytest.approx(1 / 4)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 0.0, 1 / 4, 0.0])


def test_dual_clip_fraction_is_absent_without_dual_clip():
    one = logs([0.5])
    _, metrics = policy_loss(one, one, torch.ones(1), everything(one), surrogate=clipped)
    assert set(metrics) == {"approx_kl", "clip_fraction", "ratio_max_deviation"}


def test_dual_clip_above_every_ratio_changes_nothing(batch):
    logprobs, old, advantages, mask, _ = batch(0)
    plain, _ = policy_loss(logprobs, old, advantages, mask, surrogate=clipped)
    bounded, metrics = policy_loss(logprobs, old, advantages, mask, surrogate=partial(clipped, dual_clip=100.0))
    assert bounded == plain
    assert metrics["dual_clip_fraction"] == 0.0


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    # r = 6, clipped to 5, A = 2: -5·2·ln 0.6;  r = 1.5, A = -1: 1.5·ln 0.75;  mean of two;  dL/dlogprob = -w·A/2 = -5, 0.75
    logprobs, old = logs([0.6, 0.75]).requires_grad_(), logs([0.1, 0.5])
    advantages = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    loss, metrics = policy_loss(logprobs, old, advantages, everything(old), surrogate=cispo)
    loss.backward()
    assert loss.item() == pytest.approx((-10 * math.log(0.6) + 1.5 * math.log(0.75)) / 2)
    assert metrics["clip_fraction"].item() == pytest.approx(1 / 2)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-5.0, 0.75])


def test_cispo_lower_bound_lifts_a_small_weight():
    # r = 0.25, bounded below by 1 - 0.4 = 0.6, A = 1: gradient -0.6
    logprobs = logs([0.2]).requires_grad_()
    surrogate = partial(cispo, clip_low=0.4)
    policy_loss(logprobs, logs([0.8]), torch.ones(1), everything(logprobs), surrogate=surrogate)[0].backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-0.6)


def test_sapo_gates_by_the_sign_of_the_advantage():
    # r = 2, A = 1, τ = 1: p = σ(1) = 1/(1+e^-1), l = -4p;   r = 0.5, A = -1, τ = 2: q = σ(2·(-0.5)) = σ(-1) = 1 - p, l = (4/2)q
    # gate: 4p(1-p) for both.  dL/dlogprob = -4p(1-p)·r·A/2: -4p(1-p), and 4p(1-p)/4
    p = 1 / (1 + math.exp(-1))
    logprobs, old = logs([0.8, 0.2]).requires_grad_(), logs([0.4, 0.4])
    advantages = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    surrogate = partial(sapo, temperature_positive=1.0, temperature_negative=2.0)
    loss, metrics = policy_loss(logprobs, old, advantages, everything(old), surrogate=surrogate)
    loss.backward()
    assert loss.item() == pytest.approx((-4 * p + 2 * (1 - p)) / 2)
    assert metrics["gate"].item() == pytest.approx(4 * p * (1 - p))
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-4 * p * (1 - p), p * (1 - p)])


def test_sapo_gate_is_open_at_ratio_one_and_shuts_far_from_it():
    # r = 1: 4·½·½ = 1;  r = e^4 ≈ 54.6: p ≈ 1, 4p(1-p) ≈ 4e^-53.6 < 1e-20
    old = torch.tensor([[-5.0]], dtype=torch.float64)
    gates = [policy_loss(old + d, old, torch.ones(1), everything(old), surrogate=sapo)[1]["gate"].item() for d in (0.0, 4.0)]
    assert gates[0] == 1.0
    assert gates[1] < 1e-20


def test_reinforce_takes_no_notice_of_the_sampler():
    # L = -(2·ln 0.5 - 1·ln 0.25)/2 = -(2 ln 0.5 - 2 ln 0.5)/2 = 0;  gradient -A/2
    logprobs = logs([0.5, 0.25]).requires_grad_()
    advantages = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    for old in (logs([0.5, 0.25]), logs([0.1, 0.9])):
        logprobs.grad = None
        loss, metrics = policy_loss(logprobs, old, advantages, everything(old), surrogate=reinforce)
        loss.backward()
        assert loss.item() == pytest.approx(0.0, abs=1e-15)
        assert logprobs.grad is not None
        assert logprobs.grad[0].tolist() == pytest.approx([-1.0, 0.5])
        assert set(metrics) == {"approx_kl", "ratio_max_deviation"}


def test_log_likelihood_learns_from_positive_advantages_alone():
    # row 0 (A = 3): ln 2 + ln 4 = 3 ln 2, over all four tokens ¾ ln 2, nll over its own two 1.5 ln 2;  row 1 (A = -1): nothing
    logprobs = logs([0.5, 0.25], [0.5, 0.5]).requires_grad_()
    loss, metrics = policy_loss(
        logprobs, logprobs.detach(), torch.tensor([3.0, -1.0]), everything(logprobs), surrogate=log_likelihood
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * math.log(2))
    assert metrics["nll"].item() == pytest.approx(1.5 * math.log(2))
    assert metrics["learned_fraction"].item() == pytest.approx(1 / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.25, -0.25], [0.0, 0.0]]


def test_log_likelihood_without_a_good_rollout_has_no_nll():
    logprobs = logs([0.5])
    loss, metrics = policy_loss(logprobs, logprobs, torch.zeros(1), everything(logprobs), surrogate=log_likelihood)
    assert loss == 0.0
    assert metrics["learned_fraction"] == 0.0
    assert "nll" not in metrics
