"""Real ablations in real processes: a crashing variant, a second call, Ctrl-C, a kill, and `compare` on what is left."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from xomni_rl.cli import app
from xomni_rl.policies.records import read_rows

REWARDS = '''"""Rewards of somebody's own."""
import json, os, time
from pathlib import Path

import numpy as np
import torch


def redness(images, prompts):
    """Mean of the red channel."""
    return np.array([image[..., 0].mean() / 255 for image in images], dtype=np.float32)


def broken(images, prompts):
    """Raises until it is mended."""
    if not Path("mended").exists():
        raise ValueError("the lamp is out")
    return redness(images, prompts)


def slow(images, prompts):
    """Redness, after a while."""
    time.sleep(0.4)
    return redness(images, prompts)


def noted(images, prompts):
    """Redness; notes on the way what its process may use."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    note = {"threads": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"], "cores": cores, "process": os.getpid()}
    with open("notes.jsonl", "a") as stream:
        stream.write(json.dumps(note) + "\\n")
    return redness(images, prompts)
'''
SMALL = [
    "model.path=tiny_random",
    "prompts=file",
    "prompts.options.path=train.jsonl",
    "+prompts.options.heldout_path=heldout.jsonl",
    "prompts.heldout_count=8",
    "trainer=quick",
    "trainer.trackers=[]",
    "~trainer.evaluation.reward.components.ocr",
    "+trainer.evaluation.reward.components.red={reward: 'mine:redness'}",
]


def prepare(folder: Path) -> None:
    """A working directory with rewards and prompts of 16 × 32 px, which are 8 tokens."""
    (folder / "mine.py").write_text(REWARDS)
    for split in ("train", "heldout"):
        lines = [{"id": f"{split}{i}", "text": f"{split} sign {i}", "size": [16, 32]} for i in range(8)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def command(*arguments: str) -> list[str]:
    return ["ablate", *arguments, *SMALL, "run=out", "--jobs", "2"]


def ablate(folder: Path, *arguments: str) -> Result:
    """Calls the command in this process; the runs have processes of their own all the same."""
    with chdir(folder):
        return CliRunner().invoke(app, command(*arguments))


def plan(folder: Path) -> dict[str, dict[str, Any]]:
    """A run's folder → its entry in ablation.json."""
    return {run["folder"]: run for run in json.loads((folder / "out" / "ablation.json").read_text())["runs"]}


def states(folder: Path) -> dict[str, str]:
    return {name: run["status"] for name, run in plan(folder).items()}


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open()))


@dataclass
class Story:
    """Two calls: with a reward that is broken, and after it was mended."""

    folder: Path
    first: Result
    plan_before: dict[str, dict[str, Any]]
    table_before: list[dict[str, str]]
    times_before: dict[Path, int]
    second: Result


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    prepare(folder)
    sweep = ("reward=mine:noted,mine:broken", "trainer.steps=2", "--target", "red=0.01", "seed=0,1")
    first = ablate(folder, *sweep)
    before = plan(folder), table(folder / "out" / "table.csv"), modified(folder / "out" / "mine-noted")
    (folder / "mended").touch()
    return Story(folder, first, *before, second=ablate(folder, *sweep))


@pytest.mark.slow
def test_crashing_variant_is_retried_and_reported_and_the_others_finish(story: Story) -> None:
    assert story.first.exit_code == 1
    found = {name: (run["status"], run["attempts"]) for name, run in story.plan_before.items()}
    assert found == {
        "mine-noted/0": ("finished", 1),
        "mine-noted/1": ("finished", 1),
        "mine-broken/0": ("failed", 2),
        "mine-broken/1": ("failed", 2),
    }
    assert "the lamp is out" in story.plan_before["mine-broken/0"]["error"]
    reported = [line for line in story.first.stderr.splitlines() if line.startswith("failed: mine:broken seed 0: ")]
    assert re.search(r"the lamp is out.*out/mine-broken/0/train\.log", reported[0])
    assert "Traceback" not in story.first.stderr
    assert {row["name"] for row in story.table_before} == {"mine:noted"}
    assert "mine:broken seed 1 is left out: failed" in story.first.stdout


