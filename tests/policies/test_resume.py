"""Runs that are killed with SIGKILL and go on, against one that was never stopped: the same to the last bit."""

import copy
import io
import json
import os
import shutil
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
from rich.console import Console
from safetensors.torch import load_file

from tests.policies.small_runs import with_reward
from xomni_rl.experiments.run import build_parts, given_keys, resumed_config, run_training, trained_stack
from xomni_rl.policies.checkpoint import CheckpointError
from xomni_rl.policies.records import RunFolderError, read_rows
from xomni_rl.policies.settings import SettingsError
from xomni_rl.policies.trainer import TrainSummary, train
from xomni_rl.registry import UnknownNameError

Change = Callable[..., dict[str, Any]]
QUIET = Console(file=io.StringIO())


def start(config: dict[str, Any]) -> TrainSummary:
    return train(config, **build_parts(config), console=QUIET)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without wall-clock figures and memory."""
    measured = ("time", "memory")
    return [{key: value for key, value in row.items() if key not in measured} for row in read_rows(folder / "metrics.jsonl")]


def tables(folder: Path) -> dict[str, Any]:
    return {path.relative_to(folder).as_posix(): pq.read_table(path).to_pylist() for path in sorted(folder.rglob("*.parquet"))}


def summary(folder: Path) -> dict[str, Any]:
    whole = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in whole.items() if key not in ("seconds", "train_seconds")}


def assert_same_run(one: Path, other: Path, step: int) -> None:
    assert metrics(one) == metrics(other)
    assert [repr(row) for row in tables(one).items()] == [repr(row) for row in tables(other).items()]  # NaN == NaN
    assert summary(one) == summary(other)
    last = f"checkpoints/step_{step:06d}"
    files = [
        sorted(path.relative_to(folder / last) for path in (folder / last).rglob("*.safetensors")) for folder in (one, other)
    ]
    assert files[0] == files[1]
    assert len(files[0]) >= 3  # weights, optimizer, generators; extras where the algorithm has some
    for name in files[0]:
        ours, theirs = (load_file(folder / last / name) for folder in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name
    assert (one / "checkpoints/last").read_text() == (other / "checkpoints/last").read_text()
    best = [
        pointer.read_text() if pointer.exists() else None for pointer in (one / "checkpoints/best", other / "checkpoints/best")
    ]
    assert best[0] == best[1]
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (one, other)]
    assert names[0] == names[1]


class Trainings:
    """Starts trainings in processes of their own, one at a time; see `train_tiny.py`."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).parent / "train_tiny.py")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def start(self, **job: Any) -> int:
        """The id of the process that does the job."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        return int(self.answer())

    def close(self) -> None:
        self.server.communicate()
        assert self.server.returncode == 0


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    made = Trainings()
    yield made
    made.close()


class Killable:
    """A run in a process of its own, killed as soon as something can be seen in its folder."""

    def __init__(self, trainings: Trainings, config: dict[str, Any]) -> None:
        self.trainings, self.config = trainings, config
        self.folder = Path(config["run"])
        self.errors = self.folder.with_suffix(".errors")

    def start(self, resume: bool) -> int:
        folder = str(self.folder) if resume else None
        return self.trainings.start(config=self.config, resume=folder, errors=str(self.errors))

    def kill_when(self, seen: Callable[[], bool], *, resume: bool) -> None:
        """Starts or goes on, lets the process run for moments, and kills it where `seen()` holds while it stands still."""
        process = self.start(resume)
        deadline = time.monotonic() + 300
        while not seen():
            assert not self.errors.exists(), self.errors.read_text()
            assert time.monotonic() < deadline, "what it was to be killed at never came"
            os.kill(process, signal.SIGCONT)
            time.sleep(0.002)
            os.kill(process, signal.SIGSTOP)
        os.kill(process, signal.SIGKILL)
        assert self.trainings.answer() == str(-signal.SIGKILL)

    def finish(self, *, resume: bool) -> None:
        self.start(resume)
        status = self.trainings.answer()
        assert status == "0", self.errors.read_text() if self.errors.exists() else status

    def has_step(self, step: int) -> bool:
        """Whether the line of that step is in metrics.jsonl, whole or half."""
        file = self.folder / "metrics.jsonl"
        return file.exists() and f'{{"step": {step},' in file.read_text()

    def has(self, pattern: str) -> bool:
        """Whether the folder has something of that name, which may hold wildcards."""
        return next(self.folder.glob(pattern), None) is not None


@pytest.mark.slow
def test_run_killed_at_many_points_equals_one_never_stopped(changed: Change, tmp_path: Path, trainings: Trainings) -> None:
    reward = {"reward": changed()["reward"]["components"]["red"]["reward"].replace("redness", "noisy_redness")}
    settings: dict[str, Any] = {
        "reward": {"components": {"red": reward}},
        "algorithm__options": {"kl_coef": 0.01},
        "trainer__steps": 12,
        "trainer__checkpoint_every": 3,
        "trainer__evaluate_every": 4,
        "trainer__minibatches": 2,
        "trainer__learning_rate": 3e-3,
    }
    whole = changed(run=str(tmp_path / "whole"), **settings)
    Killable(trainings, whole).finish(resume=False)
    run = Killable(trainings, changed(run=str(tmp_path / "killed"), **settings))
    run.kill_when(lambda: run.has_step(1), resume=False)
    assert not run.has("checkpoints/step_*")  # before the first checkpoint
    half, sealed = "checkpoints/.step_*.tmp/model/model.safetensors", "checkpoints/.step_*.tmp/files.json"
    run.kill_when(lambda: run.has(half) and not run.has(sealed), resume=True)  # in the middle of a checkpoint
    run.kill_when(lambda: run.has("checkpoints/step_000004"), resume=True)  # there, perhaps not yet pointed at
    run.kill_when(lambda: run.has_step(5), resume=True)  # a line after the checkpoint, which is taken back
    run.kill_when(lambda: run.has("checkpoints/.step_*.tmp"), resume=True)
    run.kill_when(lambda: run.has_step(8) and not run.has("checkpoints/step_000009"), resume=True)
    run.finish(resume=True)
    assert_same_run(run.folder, Path(whole["run"]), step=12)
    resumed_at = [entry["step"] for entry in json.loads((run.folder / "manifest.json").read_text())["resumes"]]
    assert resumed_at[0] == 0
    assert resumed_at == sorted(resumed_at)
    assert len(resumed_at) == 6
    assert not [path for path in run.folder.rglob("*") if ".tmp" in path.name or path.name.endswith(".old")]


STATEFUL: dict[str, dict[str, Any]] = {
    "critic": {"algorithm": {"name": "ppo", "options": {}}},
    "average": {"algorithm__options": {"kl_coef": 0.01, "reference": "ema", "reference_decay": 0.5}},
    "renewed": {"algorithm__options": {"kl_coef": 0.01, "reference": "reset", "reference_every": 2}},
    "curriculum": {"trainer__curriculum": {"low": 0.2, "high": 0.8}},
    "replaced": {"algorithm": {"name": "dapo", "options": {}}, "reward": "dull_for_even"},
    "greedy": {"algorithm": {"name": "remax", "options": {}}},
    "pairs": {"algorithm": {"name": "dpo", "options": {}}},
    "eight bits": {"trainer__optimizer": "adamw_8bit"},
    "masters": {"model": {"path": "tiny_random", "dtype": "bfloat16"}},
    "adapters": {"model": {"path": "tiny_random", "lora": {"rank": 2}}, "algorithm__options": {"kl_coef": 0.01}},
}
"""What keeps something from step to step, or draws more than a step's own prompts."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_killed_run_with_a_state_of_its_own_equals_one_never_stopped(
    changed: Change, tmp_path: Path, trainings: Trainings, name: str
) -> None:
    values = dict(STATEFUL[name])
    red = changed()["reward"]["components"]["red"]["reward"]
    values["reward"] = {"components": {"red": {"reward": red.replace("redness", values.get("reward", "redness"))}}}
    settings = {"trainer__steps": 4, "trainer__checkpoint_every": 2, "trainer__evaluate_every": None}
    settings |= {"trainer__learning_rate": 3e-3, "trainer__warmup_steps": 0}
    whole = changed(run=str(tmp_path / "whole"), **settings, **values)
    Killable(trainings, whole).finish(resume=False)
    run = Killable(trainings, changed(run=str(tmp_path / "killed"), **settings, **values))
    run.kill_when(lambda: run.has_step(3), resume=False)  # after the checkpoint of step 2; step 3 is taken back
    run.finish(resume=True)
    assert_same_run(run.folder, Path(whole["run"]), step=4)
    (entry,) = json.loads((run.folder / "manifest.json").read_text())["resumes"]
    assert entry["step"] == 2


