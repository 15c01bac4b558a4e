"""Intervals and probabilities against hand-derived values, properties, and oracles that draw and sort for themselves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from xomni_rl.experiments.ablation.statistics import (
    first_reached,
    interquartile_mean,
    mean,
    probability_of_improvement,
)

TABLES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.floats(-5, 5, width=32))


def drawn_tables(values: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Resamples the slow way: whole rows, then whole columns, drawn with replacement."""
    rng = np.random.default_rng([7, seed])
    rows, columns = values.shape
    return [values[rng.integers(rows, size=rows)][:, rng.integers(columns, size=columns)] for _ in range(resamples)]


def percentiles(drawn: list[float]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


# values derived by hand


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    # Sorted 0 1 2 3 4 5 6 100: ⌊8/4⌋ = 2 left out at each end, (2 + 3 + 4 + 5) / 4 = 3.5.
    assert interquartile_mean(np.array([[100.0, 0, 3, 2], [1, 5, 6, 4]])).value == 3.5


def test_interquartile_mean_of_a_yes_or_no_metric_is_one_above_three_quarters() -> None:
    # 10 values, 8 of them 1: ⌊10/4⌋ = 2 zeros and 2 ones are left out.
    assert interquartile_mean(np.array([[0.0, 0] + [1.0] * 8])).value == 1.0


def test_one_seed_interval_is_that_of_a_binomial_share() -> None:
    # 400 prompts, half of them right: standard error sqrt(0.25 / 400) = 0.025, so 0.5 ± 1.96 · 0.025 = 0.451 … 0.549.
    found = mean(np.tile([0.0, 1.0], 200)[None])
    assert found.value == 0.5
    assert found.low == pytest.approx(0.451, abs=0.008)
    assert found.high == pytest.approx(0.549, abs=0.008)


def test_seeds_that_differ_as_a_whole_widen_the_interval() -> None:
    # The same values, once alike in both seeds, once one seed all 0 and the other all 1: one draw in four takes one seed twice.
    alike, apart = mean(np.tile([0.0, 1.0], (2, 200))), mean(np.repeat([[0.0], [1.0]], 400, axis=1))
    assert (apart.low, apart.high) == (0.0, 1.0)
    assert alike.high - alike.low < 0.15


def test_probability_of_improvement_counts_pairs_of_seeds_prompt_by_prompt() -> None:
    # Prompt 1: x = {1, 3} against y = {2}: one of two wins, ½. Prompt 2: x = {5, 5} against y = {5}: ties, ½.
    # Prompt 3: {9, 9} against {0}: 1. Mean (½ + ½ + 1) / 3 = 2/3.
    x, y = np.array([[1.0, 5, 9], [3, 5, 9]]), np.array([[2.0, 5, 0]])
    assert probability_of_improvement(x, y).value == pytest.approx(2 / 3)


def test_method_that_always_wins_has_probability_one_without_width() -> None:
    found = probability_of_improvement(np.ones((3, 4)), np.zeros((2, 4)))
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.6, 25.0),  # between (20, 0.5) and (30, 0.7), half way
        (0.5, 20.0),  # at a point
        (0.1, 0.0),  # before the first
        (0.9, math.inf),
    ],
)
def test_target_is_first_reached_on_straight_lines_between_evaluations(target: float, expected: float) -> None:
    at, scores = np.array([0.0, 10, 20, 30, 40]), np.array([0.2, 0.4, 0.5, 0.7, 0.6])
    assert first_reached(at, scores, target) == pytest.approx(expected)


# properties


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_interval_contains_the_figure_and_lies_in_the_range_of_the_values(values: np.ndarray) -> None:
    for statistic in (mean, interquartile_mean):
        found = statistic(values, resamples=200)
        assert found.low <= found.value <= found.high
        assert values.min() - 1e-9 <= found.low
        assert found.high <= values.max() + 1e-9
        assert found == statistic(values, resamples=200)  # the same draws every time


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 5), st.integers(1, 5), st.integers(1, 9))
def test_constants_have_their_value_and_no_width(constant: float, seeds: int, prompts: int) -> None:
    for statistic in (mean, interquartile_mean):
        found = statistic(np.full((seeds, prompts), constant), resamples=50)
        assert [found.low, found.value, found.high] == pytest.approx([constant] * 3, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.integers(0, 2**31))
def test_figures_do_not_depend_on_the_order_of_seeds_and_prompts(values: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rng.permutation(values, axis=0), axis=1)
    for statistic in (mean, interquartile_mean):
        assert statistic(shuffled, resamples=1).value == pytest.approx(statistic(values, resamples=1).value, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.data())
