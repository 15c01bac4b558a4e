"""Weight schedules: linear between knots, constant outside, refused where they make no sense."""

from typing import Any

import pytest

from xomni_rl.rewards.schedule import Schedule


@pytest.mark.parametrize(
    ("step", "factor"),
    # From 1.0 at 10 to 0.2 at 50, then to 0.6 at 60: at 20 a quarter of the way, 1 − 0.8/4; at 55 half-way, 0.4.
    [(0, 1.0), (10, 1.0), (20, 0.8), (50, 0.2), (55, 0.4), (60, 0.6), (1000, 0.6)],
)
def test_factor_is_linear_between_knots_and_constant_beyond(step: int, factor: float) -> None:
    assert Schedule.parse({50: 0.2, 10: 1.0, 60: 0.6}).factor(step) == pytest.approx(factor, abs=1e-12)


def test_steps_as_text_are_those_that_json_gives() -> None:
    assert Schedule.parse({"0": 1, "200": 0.2}) == Schedule.parse({0: 1.0, 200: 0.2})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "at least one step"),
        ([0, 1], "must map steps to factors"),
        ({-1: 1.0}, "steps from 0"),
        ({0: -0.5}, "finite factors of at least 0, got 0: -0.5"),
        ({0: float("nan")}, "finite factors"),
        ({0: "half"}, "at step 0 must be a number, got 'half'"),
        ({0: True}, "at step 0 must be a number"),
        ({"start": 1.0}, "whole numbers from 0, got 'start'"),
        ({0.5: 1.0}, "whole numbers from 0, got 0.5"),
        ({0: 1.0, "0": 0.5}, "each once"),
    ],
)
def test_schedule_that_makes_no_sense_is_refused(entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.parse(entries)
