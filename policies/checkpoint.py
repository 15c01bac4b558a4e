"""Checkpoints on disk: written beside and renamed, verified by size and hash, never unpickled.

A checkpoint is a folder `step_000050`. While it is written it is called `.step_000050.tmp`; it gets its name when every
byte and the list of hashes, `files.json`, are on disk. So a folder with the right name is whole, whatever killed the run.
What stands inside is `xomni_rl.policies.training_state`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xomni_rl.policies.records import RunFolder, RunFolderError, write_atomically

FILES = "files.json"
FORMAT = 1
"""Version of a checkpoint's form, in its `files.json`."""

_NAME = re.compile(r"step_(\d+)$")
_LEFTOVER = re.compile(r"\.step_\d+\.(tmp|old)$")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; one sentence that names the file and the remedy."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: holds `step_<number>` folders and the text files `last` and `best`, which name one each.
        keep: how many of the newest stay when another is written; the best stays in any case.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def saved(self) -> list[Path]:
        """All checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.match(path.name)), key=step_of)

    def newest(self) -> Path | None:
        """The checkpoint of the highest step; None if there is none."""
        saved = self.saved()
        return saved[-1] if saved else None

    def named(self, pointer: str) -> Path | None:
        """The checkpoint that `last` or `best` names; None if there is none."""
        file = self.folder / pointer
        if not file.exists():
            return None
        path = self.folder / file.read_text(encoding="utf-8").strip()
        return path if _NAME.match(path.name) and path.is_dir() else None

    def save(self, step: int, write: Callable[[Path], None], *, best: bool = False) -> Path:
        """Writes a checkpoint, points `last` (and `best`) at it and removes those no longer kept.

        Args:
            step: training steps done.
            write: writes the files into the folder it is given.
            best: whether this is the best so far by held-out reward.
        Returns: the checkpoint's folder.
        Raises: CheckpointError if it cannot be written; nothing of it is left then, and the others are untouched.
        """
        target = self.folder / f"step_{step:06d}"
        temporary = self.folder / f".{target.name}.tmp"
        try:
            remove(temporary)
            temporary.mkdir(parents=True)
            write(temporary)
            seal(temporary)
            self._retire(target)
            temporary.rename(target)
            _sync(self.folder)
            for pointer in ("last", "best") if best else ("last",):
                write_atomically(self.folder / pointer, target.name + "\n")
        except (OSError, SafetensorError) as error:
            self._clean_up(temporary)
            raise CheckpointError(self._cannot_write(target, error)) from error
        self._prune()
        return target

    def clean(self, keep_until: int | None = None) -> None:
        """Removes what a kill left half-written and, given a step, the checkpoints after it.

        Raises: CheckpointError if something cannot be removed.
        """
        leftovers = [path for path in self.folder.glob(".step_*") if _LEFTOVER.match(path.name)]
        later = [path for path in self.saved() if keep_until is not None and step_of(path) > keep_until]
        try:
            for path in [*leftovers, *(self._retire(path) for path in later)]:
                remove(path)
        except OSError as error:
            raise CheckpointError(f"cannot clean up {self.folder} ({error.strerror}): remove it by hand") from error

    def point(self, pointer: str, step: int) -> None:
        """Points `last` or `best` at the checkpoint of a step; removes the pointer if that one is gone."""
        target = self.folder / f"step_{step:06d}"
        if target.is_dir():
            write_atomically(self.folder / pointer, target.name + "\n")
        else:
            (self.folder / pointer).unlink(missing_ok=True)

    def _retire(self, path: Path) -> Path:
        """Takes a checkpoint's name away before it is deleted, so that a half-deleted one is never mistaken for one."""
        retired = path.with_name(f".{path.name}.old")
        remove(retired)
        if path.exists():
            path.rename(retired)
        return retired

    def _prune(self) -> None:
        best = self.named("best")
        for path in self.saved()[: -self.keep]:
            if path != best:
                shutil.rmtree(self._retire(path), ignore_errors=True)  # room is short at worst; `clean` tries again
        for path in self.folder.glob(".step_*.old"):
            shutil.rmtree(path, ignore_errors=True)

    def _clean_up(self, temporary: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)

    def _cannot_write(self, target: Path, error: Exception) -> str:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        newest = self.newest()
        intact = f"the last whole one is {newest}" if newest else "there is none before it"
        run = self.folder.parent
        return (
            f"cannot write the checkpoint {target} ({reason}); {intact}: make room or give permission, "
            f"then go on with resume={run}"
        )


