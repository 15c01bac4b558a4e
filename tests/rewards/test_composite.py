"""The composite: averages, normalisation, gates, log-only components, and failures that never become scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xomni_rl.policies.advantages import combine_rewards
from xomni_rl.prompts import Prompt
from xomni_rl.registry import UnknownNameError
from xomni_rl.rewards.base import FunctionReward, Reward, RewardError, RewardResult
from xomni_rl.rewards.combine import Gate, normalise_components, parse_gate, weighted_average
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward, build_composite

unhurried = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
NAN = float("nan")


class Table(Reward):
    """Scores that stand in the prompt's metadata under the reward's name; the string "fail" there makes it fail."""

    version = "1"

    def __init__(
        self,
        name: str,
        bounds: tuple[float, float] = (0, 1),
        higher_is_better: bool = True,
        partial: bool = False,
    ) -> None:
        self.name, self.range, self.higher_is_better, self.partial = name, bounds, higher_is_better, partial
        self.calls = 0

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        self.calls += 1
        entries = [prompt.metadata[self.name] for prompt in prompts]
        failures = {index: "asked to" for index, entry in enumerate(entries) if entry == "fail"}
        scores = np.array([NAN if entry == "fail" else entry for entry in entries], np.float32)
        result = RewardResult(scores, [{"entry": entry} for entry in entries], {"double": 2 * scores})
        if failures:
            raise RewardError(self.name, failures, result if self.partial else None)
        return result

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        picture = np.zeros((8, 8, 3), np.uint8)
        return picture, picture, Prompt("p", "p", metadata={self.name: 1.0})


def table(**columns: Sequence[Any]) -> tuple[np.ndarray, list[Prompt]]:
    """Images, and prompts that carry the columns' scores."""
    rows = list(zip(*columns.values(), strict=True))
    prompts = [Prompt(f"{i}", "p", metadata=dict(zip(columns, row, strict=True))) for i, row in enumerate(rows)]
    return np.zeros((len(rows), 8, 8, 3), np.uint8), prompts


def composite(*rewards: Reward, weights: Mapping[str, float] | None = None, **options: Any) -> CompositeReward:
    parts = [Component(reward.name, reward, (weights or {}).get(reward.name, 1.0)) for reward in rewards]
    return CompositeReward(parts, **options)


def test_score_is_weighted_average_over_what_applies() -> None:
    images, prompts = table(a=[1.0, 1.0, NAN], b=[0.0, NAN, NAN])
    result = composite(Table("a"), Table("b"), weights={"a": 3.0, "b": 1.0})(images, prompts)
    # (3·1 + 1·0) / 4; only a applies: 1; nothing applies: NaN.
    np.testing.assert_allclose(result.scores, [0.75, 1.0, NAN])
    np.testing.assert_array_equal(result.components, np.array([[1, 0], [1, NAN], [NAN, NAN]], np.float32))
    assert result.names == ("a", "b")
    assert not result.failed.any()


def test_log_only_component_is_reported_and_not_averaged() -> None:
    images, prompts = table(a=[0.5], b=[1.0])
    result = composite(Table("a"), Table("b"), weights={"b": 0.0})(images, prompts)
    np.testing.assert_array_equal(result.scores, [0.5])
    assert result.components[0, 1] == 1.0


def test_metrics_and_details_are_kept_per_component() -> None:
    images, prompts = table(a=[0.5, 0.25], b=[1.0, NAN])
    result = composite(Table("a"), Table("b"))(images, prompts)
    np.testing.assert_array_equal(result.metrics["a_double"], np.array([1.0, 0.5], np.float32))
    assert sorted(result.metrics) == ["a_double", "b_double"]
    assert result.details[1]["a"] == {"entry": 0.25}


def test_lower_is_better_component_is_negated_where_advantages_see_it() -> None:
    images, prompts = table(error=[0.0, 1.0])
    result = composite(Table("error", higher_is_better=False))(images, prompts)
    np.testing.assert_array_equal(result.components[:, 0], [0, 1])
    np.testing.assert_array_equal(result.normalised[:, 0], [0, -1])
    np.testing.assert_array_equal(result.scores, [0, -1])


def test_closed_gate_gives_the_floor_and_open_or_inapplicable_gate_does_not() -> None:
    images, prompts = table(a=[0.9, 0.9, 0.9, NAN], clip=[0.1, 0.5, NAN, 0.1])
    gates = [parse_gate("a", "clip > 0.2")]
    result = composite(Table("a", bounds=(-1, 1)), Table("clip"), weights={"clip": 0}, gates=gates)(images, prompts)
    np.testing.assert_allclose(result.scores, [-1, 0.9, 0.9, NAN])
    np.testing.assert_allclose(result.normalised[:, 0], [-1, 0.9, 0.9, NAN])
    np.testing.assert_allclose(result.components[:, 0], [0.9, 0.9, 0.9, NAN])  # raw, for the log


