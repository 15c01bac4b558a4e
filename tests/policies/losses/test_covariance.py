"""Clip-Cov and KL-Cov: values by hand, and which tokens are held back."""

import math
from collections import Counter
from functools import partial

import pytest
import torch

from xomni_rl.policies.losses import policy_loss
from xomni_rl.policies.losses.covariance import clip_cov, kl_cov, token_covariance

# mean logprob -2, mean advantage 0: (logprob + 2)·A = 2, 0, 1, 0
LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0, -2.0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[2.0, 1.0, -1.0, -2.0]], dtype=torch.float64)
MASK = torch.ones(1, 4, dtype=torch.bool)


def many_tokens(count: int = 64) -> tuple[torch.Tensor, ...]:
    """On-policy logprobs (twice), advantages and mask, [8, count/8] float32; half of the tokens have a covariance above 0.1."""
    draw = torch.Generator().manual_seed(0)
    logprobs = -3 * torch.rand(8, count // 8, generator=draw) - 0.1
    return logprobs, logprobs, torch.randn(8, count // 8, generator=draw), torch.ones_like(logprobs, dtype=torch.bool)


def held(tensors: tuple[torch.Tensor, ...], **knobs: float) -> torch.Tensor:
    """Where Clip-Cov took the gradient away, bool [N, T]; at ratio 1 every other token of an advantage other than 0 has one."""
    logprobs = tensors[0].clone().requires_grad_()
    policy_loss(logprobs, *tensors[1:], surrogate=partial(clip_cov, **knobs))[0].backward()
    assert logprobs.grad is not None
    return logprobs.grad == 0.0


def test_token_covariance_matches_hand_values():
    assert token_covariance(LOGPROBS, ADVANTAGES, MASK).tolist() == [[2.0, 0.0, 1.0, 0.0]]


def test_token_covariance_is_over_counted_tokens():
    # a masked token moves neither mean: the same four and a fifth
    junk = torch.full((1, 1), math.nan, dtype=torch.float64)
    mask = torch.cat([MASK, torch.zeros(1, 1, dtype=torch.bool)], dim=1)
    got = token_covariance(torch.cat([LOGPROBS, junk], dim=1), torch.cat([ADVANTAGES, junk], dim=1), mask)
    assert got.tolist() == [[2.0, 0.0, 1.0, 0.0, 0.0]]


def test_token_covariances_average_to_the_covariance(batch):
    logprobs, _, advantages, mask, _ = batch(0)
    expected = torch.cov(torch.stack([logprobs[mask], advantages[mask]]), correction=0)[0, 1]
    assert token_covariance(logprobs, advantages, mask).sum().item() / mask.sum() == pytest.approx(expected.item())


def test_shifted_advantages_leave_covariances_as_they_are(batch):
    logprobs, _, advantages, mask, _ = batch(1)
    torch.testing.assert_close(token_covariance(logprobs, advantages + 5, mask), token_covariance(logprobs, advantages, mask))


def test_clip_cov_leaves_out_a_token_of_high_covariance():
    # ratio 1: -A = -2, -1, 1, 2; covariance 2 alone is in [1.5, 5]: L = (0 - 1 + 1 + 2)/4 = 0.5; mean covariance 3/4
    logprobs = LOGPROBS.clone().requires_grad_()
    surrogate = partial(clip_cov, fraction=0.5, covariance_low=1.5)
    loss, metrics = policy_loss(logprobs, LOGPROBS, ADVANTAGES, MASK, surrogate=surrogate)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert metrics["covariance_fraction"].item() == pytest.approx(1 / 4)
    assert metrics["covariance"].item() == pytest.approx(3 / 4)
    assert metrics["clip_fraction"] == 0.0
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == [0.0, -0.25, 0.25, 0.5]


def test_clip_cov_leaves_alone_what_is_above_its_upper_bound():
    # [0.5, 1.5] holds the covariance of 1 alone: L = (-2 - 1 + 0 + 2)/4 = -0.25
    surrogate = partial(clip_cov, fraction=0.5, covariance_low=0.5, covariance_high=1.5)
    assert policy_loss(LOGPROBS, LOGPROBS, ADVANTAGES, MASK, surrogate=surrogate)[0].item() == pytest.approx(-0.25)


def test_clip_cov_without_a_candidate_is_the_clipped_loss():
    # no covariance reaches 3: L = (-2 - 1 + 1 + 2)/4 = 0, and no token is held
    loss, metrics = policy_loss(LOGPROBS, LOGPROBS, ADVANTAGES, MASK, surrogate=partial(clip_cov, covariance_low=3.0))
    assert loss.item() == 0.0
    assert metrics["covariance_fraction"] == 0.0


def test_clip_cov_draws_no_token_that_the_ratio_clip_has_taken():
    # token 0 is at ratio 3 > 1 + 1 with A > 0: clipped, l = -2·2; so the draw falls on token 2: L = (-4 - 1 + 0 + 2)/4
    old = LOGPROBS - torch.tensor([[math.log(3), 0.0, 0.0, 0.0]], dtype=torch.float64)
    surrogate = partial(clip_cov, fraction=0.25, covariance_low=0.5)
    loss, metrics = policy_loss(LOGPROBS, old, ADVANTAGES, MASK, surrogate=surrogate)
    assert loss.item() == pytest.approx(-3 / 4)
    assert metrics["clip_fraction"].item() == pytest.approx(1 / 4)
    assert metrics["covariance_fraction"].item() == pytest.approx(1 / 4)


@pytest.mark.parametrize(("fraction", "count"), [(0.2, 12), (0.05, 3), (2e-4, 1)])
def test_clip_cov_draws_its_fraction_rounded_down_and_at_least_one(fraction, count):
    # ⌊0.2·64⌋ = 12, ⌊0.05·64⌋ = 3, ⌊0.0002·64⌋ = 0 → 1
    tensors = many_tokens()
    chosen = held(tensors, fraction=fraction, covariance_low=0.1)
    covariance = token_covariance(tensors[0], tensors[2], tensors[3])
    assert chosen.sum() == count
    assert ((covariance[chosen] >= 0.1) & (covariance[chosen] <= 5.0)).all()


def test_clip_cov_draws_the_same_from_the_same_and_otherwise_with_another_seed():
    tensors = many_tokens()
    torch.manual_seed(0)
    first = held(tensors, fraction=0.1, covariance_low=0.1)
    torch.manual_seed(1)  # the draw must not use torch's generator
    assert torch.equal(held(tensors, fraction=0.1, covariance_low=0.1), first)
    assert not torch.equal(held(tensors, fraction=0.1, covariance_low=0.1, seed=1), first)


def test_clip_cov_draws_the_same_tokens_in_any_order():
    tensors = many_tokens()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    moved = held(tuple(each[order] for each in tensors), fraction=0.1, covariance_low=0.1)
    assert torch.equal(moved, held(tensors, fraction=0.1, covariance_low=0.1)[order])


def test_clip_cov_draws_the_same_tokens_in_any_order_where_old_logprobs_are_equal():
    # e.g. tokens that were certain: the advantage tells them apart
    logprobs, _, advantages, mask = many_tokens()
    tensors = logprobs, torch.full_like(logprobs, -2.0), advantages, mask
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    knobs = {"fraction": 0.1, "covariance_low": 0.1, "clip_high": 99.0}
    moved = held(tuple(each[order] for each in tensors), **knobs)
    assert moved.sum() == 6  # ⌊0.1·64⌋
    assert torch.equal(moved, held(tensors, **knobs)[order])


def test_clip_cov_draws_evenly():
    # 600 seeds, one token each, from n candidates: each expects 600/n. Pearson's statistic has mean n - 1 and deviation
    # √(2(n-1)); four deviations are exceeded by a fair draw about once in 10^4 such tests, and the seeds are fixed.
    tensors = many_tokens()
    candidates = int((token_covariance(tensors[0], tensors[2], tensors[3]) >= 0.1).sum())
    counts = Counter(
        int(held(tensors, covariance_low=0.1, covariance_high=99.0, seed=s).flatten().nonzero()) for s in range(600)
    )
    expected = 600 / candidates
    statistic = sum((count - expected) ** 2 for count in counts.values()) / expected + expected * (candidates - len(counts))
    assert candidates > 10
    assert statistic < candidates - 1 + 4 * math.sqrt(2 * (candidates - 1))


def test_kl_cov_charges_the_token_of_highest_covariance():
    # token 0 at ratio 2: -2·2 + 3·ln 2; the others at ratio 1: -1, 1, 2.  L = (3 ln 2 - 2)/4;  gradient (-4 + 3)/4, -1/4, ¼, ½
    old = LOGPROBS - torch.tensor([[math.log(2), 0.0, 0.0, 0.0]], dtype=torch.float64)
    logprobs = LOGPROBS.clone().requires_grad_()
    surrogate = partial(kl_cov, fraction=0.25, coef=3.0)
    loss, metrics = policy_loss(logprobs, old, ADVANTAGES, MASK, surrogate=surrogate)
    loss.backward()
    assert loss.item() == pytest.approx((3 * math.log(2) - 2) / 4)
    assert metrics["covariance_fraction"].item() == pytest.approx(1 / 4)
    assert metrics["covariance"].item() == pytest.approx(3 / 4)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.5])


def test_kl_cov_chooses_at_least_one_token():
    # ⌊0.002·4⌋ = 0 → 1
    metrics = policy_loss(LOGPROBS, LOGPROBS, ADVANTAGES, MASK, surrogate=kl_cov)[1]
    assert metrics["covariance_fraction"].item() == pytest.approx(1 / 4)


def test_kl_cov_of_all_tokens_charges_all(batch):
    # fraction 1: L = mean(-r·A) + β·mean|d|
    logprobs, old, advantages, mask, _ = batch(2)
    ratio, difference = (logprobs - old).exp(), (logprobs - old).abs()
    expected = (-ratio * advantages + 0.5 * difference)[mask].mean()
    got, _ = policy_loss(logprobs, old, advantages, mask, surrogate=partial(kl_cov, fraction=1.0, coef=0.5))
    assert got.item() == pytest.approx(expected.item())