def test_more_steps_later_equal_all_steps_at_once(changed: Change, tmp_path: Path) -> None:
    once = changed(run=str(tmp_path / "once"), trainer__steps=4)
    parts = changed(run=str(tmp_path / "parts"), trainer__steps=2)
    start(once)
    start(parts)
    resumed = start(parts | {"resume": parts["run"], "trainer": once["trainer"]})
    assert resumed.steps == 4
    assert_same_run(tmp_path / "parts", tmp_path / "once", step=4)
    (entry,) = json.loads((tmp_path / "parts/manifest.json").read_text())["resumes"]
    assert (entry["step"], entry["changed"]) == (2, {"trainer.steps": [2, 4]})


def test_going_back_to_an_older_checkpoint_repeats_what_followed(changed: Change, tmp_path: Path) -> None:
    config = changed(trainer__keep_checkpoints=3)
    start(config)
    before = copy.deepcopy(metrics(Path(config["run"])))
    start(config | {"resume": config["run"] + "/checkpoints/step_000001"})
    assert metrics(Path(config["run"])) == before


def test_resume_in_another_folder_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    start(config)
    first = Path(config["run"]) / "checkpoints" / "step_000002"
    with pytest.raises(RunFolderError, match=r"goes on in .*, not in run=.*branch: leave run= out, or go on with a copy"):
        resumed_config(config | {"resume": str(first), "run": str(tmp_path / "branch")}, ["run", "resume"])
    assert resumed_config(config | {"resume": str(first)}, ["run", "resume"])["run"] == config["run"]


