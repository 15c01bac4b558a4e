"""One run in several processes is the run of one: figures, weights, resume, divided weights, and the end of a process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from xomni_rl.policies.distributed import Team

TOLERANCE = 1e-4
"""Relative, of figures: sums over shares are rounded otherwise than sums over the batch, and Adam divides by small numbers."""

ROUNDING = ("ratio_max_deviation", "logprob_max_delta")

pytestmark = pytest.mark.slow


class Starter:
    """Starts runs of several processes and waits for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = Path(__file__).with_name("train_together.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(file)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"

    def begin(self, config: dict[str, Any], size: int, *, divided: bool = False) -> list[int]:
        """Ids of the run's processes."""
        job = {"config": config, "size": size, "errors": str(self.folder), "divided": divided}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        found: list[int] = json.loads(self._line())
        return found

    def end(self) -> list[int]:
        """Exit statuses of the processes begun last."""
        found: list[int] = json.loads(self._line())
        return found

    def run(self, config: dict[str, Any], size: int, *, divided: bool = False) -> Path:
        self.begin(config, size, divided=divided)
        assert self.end() == [0] * size, "".join([file.read_text() for file in self.folder.iterdir()])
        return Path(config["run"])

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    made = Starter(tmp_path_factory.mktemp("errors"))
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def figures(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in ("time", "memory")} for line in lines]


def assert_same_run(found: Path, expected: Path) -> None:
    """Figures, tables with their pictures, and checkpoints, to rounding."""
    for ours, theirs in zip(figures(found), figures(expected), strict=True):
        # The largest rounding errors are figures themselves, and have no reason to repeat.
        expected_figures = {name: value for name, value in theirs.items() if name not in ROUNDING}
        assert {name: value for name, value in ours.items() if name not in ROUNDING} == pytest.approx(
            expected_figures, rel=TOLERANCE, abs=1e-5
        )
    for table in expected.glob("*/step_*.parquet"):
        columns = ["prompt_id", "tokens", "image", "details", "group", "index"]
        other = found / table.parent.name / table.name
        assert pq.read_table(other, columns=columns).equals(pq.read_table(table, columns=columns)), other
    for name, value in load_file(expected / "checkpoints" / "step_000003" / "model" / "model.safetensors").items():
        other = load_file(found / "checkpoints" / "step_000003" / "model" / "model.safetensors")[name]
        assert float((value - other).abs().max()) < 3e-4, name  # one step of Adam at this learning rate


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_two_processes_give_the_run_of_one_with_a_share_that_is_smaller(
    algorithm: str, starter: Starter, changed: Callable[..., dict[str, Any]]
) -> None:
    # Three prompts of two processes: two and one.
    sizes = {"algorithm__name": algorithm, "trainer__prompts_per_step": 3, "trainer__accumulation": 2}
    one = starter.run(changed(**sizes), 1)
    two = starter.run(changed(**sizes, run=f"{one}_two"), 2)
    assert_same_run(two, one)
    assert json.loads((two / "manifest.json").read_text())["processes"] == 2


def test_process_without_a_prompt_takes_part(starter: Starter, changed: Callable[..., dict[str, Any]]) -> None:
    one = starter.run(changed(), 1)
    assert_same_run(starter.run(changed(run=f"{one}_three"), 3), one)  # two prompts a step


@pytest.mark.parametrize(
    "again",
    [{}, {"model__gradient_checkpointing": True, "model__rows_at_a_time": 1}],
    ids=["everything kept", "layers and rows computed again"],
)
def test_weights_divided_by_fsdp2_give_the_same_run_and_go_on(
    again: dict[str, Any], starter: Starter, changed: Callable[..., dict[str, Any]]
) -> None:
    one = starter.run(changed(), 1)
    divided = changed(run=f"{one}_divided", **again)
    starter.run(divided | {"trainer": divided["trainer"] | {"steps": 2}}, 2, divided=True)
    assert json.loads((Path(divided["run"]) / "manifest.json").read_text())["parallel"] == "FSDP"
    assert_same_run(starter.run(divided | {"resume": divided["run"]}, 2, divided=True), one)


