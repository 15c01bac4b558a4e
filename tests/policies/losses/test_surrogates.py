"""Every surrogate against plain Python loops, finite differences, and what must not matter. Values by hand: in other files."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.losses import policy_loss, surrogates

Rows = list[list[float]]
AGGREGATIONS = ["token_mean", "sequence_mean", "constant_length"]
JUNK = [math.nan, math.inf, -math.inf, 1e30]


# The same mathematics with Python's floats, a token at a time. `held` is what a stopped gradient sees: the log-probabilities
# before a finite difference moves them.


def counted(mask: list[list[bool]]) -> Iterator[tuple[int, int]]:
    return ((i, t) for i, row in enumerate(mask) for t, counts in enumerate(row) if counts)


def per_token(mask: list[list[bool]], loss: Callable[[int, int], float]) -> Rows:
    rows = [[0.0] * len(row) for row in mask]
    for i, t in counted(mask):
        rows[i][t] = loss(i, t)
    return rows


def limit(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


def pessimistic(ratio: float, a: float, low: float, high: float) -> float:
    return -min(ratio * a, limit(ratio, 1 - low, 1 + high) * a)


def mean_log_ratio(current: list[float], old: list[float], mask: list[bool]) -> float:
    differences = [c - o for c, o, counts in zip(current, old, mask, strict=True) if counts]
    return sum(differences) / len(differences)


def clipped(current, held, old, a, mask, clip_low, clip_high, dual_clip=None) -> Rows:
    def loss(i: int, t: int) -> float:
        value = pessimistic(math.exp(current[i][t] - old[i][t]), a[i][t], clip_low, clip_high)
        return min(value, -dual_clip * a[i][t]) if dual_clip and a[i][t] < 0 else value

    return per_token(mask, loss)


def cispo(current, held, old, a, mask, clip_low, clip_high) -> Rows:
    def loss(i: int, t: int) -> float:
        weight = limit(math.exp(held[i][t] - old[i][t]), 1 - clip_low, 1 + clip_high)
        return -weight * a[i][t] * current[i][t]

    return per_token(mask, loss)


def sapo(current, held, old, a, mask, temperature_positive, temperature_negative) -> Rows:
    def loss(i: int, t: int) -> float:
        tau = temperature_positive if a[i][t] > 0 else temperature_negative
        ratio = math.exp(current[i][t] - old[i][t])
        return -4 / tau / (1 + math.exp(-tau * (ratio - 1))) * a[i][t]

    return per_token(mask, loss)


def reinforce(current, held, old, a, mask) -> Rows:
    return per_token(mask, lambda i, t: -a[i][t] * current[i][t])


def log_likelihood(current, held, old, a, mask) -> Rows:
    return per_token(mask, lambda i, t: -current[i][t] if a[i][t] > 0 else 0.0)


def gspo(current, held, old, a, mask, clip_low, clip_high) -> Rows:
    def loss(i: int, t: int) -> float:
        return pessimistic(math.exp(mean_log_ratio(current[i], old[i], mask[i])), a[i][t], clip_low, clip_high)

    return per_token(mask, loss)


def gspo_token(current, held, old, a, mask, clip_low, clip_high) -> Rows:
    def loss(i: int, t: int) -> float:
        ratio = math.exp(mean_log_ratio(held[i], old[i], mask[i])) * math.exp(current[i][t]) / math.exp(held[i][t])
        return pessimistic(ratio, a[i][t], clip_low, clip_high)

    return per_token(mask, loss)


def gmpo(current, held, old, a, mask, clip_low, clip_high) -> Rows:
    def geometric_mean(i: int) -> float:
        product, length = 1.0, 0
        for t in range(len(mask[i])):
            if mask[i][t]:
                ratio = math.exp(current[i][t] - old[i][t])
                kept = limit(ratio, math.exp(-clip_low), math.exp(clip_high))
                product *= min(ratio, kept) if a[i][t] > 0 else max(ratio, kept)
                length += 1
        return product ** (1 / length)

    return per_token(mask, lambda i, t: -geometric_mean(i) * a[i][t])


def covariances(held, a, mask) -> dict[tuple[int, int], float]:
    places = list(counted(mask))
    mean_logprob = sum(held[i][t] for i, t in places) / len(places)
    mean_advantage = sum(a[i][t] for i, t in places) / len(places)
    return {(i, t): (held[i][t] - mean_logprob) * (a[i][t] - mean_advantage) for i, t in places}


def clip_cov_of_all(current, held, old, a, mask, covariance_low, covariance_high, clip_low, clip_high, fraction) -> Rows:
    """Clip-Cov with a fraction of 1: every candidate is drawn."""
    covariance = covariances(held, a, mask)

    def loss(i: int, t: int) -> float:
        ratio = math.exp(held[i][t] - old[i][t])
        lost = ratio < 1 - clip_low if a[i][t] < 0 else ratio > 1 + clip_high
        if not lost and covariance_low <= covariance[i, t] <= covariance_high:
            return 0.0
        return pessimistic(math.exp(current[i][t] - old[i][t]), a[i][t], clip_low, clip_high)

    return per_token(mask, loss)


def kl_cov(current, held, old, a, mask, fraction, coef) -> Rows:
    covariance = covariances(held, a, mask)
    ranked = sorted(covariance, key=lambda place: -covariance[place])
    chosen = ranked[: max(1, math.floor(fraction * len(ranked)))]

    def loss(i: int, t: int) -> float:
        difference = current[i][t] - old[i][t]
        return -math.exp(difference) * a[i][t] + (coef * abs(difference) if (i, t) in chosen else 0.0)

    return per_token(mask, loss)


@dataclass(frozen=True)
class Case:
    """A surrogate with knobs that make it clip some tokens of a random batch and not others.

    stops: a gradient is stopped inside, so finite differences of the function itself do not give its gradient.
    linear: the loss is proportional to the advantage.
    unbiased: at ratio 1 the gradient is that of -A·logprobs.
    """

    name: str
    loop: Callable[..., Rows]
    knobs: dict[str, Any]
    stops: bool = False
    linear: bool = True
    unbiased: bool = True
    label: str = ""

    @property
    def surrogate(self) -> Callable[..., Any]:
        return partial(getattr(surrogates, self.name), **self.knobs)

    def loss(self, *tensors: torch.Tensor, **knobs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return policy_loss(*tensors, surrogate=self.surrogate, **knobs)


WIDE = {"clip_low": 0.15, "clip_high": 0.25}
CASES = [
    Case("clipped", clipped, WIDE),
    Case("clipped", clipped, WIDE | {"dual_clip": 1.5}, label="dual_clip"),
    Case("cispo", cispo, {"clip_low": 0.2, "clip_high": 0.3}, stops=True),
    Case("cispo", cispo, {"clip_low": 1.0, "clip_high": 0.3}, stops=True, label="cispo_without_lower_bound"),
    Case("sapo", sapo, {"temperature_positive": 1.0, "temperature_negative": 1.05}),
    Case("reinforce", reinforce, {}),
    Case("log_likelihood", log_likelihood, {}, linear=False, unbiased=False),
    Case("gspo", gspo, {"clip_low": 0.05, "clip_high": 0.1}),
    Case("gspo_token", gspo_token, {"clip_low": 0.05, "clip_high": 0.1}, stops=True),
    Case("gmpo", gmpo, {"clip_low": 0.2, "clip_high": 0.3}),
    Case(
        "clip_cov",
        clip_cov_of_all,
        WIDE | {"fraction": 1.0, "covariance_low": 0.2, "covariance_high": 1.5},
        linear=False,
        unbiased=False,
    ),
    Case("kl_cov", kl_cov, {"fraction": 0.3, "coef": 0.7}, linear=False),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label or case.name)
every_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)


def test_table_holds_every_surrogate():
    public = {name for name in vars(surrogates) if not name.startswith("_")}
    assert {case.name for case in CASES} == public


# against plain loops


@every_case
@every_aggregation
@pytest.mark.parametrize("seed", range(5))
def test_loss_equals_a_plain_loop(case, aggregation, seed, batch, mean_of):
    logprobs, old, advantages, mask, _ = batch(seed)
    got, _ = case.loss(logprobs, old, advantages, mask, aggregation=aggregation)
    rows = [logprobs.tolist(), logprobs.tolist(), old.tolist(), advantages.tolist(), mask.tolist()]
    assert got.item() == pytest.approx(mean_of(case.loop(*rows, **case.knobs), mask.tolist(), aggregation), abs=1e-9)


@every_case
@every_aggregation
@pytest.mark.parametrize("seed", range(2))
def test_gradient_equals_differences_of_a_plain_loop(case, aggregation, seed, batch, mean_of):
    logprobs, old, advantages, mask, _ = batch(seed)
    logprobs.requires_grad_()
    case.loss(logprobs, old, advantages, mask, aggregation=aggregation)[0].backward()
    held, step = logprobs.tolist(), 1e-6

    def moved(i: int, t: int, by: float) -> float:
        current = [list(row) for row in held]
        current[i][t] += by
        losses = case.loop(current, held, old.tolist(), advantages.tolist(), mask.tolist(), **case.knobs)
        return mean_of(losses, mask.tolist(), aggregation)

    assert logprobs.grad is not None
    for i in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            slope = (moved(i, t, step) - moved(i, t, -step)) / (2 * step)
            assert logprobs.grad[i, t].item() == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("case", [case for case in CASES if not case.stops], ids=lambda case: case.label or case.name)
@pytest.mark.parametrize("seed", range(2))
def test_gradient_matches_finite_differences(case, seed, batch):
    logprobs, old, advantages, mask, reference = batch(seed + 10)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return case.loss(values, old, advantages, mask, reference, aggregation="sequence_mean", kl_coef=0.1)[0]

    assert torch.autograd.gradcheck(loss, (logprobs.clone().requires_grad_(),), eps=1e-6, atol=1e-6)


@every_case
def test_float32_agrees_with_float64(case, batch):
    logprobs, old, advantages, mask, _ = batch(3)
    exact, _ = case.loss(logprobs, old, advantages, mask)
    single, metrics = case.loss(logprobs.float(), old.float(), advantages.float(), mask)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact.item(), abs=1e-5)
    assert all(value.dtype == torch.float32 for value in metrics.values())


@every_case
def test_random_batches_meet_both_sides_of_every_bound(case, batch):
    # otherwise the comparisons above would show little
    metrics = [case.loss(*batch(seed)[:4])[1] for seed in range(5)]
    names = {"clip_fraction", "dual_clip_fraction", "covariance_fraction", "learned_fraction", "gate"} & set(metrics[0])
    assert names or case.name == "reinforce"
    for name in names:
        assert 0.0 < sum(float(each[name]) for each in metrics) / 5 < 1.0


# what must hold


def values_of(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())
    return {name: value.item() for name, value in metrics.items()}


@every_case
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), aggregation=st.sampled_from(AGGREGATIONS), junk=st.sampled_from(JUNK))
def test_masked_tokens_change_nothing_whatever_they_hold(case, batch, seed, aggregation, junk):
    logprobs, old, advantages, mask, _ = batch(seed)

    def run(fill: float) -> tuple[float, torch.Tensor, dict[str, float]]:
        current, *others = (torch.where(mask, each, fill) for each in (logprobs, old, advantages))
        current.requires_grad_()
        loss, metrics = case.loss(current, *others, mask, aggregation=aggregation)
        loss.backward()
        assert current.grad is not None
        return loss.item(), current.grad, values_of(metrics)

    clean, dirty = run(0.5), run(junk)
    assert dirty[0] == clean[0]
    assert torch.equal(dirty[1], clean[1])
    assert dirty[2] == clean[2]
    assert (clean[1][~mask] == 0).all()


@every_case
def test_masked_rollout_and_token_are_as_if_absent(case, batch):
    logprobs, old, advantages, mask, _ = batch(5, rows=5, tokens=6)
    mask[3], mask[:, 4] = False, False
    rows, columns = [0, 1, 2, 4], [0, 1, 2, 3, 5]
    whole, metrics = case.loss(logprobs, old, advantages, mask)
    smaller, expected = case.loss(*(each[rows][:, columns] for each in (logprobs, old, advantages, mask)))
    assert whole.item() == pytest.approx(smaller.item(), abs=1e-12)
    assert values_of(metrics) == pytest.approx(values_of(expected), abs=1e-6)


@every_case
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(6)), aggregation=st.sampled_from(AGGREGATIONS))
def test_order_of_rollouts_does_not_matter(case, batch, seed, order, aggregation):
    # any order of six rollouts: within their groups, across them, and groups taken apart
    tensors = [each.clone() for each in batch(seed, rows=6)[:4]]
    moved = [each[list(order)] for each in tensors]
    tensors[0].requires_grad_()
    moved[0].requires_grad_()
    (plain, metrics), (permuted, other) = (case.loss(*each, aggregation=aggregation) for each in (tensors, moved))
    plain.backward()
    permuted.backward()
    assert permuted.item() == pytest.approx(plain.item(), abs=1e-12)
    assert tensors[0].grad is not None
    torch.testing.assert_close(moved[0].grad, tensors[0].grad[list(order)], atol=1e-12, rtol=1e-12)
    assert values_of(other) == pytest.approx(values_of(metrics), abs=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case.unbiased], ids=lambda case: case.label or case.name)
@every_aggregation
def test_gradient_at_ratio_one_is_that_of_minus_advantage_times_logprob(case, aggregation, batch):
    # dr/dlogprob = r = 1, s likewise spread over its tokens: dL = -A·dlogprob; KL-Cov's |d| has slope 0 at d = 0
    _, old, per_token_advantages, mask, _ = batch(6)
    advantages = per_token_advantages[:, 0]
    logprobs, plain = old.clone().requires_grad_(), old.clone().requires_grad_()
    if aggregation != "sequence_mean" and case.name in ("gspo", "gmpo"):
        mask = torch.ones_like(mask)  # with lengths of its own, another mean gives a rollout's tokens another weight
    case.loss(logprobs, old, advantages, mask, aggregation=aggregation)[0].backward()
    policy_loss(plain, old, advantages, mask, surrogate=surrogates.reinforce, aggregation=aggregation)[0].backward()
    torch.testing.assert_close(logprobs.grad, plain.grad)


@pytest.mark.parametrize("case", [case for case in CASES if case.linear], ids=lambda case: case.label or case.name)
def test_scaled_advantages_scale_the_loss(case, batch):
    logprobs, old, advantages, mask, _ = batch(7)
    once, metrics = case.loss(logprobs, old, advantages, mask)
    thrice, same = case.loss(logprobs, old, 3 * advantages, mask)
    assert thrice.item() == pytest.approx(3 * once.item())
    assert values_of(same) == values_of(metrics)


def test_scaled_advantages_leave_log_likelihood_as_it_is(batch):
    logprobs, old, advantages, mask, _ = batch(7)
    losses = [policy_loss(logprobs, old, c * advantages, mask, surrogate=surrogates.log_likelihood)[0] for c in (1.0, 3.0)]
    assert losses[0] == losses[1]


@every_case
def test_no_advantage_teaches_nothing(case, batch):
    # KL-Cov alone has a term without A, which is 0 at ratio 1
    _, old, advantages, mask, _ = batch(8)
    logprobs = old.clone().requires_grad_()
    loss, _ = case.loss(logprobs, old, torch.zeros_like(advantages), mask)
    loss.backward()
    assert loss == 0.0
    assert logprobs.grad is not None
    assert (logprobs.grad == 0.0).all()


@every_case
def test_descending_never_lowers_what_was_good_nor_raises_what_was_bad(case, batch):
    _, old, advantages, mask, _ = batch(9)
    logprobs = old.clone().requires_grad_()
    case.loss(logprobs, old, advantages[:, 0], mask)[0].backward()
    assert logprobs.grad is not None
    assert (logprobs.grad * advantages[:, :1] <= 0.0).all()
    assert (logprobs.grad * advantages[:, :1] < 0.0).any()


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("clipped", {"clip_low": -0.1}, r"clip_low must be in \[0, 1\], but is -0.1"),
        ("clipped", {"dual_clip": 1.0}, "dual_clip must be more than 1, but is 1.0"),
        ("clipped", {"clip_high": math.nan}, "clip_high must be 0 or more, but is nan"),
        ("cispo", {"clip_low": 1.1}, r"clip_low must be in \[0, 1\], but is 1.1"),
        ("cispo", {"clip_high": -1.0}, "clip_high must be 0 or more, but is -1.0"),
        ("gspo", {"clip_low": 2.0}, r"clip_low must be in \[0, 1\], but is 2.0"),
        ("gspo_token", {"clip_high": -0.2}, "clip_high must be 0 or more, but is -0.2"),
        ("gmpo", {"clip_low": -0.4}, "clip_low must be 0 or more, but is -0.4"),
        ("gmpo", {"clip_high": -0.4}, "clip_high must be 0 or more, but is -0.4"),
        ("sapo", {"temperature_positive": 0.0}, "temperature_positive must be more than 0, but is 0.0"),
        ("sapo", {"temperature_negative": -1.0}, "temperature_negative must be more than 0, but is -1.0"),
        ("clip_cov", {"fraction": 0.0}, "fraction must be more than 0 and at most 1, but is 0.0"),
        ("clip_cov", {"covariance_high": 0.5}, r"covariance_high must be 1.0 \(covariance_low\) or more, but is 0.5"),
        ("clip_cov", {"clip_low": -1.0}, r"clip_low must be in \[0, 1\], but is -1.0"),
        ("kl_cov", {"fraction": 1.5}, "fraction must be more than 0 and at most 1, but is 1.5"),
        ("kl_cov", {"coef": -1.0}, "coef must be 0 or more, but is -1.0"),
    ],
)
def test_bad_knob_raises(name, knobs, message, batch):
    with pytest.raises(ValueError, match=message):
        policy_loss(*batch(0)[:4], surrogate=partial(getattr(surrogates, name), **knobs))
