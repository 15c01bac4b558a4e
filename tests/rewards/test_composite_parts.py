"""What a component may say for itself: normalisation, cap, schedule, routing; and what its failures become then."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import FunctionReward, RewardError, RewardResult, RewardUnavailableError
from xomni_rl.rewards.combine import parse_gate
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.rewards.routing import Route
from xomni_rl.rewards.schedule import Schedule

NAN = float("nan")


class Column:
    """A function that scores what the prompt's metadata says under `key`, and keeps the ids it was asked about."""

    def __init__(self, key: str, bounds: tuple[float, float] = (0.0, 1.0), higher_is_better: bool = True) -> None:
        self.key, self.range, self.higher_is_better = key, bounds, higher_is_better
        self.asked: list[list[str]] = []

    def __call__(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        self.asked.append([prompt.id for prompt in prompts])
        entries = [prompt.metadata[self.key] for prompt in prompts]
        scores = np.array([NAN if entry == "fail" else entry for entry in entries], np.float32)
        result = RewardResult(scores, [{"id": prompt.id} for prompt in prompts], {"half": scores / 2})
        failures = {index: "asked to" for index, entry in enumerate(entries) if entry == "fail"}
        if failures:
            raise RewardError(self.key, failures, result if self.key == "partial" else None)
        return result


def component(column: Column, weight: float = 1.0, **more: Any) -> Component:
    return Component(column.key, FunctionReward(column.key, column, {}), weight, **more)


def samples(texts: Sequence[str | None] | None = None, **columns: Sequence[Any]) -> tuple[np.ndarray, list[Prompt]]:
    """Images, and prompts that carry the columns' scores; `texts`: what each asks for, if anything."""
    rows = list(zip(*columns.values(), strict=True))
    wanted = texts or [None] * len(rows)
    prompts = [
        Prompt(f"{i}", "p", texts=(text,) if text else (), metadata=dict(zip(columns, row, strict=True)))
        for i, (row, text) in enumerate(zip(rows, wanted, strict=True))
    ]
    return np.zeros((len(rows), 8, 8, 3), np.uint8), prompts


def test_components_are_normalised_each_in_its_own_way() -> None:
    images, prompts = samples(a=[0.0, 1.0, 0.2, 0.6], b=[0.0, 1.0, 0.2, 0.6], c=[0.0, 1.0, 0.2, 0.6])
    parts = [
        component(Column("a"), normalisation="none"),
        component(Column("b"), normalisation="group"),
        component(Column("c")),
    ]
    result = CompositeReward(parts, normalisation="batch")(images, prompts, np.array([5, 5, 9, 9]))
    np.testing.assert_allclose(result.normalised[:, 0], [0, 1, 0.2, 0.6], rtol=1e-6)
    # Two scores of a group lie ±(difference/2) from their mean, with deviation difference/√2.
    wide, narrow = 0.5 / (1 / np.sqrt(2) + 1e-4), 0.2 / (0.4 / np.sqrt(2) + 1e-4)
    np.testing.assert_allclose(result.normalised[:, 1], [-wide, wide, -narrow, narrow], rtol=1e-5)
    # The batch has mean 0.45 and variance (0.45² + 0.55² + 0.25² + 0.15²) / 3 = 0.59 / 3.
    deviation = np.sqrt(0.59 / 3) + 1e-4
    np.testing.assert_allclose(result.normalised[:, 2], np.array([-0.45, 0.55, -0.25, 0.15]) / deviation, rtol=1e-5)


def test_group_is_needed_as_soon_as_one_component_normalises_by_it() -> None:
    images, prompts = samples(a=[0.0], b=[0.0])
    made = CompositeReward([component(Column("a")), component(Column("b"), normalisation="group")])
    with pytest.raises(ValueError, match="needs group"):
        made(images, prompts)


def test_component_without_normalisation_of_its_own_takes_the_composites() -> None:
    config = {"components": {"ocr": {}, "x": {"reward": "ocr", "normalisation": "none"}}, "normalisation": "group"}
    assert [part.normalisation for part in build_composite(config).parts] == [None, "none"]


def test_score_above_the_cap_counts_as_the_cap_and_is_logged_raw() -> None:
    images, prompts = samples(a=[0.2, 0.7, 0.9, NAN])
    result = CompositeReward([component(Column("a"), cap=0.7)])(images, prompts)
    np.testing.assert_allclose(result.scores, [0.2, 0.7, 0.7, NAN])
    np.testing.assert_allclose(result.normalised[:, 0], [0.2, 0.7, 0.7, NAN])
    np.testing.assert_allclose(result.components[:, 0], [0.2, 0.7, 0.9, NAN])


def test_cap_of_lower_is_better_component_is_in_its_own_unit() -> None:
    images, prompts = samples(error=[0.5, 2.0, 4.0])
    column = Column("error", bounds=(0, 5), higher_is_better=False)
    result = CompositeReward([component(column, cap=2.0)])(images, prompts)
    np.testing.assert_allclose(result.scores, [-2, -2, -4])  # 0.5 errors are worth no more than 2


def test_closed_gate_gives_the_floor_whatever_the_cap() -> None:
    images, prompts = samples(a=[0.9, 0.9], b=[0.1, 0.5])
    parts = [component(Column("a"), cap=0.5), component(Column("b"), 0.0, cap=0.3)]
    result = CompositeReward(parts, gates=[parse_gate("a", "b > 0.4")])(images, prompts)
    np.testing.assert_allclose(result.scores, [0, 0.5])  # the gate reads b as scored, 0.5, not as capped


@pytest.mark.parametrize("cap", [0.0, -1.0, 1.5, NAN])
def test_cap_that_does_nothing_or_everything_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match=r'cap of "a" must be better than the worst score and inside \[0, 1\]'):
        component(Column("a"), cap=cap)