def test_gate_on_lower_is_better_component_gives_its_worst_score() -> None:
    images, prompts = table(error=[0.0], clip=[0.1])
    parts = Table("error", bounds=(0, 5), higher_is_better=False), Table("clip")
    result = composite(*parts, weights={"clip": 0}, gates=[parse_gate("error", "clip > 0.2")])(images, prompts)
    np.testing.assert_array_equal(result.scores, [-5])


@pytest.mark.parametrize(
    ("rule", "is_open"),
    [("x > 0.5", [0, 0, 1]), ("x >= 0.5", [0, 1, 1]), ("x<0.5", [1, 0, 0]), (" x <= 5e-1 ", [1, 1, 0]), ("x > .5", [0, 0, 1])],
)
def test_gate_comparisons(rule: str, is_open: list[int]) -> None:
    np.testing.assert_array_equal(parse_gate("a", rule).is_open(np.array([0.4, 0.5, 0.6])), np.array(is_open, bool))


def test_group_normalisation_stays_within_the_group() -> None:
    images, prompts = table(a=[0.0, 1.0, 0.2, 0.2])
    group = np.array([7, 7, 3, 3])
    result = composite(Table("a"), normalisation="group")(images, prompts, group)
    # Group 7: mean 0.5, deviation √(0.5) = 0.7071 → ±0.5 / 0.7072; group 3 has no spread → 0.
    np.testing.assert_allclose(result.normalised[:, 0], [-0.5 / 0.70720678, 0.5 / 0.70720678, 0, 0], atol=1e-6)
    np.testing.assert_allclose(result.scores, [0, 1, 0.2, 0.2])


def test_batch_normalisation_needs_no_group_and_keeps_nan() -> None:
    images, prompts = table(a=[0.0, 1.0, NAN])
    result = composite(Table("a"), normalisation="batch")(images, prompts)
    np.testing.assert_allclose(result.normalised[:, 0], [-0.5 / 0.70720678, 0.5 / 0.70720678, NAN], atol=1e-6)


def test_single_applicable_sample_normalises_to_zero() -> None:
    np.testing.assert_array_equal(
        normalise_components(np.array([[0.7], [NAN]]), np.array([0, 0])), np.array([[0], [NAN]], np.float32)
    )


@unhurried
@given(
    values=arrays(np.float32, (6, 3), elements=st.floats(-2, 2, width=32) | st.just(NAN)),
    weights=arrays(np.float32, 3, elements=st.floats(-2, 2, width=16)),
)
def test_weighted_average_is_what_the_trainer_combines(values: np.ndarray, weights: np.ndarray) -> None:
    np.testing.assert_allclose(weighted_average(values, weights), combine_rewards(values, weights), atol=1e-5)


def test_failure_stops_by_default_and_names_component_and_sample() -> None:
    images, prompts = table(a=[0.5, "fail"])
    with pytest.raises(RewardError, match=r'reward "a" failed on 1 sample.*sample 1: asked to') as caught:
        composite(Table("a"))(images, prompts)
    assert caught.value.failures == {1: "asked to"}


@pytest.mark.parametrize("partial", [True, False])
def test_dropped_failure_is_nan_and_marked_and_leaves_the_rest(partial: bool) -> None:
    images, prompts = table(a=[0.5, "fail", 0.7], b=[1.0, 1.0, 1.0])
    result = composite(Table("a", partial=partial), Table("b"), on_failure="drop")(images, prompts)
    np.testing.assert_array_equal(result.failed, [False, True, False])
    np.testing.assert_allclose(result.components, np.array([[0.5, 1], [NAN, NAN], [0.7, 1]]))
    np.testing.assert_allclose(result.scores, [0.75, NAN, 0.85])
    np.testing.assert_allclose(result.metrics["b_double"], [2, NAN, 2])
    assert result.failures == {1: "a: asked to"}


def test_samples_are_scored_one_by_one_only_after_a_failure_without_partial_result() -> None:
    images, prompts = table(a=[0.5, "fail", 0.7])
    calls = {}
    for partial in (True, False):
        reward = Table("a", partial=partial)
        composite(reward, on_failure="drop")(images, prompts)
        calls[partial] = reward.calls
    assert calls == {True: 1, False: 4}
    healthy = Table("a")
    composite(healthy, on_failure="drop")(*table(a=[0.5, 0.6]))
    assert healthy.calls == 1


@pytest.mark.parametrize("bad", [np.inf, -np.inf, 1.5, -0.1])
def test_score_out_of_range_is_a_failure_not_a_score(bad: float) -> None:
    images, prompts = table(a=[0.5, bad])
    with pytest.raises(RewardError, match=r"sample 1: score .* is not in \[0, 1\]"):
        composite(Table("a"))(images, prompts)
    dropped = composite(Table("a"), on_failure="drop")(images, prompts)
    np.testing.assert_array_equal(dropped.failed, [False, True])
    np.testing.assert_allclose(dropped.components[:, 0], [0.5, NAN])


