"""Checkpoints: whole or not there at all, restored exactly, damage named with a remedy."""

import json
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from xomni_rl.policies.checkpoint import CheckpointError, CheckpointStore, run_and_checkpoint, verify
from xomni_rl.policies.records import RunFolderError
from xomni_rl.policies.training_state import Progress, load_weights, read_state, write_state


class Trained:
    """A small model with a shared weight, after three optimizer steps with warm-up."""

    def __init__(self, width: int = 4, steps: int = 3) -> None:
        torch.manual_seed(width)
        self.model = nn.ModuleDict({"a": nn.Linear(width, width), "b": nn.Linear(width, width), "n": nn.BatchNorm1d(3)})
        self.model["b"].weight = self.model["a"].weight
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: min(1.0, (done + 1) / 5))
        for _ in range(steps):
            self.step()

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.model["b"](self.model["a"](torch.randn(5, self.model["a"].in_features))).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def write(self, folder: Path, progress: Progress | None = None) -> None:
        write_state(folder, progress or Progress(), self.model, {"width": 4}, self.optimizer, self.scheduler)

    def read(self, checkpoint: Path) -> Progress:
        return read_state(checkpoint, self.model, self.optimizer, self.scheduler)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run" / "checkpoints", keep=2)


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_restored_training_goes_on_exactly_as_it_would_have(store: CheckpointStore) -> None:
    trained = Trained()
    progress = Progress(step=3, seconds={"total": 0.1 + 0.2}, heldout={"best": {"ocr": 1 / 3}}, best_score=1 / 3)
    path = store.save(3, lambda folder: trained.write(folder, progress))
    after = [trained.step() for _ in range(3)], random.random(), np.random.rand(), torch.rand(()).item()
    other = Trained(steps=0)
    assert other.read(path) == progress
    assert ([other.step() for _ in range(3)], random.random(), np.random.rand(), torch.rand(()).item()) == after
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    assert other.scheduler.get_last_lr() == trained.scheduler.get_last_lr()


def test_checkpoint_holds_safetensors_and_json_only(store: CheckpointStore) -> None:
    path = store.save(1, Trained().write)
    suffixes = {file.suffix for file in path.rglob("*") if file.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_weights_alone_can_be_loaded(store: CheckpointStore) -> None:
    trained, other = Trained(), Trained(steps=0)
    load_weights(store.save(1, trained.write), other.model)
    assert torch.equal(other.model["a"].weight, trained.model["a"].weight)
    assert other.model["b"].weight is other.model["a"].weight


def test_newest_and_best_are_kept_and_pointed_at(store: CheckpointStore) -> None:
    trained = Trained()
    for step in (10, 20, 30, 40):
        store.save(step, trained.write, best=step == 10)
    assert names(store.folder) == {"step_000010", "step_000030", "step_000040", "last", "best"}
    assert store.named("last") == store.newest() == store.folder / "step_000040"
    assert store.named("best") == store.folder / "step_000010"


@pytest.mark.parametrize("file", ["model/model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damaged_file_is_named_with_an_older_checkpoint_to_use(store: CheckpointStore, file: str, damage: str) -> None:
    trained = Trained()
    older, path = store.save(1, trained.write), store.save(2, trained.write)
    target = path / file
    content = target.read_bytes()
    if damage == "truncate":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        target.unlink()
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"{target.name}.*resume={older}$"):
        trained.read(path)
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


def test_damaged_only_checkpoint_says_that_there_is_no_other(store: CheckpointStore) -> None:
    path = store.save(1, Trained().write)
    (path / "files.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"files\.json.*no older one"):
        verify(path)


def test_other_architecture_is_named_by_its_first_difference(store: CheckpointStore) -> None:
    path = store.save(1, Trained(width=4).write)
    with pytest.raises(CheckpointError, match=r"another architecture: a\.bias is \[4\] there and \[6\] in the model"):
        Trained(width=6).read(path)


def test_full_disk_leaves_the_previous_checkpoint_and_nothing_else(store: CheckpointStore) -> None:
    trained = Trained()
    first = store.save(1, trained.write, best=True)
    before = names(store.folder)
    # The optimizer's two moments of 16 + 4 + 4 + 3 + 3 float32 numbers and their header need more than 400 bytes.
    with disk_with_room_for(400), pytest.raises(CheckpointError, match=rf"step_000002.*{first}.*make room") as caught:
        store.save(2, trained.write)
    assert names(store.folder) == before
    assert "\n" not in str(caught.value)
    assert store.named("last") == first
    verify(first)


def test_folder_that_cannot_be_written_to_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*there is none before it"):
        CheckpointStore(tmp_path / "run" / "checkpoints").save(1, Trained().write)


def test_leftovers_of_a_kill_and_later_checkpoints_are_removed(store: CheckpointStore) -> None:
    trained = Trained()
    for step in (1, 2):
        store.save(step, trained.write)
    (store.folder / ".step_000003.tmp" / "model").mkdir(parents=True)
    (store.folder / ".step_000003.tmp" / "model" / "model.safetensors").write_text("half")
    (store.folder / ".step_000001.old").mkdir()
    store.clean(keep_until=1)
    assert names(store.folder) == {"step_000001", "last"}


def test_pointer_to_a_checkpoint_that_is_gone_is_removed(store: CheckpointStore) -> None:
    store.save(1, Trained().write, best=True)
    store.point("best", 5)
    assert store.named("best") is None
    assert "best" not in names(store.folder)


def test_resume_takes_a_run_or_one_of_its_checkpoints(store: CheckpointStore) -> None:
    for step in (1, 2):
        store.save(step, Trained().write)
    run = store.folder.parent
    (run / "config.yaml").write_text("seed: 0\n")
    assert run_and_checkpoint({"resume": str(run)})[1] == store.folder / "step_000002"
    folder, start = run_and_checkpoint({"resume": str(store.folder / "step_000001")})
    assert (folder.path, start) == (run, store.folder / "step_000001")
    with pytest.raises(RunFolderError, match=r"no checkpoint .*step_000007; this run has: step_000001, step_000002"):
        run_and_checkpoint({"resume": str(store.folder / "step_000007")})


def test_resume_of_the_checkpoints_folder_names_the_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(RunFolderError, match=r"is a run's checkpoints: go on with resume=\S*run, or with one of them"):
        run_and_checkpoint({"resume": str(tmp_path / "run" / "checkpoints")})


def test_resume_of_no_run_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run in .*start one with run="):
        run_and_checkpoint({"resume": str(tmp_path / "nowhere")})


def test_progress_survives_json_bit_for_bit(store: CheckpointStore) -> None:
    progress = Progress(seconds={"total": 1e-17 + 1 / 3}, best_score=0.0, stopped="kl_limit: …")
    path = store.save(1, lambda folder: Trained().write(folder, progress))
    assert Progress(**json.loads((path / "state.json").read_text())["progress"]) == progress