def test_reward_is_called_on_the_routed_samples_alone() -> None:
    images, prompts = samples(["HI", None, "YO"], a=[0.1, 0.2, 0.3], b=[0.5, 0.6, 0.7])
    written, plain = Column("a"), Column("b")
    result = CompositeReward([component(written, when=Route("texts")), component(plain, when=Route("no_texts"))])(
        images, prompts
    )
    assert (written.asked, plain.asked) == ([["0", "2"]], [["1"]])
    np.testing.assert_allclose(result.components, np.array([[0.1, NAN], [NAN, 0.6], [0.3, NAN]], np.float32))
    np.testing.assert_allclose(result.scores, [0.1, 0.6, 0.3])
    np.testing.assert_allclose(result.metrics["a_half"], np.array([0.05, NAN, 0.15], np.float32))
    assert [detail["a"] for detail in result.details[::2]] == [{"id": "0"}, {"id": "2"}]
    assert result.details[1]["a"] == {"reason": 'not asked: the prompt does not fit "texts"'}


def test_reward_to_which_nothing_is_routed_is_not_called() -> None:
    images, prompts = samples(a=[0.1, 0.2], b=[0.5, 0.6])
    unused = Column("b")
    result = CompositeReward([component(Column("a")), component(unused, when=Route("language == zh"))])(images, prompts)
    assert unused.asked == []
    assert np.isnan(result.components[:, 1]).all()


@pytest.mark.parametrize("key", ["partial", "whole"])
def test_failure_on_a_routed_sample_names_its_place_in_the_whole_batch(key: str) -> None:
    images, prompts = samples([None, "A", "B", "C"], **{key: [0.0, 0.1, "fail", 0.3]})
    part = component(Column(key), when=Route("texts"))
    if key == "partial":  # otherwise nothing says which sample it was but scoring them one by one
        with pytest.raises(RewardError, match="sample 2: asked to"):
            CompositeReward([part])(images, prompts)
    dropped = CompositeReward([part], on_failure="drop")(images, prompts)
    np.testing.assert_array_equal(dropped.failed, [False, False, True, False])
    np.testing.assert_allclose(dropped.components[:, 0], np.array([NAN, 0.1, NAN, 0.3], np.float32))


def test_partial_result_out_of_range_is_a_failure_too() -> None:
    def wild(images: Any, prompts: Any) -> Any:
        raise RewardError("wild", {0: "smudged"}, RewardResult(np.array([NAN, 7.0, 0.5]), [{}, {}, {}]))

    wild.range = (0.0, 1.0)  # type: ignore[attr-defined]
    images, prompts = samples(a=[0, 0, 0])
    result = CompositeReward([Component("wild", FunctionReward("wild", wild, {}))], on_failure="drop")(images, prompts)
    assert result.failures == {0: "wild: smudged", 1: "wild: score 7 is not in [0, 1]"}
    np.testing.assert_allclose(result.components[:, 0], [NAN, NAN, 0.5])


