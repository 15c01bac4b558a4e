"""Training with a served reward and every fault we know: it stops with a clear error, or drops and counts, and goes on."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tests.rewards.reward_servers import Scripted, free_port, serve
from xomni_rl.cli import app
from xomni_rl.experiments.run import build_parts
from xomni_rl.policies.records import read_rows
from xomni_rl.policies.trainer import train
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardUnavailableError

pytestmark = pytest.mark.slow
LONG = 60
"""Seconds after which a test that hangs fails."""


def redness(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    return [float(image[..., 0].mean() / 255) for image in images]


def training(folder: Path, url: str, on_failure: str, steps: int, **options: Any) -> dict[str, Any]:
    """Two prompts, groups of two, 8 tokens an image: four images and one request a step."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 6), ("heldout", 2)):
        lines = [{"id": f"{split}{i}", "text": f"a {split} sign {i}", "size": [16, 32]} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reward = {"reward": "remote", "options": {"url": url, "component": "redness", "retries": 1, "timeout": 20, **options}}
    return {
        "run": str(folder / "run"),
        "resume": None,
        "seed": 0,
        "model": {"path": "tiny_random"},
        "reward": {"components": {"red": reward}, "on_failure": on_failure},
        "algorithm": {"name": "grpo", "options": {}},
        "prompts": {
            "set": "file",
            "options": {"path": str(folder / "train.jsonl"), "heldout_path": str(folder / "heldout.jsonl")},
            "train_count": 6,
            "heldout_count": 2,
        },
        "trainer": {
            "steps": steps,
            "prompts_per_step": 2,
            "group_size": 2,
            "learning_rate": 3e-4,
            "warmup_steps": 2,
            "decay_steps": None,
            "evaluate_every": None,
            "checkpoint_every": 1,
            "trackers": [],
            "evaluation": {"grid_prompts": 2},
        },
    }


def rows(config: dict[str, Any]) -> list[dict[str, Any]]:
    return read_rows(Path(config["run"]) / "metrics.jsonl")


def without_time(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("time", "memory")} for row in rows(config)]


def start_training(config: dict[str, Any]) -> Any:
    return train(config, **build_parts(config), console=Console(file=io.StringIO()))


# every fault, at a chosen step


class Faulty(Scripted):
    """Scores redness; `faults` are what the next requests meet, one each."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.over = threading.Event()
        super().__init__(self.answered, b'{"rewards": ["redness"]}')

    def answered(self, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        fault = self.faults.pop(0) if self.faults else ""
        scores = [self.redness(entry["history"][-1]["image_b64"]) for entry in body["requests"]]
        results: list[dict[str, Any]] = [{"redness": {"redness": score}} for score in scores]
        errors: list[dict[str, str]] = [{} for _ in scores]
        if fault == "hangs up":
            return None
        if fault == "overloaded":
            return 503, {"Retry-After": "0"}, b'{"detail": "too much is waiting"}'
        if fault == "garbage":
            return 200, {}, b"<html>Scores: 0.9, 0.9</html>"
        if fault == "slow":
            self.over.wait(LONG)
        if fault == "half":
            results[0], results[2] = {}, {}
            errors[0] = errors[2] = {"redness": "out of memory"}
        return 200, {}, json.dumps({"results": results, "errors": errors}).encode()

    @staticmethod
    def redness(image_b64: str) -> float:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(image_b64))))
        return redness([image], [])[0]


FAULTS = {
    "hangs up": (["hangs up"] * 2, r"failed on 4 sample.*broke off.*\(2 attempts\)"),
    "overloaded": (["overloaded"] * 2, r"failed on 4 sample.*HTTP 503: too much is waiting \(2 attempts\)"),
    "garbage": (["garbage"], "failed on 4 sample.*answers garbage instead of scores"),
    "half": (["half"], "failed on 2 sample.*sample 0: out of memory; sample 2: out of memory"),
    "slow": (["slow"], "failed on 4 sample.*not scored within 3 s"),
}
"""Fault → what the requests of one step meet (what may pass is tried twice), and what is said then."""


@pytest.fixture
def server() -> Iterator[Faulty]:
    with Faulty() as made:
        yield made
        made.over.set()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of three steps without a fault."""
    with Faulty() as made:
        config = training(tmp_path_factory.mktemp("undisturbed"), made.url, "stop", steps=3)
        start_training(config)
    return without_time(config)


