"""Whole shares: sums, distance from the exact share, order of ties, bad weights."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.prompt_sets.shares import whole_shares

unhurried = settings(deadline=None, max_examples=100)
WEIGHTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0, 1e6), min_size=1, max_size=8)


def test_largest_remainders_get_what_is_left() -> None:
    # 10 · (5, 3, 1)/9 = 5.56, 3.33, 1.11 → 5, 3, 1 and the one left over to the remainder 0.56.
    assert whole_shares({"a": 5, "b": 3, "c": 1}, 10) == {"a": 6, "b": 3, "c": 1}
    # 4 · (1, 1, 1)/3 = 1.33 each: of equal remainders the first wins.
    assert whole_shares({"a": 1, "b": 1, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}


@unhurried
@given(WEIGHTS.filter(lambda weights: sum(weights.values()) > 0), st.integers(0, 10_000))
def test_shares_sum_to_the_total_and_are_less_than_one_from_exact(weights: dict[str, float], total: int) -> None:
    shares = whole_shares(weights, total)
    assert sum(shares.values()) == total
    assert list(shares) == list(weights)
    whole = math.fsum(weights.values())
    for name, weight in weights.items():
        # The exact share in floating point, whose own error is at most a few 1e-16 of the total.
        assert abs(shares[name] - total * (weight / whole)) < 1 + 1e-9
        assert weight > 0 or shares[name] == 0


@unhurried
@given(WEIGHTS.filter(lambda weights: sum(weights.values()) > 0), st.integers(0, 1000))
def test_weights_times_a_power_of_two_give_the_same_shares(weights: dict[str, float], total: int) -> None:
    assert whole_shares({name: weight * 8 for name, weight in weights.items()}, total) == whole_shares(weights, total)


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, "3", None, True])
def test_weight_that_is_no_number_from_0_is_refused(weight: object) -> None:
    with pytest.raises(ValueError, match='the weight of "b" must be a number from 0'):
        whole_shares({"a": 1, "b": weight}, 3)  # type: ignore[dict-item]


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="a weight above 0"):
        whole_shares({"a": 0}, 3)
