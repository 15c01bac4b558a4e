"""Importance weights between sampler and trainer: by hand, against plain loops, and inside the loss."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.losses import importance_weights, policy_loss
from xomni_rl.policies.losses.correction import CORRECTIONS
from xomni_rl.policies.losses.surrogates import clipped, reinforce

KINDS = CORRECTIONS[1:]
SAMPLER = torch.full((2, 3), -3.0, dtype=torch.float64)
# ratios trainer / sampler: row 0: 4, 0.25, 1.5 (product 1.5);  row 1: 2, 1.5, and a token that does not count (product 3)
OLD = SAMPLER + torch.tensor([[4.0, 0.25, 1.5], [2.0, 1.5, 1.0]], dtype=torch.float64).log()
MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize(
    ("kind", "rows", "touched"),
    [
        # cap 2: the 4 alone is above it: 1 of 5 tokens
        ("truncated", [[2.0, 0.25, 1.5], [2.0, 1.5]], 1 / 5),
        ("masked", [[0.0, 0.25, 1.5], [2.0, 1.5]], 1 / 5),
        # products 1.5 and 3: the second is above: its 2 of 5 tokens
        ("sequence_truncated", [[1.5, 1.5, 1.5], [2.0, 2.0]], 2 / 5),
        ("sequence_masked", [[1.5, 1.5, 1.5], [0.0, 0.0]], 2 / 5),
    ],
)
def test_weights_match_hand_values(kind, rows, touched):
    weights, metrics = importance_weights(OLD, SAMPLER, MASK, kind, cap=2.0)
    assert weights[0].tolist() == pytest.approx(rows[0])
    assert weights[1, :2].tolist() == pytest.approx(rows[1])
    assert metrics["correction_share"].item() == pytest.approx(touched)


@pytest.mark.parametrize(
    ("kind", "rows", "touched"),
    [
        # cap 2, floor 0.5: 4 and 0.25 are outside: 2 of 5
        ("truncated", [[2.0, 0.5, 1.5], [2.0, 1.5]], 2 / 5),
        ("masked", [[0.0, 0.0, 1.5], [2.0, 1.5]], 2 / 5),
        ("sequence_truncated", [[1.5, 1.5, 1.5], [2.0, 2.0]], 2 / 5),
        ("sequence_masked", [[1.5, 1.5, 1.5], [0.0, 0.0]], 2 / 5),
    ],
)
def test_floor_bounds_from_below(kind, rows, touched):
    weights, metrics = importance_weights(OLD, SAMPLER, MASK, kind, cap=2.0, floor=0.5)
    assert weights[0].tolist() == pytest.approx(rows[0])
    assert weights[1, :2].tolist() == pytest.approx(rows[1])
    assert metrics["correction_share"].item() == pytest.approx(touched)


def test_sampler_kl_matches_hand_value():
    # k3 of one token at ratio 2: 2 - 1 - ln 2
    old, sampler = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    _, metrics = importance_weights(old, sampler, torch.ones(1, 1, dtype=torch.bool), "truncated")
    assert metrics["sampler_kl"].item() == pytest.approx(1 - math.log(2))


def plain_weight(row: int, token: int, old, sampler, mask, kind: str, cap: float, floor: float) -> float:
    places = range(len(mask[row])) if kind.startswith("sequence_") else [token]
    ratio = math.prod(math.exp(old[row][t] - sampler[row][t]) for t in places if mask[row][t])
    if kind.endswith("truncated"):
        return max(floor, min(cap, ratio))
    return ratio if floor <= ratio <= cap else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cap", "floor"), [(1.2, 0.0), (1.5, 0.8)])
@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_a_plain_loop(kind, cap, floor, seed, batch):
    old, sampler, _, mask, _ = batch(seed, rows=12)
    weights, metrics = importance_weights(old, sampler, mask, kind, cap, floor)
    plain = [old.tolist(), sampler.tolist(), mask.tolist()]
    expected = [[plain_weight(i, t, *plain, kind, cap, floor) for t in range(5)] for i in range(12)]
    free = [[plain_weight(i, t, *plain, kind, math.inf, 0.0) for t in range(5)] for i in range(12)]
    wanted, unbounded = (torch.tensor(rows, dtype=torch.float64)[mask] for rows in (expected, free))
    torch.testing.assert_close(weights[mask], wanted)
    assert metrics["correction_share"].item() == pytest.approx((wanted != unbounded).double().mean().item())
    assert 0.0 < metrics["correction_share"] < 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_weight_is_one_where_sampler_and_trainer_agree(kind, batch):
    old, _, _, mask, _ = batch(0)
    weights, metrics = importance_weights(old, old, mask, kind)
    assert (weights == 1.0).all()
    assert [value.item() for value in metrics.values()] == [0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_ratio_beyond_float_range_stays_finite(kind):
    # exp(1000) is inf: truncated to the cap, or left out
    old, sampler = torch.zeros(1, 2), torch.full((1, 2), -500.0)
    weights, _ = importance_weights(old, sampler, torch.ones(1, 2, dtype=torch.bool), kind)
    assert (weights == (2.0 if kind.endswith("truncated") else 0.0)).all()


# in the loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_loss_weighs_the_surrogate_and_not_the_kl(kind, seed, batch, mean_of):
    # w·(-A·logprob) + β·(exp(-d) - 1 + d), a token at a time
    logprobs, old, advantages, mask, reference = batch(seed)
    sampler = batch(seed + 100)[1]
    loss, metrics = policy_loss(
        logprobs,
        old,
        advantages,
        mask,
        reference,
        surrogate=reinforce,
        aggregation="sequence_mean",
        kl_coef=0.2,
        sampler_logprobs=sampler,
        correction=kind,
        correction_cap=1.5,
        correction_floor=0.3,
    )
    rows = [[0.0] * 5 for _ in range(4)]
    for i in range(4):
        for t in range(5):
            weight = plain_weight(i, t, old.tolist(), sampler.tolist(), mask.tolist(), kind, 1.5, 0.3)
            d = (logprobs[i, t] - reference[i, t]).item()
            rows[i][t] = -weight * (advantages[i, t] * logprobs[i, t]).item() + 0.2 * (math.exp(-d) - 1 + d)
    assert loss.item() == pytest.approx(mean_of(rows, mask.tolist(), "sequence_mean"), abs=1e-9)
    expected = importance_weights(old, sampler, mask, kind, 1.5, 0.3)[1]
    assert {name: metrics[name] for name in expected} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_with_weights_matches_finite_differences(kind, batch):
    logprobs, old, advantages, mask, _ = batch(2)
    loss = partial(policy_loss, surrogate=clipped, sampler_logprobs=batch(3)[1], correction=kind)

    def value(values: torch.Tensor) -> torch.Tensor:
        return loss(values, old, advantages, mask)[0]

    assert torch.autograd.gradcheck(value, (logprobs.clone().requires_grad_(),), eps=1e-6, atol=1e-6)


def test_weights_carry_no_gradient(batch):
    logprobs, old, advantages, mask, _ = (each.clone() for each in batch(4))
    sampler = batch(5)[1].requires_grad_()
    old.requires_grad_()
    logprobs.requires_grad_()
    loss, metrics = policy_loss(
        logprobs, old, advantages, mask, surrogate=clipped, sampler_logprobs=sampler, correction="truncated"
    )
    loss.backward()
    assert [old.grad, sampler.grad] == [None, None]
    assert not any(value.requires_grad for value in metrics.values())


def test_sampler_without_correction_changes_nothing(batch):
    logprobs, old, advantages, mask, _ = batch(6)
    plain, metrics = policy_loss(logprobs, old, advantages, mask, surrogate=clipped)
    given_sampler, same = policy_loss(logprobs, old, advantages, mask, surrogate=clipped, sampler_logprobs=batch(7)[1])
    assert given_sampler == plain
    assert same == metrics


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_change_nothing_whatever_they_hold(batch, seed, kind, junk):
    old, sampler, _, mask, _ = batch(seed)
    clean, metrics = importance_weights(old, sampler, mask, kind, 1.2, 0.9)
    dirty, same = importance_weights(torch.where(mask, old, junk), torch.where(mask, sampler, junk), mask, kind, 1.2, 0.9)
    assert torch.equal(dirty[mask], clean[mask])
    assert dirty.isfinite().all()
    assert same == metrics


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"correction": "clip"},
            "correction must be one of truncated, masked, sequence_truncated, sequence_masked, but is 'clip'",
        ),
        ({"correction": "none"}, "correction must be one of .* but is 'none'"),
        ({"correction": "masked", "cap": 0.9}, "correction_cap must be 1 or more, but is 0.9"),
        ({"correction": "masked", "cap": math.nan}, "correction_cap must be 1 or more, but is nan"),
        ({"correction": "masked", "floor": 1.5}, r"correction_floor must be in \[0, 1\], but is 1.5"),
    ],
)
def test_bad_knobs_raise(knobs, message):
    with pytest.raises(ValueError, match=message):
        importance_weights(OLD, SAMPLER, MASK, **knobs)


def test_correction_without_sampler_raises(batch):
    with pytest.raises(ValueError, match="correction is 'masked', but no sampler_logprobs were given"):
        policy_loss(*batch(0)[:4], surrogate=clipped, correction="masked")


def test_sampler_of_another_shape_raises_with_both_shapes(batch):
    logprobs, old, advantages, mask, _ = batch(0)
    with pytest.raises(ValueError, match=r"sampler_logprobs must be \[N, T\], but has shape \(2, 5\).*\(4, 5\)"):
        policy_loss(logprobs, old, advantages, mask, surrogate=clipped, sampler_logprobs=old[:2], correction="masked")