@pytest.mark.slow
def test_second_call_repeats_nothing_and_runs_what_had_failed(story: Story) -> None:
    assert story.second.exit_code == 0, story.second.stderr
    assert modified(story.folder / "out" / "mine-noted") == story.times_before
    assert set(states(story.folder).values()) == {"finished"}
    assert {name: run["attempts"] for name, run in plan(story.folder).items()}["mine-broken/1"] == 3
    assert "mine:noted seed 0" not in story.second.stderr  # not a word of a run that was not touched


@pytest.mark.slow
def test_folder_holds_runs_plan_tables_curves_and_page(story: Story) -> None:
    out = story.folder / "out"
    assert {path.name for path in out.iterdir()} >= {"ablation.json", "table.csv", "table.md", "table.tex", "comparison.html"}
    config = yaml.safe_load((out / "mine-broken" / "1" / "config.yaml").read_text())
    assert (config["seed"], list(config["reward"]["components"])) == (1, ["broken"])
    assert (out / "table.csv").read_text().startswith("name,metric,mean,IQM,low,high,seeds\n")
    rows = {(row["name"], row["metric"]): row for row in table(out / "table.csv")}
    assert rows["mine:noted", "red"]["seeds"] == "2"
    # Both rewards are redness: the same seeds give the same pictures, so neither beats the other.
    assert float(rows["mine:broken", "red_improvement"]["mean"]) == 0.5
    assert float(rows["mine:broken", "samples_to_red=0.01"]["mean"]) == 0.0
    assert "The same in all runs: initial weights; images generated in training (16)" in story.second.stdout


