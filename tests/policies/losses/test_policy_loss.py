"""The loss with PPO's surrogate, KL and entropy: numbers worked out by hand, finite differences, and what must not matter."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.losses import aggregate, kl_estimate, policy_loss, sequence_kl
from xomni_rl.policies.losses.surrogates import clipped

AGGREGATIONS = ["token_mean", "sequence_mean", "constant_length"]


def clipped_policy_loss(*tensors, clip_low=0.2, clip_high=0.2, **knobs):
    return policy_loss(*tensors, surrogate=partial(clipped, clip_low=clip_low, clip_high=clip_high), **knobs)


def batch(seed: int, rows: int = 3, tokens: int = 5) -> tuple[torch.Tensor, ...]:
    """logprobs, old_logprobs, advantages, mask, reference in float64; every row has a counted token."""
    draw = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, tokens, generator=draw, dtype=torch.float64) - 0.1
    logprobs = old + 0.4 * torch.randn(rows, tokens, generator=draw, dtype=torch.float64)
    reference = old + 0.3 * torch.randn(rows, tokens, generator=draw, dtype=torch.float64)
    advantages = torch.randn(rows, generator=draw, dtype=torch.float64)
    mask = torch.rand(rows, tokens, generator=draw) < 0.7
    mask[:, 0] = True
    return logprobs, old, advantages, mask, reference


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


# the value


def test_loss_and_metrics_match_hand_values():
    # ratios to old (all 0.5): row 0 (A = 2): 1.5, 0.5, 1.0;   row 1 (A = -1): 0.5, 1.5, 1.0;   ε = 0.2
    # min(rA, clip(r)A): row 0: min(3, 2.4) = 2.4, min(1, 1.6) = 1, 2;  row 1: min(-.5, -.8) = -.8, min(-1.5, -1.2) = -1.5, -1
    # sum = 5.4 - 3.3 = 2.1 over 6 tokens: L = -0.35
    # clipped: the first token of each row: 2/6.  largest |r - 1|: 0.5
    # approx_kl: (r - 1) - ln r for 1.5: 0.5 - ln 1.5; for 0.5: -0.5 + ln 2; two of each over 6 = (-2 ln 1.5 + 2 ln 2) / 6
    logprobs = logs([0.75, 0.25, 0.5], [0.25, 0.75, 0.5])
    old = logs([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    loss, metrics = clipped_policy_loss(logprobs, old, torch.tensor([2.0, -1.0]), torch.ones(2, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(-0.35)
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 6)
    assert metrics["ratio_max_deviation"].item() == pytest.approx(0.5)
    assert metrics["approx_kl"].item() == pytest.approx(2 * math.log(2 / 1.5) / 6)
    assert set(metrics) == {"approx_kl", "clip_fraction", "ratio_max_deviation"}


def test_asymmetric_clip_uses_each_side():
    # r = 1.5, A = 1: min(1.5, 1 + 0.4) = 1.4;  r = 0.5, A = -1: min(-0.5, -(1 - 0.1)) = -0.9;  L = -(1.4 - 0.9) / 2 = -0.25
    logprobs, old = logs([0.75], [0.25]), logs([0.5], [0.5])
    loss, _ = clipped_policy_loss(
        logprobs, old, torch.tensor([1.0, -1.0]), torch.ones(2, 1, dtype=torch.bool), clip_low=0.1, clip_high=0.4
    )
    assert loss.item() == pytest.approx(-0.25)


def test_kl_term_is_added_with_its_coefficient():
    # ratio 1 and A = 0 leave the KL alone; policy 0.5, reference 0.25: d = ln 2, k3 = 0.5 - 1 + ln 2; β = 0.1
    logprobs = logs([0.5, 0.5])
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, metrics = clipped_policy_loss(logprobs, logprobs, torch.zeros(1), mask, logs([0.25, 0.25]), kl_coef=0.1)
    assert loss.item() == pytest.approx(0.1 * (math.log(2) - 0.5))
    assert metrics["kl_reference"].item() == pytest.approx(math.log(2) - 0.5)


def test_reference_without_coefficient_is_measured_but_costs_nothing():
    logprobs, old, advantages, mask, reference = batch(0)
    with_reference, metrics = clipped_policy_loss(logprobs, old, advantages, mask, reference)
    assert "kl_reference" in metrics
    assert with_reference == clipped_policy_loss(logprobs, old, advantages, mask)[0]


def test_aggregations_match_hand_values():
    # row 0 counts 3 tokens: 1, 2, 3 (sum 6);  row 1 counts 1: 8
    # token_mean 14/4 = 3.5;  sequence_mean (2 + 8)/2 = 5;  constant_length 14/(2·3) = 7/3
    values = torch.tensor([[1.0, 2.0, 3.0], [8.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert [aggregate(values, mask, each).item() for each in AGGREGATIONS] == pytest.approx([3.5, 5.0, 7 / 3])


def test_rollout_without_counted_token_is_left_out_of_every_mean():
    # adding a row that does not count must not change the figures above
    values = torch.tensor([[1.0, 2.0, 3.0], [8.0, 9.0, 9.0], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert [aggregate(values, mask, each).item() for each in AGGREGATIONS] == pytest.approx([3.5, 5.0, 7 / 3])


# the gradient


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_matches_finite_differences(aggregation, estimator, seed):
    logprobs, old, advantages, mask, reference = batch(seed)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return clipped_policy_loss(
            values, old, advantages, mask, reference, aggregation=aggregation, kl_coef=0.3, kl_estimator=estimator
        )[0]

    assert torch.autograd.gradcheck(loss, (logprobs.clone().requires_grad_(),), eps=1e-6, atol=1e-6)


def test_gradient_at_ratio_one_is_minus_the_advantage():
    # dL/dlogprob = -A·r / tokens, r = 1: row 0 (A = 2): -2/6, row 1 (A = -1): 1/6
    logprobs = logs([0.2, 0.3, 0.4], [0.5, 0.6, 0.7]).requires_grad_()
    loss, _ = clipped_policy_loss(logprobs, logprobs.detach(), torch.tensor([2.0, -1.0]), torch.ones(2, 3, dtype=torch.bool))
    loss.backward()
    expected = torch.tensor([[-2 / 6] * 3, [1 / 6] * 3], dtype=torch.float64)
    torch.testing.assert_close(logprobs.grad, expected)


def test_clipped_token_has_no_gradient():
    logprobs = logs([0.75, 0.5]).requires_grad_()  # r = 1.5 is past the clip for A > 0; r = 1 is not
    clipped_policy_loss(logprobs, logs([0.5, 0.5]), torch.ones(1), torch.ones(1, 2, dtype=torch.bool))[0].backward()
    assert logprobs.grad[0, 0] == 0.0
    assert logprobs.grad[0, 1] < 0.0


def test_only_logprobs_carry_a_gradient():
    tensors = [value.clone().requires_grad_() for value in (*batch(0)[:3], batch(0)[4])]
    logprobs, old, advantages, reference = tensors
    loss, metrics = clipped_policy_loss(logprobs, old, advantages, batch(0)[3], reference, kl_coef=0.1)
    loss.backward()
    assert logprobs.grad is not None
    assert [old.grad, advantages.grad, reference.grad] == [None, None, None]
    assert not any(value.requires_grad for value in metrics.values())


# what must hold


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_ratio_one_gives_minus_the_mean_advantage_and_zero_metrics(aggregation):
    logprobs, _, advantages, _, _ = batch(2)
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    loss, metrics = clipped_policy_loss(logprobs, logprobs, advantages, mask, aggregation=aggregation)
    assert loss.item() == pytest.approx(-advantages.mean().item())
    assert [value.item() for value in metrics.values()] == [0.0, 0.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(AGGREGATIONS), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_change_nothing_whatever_they_hold(seed, aggregation, junk):
    logprobs, old, advantages, mask, reference = batch(seed)

    def run(fill: bool) -> tuple[float, torch.Tensor, dict[str, float]]:
        values = [torch.where(mask, each, junk) if fill else each.clone() for each in (logprobs, old, reference)]
        per_token = advantages.unsqueeze(1).expand_as(mask)
        per_token = torch.where(mask, per_token, junk) if fill else per_token
        values[0].requires_grad_()
        loss, metrics = clipped_policy_loss(
            values[0], values[1], per_token, mask, values[2], aggregation=aggregation, kl_coef=0.2
        )
        loss.backward()
        assert values[0].grad is not None
        return loss.item(), values[0].grad, {name: value.item() for name, value in metrics.items()}

    clean, dirty = run(fill=False), run(fill=True)
    assert dirty[0] == clean[0]
    assert torch.equal(dirty[1], clean[1])
    assert dirty[2] == clean[2]
    assert (clean[1][~mask] == 0).all()


def test_masked_rollout_may_have_a_nan_advantage():
    logprobs, old, advantages, mask, _ = batch(3)
    mask[1] = False
    expected, _ = clipped_policy_loss(logprobs, old, advantages, mask)
    advantages[1] = math.nan
    assert clipped_policy_loss(logprobs, old, advantages, mask)[0] == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(AGGREGATIONS))
def test_order_of_rollouts_does_not_matter(seed, aggregation):
    logprobs, old, advantages, mask, reference = batch(seed, rows=4)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    plain, _ = clipped_policy_loss(logprobs, old, advantages, mask, reference, aggregation=aggregation, kl_coef=0.1)
    moved, _ = clipped_policy_loss(
        *(each[order] for each in (logprobs, old, advantages, mask, reference)), aggregation=aggregation, kl_coef=0.1
    )
    assert moved.item() == pytest.approx(plain.item(), abs=1e-12)


def test_advantage_per_rollout_equals_the_same_per_token():
    logprobs, old, advantages, mask, _ = batch(4)
    per_token = advantages.unsqueeze(1).expand(-1, 5)
    assert clipped_policy_loss(logprobs, old, advantages, mask)[0] == clipped_policy_loss(logprobs, old, per_token, mask)[0]


def test_descending_raises_the_logprob_of_what_was_better_than_average():
    logprobs = logs([0.5], [0.5]).requires_grad_()
    mask = torch.ones(2, 1, dtype=torch.bool)
    clipped_policy_loss(logprobs, logprobs.detach(), torch.tensor([1.0, -1.0]), mask)[0].backward()
    assert logprobs.grad[0] < 0 < logprobs.grad[1]


# entropy


def test_entropy_bonus_is_taken_from_the_loss():
    # ratio 1 and A = 0 leave -γ·mean H over counted tokens: -0.5·(1 + 2 + 6)/3 = -1.5, -γ/3 for each counted token's H
    logprobs, mask = logs([0.5, 0.5], [0.5, 0.5]), torch.tensor([[True, True], [True, False]])
    entropy = torch.tensor([[1.0, 2.0], [6.0, math.nan]], dtype=torch.float64, requires_grad=True)
    loss, metrics = clipped_policy_loss(logprobs, logprobs, torch.zeros(2), mask, entropy=entropy, entropy_coef=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(-1.5)
    assert metrics["entropy"].item() == pytest.approx(3.0)
    assert entropy.grad is not None
    assert entropy.grad.flatten().tolist() == pytest.approx([-0.5 / 3, -0.5 / 3, -0.5 / 3, 0.0])


def test_entropy_bonus_follows_the_aggregation():
    # sequence_mean: ((1 + 2)/2 + 6)/2 = 3.75;  constant_length: 9/(2·2) = 2.25
    logprobs, mask = logs([0.5, 0.5], [0.5, 0.5]), torch.tensor([[True, True], [True, False]])
    entropy = torch.tensor([[1.0, 2.0], [6.0, 9.0]], dtype=torch.float64)
    for aggregation, expected in (("sequence_mean", -3.75), ("constant_length", -2.25)):
        got, _ = clipped_policy_loss(
            logprobs, logprobs, torch.zeros(2), mask, entropy=entropy, entropy_coef=1.0, aggregation=aggregation
        )
        assert got.item() == pytest.approx(expected)


def test_entropy_without_coefficient_is_measured_but_costs_nothing():
    logprobs, old, advantages, mask, reference = batch(0)
    with_entropy, metrics = clipped_policy_loss(logprobs, old, advantages, mask, entropy=-reference)
    assert metrics["entropy"].item() == pytest.approx(-reference[mask].mean().item())
    plain, without = clipped_policy_loss(logprobs, old, advantages, mask)
    assert with_entropy == plain
    assert "entropy" not in without


def test_gradient_through_logprobs_and_entropy_matches_finite_differences():
    # both from the same logits, as a policy has them
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
    tokens = torch.randint(4, (2, 3, 1), generator=draw)
    old, advantages = torch.full((2, 3), -1.4, dtype=torch.float64), torch.tensor([1.0, -0.5], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])

    def loss(values: torch.Tensor) -> torch.Tensor:
        everything = values.log_softmax(dim=-1)
        entropy = -(everything.exp() * everything).sum(dim=-1)
        chosen = everything.gather(2, tokens).squeeze(2)
        return clipped_policy_loss(chosen, old, advantages, mask, entropy=entropy, entropy_coef=0.3, clip_high=9.0)[0]

    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(),), eps=1e-6, atol=1e-6)


# KL


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_loss_with_kl_equals_a_plain_loop(estimator, aggregation, mean_of):
    logprobs, old, advantages, mask, reference = batch(5)
    formulas = {
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
    }
    rows = [[0.0] * 5 for _ in range(3)]
    for i in range(3):
        for t in range(5):
            ratio, a = math.exp(logprobs[i, t] - old[i, t]), advantages[i].item()
            kl = formulas[estimator]((logprobs[i, t] - reference[i, t]).item())
            rows[i][t] = -min(ratio * a, max(0.8, min(1.2, ratio)) * a) + 0.4 * kl
    loss, metrics = clipped_policy_loss(
        logprobs, old, advantages, mask, reference, kl_coef=0.4, kl_estimator=estimator, aggregation=aggregation
    )
    assert loss.item() == pytest.approx(mean_of(rows, mask.tolist(), aggregation))
    kls = [[formulas[estimator](d) for d in row] for row in (logprobs - reference).tolist()]
    assert metrics["kl_reference"].item() == pytest.approx(mean_of(kls, mask.tolist(), "token_mean"))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_expected_gradient_in_a_loss_is_zero_for_k1_alone(estimator):
    # Expectation under the policy p = softmax(z), exactly over 4 tokens, of the gradient of one sampled token's estimate.
    # k1: Σ p ∇ln p = ∇Σp = 0;  k2: Σ p ln(p/q) ∇ln p, which is ∇KL(p ‖ q);  k3: Σ p (1 - q/p) ∇ln p = -Σ q ∇ln p = ∇KL(q ‖ p)
    z = torch.tensor([0.1, -0.4, 0.9, 0.3], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.25, 0.25, 0.4, 0.1], dtype=torch.float64)
    log_p = z.log_softmax(dim=0)
    (got,) = torch.autograd.grad((log_p.exp().detach() * kl_estimate(log_p[None], q.log()[None], estimator)[0]).sum(), z)
    log_p = z.log_softmax(dim=0)
    kl = {"k1": 0.0 * z.sum(), "k2": (log_p.exp() * (log_p - q.log())).sum(), "k3": (q * (q.log() - log_p)).sum()}
    (wanted,) = torch.autograd.grad(kl[estimator], z)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-9)
    assert (got.abs().max().item() < 1e-12) == (estimator == "k1")


def test_estimators_match_hand_values():
    # d = ln(0.5 / 0.25) = ln 2: k1 = ln 2, k2 = (ln 2)²/2, k3 = 1/2 - 1 + ln 2
    policy, reference = logs([0.5]), logs([0.25])
    expected = {"k1": math.log(2), "k2": math.log(2) ** 2 / 2, "k3": math.log(2) - 0.5}
    assert {name: kl_estimate(policy, reference, name).item() for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_average_to_the_exact_kl(estimator):
    # The expectation under the policy p, taken exactly over a vocabulary of 4, is Σ p ln(p/q).
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.25, 0.4, 0.1]], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    assert (p * kl_estimate(p.log(), q.log(), estimator)).sum().item() == pytest.approx(exact.item(), abs=1e-12)


def test_k3_is_never_negative():
    difference = torch.linspace(-5, 5, 101, dtype=torch.float64)[None]
    assert (kl_estimate(difference, torch.zeros_like(difference), "k3") >= 0).all()


def test_sequence_kl_sums_counted_tokens():
    # row 0: ln 2 + ln 2; row 1: only its first token counts, ln(0.5/1) = -ln 2
    policy, reference = logs([0.5, 0.5], [0.5, 0.5]), logs([0.25, 0.25], [1.0, math.nan])
    mask = torch.tensor([[True, True], [True, False]])
    got = sequence_kl(policy.requires_grad_(), reference, mask)
    assert got.tolist() == pytest.approx([2 * math.log(2), -math.log(2)])
    assert not got.requires_grad


# errors


@pytest.mark.parametrize("position", range(5))
def test_wrong_shapes_raise_with_both_shapes(position):
    tensors = list(batch(0))
    tensors[position] = torch.cat([tensors[position]] * 2)  # 6 rows against 3
    with pytest.raises(ValueError, match=r"\(6.*\(3|\(3.*\(6"):
        clipped_policy_loss(*tensors)


def test_wrong_rank_and_dtype_raise():
    logprobs, old, advantages, mask, _ = batch(0)
    with pytest.raises(ValueError, match=r"logprobs must be \[N, T\], but has shape \(5,\)"):
        clipped_policy_loss(logprobs[0], old, advantages, mask)
    with pytest.raises(ValueError, match=r"mask must hold bool values, but its dtype is torch\.int64"):
        clipped_policy_loss(logprobs, old, advantages, mask.long())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"clip_low": 1.5}, r"clip_low must be in \[0, 1\], but is 1.5"),
        ({"clip_high": -0.1}, "clip_high must be 0 or more"),
        ({"kl_coef": -1.0}, "kl_coef must be 0 or more"),
        ({"kl_coef": 0.1}, "no reference log-probabilities"),
        ({"entropy_coef": 0.1}, "entropy_coef is 0.1, but no entropy was given"),
        ({"aggregation": "mean"}, "aggregation must be one of"),
    ],
)
def test_bad_knobs_raise(knobs, message):
    with pytest.raises(ValueError, match=message):
        clipped_policy_loss(*batch(0)[:4], **knobs)


def test_unknown_estimator_raises():
    with pytest.raises(ValueError, match="kl_estimator must be one of k1, k2, k3, but is 'k4'"):
        kl_estimate(logs([0.5]), logs([0.5]), "k4")  # type: ignore[arg-type]


def test_no_counted_token_raises():
    logprobs, old, advantages, mask, _ = batch(0)
    with pytest.raises(ValueError, match=r"no token is counted: mask of shape \(3, 5\)"):
        clipped_policy_loss(logprobs, old, advantages, torch.zeros_like(mask))
