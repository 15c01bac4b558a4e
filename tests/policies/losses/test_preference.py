"""Online DPO: values by hand, against a plain loop, and which rollouts make a pair."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.losses import dpo_loss

GROUP = torch.tensor([0, 0, 0, 1, 1, 1])
SIDES = torch.tensor([0.0, 1.0, -1.0, -1.0, 1.0, 0.0], dtype=torch.float64)  # two pairs: rows 1 over 2, and 4 over 3


def six(batch, seed: int) -> tuple[torch.Tensor, ...]:
    """logprobs, old_logprobs, mask, reference of six rollouts."""
    logprobs, old, _, mask, reference = batch(seed, rows=6)
    return logprobs, old, mask, reference


def test_loss_and_metrics_match_hand_values():
    # Δ_best = ln 4 + ln 2 = 3 ln 2, Δ_worst = -ln 2 (its second token does not count): m = 0.5·4 ln 2 = ln 4
    # L = -ln σ(ln 4) = ln(1 + 1/4);   dL/dm = -σ(-m) = -1/5, times ±β: -0.1 for the tokens of the best, 0.1 of the worst
    reference = torch.full((2, 2), -4.0, dtype=torch.float64)
    logprobs = (reference + torch.tensor([[4.0, 2.0], [0.5, 7.0]], dtype=torch.float64).log()).requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    advantages, group = torch.tensor([1.0, -1.0]), torch.tensor([7, 7])
    loss, metrics = dpo_loss(logprobs, logprobs.detach(), advantages, mask, reference, group=group, beta=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1.25))
    assert logprobs.grad is not None
    assert logprobs.grad.flatten().tolist() == pytest.approx([-0.1, -0.1, 0.1, 0.0])
    assert metrics["preference_accuracy"] == 1.0
    assert metrics["preference_margin"].item() == pytest.approx(math.log(4))
    # k3 = 1/r - 1 + ln r over three tokens at r = 4, 2, 0.5: (¼ + ½ + 2 - 3 + ln 4)/3
    assert metrics["kl_reference"].item() == pytest.approx((math.log(4) - 0.25) / 3)
    assert [metrics["approx_kl"], metrics["ratio_max_deviation"]] == [0.0, 0.0]
    assert len(metrics) == 5


def test_policy_equal_to_reference_loses_ln_two(batch):
    # m = 0: L = -ln ½; no pair has a margin above 0
    logprobs, old, mask, _ = six(batch, 0)
    loss, metrics = dpo_loss(logprobs, old, SIDES, mask, logprobs, group=GROUP)
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics["preference_accuracy"] == 0.0


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_loss_equals_a_plain_loop(seed, beta, batch):
    logprobs, old, mask, reference = six(batch, seed)
    loss, metrics = dpo_loss(logprobs, old, SIDES, mask, reference, group=GROUP, beta=beta)
    gains = [sum((logprobs[i, t] - reference[i, t]).item() for t in range(5) if mask[i, t]) for i in range(6)]
    margins = [beta * (gains[1] - gains[2]), beta * (gains[4] - gains[3])]
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins) / 2)
    assert metrics["preference_margin"].item() == pytest.approx(sum(margins) / 2)
    assert metrics["preference_accuracy"].item() == pytest.approx(sum(m > 0 for m in margins) / 2)


@pytest.mark.parametrize("seed", range(2))
def test_gradient_matches_finite_differences(seed, batch):
    logprobs, old, mask, reference = six(batch, seed)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return dpo_loss(values, old, SIDES, mask, reference, group=GROUP, beta=0.7)[0]

    assert torch.autograd.gradcheck(loss, (logprobs.clone().requires_grad_(),), eps=1e-6, atol=1e-6)


def test_gradient_raises_the_best_lowers_the_worst_and_leaves_the_rest(batch):
    logprobs, old, mask, reference = six(batch, 1)
    logprobs.requires_grad_()
    dpo_loss(logprobs, old, SIDES, mask, reference, group=GROUP)[0].backward()
    assert logprobs.grad is not None
    for row, side in enumerate(SIDES.tolist()):
        assert (torch.sign(logprobs.grad[row][mask[row]]) == -side).all()


def test_only_logprobs_carry_a_gradient(batch):
    logprobs, old, mask, reference = six(batch, 2)
    tensors = [each.clone().requires_grad_() for each in (logprobs, old, SIDES, reference)]
    loss, metrics = dpo_loss(*tensors[:3], mask, tensors[3], group=GROUP)
    loss.backward()
    assert tensors[0].grad is not None
    assert [each.grad for each in tensors[1:]] == [None, None, None]
    assert not any(value.requires_grad for value in metrics.values())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_change_nothing_whatever_they_hold(batch, seed, junk):
    logprobs, old, mask, reference = six(batch, seed)
    clean, metrics = dpo_loss(logprobs, old, SIDES, mask, reference, group=GROUP)
    current, before, anchor = (torch.where(mask, each, junk) for each in (logprobs, old, reference))
    current.requires_grad_()
    dirty, same = dpo_loss(current, before, SIDES, mask, anchor, group=GROUP)
    dirty.backward()
    assert dirty == clean
    assert same == metrics
    assert current.grad is not None
    assert current.grad.isfinite().all()
    assert (current.grad[~mask] == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(6)))
def test_order_of_rollouts_and_names_of_groups_do_not_matter(batch, seed, order):
    logprobs, old, mask, reference = six(batch, seed)
    plain, metrics = dpo_loss(logprobs, old, SIDES, mask, reference, group=GROUP)
    tensors = [each[list(order)] for each in (logprobs, old, SIDES, mask, reference, 40 - 3 * GROUP)]
    moved, same = dpo_loss(*tensors[:5], group=tensors[5])
    assert moved.item() == pytest.approx(plain.item(), abs=1e-12)
    assert {k: v.item() for k, v in same.items()} == pytest.approx({k: v.item() for k, v in metrics.items()}, abs=1e-12)


def test_size_of_an_advantage_does_not_matter(batch):
    logprobs, old, mask, reference = six(batch, 3)
    assert (
        dpo_loss(logprobs, old, 0.3 * SIDES, mask, reference, group=GROUP)[0]
        == dpo_loss(logprobs, old, SIDES, mask, reference, group=GROUP)[0]
    )


@pytest.mark.parametrize("lacking", [1, 2])
def test_group_without_a_pair_is_left_out(lacking, batch):
    # group 0 loses its best (row 1) or worst (row 2): the other pair alone remains
    logprobs, old, mask, reference = six(batch, 4)
    sides = SIDES.clone()
    sides[lacking] = 0.0
    loss, _ = dpo_loss(logprobs, old, sides, mask, reference, group=GROUP)
    alone, _ = dpo_loss(*(each[3:] for each in (logprobs, old, SIDES, mask, reference)), group=GROUP[3:])
    assert loss.item() == pytest.approx(alone.item())


@pytest.mark.parametrize("advantage", [1.0, math.nan])
def test_rollout_without_a_counted_token_makes_no_pair(advantage, batch):
    logprobs, old, mask, reference = six(batch, 5)
    mask[1] = False
    advantages = SIDES.clone()
    advantages[1] = advantage
    loss, _ = dpo_loss(logprobs, old, advantages, mask, reference, group=GROUP)
    alone, _ = dpo_loss(*(each[3:] for each in (logprobs, old, SIDES, mask, reference)), group=GROUP[3:])
    assert loss.item() == pytest.approx(alone.item())


def test_no_pair_at_all_raises(batch):
    logprobs, old, mask, reference = six(batch, 0)
    with pytest.raises(ValueError, match=r"none of the 2 groups has both a best and a worst rollout"):
        dpo_loss(logprobs, old, torch.zeros(6), mask, reference, group=GROUP)


@pytest.mark.parametrize(("side", "name"), [(1.0, "best"), (-1.0, "worst")])
def test_two_of_a_side_in_one_group_raise(side, name, batch):
    logprobs, old, mask, reference = six(batch, 0)
    sides = SIDES.clone()
    sides[5] = side  # group 1 has a best and a worst already
    with pytest.raises(ValueError, match=f"group 1 has 2 {name} rollouts; a pair needs one"):
        dpo_loss(logprobs, old, sides, mask, reference, group=GROUP)


def test_missing_reference_or_group_raises(batch):
    logprobs, old, mask, reference = six(batch, 0)
    with pytest.raises(ValueError, match="dpo_loss needs reference log-probabilities, but got None"):
        dpo_loss(logprobs, old, SIDES, mask, group=GROUP)
    with pytest.raises(ValueError, match="dpo_loss needs group, but got None"):
        dpo_loss(logprobs, old, SIDES, mask, reference)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_bad_beta_raises(beta, batch):
    logprobs, old, mask, reference = six(batch, 0)
    with pytest.raises(ValueError, match=f"beta must be more than 0, but is {beta}"):
        dpo_loss(logprobs, old, SIDES, mask, reference, group=GROUP, beta=beta)


def test_wrong_shapes_and_dtypes_raise(batch):
    logprobs, old, mask, reference = six(batch, 0)
    with pytest.raises(ValueError, match=r"group must be \[N\], but has shape \(3,\).*\(6,\)"):
        dpo_loss(logprobs, old, SIDES, mask, reference, group=GROUP[:3])
    with pytest.raises(ValueError, match="group must hold int values"):
        dpo_loss(logprobs, old, SIDES, mask, reference, group=GROUP.float())
    with pytest.raises(ValueError, match=r"advantages must be \[N\], but has shape \(6, 5\)"):
        dpo_loss(logprobs, old, reference, mask, reference, group=GROUP)
    with pytest.raises(ValueError, match=r"reference must be \[N, T\], but has shape \(2, 5\).*\(6, 5\)"):
        dpo_loss(logprobs, old, SIDES, mask, reference[:2], group=GROUP)