@pytest.mark.parametrize("on_failure", ["stop", "drop"])
@pytest.mark.parametrize("concurrency", [1, None])
def test_unavailable_reward_stops_the_run_whatever_on_failure_says(on_failure: str, concurrency: int | None) -> None:
    def unavailable(images: Any, prompts: Any) -> Any:
        raise RewardUnavailableError('reward "far": its server is not there')

    images, prompts = samples(a=["fail" if on_failure == "drop" else 0.5])
    parts = [component(Column("a")), Component("far", FunctionReward("far", unavailable, {}))]
    with pytest.raises(RewardUnavailableError, match="its server is not there"):
        CompositeReward(parts, on_failure=on_failure, concurrency=concurrency)(images, prompts)


def test_weights_at_a_step_follow_the_schedule_and_the_composite_stays_as_it_is() -> None:
    images, prompts = samples(a=[1.0], b=[0.0])
    made = CompositeReward([component(Column("a"), 2.0, schedule=Schedule.parse({0: 1.0, 10: 0.5})), component(Column("b"))])
    # Half-way to half: factor 0.75, weight 1.5, average 1.5 / (1.5 + 1).
    np.testing.assert_allclose(made.at(5)(images, prompts).weights, [1.5, 1.0])
    np.testing.assert_allclose(made.at(5)(images, prompts).scores, [0.6])
    np.testing.assert_allclose(made(images, prompts).weights, [2.0, 1.0])
    assert made.varying_weights(5) == {"a": 1.5}


def test_composite_without_schedules_is_the_same_at_every_step() -> None:
    made = CompositeReward([component(Column("a"))])
    assert made.at(7) is made
    assert made.varying_weights(7) == {}


def test_constant_schedule_scales_and_is_not_logged() -> None:
    made = CompositeReward([component(Column("a"), 2.0, schedule=Schedule.parse({0: 0.5}))])
    np.testing.assert_allclose(made.at(3).weights, [1.0])
    assert made.varying_weights(3) == {}


def test_component_scheduled_to_nothing_is_only_logged() -> None:
    images, prompts = samples(a=[1.0], b=[0.5])
    made = CompositeReward([component(Column("a"), schedule=Schedule.parse({0: 1, 10: 0})), component(Column("b"))])
    result = made.at(10)(images, prompts)
    np.testing.assert_allclose(result.scores, [0.5])
    np.testing.assert_allclose(result.components, [[1.0, 0.5]])


def test_schedules_that_leave_nothing_to_train_on_are_refused() -> None:
    falling, rising = Schedule.parse({0: 1, 10: 0}), Schedule.parse({10: 0, 20: 1})
    with pytest.raises(ValueError, match="weight 0 at step 10"):
        CompositeReward([component(Column("a"), schedule=falling), component(Column("b"), schedule=rising)])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"components": {"ocr": {"cap": "high"}}}, 'cap of "ocr" must be a number'),
        ({"components": {"ocr": {"cap": 2}}}, "inside \\[0, 1\\], got 2"),
        ({"components": {"ocr": {"schedule": {"x": 1}}}}, 'component "ocr": the steps of a schedule'),
        ({"components": {"ocr": {"when": "txts"}}}, 'component "ocr": unknown rule "txts"; nearest: texts'),
        ({"components": {"ocr": {"normalisation": "grup"}}}, 'normalisation of "ocr" "grup"; nearest: group'),
        ({"components": {"ocr": {"wen": "texts"}}}, 'key of component "ocr" "wen"; nearest: when'),
        ({"components": {"ocr": {}}, "concurrency": 0}, "concurrency must be at least 1"),
        ({"components": {"ocr": {}}, "concurrency": "all"}, "concurrency must be a whole number"),
    ],
)
def test_bad_configuration_of_a_part_raises_what_is_wrong(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_composite(config)


def test_configuration_reaches_every_part() -> None:
    entry = {"weight": 2, "normalisation": "batch", "cap": 0.9, "schedule": {0: 1.0, 200: 0.2}, "when": "texts"}
    (part,) = build_composite({"components": {"ocr": entry}, "concurrency": 1}).parts
    assert (part.normalisation, part.cap, part.when) == ("batch", 0.9, Route("texts"))
    assert part.schedule == Schedule(((0, 1.0), (200, 0.2)))