def run_and_checkpoint(config: Mapping[str, Any]) -> tuple[RunFolder, Path | None]:
    """The run folder that `run` or `resume` names and, for a run that goes on, the checkpoint to start from.

    Args:
        config: `run` is the folder of a new run; `resume` a run folder, or one of its checkpoints to go back to.
    Returns: the folder; the checkpoint, None for a new run or one that was killed before its first checkpoint.
    Raises: RunFolderError if there is nothing to go on with, or neither is given.
    """
    if not config.get("resume"):
        if not config.get("run"):
            raise RunFolderError("no folder for the run: give one with run=FOLDER")
        return RunFolder(str(config["run"])), None
    path = Path(str(config["resume"]))
    one = path.parent.name == "checkpoints" and _NAME.match(path.name) is not None
    run = RunFolder(path.parent.parent if one else path)
    if path.name == "checkpoints" and RunFolder(path.parent).config.exists():
        raise RunFolderError(f"{path} is a run's checkpoints: go on with resume={path.parent}, or with one of them")
    if not run.config.exists():
        raise RunFolderError(f"there is no run in {run.path} to go on with: start one with run={run.path}")
    if one and not path.is_dir():
        saved = ", ".join(found.name for found in CheckpointStore(run.checkpoints).saved()) or "none"
        raise RunFolderError(f"there is no checkpoint {path}; this run has: {saved}")
    return run, path if one else CheckpointStore(run.checkpoints).newest()


def step_of(checkpoint: Path) -> int:
    """Training steps done at a checkpoint. Raises: CheckpointError for a folder that is not named like one."""
    match = _NAME.match(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint} is no checkpoint: its name must be step_ and a number")
    return int(match.group(1))


def seal(folder: Path) -> None:
    """Lists size and SHA-256 of every file in `files.json` and brings all of it to disk."""
    listed = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb+") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        listed[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": digest}
    write_atomically(folder / FILES, json.dumps({"format": FORMAT, "files": listed}, indent=1) + "\n")
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _sync(path)


def verify(checkpoint: Path) -> None:
    """Checks every file of a checkpoint against its list.

    Raises: CheckpointError naming the first file that is missing, cut short or altered, and an older checkpoint to use.
    """
    listing = checkpoint / FILES
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
        files, version = content["files"], content["format"]
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError as error:
        raise damaged(listing, "it is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(listing, f"it is not the list it should be: {error}") from error
    if version != FORMAT:
        raise CheckpointError(f"{checkpoint} has form {version}, this version of xomni-rl reads form {FORMAT}")
    for name, (size, digest) in expected.items():
        file = checkpoint / name
        if not file.is_file():
            raise damaged(file, "it is missing")
        if file.stat().st_size != size:
            raise damaged(file, f"it has {file.stat().st_size} bytes instead of {size}")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise damaged(file, "its content is not what was written")


def damaged(file: Path, reason: str) -> CheckpointError:
    """The error for a damaged file of a checkpoint, with the remedy."""
    checkpoint = next((path for path in (file, *file.parents) if _NAME.match(path.name)), file.parent)
    store = CheckpointStore(checkpoint.parent)
    step = step_of(checkpoint) if _NAME.match(checkpoint.name) else 0
    older = [path for path in store.saved() if step_of(path) < step]
    remedy = f"go on from an older one with resume={older[-1]}" if older else "there is no older one: start a new run"
    return CheckpointError(f"checkpoint {checkpoint} is damaged: {file.name}: {reason}; {remedy}")


def remove(path: Path) -> None:
    """Removes a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Brings a folder's entries to disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