@pytest.mark.parametrize("fault", FAULTS)
def test_training_stops_at_a_fault_and_goes_on_as_if_it_had_not_been(
    fault: str, server: Faulty, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    requests, sentence = FAULTS[fault]
    config = training(tmp_path, server.url, "stop", steps=3, timeout=3)
    server.faults = ["", *requests]  # in step 2
    with pytest.raises(RewardError, match=rf'reward "red" {sentence}'):
        start_training(config)
    assert [row["step"] for row in rows(config)] == [1]
    start_training(config | {"resume": config["run"]})
    assert without_time(config) == undisturbed  # every number, to the last bit


def test_training_drops_what_a_fault_costs_and_counts_it(server: Faulty, tmp_path: Path) -> None:
    config = training(tmp_path, server.url, "drop", steps=len(FAULTS) + 2, timeout=3)
    server.faults = ["", *(request for requests, _ in FAULTS.values() for request in requests)]
    start_training(config)
    shares = [row["failed_share"] for row in rows(config)]
    assert shares == [0, *(0.5 if fault == "half" else 1 for fault in FAULTS), 0]
    for step, row in enumerate(rows(config), start=1):
        table = pd.read_parquet(Path(config["run"]) / "rollouts" / f"step_{step:06d}.parquet")
        failed = table["failed"].to_numpy()
        assert failed.mean() == row["failed_share"]
        scores = table["reward_red"].to_numpy()
        np.testing.assert_array_equal(np.isnan(scores), failed)  # no number was made up, and none was lost
        if failed.all():
            assert row["skipped"] == 1
            assert "reward/red" not in row
        else:
            assert row["reward/red"] == pytest.approx(scores[~failed].mean(), abs=1e-6)


@pytest.mark.parametrize("on_failure", ["stop", "drop"])
def test_training_does_not_begin_without_its_server_and_begins_when_it_is_there(on_failure: str, tmp_path: Path) -> None:
    port = free_port()
    config = training(tmp_path, f"http://127.0.0.1:{port}", on_failure, steps=1)
    with pytest.raises(RewardUnavailableError, match=rf"127\.0\.0\.1:{port}: cannot be reached.*xomni-rl serve"):
        start_training(config)
    assert not Path(config["run"]).exists()
    with serve(redness, port=port):
        assert start_training(config).steps == 1


def test_command_says_in_one_sentence_that_the_server_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "xomni_rl", "train", "reward=remote", "run=mine"]
    command.append(f"+reward.components.remote.options.url=http://127.0.0.1:{free_port()}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LONG, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith('error: reward "remote": no server can be asked')
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mine").exists()
    url = f"remote.url=http://127.0.0.1:{free_port()}"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "prompts.txt").write_text("a picture\n")
    scored = CliRunner().invoke(app, ["score", ".", "--prompts", "prompts.txt", "--reward", "remote", "--option", url])
    assert scored.exit_code == 1
    assert 'error: reward "remote": no server can be asked' in scored.output


# `xomni-rl serve` itself, killed and restarted


REDNESS = """
import os

calls = 0


def redness(images, prompts):
    global calls
    calls += 1
    if calls > int(os.environ.get("DIES_AFTER", "1000000")):
        os._exit(9)  # like a kill: nothing is answered, nothing closed
    return [image[..., 0].mean() / 255 for image in images]
"""


@pytest.fixture
def served_process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `xomni-rl serve` with the reward above, at a port, dying after so many calls; ends it after the test."""
    (tmp_path / "served_redness.py").write_text(REDNESS)
    started: list[subprocess.Popen[str]] = []

    def start(port: int, dies_after: int = 10**6) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "xomni_rl", "serve", "reward=served_redness:redness", f"--port={port}"]
        environment = {**os.environ, "DIES_AFTER": str(dies_after), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving redness at")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_training_stops_when_the_server_dies_and_resumes_when_it_is_back(
    tmp_path: Path, served_process: Callable[..., subprocess.Popen[str]]
) -> None:
    port = free_port()
    server = served_process(port, dies_after=4)
    config = training(tmp_path, f"http://127.0.0.1:{port}", "stop", steps=6)
    with pytest.raises(RewardError, match=rf'reward "red" failed on 4 sample.*127\.0\.0\.1:{port}: cannot be reached'):
        start_training(config)
    assert server.wait(LONG) == 9
    done = rows(config)[-1]["step"]
    assert 0 < done < 6
    served_process(port)
    summary = start_training(config | {"resume": config["run"]})
    assert summary.steps == 6
    assert [row["step"] for row in rows(config)] == list(range(1, 7))
    assert all(row["failed_share"] == 0 for row in rows(config))


def test_training_goes_on_by_itself_when_the_server_is_back(tmp_path: Path) -> None:
    server = serve(redness)
    port = int(server.url.rpartition(":")[2])
    config = training(tmp_path, server.url, "drop", steps=40)
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(start_training(config))
        except BaseException as error:
            outcome.append(error)

    def wait_for(seen: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + 2 * LONG
        while not ((Path(config["run"]) / "metrics.jsonl").exists() and rows(config) and seen(rows(config)[-1])):
            assert not outcome, outcome
            assert time.monotonic() < deadline
            time.sleep(0.005)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda row: row["step"] >= 2)
    server.close()
    wait_for(lambda row: row["failed_share"] == 1)
    with serve(redness, port=port):
        thread.join(2 * LONG)
    assert not thread.is_alive()
    assert outcome[0].steps == 40
    shares = [row["failed_share"] for row in rows(config)]
    assert shares[-1] == 0
    assert 0 < sum(shares) < 36