def test_probabilities_of_both_directions_add_up_to_one(x: np.ndarray, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 4)), x.shape[1])
    y = data.draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])))
    there, back = probability_of_improvement(x, y, resamples=100), probability_of_improvement(y, x, resamples=100)
    assert there.value + back.value == pytest.approx(1.0)
    assert 0 <= there.low <= there.value <= there.high <= 1


@settings(max_examples=30, deadline=None)
@given(TABLES)
def test_probability_against_itself_is_one_half(values: np.ndarray) -> None:
    assert probability_of_improvement(values, values, resamples=20).value == pytest.approx(0.5)


# oracles


@settings(max_examples=25, deadline=None)
@given(TABLES)
def test_interquartile_mean_equals_scipys(values: np.ndarray) -> None:
    assert interquartile_mean(values, resamples=1).value == pytest.approx(stats.trim_mean(values.ravel(), 0.25), abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 40), (3, 30), (5, 17)])
def test_intervals_equal_those_of_drawing_and_sorting(shape: tuple[int, int]) -> None:
    # Both are Monte Carlo: 4,000 draws place a 2.5 % quantile within about 0.1 standard deviations of the draws.
    values = np.random.default_rng(shape[0]).gamma(1.0, size=shape) + np.linspace(0, 0.5, shape[0])[:, None]
    tables = drawn_tables(values, 4000, seed=1)
    oracles = {mean: np.mean, interquartile_mean: lambda table: stats.trim_mean(table, 0.25, axis=None)}
    for statistic, oracle in oracles.items():
        found = statistic(values, resamples=4000)
        drawn = [float(oracle(table)) for table in tables]
        assert (found.low, found.high) == pytest.approx(percentiles(drawn), abs=0.2 * np.std(drawn))


def test_probability_of_improvement_equals_mann_whitney_and_its_interval_drawing() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 4, size=(4, 25)).astype(float), rng.integers(0, 3, size=(3, 25)).astype(float)

    def oracle(first: np.ndarray, second: np.ndarray) -> float:
        pairs = first.shape[0] * second.shape[0]
        return float(np.mean([stats.mannwhitneyu(a, b).statistic / pairs for a, b in zip(first.T, second.T, strict=True)]))

    found = probability_of_improvement(x, y, resamples=4000)
    assert found.value == pytest.approx(oracle(x, y))
    drawn = []
    for _ in range(1000):  # prompts are drawn together, seeds of either method apart
        prompts = rng.integers(25, size=25)
        ours, theirs = x[rng.integers(4, size=4)][:, prompts], y[rng.integers(3, size=3)][:, prompts]
        wins = (ours[:, None] > theirs[None]) + 0.5 * (ours[:, None] == theirs[None])
        drawn.append(float(wins.mean()))
    assert (found.low, found.high) == pytest.approx(percentiles(drawn), abs=0.25 * np.std(drawn))


def test_interval_over_seeds_covers_the_truth_more_often_than_one_that_draws_seeds_prompt_by_prompt() -> None:
    # Truth 0. A run has a luck of its own (deviation 1) that all its prompts share, and noise (deviation 1) on each.
    # Drawing seeds anew for every prompt averages the luck away: its interval has about ±1.96·√(1/(6·40)) ≈ ±0.13,
    # while the mean of 6 seeds strays by √(1/6) ≈ 0.41.
    rng = np.random.default_rng(0)
    covered = {"ours": 0, "prompt by prompt": 0}
    trials = 200
    for trial in range(trials):
        values = rng.normal(size=(6, 1)) + rng.normal(size=(6, 40))
        found = mean(values, seed=trial, resamples=300)
        covered["ours"] += found.low <= 0 <= found.high
        drawn = [values[rng.integers(6, size=(6, 40)), np.arange(40)].mean() for _ in range(300)]
        low, high = percentiles(drawn)
        covered["prompt by prompt"] += low <= 0 <= high
    assert covered["ours"] / trials > 0.8
    assert covered["prompt by prompt"] / trials < 0.5


# what is refused


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.array([[math.nan]]), np.array([[math.inf, 1]])])
def test_malformed_table_is_refused_with_its_shape(values: np.ndarray) -> None:
    for statistic in (mean, interquartile_mean):
        with pytest.raises(ValueError, match=r"values must be finite \[seeds, prompts\], got shape"):
            statistic(values)
    with pytest.raises(ValueError, match="baseline must be finite"):
        probability_of_improvement(np.zeros((2, 3)), values)


def test_methods_with_other_prompts_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        probability_of_improvement(np.zeros((2, 3)), np.zeros((2, 4)))


def test_no_resamples_and_curves_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        mean(np.zeros((1, 2)), resamples=0)
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        first_reached(np.zeros(2), np.zeros(3), 0.5)