def test_resume_without_the_checkpoints_that_there_were_takes_nothing_back(changed: Change) -> None:
    config = changed(trainer__checkpoint_every=1)
    start(config)
    shutil.rmtree(Path(config["run"]) / "checkpoints")
    with pytest.raises(RunFolderError, match=r"holds no checkpoint, but the run went on to step 3.*restore them, or start"):
        start(config | {"resume": config["run"]})
    assert [row["step"] for row in metrics(Path(config["run"]))] == [0, 1, 2, 3]


def test_finished_run_that_goes_on_does_nothing_more(config: dict[str, Any]) -> None:
    first = start(config)
    before = (Path(config["run"]) / "metrics.jsonl").read_bytes()
    again = start(config | {"resume": config["run"]})
    assert again.heldout == first.heldout
    assert again.train_seconds == pytest.approx(first.train_seconds, abs=5)
    assert (Path(config["run"]) / "metrics.jsonl").read_bytes() == before


def test_time_limit_counts_across_resumes(changed: Change) -> None:
    config = changed(trainer__steps=50, trainer__max_seconds=1e-6)
    assert start(config).status == "max_seconds"
    again = start(config | {"resume": config["run"]})
    assert (again.status, again.steps) == ("max_seconds", 1)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"trainer__group_size": 3}, r"trainer\.group_size cannot change .* it was 2 and is 3"),
        ({"seed": 1}, "seed cannot change"),
        ({"model": {"path": "elsewhere"}}, r"model\.path cannot change"),
        ({"prompts__train_count": 5}, r"prompts\.train_count cannot change"),
        ({"prompts__heldout_count": 2}, r"prompts\.heldout_count cannot change"),
        ({"trainer__evaluation__seed": 5}, r"trainer\.evaluation\.seed cannot change .* and is 5"),
        ({"trainer__evaluation__sampling": {"top_k": 1}}, r"trainer\.evaluation\.sampling\.top_k cannot change .* and is 1"),
        (
            {"reward__gates": {"red": "red > 0.2"}},
            r"trainer\.evaluation\.reward\.gates.* \(null = the reward trained on\) cannot",
        ),
    ],
)
def test_setting_a_run_must_keep_is_named(changed: Change, values: dict[str, Any], name: str) -> None:
    config = changed(trainer__steps=1)
    start(config)
    parts = build_parts(config | {"resume": config["run"]})
    with pytest.raises(SettingsError, match=name):
        train(changed(trainer__steps=2, **values) | {"resume": config["run"]}, **parts, console=QUIET)
    assert len(metrics(Path(config["run"]))) == 2  # nothing was taken back


