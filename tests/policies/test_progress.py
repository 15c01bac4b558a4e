"""What a person sees during training: a live view, plain lines, or warnings alone."""

import io

import pytest
from rich.console import Console

from xomni_rl.policies.alarms import Alarm
from xomni_rl.policies.progress import LINES, SPARKS, Display, sparkline

STEP = {"reward": 0.5, "reward/ocr": 0.75, "entropy": 0.7, "time/sample": 1.5, "time/update": 0.5, "time/total": 2.0}
STEP |= {"memory/peak_gib": 1.25}
ALARM = Alarm("zero_variance", 0.9, 0.8, "most groups are [equal]:one:")


@pytest.fixture(autouse=True)
def outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def shown(terminal: bool, steps: int = 40) -> str:
    """What a run of that many steps with an alarm in its second step prints."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, legacy_windows=False)
    with Display(console, steps, None) as display:
        display.show(0, {"heldout/ocr_exact": 0.5}, 0.0, 0)
        for step in range(1, steps + 1):
            evaluated = {"heldout/ocr_exact": 0.625} if step == steps else {}
            if step == 2:
                display.alarm(step, ALARM, 1)
            display.show(step, STEP | {"reward": step / steps} | evaluated, 2.0 * step, step)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_terminal_shows_bar_figures_held_out_time_memory_and_alarms() -> None:
    last = shown(terminal=True).rpartition("training")[2]
    assert "40/40" in last
    assert "0 s left" in last
    assert "reward      1.000  ▁" in last
    assert "ocr 0.75" in last
    assert "entropy 0.7" in last
    assert "ocr_exact 0.500 → 0.625  (step 40)" in last
    assert "2.00 s: sample 75% · update 25%  peak memory 1.25 GiB" in last
    assert "zero_variance 1× (last in step 2)" in last


def test_warning_stands_above_the_live_view_as_it_is() -> None:
    assert "warning step 2: zero_variance: most groups are [equal]:one:" in shown(terminal=True)


def test_without_a_terminal_there_are_few_plain_lines() -> None:
    lines = shown(terminal=False, steps=1000).splitlines()
    assert len(lines) == 1 + LINES + 1  # the evaluation before, every 50th step, the alarm
    assert lines[0] == "step 0/1000  heldout/ocr_exact 0.500"
    assert lines[-1] == "step 1000/1000  reward 1.000  heldout/ocr_exact 0.625  0 s left"


@pytest.mark.parametrize("terminal", [True, False])
def test_in_ci_only_warnings_are_shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert shown(terminal).splitlines() == ["warning step 2: zero_variance: most groups are [equal]:one:"]


def test_sparkline_averages_neighbours_and_spans_the_range() -> None:
    # Four values in two bars: means 0.5 and 2.5 are the lowest and the highest.
    assert sparkline([0.0, 1.0, 2.0, 3.0], width=2) == SPARKS[0] + SPARKS[-1]
    assert sparkline([1.0, 1.0]) == SPARKS[0] * 2
    assert sparkline([]) == ""