def test_exception_of_a_foreign_function_is_a_failure_with_its_cause() -> None:
    def broken(images: Any, prompts: Any) -> Any:
        raise ZeroDivisionError("by zero")

    images, prompts = table(a=[0.5])
    with pytest.raises(RewardError, match="sample 0: ZeroDivisionError: by zero") as caught:
        composite(FunctionReward("f", broken, {}))(images, prompts)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_function_reward_gets_its_options() -> None:
    def constant(images: Any, prompts: Any, value: float) -> list[float]:
        return [value] * len(images)

    images, prompts = table(a=[0, 0])
    np.testing.assert_array_equal(composite(FunctionReward("f", constant, {"value": 3.0}))(images, prompts).scores, [3, 3])


def test_empty_batch_gives_empty_result() -> None:
    result = composite(Table("a"), normalisation="batch")([], [])
    assert result.components.shape == (0, 1)
    assert result.scores.shape == (0,)


def test_numbers_of_images_and_prompts_must_agree() -> None:
    images, prompts = table(a=[0.5, 0.5])
    with pytest.raises(ValueError, match="got 1 images and 2 prompts"):
        composite(Table("a"))(images[:1], prompts)
    with pytest.raises(ValueError, match="needs group"):
        composite(Table("a"), normalisation="group")(images, prompts)
    with pytest.raises(ValueError, match=r"group must have shape \[2\], got \[3\]"):
        composite(Table("a"), normalisation="group")(images, prompts, np.zeros(3, int))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"components": {}}, "at least one component"),
        ({"components": {"ocr": {}}, "normalization": "group"}, "nearest: normalisation"),
        ({"components": {"ocr": {"wieght": 1}}}, 'key of component "ocr" "wieght"; nearest: weight'),
        ({"components": {"ocr": {"options": {"metrc": "edit"}}}}, 'option of reward "ocr" "metrc"; nearest: metric'),
        ({"components": {"ocr": {"options": {"metric": "edti"}}}}, 'unknown metric "edti"; nearest: edit'),
        ({"components": {"ocr": {"weight": "1"}}}, "must be a number, got '1'"),
        ({"components": {"ocr": {"weight": float("inf")}}}, "must be finite"),
        ({"components": {"ocr": {"weight": 0}}}, "nothing to train on"),
        ({"components": {"ocr": {}}, "normalisation": "grup"}, 'unknown normalisation "grup"; nearest: group'),
        ({"components": {"ocr": {}}, "on_failure": "ignore"}, 'unknown on_failure "ignore"'),
        ({"components": {"ocr": {}}, "gates": {"ocr": "clip > 0.2"}}, 'unknown component "clip"'),
        ({"components": {"ocr": {}}, "gates": {"orc": "ocr > 0.2"}}, 'unknown component "orc"; nearest: ocr'),
        ({"components": {"ocr": {}}, "gates": {"ocr": "clip = 0.2"}}, 'must read like "clip > 0.2"'),
        ({"components": {"ocr": {}}, "gates": {"ocr": "clip > 1.2.3"}}, 'must read like "clip > 0.2" .*, got "clip > 1.2.3"'),
        ({"components": {"ocr": {"options": ["metric"]}}}, 'options of component "ocr" must map names to values'),
        ({"components": {"ocr": {"options": {"workers": "2"}}}}, 'workers of reward "ocr" must be a whole number or null'),
        ({"components": {"ocr": {}}, "gates": ["ocr > 0.2"]}, "gates must map components to rules"),
        ({"components": ["ocr"]}, "must map names to rewards"),
        ({"components": {"ocr": "ocr"}}, "must have the keys reward, weight, options"),
    ],
)
def test_bad_configuration_raises_what_is_wrong(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_composite(config)


def test_unknown_reward_gets_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match='unknown reward "orc"; nearest: ocr'):
        build_composite({"components": {"text": {"reward": "orc"}}})


def test_configuration_becomes_components_under_their_own_names() -> None:
    made = build_composite(
        {
            "components": {"text": {"reward": "ocr", "weight": 2, "options": {"metric": "f1"}}, "ocr": None},
            "gates": {"text": "ocr >= 0.5"},
            "on_failure": "drop",
        }
    )
    assert made.names == ("text", "ocr")
    np.testing.assert_array_equal(made.weights, [2, 1])
    assert made.gates == [Gate("text", "ocr", ">=", 0.5)]
    assert made.on_failure == "drop"


def test_gate_on_reward_without_floor_raises() -> None:
    unbounded = FunctionReward("f", lambda images, prompts: [0.0], {})
    with pytest.raises(ValueError, match="declares no finite floor"):
        composite(unbounded, Table("a"), gates=[parse_gate("f", "a > 0")])


def test_two_components_of_one_name_raise() -> None:
    with pytest.raises(ValueError, match="components must have different names"):
        composite(Table("a"), Table("a"))