def test_float32_weights_of_a_bfloat16_model_go_on_divided_or_not(
    starter: Starter, changed: Callable[..., dict[str, Any]]
) -> None:
    # bfloat16 numbers lie 2⁻⁸ of themselves apart, so that nearly every step at this rate would be rounded away.
    low = {"model": {"path": "tiny_random", "dtype": "bfloat16"}, "trainer__learning_rate": 1e-6, "trainer__warmup_steps": 0}
    whole = changed(**low, trainer__mixed_precision="bf16")
    starter.run(whole, 2, divided=True)
    stopped = changed(**low, trainer__mixed_precision="bf16", run=f"{whole['run']}_stopped")
    starter.run(stopped | {"trainer": stopped["trainer"] | {"steps": 2}}, 2, divided=True)
    starter.run(stopped | {"resume": stopped["run"]}, 2, divided=True)
    (expected, found) = (
        load_file(Path(run["run"]) / "checkpoints/step_000003/optimizer.safetensors") for run in (whole, stopped)
    )
    masters = [name for name in expected if name.startswith("master/")]
    moved = [name for name in masters if expected[name.replace("master", "exp_avg")].any()]  # the text's head has no gradient
    assert len(moved) > 10
    for name in moved:
        assert found[name].dtype == torch.float32
        assert float((found[name] - expected[name]).abs().max()) < 1e-6, name  # one step of Adam at this rate
        assert not torch.equal(expected[name], expected[name].bfloat16().float()), name
    alone = starter.run(stopped | {"resume": stopped["run"], "trainer": stopped["trainer"] | {"steps": 4}}, 1)
    after = load_file(alone / "checkpoints/step_000004/optimizer.safetensors")
    for name in moved:
        assert 0 < float((after[name] - found[name]).abs().max()) < 2e-6, name


def test_weights_of_16_bits_are_refused_where_they_are_divided(
    starter: Starter, changed: Callable[..., dict[str, Any]]
) -> None:
    starter.begin(changed(model={"path": "tiny_random", "dtype": "bfloat16"}), 2, divided=True)
    assert starter.end() == [1, 1]
    assert "set trainer.mixed_precision=bf16" in (starter.folder / "0").read_text()


def test_moments_of_one_byte_are_refused_where_weights_are_divided(
    starter: Starter, changed: Callable[..., dict[str, Any]]
) -> None:
    starter.begin(changed(trainer__optimizer="adamw_8bit"), 2, divided=True)
    assert starter.end() == [1, 1]
    assert "trainer.optimizer=adamw_8bit cannot be divided" in (starter.folder / "0").read_text()


def test_others_end_when_a_process_is_killed_and_the_run_goes_on(
    starter: Starter, changed: Callable[..., dict[str, Any]]
) -> None:
    one = starter.run(changed(), 1)
    config = changed(run=f"{one}_killed", trainer__steps=10_000)
    children = starter.begin(config, 2)
    while not (Path(config["run"]) / "checkpoints" / "step_000001").exists():
        time.sleep(0.05)
    os.kill(children[1], signal.SIGKILL)
    began = time.monotonic()
    assert starter.end() == [1, -signal.SIGKILL]
    assert time.monotonic() - began < 60
    told = (starter.folder / "0").read_text()
    assert told == f"another process of this run has ended, or does not answer; go on with resume={config['run']}"
    newest = max(Path(config["run"]).glob("checkpoints/step_*"))
    steps = int(newest.name.removeprefix("step_")) + 2
    goes_on = changed(run=config["run"], resume=config["run"], trainer__steps=steps)
    assert figures(starter.run(goes_on, 2))[-1]["step"] == steps


def test_shares_are_neighbours_and_differ_by_one_at_most() -> None:
    # 7 = 3 + 2 + 2; 2 = 1 + 1 + 0
    assert [Team(rank, 3).share(range(7)) for rank in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [Team(rank, 3).share("ab") for rank in range(3)] == [["a"], ["b"], []]
