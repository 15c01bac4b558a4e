"""How runs share a machine, what a crashed one is said to have died of, and what a person sees meanwhile."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from xomni_rl.experiments.ablation.display import Display, last_metrics
from xomni_rl.experiments.ablation.execute import THREAD_VARIABLES, Machine, locked, why
from xomni_rl.experiments.ablation.plan import AblationError, PlannedRun


def run(variant: str, seed: int, status: str) -> PlannedRun:
    return PlannedRun(variant, seed, f"{variant}/{seed}", [], "", "", status)


@pytest.mark.parametrize(
    ("cores", "jobs", "runs", "expected"),
    [
        (8, None, 12, (8, 1)),  # one per core
        (8, None, 3, (3, 2)),  # no more than there are runs: 8 // 3 cores each
        (8, 4, 12, (4, 2)),
        (2, 5, 12, (5, 1)),  # more than cores, as asked for
    ],
)
def test_jobs_share_the_cores(cores: int, jobs: int | None, runs: int, expected: tuple[int, int]) -> None:
    own = Machine.shared(jobs, runs)
    assert own.cores == tuple(sorted(os.sched_getaffinity(0)))
    machine = Machine.shared(jobs, runs, cores=range(cores))
    assert (machine.jobs, machine.threads) == expected


def test_gpus_set_the_jobs_and_are_given_in_turn() -> None:
    machine = Machine.shared(None, 12, devices=["2", "5"], cores=range(8))
    assert (machine.jobs, machine.threads) == (2, 4)
    assert [machine.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["2", "5", "2"]
    assert {machine.environment(0)[name] for name in THREAD_VARIABLES} == {"4"}
    assert "CUDA_VISIBLE_DEVICES" not in Machine.shared(1, 1).environment(0)


def test_no_jobs_are_refused() -> None:
    with pytest.raises(AblationError, match="--jobs must be at least 1, but is 0"):
        Machine.shared(0, 3)


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("$ xomni-rl train\nstep 1/2\nerror: it is broken\n\n", 1, "it is broken"),
        ("Traceback …\n  File …\nKeyError: 'x'\n", 1, "KeyError: 'x'"),
        ("$ xomni-rl train\nstep 1/2\n", -9, "killed by SIGKILL; last line of its log: step 1/2"),
        ("$ xomni-rl train\n", 1, "its log is empty"),
    ],
)
def test_reason_of_a_crash_is_the_last_line_of_the_log(tmp_path: Path, text: str, code: int, expected: str) -> None:
    (tmp_path / "log").write_text(text)
    assert why(code, tmp_path / "log") == expected


def test_folder_is_held_by_one_ablation_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(AblationError, match="another ablation is at work"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass  # free again


def write_metrics(folder: Path, *lines: dict[str, float], rest: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)


def test_last_whole_line_of_the_metrics_is_read(tmp_path: Path) -> None:
    write_metrics(tmp_path / "a", {"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.25}, rest='{"step": 3, "rew')
    assert last_metrics(tmp_path / "a" / "metrics.jsonl") == {"step": 2, "reward": 0.25}
    assert last_metrics(tmp_path / "b" / "metrics.jsonl") == {}


def test_terminal_shows_a_table_of_runs_with_steps_and_scores(tmp_path: Path) -> None:
    write_metrics(tmp_path / "grpo" / "0", {"step": 4, "reward": 0.5, "heldout/ocr": 0.7, "heldout/ocr_exact": 0.25})
    runs = [run("grpo", 0, "running"), run("grpo", 1, "failed"), run("[b]odd", 0, "waiting")]
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40, color_system=None)
    with Display(console, tmp_path, {each.folder: 8 for each in runs}) as display:
        display.say("nothing of this is shown beside a table")
        display.say("grpo seed 1: crashed", bad=True)
        display.refresh(runs, {"grpo/0": 65.0})
    text = console.file.getvalue()
    assert "grpo seed 1: crashed" in text
    assert "beside a table" not in text
    words = [line.split() for line in text.splitlines()]
    assert ["grpo", "0", "running", "4/8", "0.500", "ocr_exact", "0.250", "1:05"] in words
    assert ["[b]odd", "0", "waiting"] in words
    assert "1 of 3 runs ended, 1 failed" in text


def test_more_runs_than_lines_show_those_at_work(tmp_path: Path) -> None:
    runs = [run("grpo", seed, "running" if seed == 7 else "waiting") for seed in range(30)]
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=12, color_system=None)
    with Display(console, tmp_path, {each.folder: 8 for each in runs}) as display:
        display.refresh(runs, {})
    assert "7  running" in console.file.getvalue()
    assert "waiting" not in console.file.getvalue()


def test_plain_output_has_a_line_per_event_and_a_pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metrics(tmp_path / "grpo" / "0", {"step": 4})
    runs = [run("grpo", 0, "running"), run("grpo", 1, "finished")]
    console = Console(file=io.StringIO(), width=200)
    with Display(console, tmp_path, {each.folder: 8 for each in runs}) as display:
        display.say("grpo seed 0: started")
        display.refresh(runs, {})
        monkeypatch.setattr("xomni_rl.experiments.ablation.display.PULSE", -1.0)
        display.refresh(runs, {})
    assert console.file.getvalue().splitlines() == ["grpo seed 0: started", "1 of 2 runs ended; at work: grpo seed 0 4/8"]