def test_changed_setting_that_may_change_is_noted(changed: Change) -> None:
    config = changed(trainer__steps=1)
    start(config)
    output = io.StringIO()
    other = changed(trainer__steps=1, trainer__learning_rate=1e-5) | {"resume": config["run"]}
    train(other, **build_parts(other), console=Console(file=output, width=300))
    (entry,) = json.loads((Path(config["run"]) / "manifest.json").read_text())["resumes"]
    assert entry["changed"] == {"trainer.learning_rate": [3e-4, 1e-5]}
    assert "going on with trainer.learning_rate = 1e-05 instead of 0.0003" in output.getvalue()


def test_reward_trained_on_may_change_while_held_out_images_keep_theirs(changed: Change) -> None:
    config = changed(trainer__steps=1)
    judged = config["reward"]  # what null stood for
    start(config)
    other = with_reward(changed(trainer__steps=2, trainer__evaluation__reward=judged), "noisy_redness")
    start(other | {"resume": config["run"]})
    (entry,) = json.loads((Path(config["run"]) / "manifest.json").read_text())["resumes"]
    assert sorted(entry["changed"]) == ["reward.components.red.reward", "trainer.steps"]


def test_held_out_pictures_kept_and_batch_may_change(changed: Change) -> None:
    config = changed(trainer__steps=1)
    start(config)
    other = changed(trainer__steps=2, trainer__evaluation__grid_prompts=1, trainer__evaluation__batch_size=3)
    assert start(other | {"resume": config["run"]}).steps == 2


def test_learning_rate_changed_on_resume_is_the_one_trained_with(changed: Change) -> None:
    config = changed(trainer__steps=1, trainer__warmup_steps=0, trainer__evaluate_every=None)
    start(config)
    other = changed(trainer__steps=3, trainer__warmup_steps=0, trainer__evaluate_every=None, trainer__learning_rate=1e-5)
    start(other | {"resume": config["run"]})
    assert [row["learning_rate"] for row in metrics(Path(config["run"]))] == [3e-4, 1e-5, 1e-5]


def test_rank_of_adapters_cannot_change_in_a_run_that_goes_on(changed: Change) -> None:
    config = changed(model__lora={"rank": 2}, trainer__steps=1, trainer__evaluate_every=None)
    start(config)
    other = changed(model__lora={"rank": 3}, trainer__steps=2, trainer__evaluate_every=None) | {"resume": config["run"]}
    with pytest.raises(SettingsError, match=r"model\.lora\.rank cannot change .* it was 2 and is 3"):
        start(other)