@pytest.mark.slow
def test_every_process_has_its_share_of_the_cores(story: Story) -> None:
    cores = len(os.sched_getaffinity(0))
    notes = [json.loads(line) for line in (story.folder / "notes.jsonl").read_text().splitlines()]
    share = max(1, cores // 2)
    assert {(note["threads"], note["omp"]) for note in notes} == {(share, str(share))}
    by_process = {note["process"]: tuple(note["cores"]) for note in notes}
    assert len(by_process) == 2
    if cores >= 2:
        first, second = by_process.values()
        assert not set(first) & set(second)


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused_and_touch_nothing(story: Story) -> None:
    before = modified(story.folder / "out")
    refused = ablate(story.folder, "reward=mine:noted", "seed=0,1", "trainer.steps=3")
    assert refused.exit_code == 1
    assert "error: the ablation was begun with other settings: trainer.steps was 2 and is 3" in refused.stderr
    assert modified(story.folder / "out") == before


@pytest.mark.slow
def test_compare_on_the_ablations_folder_gives_its_table(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(story.folder)
    shown = CliRunner().invoke(app, ["compare", "out", "--out", "cmp", "--target", "red=0.01"])
    assert shown.exit_code == 0, shown.stderr
    ours, theirs = table(Path("cmp/table.csv")), table(Path("out/table.csv"))
    assert {row["name"] for row in ours} == {"noted", "broken"}  # named by their settings
    assert [list(row.values())[1:] for row in ours] == [list(row.values())[1:] for row in theirs]


@pytest.mark.slow
def test_compare_takes_groups_and_prints_fairness(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(story.folder)
    groups = ["--group", "one", "out/mine-noted/0", "--group", "two", "out/mine-noted/1", "out/mine-broken/1"]
    shown = CliRunner().invoke(app, ["compare", *groups, "--out", "grouped", "--metric", "red"])
    assert shown.exit_code == 0, shown.stderr
    assert "unfair: seeds differ: one 0; two 1, 1." in shown.stdout
    assert "unfair: the runs of two differ in " in shown.stdout
    assert "**Unfair:** two has a seed twice." in Path("grouped/table.md").read_text()


def children(process: int) -> list[int]:
    """The processes whose parent it is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(seen: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 180
    while not seen():
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.05)


class Started:
    """An ablation in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        whole = [sys.executable, "-m", "xomni_rl", *command(*arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(whole, cwd=folder, stdout=pipe, stderr=pipe, text=True)

    def step(self) -> int:
        """Of the newest checkpoint."""
        paths = sorted((self.folder / "out/grpo/0/checkpoints").glob("step_*"))
        return int(paths[-1].name.removeprefix("step_")) if paths else 0

    def stop(self, number: int, step: int) -> tuple[int, str, list[int]]:
        """Sends a signal once the run has a checkpoint of that step; exit status, standard error, the run's processes."""
        wait_until(lambda: self.step() >= step or self.process.poll() is not None, f"step {step}")
        runs = children(self.process.pid)
        assert len(runs) == 1
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors, runs


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_interrupted_and_killed_ablation_leaves_no_process_and_goes_on_to_its_end(tmp_path: Path) -> None:
    prepare(tmp_path)
    sweep = ("reward=mine:slow", "seed=0", "trainer.steps=12", "trainer.checkpoint_every=1", "trainer.evaluate_every=12")
    status, errors, runs = Started(tmp_path, *sweep).stop(signal.SIGINT, 1)
    assert status == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not any(map(alive, runs))
    assert set(states(tmp_path).values()) == {"interrupted"}

    status, _, runs = Started(tmp_path, *sweep).stop(signal.SIGKILL, 5)
    assert status == -signal.SIGKILL
    wait_until(lambda: not any(map(alive, runs)), "the end of the runs")

    ended = ablate(tmp_path, *sweep)
    assert ended.exit_code == 0, ended.stderr
    assert set(states(tmp_path).values()) == {"finished"}
    folder = tmp_path / "out" / "grpo" / "0"
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == list(range(13))
    first, second = json.loads((folder / "manifest.json").read_text())["resumes"]
    assert first["step"] >= 1
    assert second["step"] >= 5
    assert plan(tmp_path)["grpo/0"]["attempts"] == 3


# what is refused before anything runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ablate", "algorithm=grpo,grop"], 'unknown choice of group algorithm, "grop"; nearest: grpo'),
        (["ablate", "+algorithm.options.clip_lwo=0.1,0.2"], 'unknown option of algorithm grpo, "clip_lwo"; nearest: clip_low'),
        (["ablate", "seed=0,1", "prompts.heldout_count=0"], "an ablation compares held-out scores"),
        (["ablate", "seed=0,1", "--target", "ocr"], "--target must read METRIC=SCORE, such as ocr_exact=0.7, but is 'ocr'"),
        (["ablate", "seed=0", "resume=x"], "call the ablation again with the same run=FOLDER"),
        (["ablate", "seed=0", "run=a_run"], "a_run holds a single run; choose another folder"),
        (["compare", "--out", "x"], "there is nothing to compare: give one or more run folders"),
        (["compare", "nowhere", "--out", "x"], "nowhere is not a folder"),
        (["compare", ".", "--out", "x"], r"\. is no run folder"),
        (["compare", "a_run", "--out", "x"], "a_run has 0 held-out evaluations; before and after are needed"),
        (["compare", "--tarket", "a=1", "a_run", "--out", "x"], 'unknown option of compare, "--tarket"; nearest: --target'),
        (["compare", "a_run", "--group", "a", "a_run", "--out", "x"], "give either run folders or --group"),
        (["compare", "--group", "a", "--out", "x"], "the group a has no run folder"),
        (["compare", "--group", "--out", "x"], "--group needs a name and run folders"),
        (["compare", "--group", "a", "b", "--group", "a", "c", "--out", "x"], "two groups are called a"),
    ],
)
def test_user_error_is_one_sentence_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_run").mkdir()
    Path("a_run/config.yaml").write_text("seed: 0\n")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(words, line), line
    assert [path.name for path in tmp_path.iterdir()] == ["a_run"]


def test_ablation_beside_a_table_of_somebody_else_starts_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("mine")
    result = CliRunner().invoke(app, ["ablate", "seed=0,1", "run=."])
    assert (result.exit_code, [path.name for path in tmp_path.iterdir()]) == (1, ["table.csv"])
    assert "table.csv would be replaced and is of no comparison" in result.stderr


def test_ablation_under_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["ablate", "seed=0,1"])
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "an ablation starts its runs itself" in result.stderr