def test_other_weights_or_prompts_under_the_same_name_are_refused(changed: Change) -> None:
    config = changed(trainer__steps=1)
    start(config)
    again = config | {"resume": config["run"]}
    parts = build_parts(again)
    with torch.no_grad():
        next(iter(parts["policy"].model.parameters())).add_(1.0)
    with pytest.raises(SettingsError, match=r"the weights \(autoregressive\) are not those"):
        train(again, **parts, console=QUIET)
    parts = build_parts(again)
    with pytest.raises(SettingsError, match=r"the prompts \(train\) are not those"):
        train(again, **(parts | {"train_prompts": parts["train_prompts"][::-1]}), console=QUIET)


def test_truncated_checkpoint_names_an_older_one_that_works(config: dict[str, Any]) -> None:
    start(config)
    folder = Path(config["run"]) / "checkpoints"
    file = folder / "step_000003/optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: it has 1000 bytes") as caught:
        start(config | {"resume": config["run"]})
    remedy = str(caught.value).rpartition("resume=")[2]
    assert start(config | {"resume": remedy}).steps == 3


def test_resume_takes_the_runs_own_configuration_and_what_is_overridden(changed: Change) -> None:
    config = changed(trainer__steps=1)
    start(config)
    composed = changed(seed=7, trainer__steps=5, trainer__learning_rate=9.0) | {"resume": config["run"], "run": None}
    made = resumed_config(composed, given_keys(composed, ["resume=x", "trainer.steps=5"]))
    assert (made["seed"], made["trainer"]["steps"], made["trainer"]["learning_rate"]) == (0, 5, 3e-4)
    assert made["resume"] == config["run"]


def test_group_override_on_resume_takes_the_whole_group(changed: Change) -> None:
    config = changed(trainer__steps=1)
    start(config)
    composed = changed(algorithm={"name": "grpo", "options": {"clip_low": 0.1}}) | {"resume": config["run"]}
    keys = given_keys(composed, ["+trainer.steps=4", "algorithm=dr_grpo"])
    assert keys == ["algorithm", "trainer.steps"]
    assert resumed_config(composed, keys)["algorithm"] == composed["algorithm"]


def test_key_taken_away_on_resume_is_gone_and_one_set_to_null_is_null(changed: Change) -> None:
    config = changed(trainer__steps=1)
    start(config)
    composed = changed(trainer__max_seconds=None) | {"resume": config["run"]}
    composed["reward"] = {"components": {"other": {"reward": "contrast"}}}
    keys = given_keys(
        composed, ["~reward.components.red", "+reward.components.other={reward: contrast}", "trainer.max_seconds=null"]
    )
    resumed = resumed_config(composed, keys)
    assert list(resumed["reward"]["components"]) == ["other"]
    assert resumed["trainer"]["max_seconds"] is None


def test_run_training_writes_the_report_and_prints_before_and_after(config: dict[str, Any]) -> None:
    output = io.StringIO()
    made = run_training(config, console=Console(file=output, width=200))
    assert (made.folder / "report.html").stat().st_size > 10_000
    text = output.getvalue()
    assert f"{made.heldout['before']['red']:.3f}" in text
    assert f"report: {made.folder / 'report.html'}" in text


def test_trained_stack_of_a_run_has_its_best_weights(config: dict[str, Any]) -> None:
    made = start(config)
    best = made.folder / "checkpoints" / (made.folder / "checkpoints/best").read_text().strip()
    expected = load_file(best / "model/model.safetensors")
    found = trained_stack(made.folder).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(RunFolderError, match='no checkpoint "step_000099"'):
        trained_stack(made.folder, "step_000099")


def test_unknown_reward_is_named_before_a_folder_is_made(changed: Change) -> None:
    config = changed(reward={"components": {"orc": {"reward": "orc"}}})
    with pytest.raises(UnknownNameError, match="nearest: ocr"):
        run_training(config, console=QUIET)
    assert not Path(config["run"]).exists()
