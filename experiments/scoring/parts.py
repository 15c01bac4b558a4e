"""Finished batches beside the table, until there is one: what makes a run that was stopped go on.

`.scores.parquet.parts/` holds `job.json`, which says what is scored with what, and one file per batch, written beside and
renamed. Nothing of a batch is there before all of it is.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from xomni_rl.experiments.scoring.errors import ScoringError
from xomni_rl.experiments.scoring.matching import Item
from xomni_rl.experiments.scoring.scorers import Choice, Scored, build_scorers
from xomni_rl.locks import try_lock
from xomni_rl.rewards.base import FunctionReward, Reward

FORMAT = 1


def fingerprint(choice: Choice, batch_size: int, threads: int, items: Sequence[Item]) -> dict[str, Any]:
    """What decides the scores: rewards with version, code, weights and options, totals, batches, prompts; the images' names,
    sizes and times.

    Raises: RewardUnavailableError for weights that are not there.
    """
    prompts, images = hashlib.sha256(), hashlib.sha256()
    for item in items:
        prompts.update(repr((item.prompt, item.sample)).encode())
        images.update(repr((item.model, item.name, *_state(item.path))).encode())
    made = {name: scorer.parts[0].reward for name, scorer in build_scorers(choice).rewards.items()}
    return {
        "format": FORMAT,
        "rewards": {name: {**entry, **_identity(made[name])} for name, entry in choice.components.items()} | choice.totals,
        "batch size": batch_size,
        "threads": threads,
        "prompts": prompts.hexdigest(),
        "images": images.hexdigest(),
    }


def _identity(reward: Reward) -> dict[str, Any]:
    """A reward's version, the hash of the file that defines it, and sizes and times of its weights."""
    source = _source(reward.function if isinstance(reward, FunctionReward) else type(reward))
    code = "" if source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return {"version": reward.version, "code": code, "files": [[path.name, *_state(path)] for path in reward.files()]}


def _source(code: Any) -> str | None:
    """The file that defines a function, a class or an object's class; None for what is built in."""
    try:
        return inspect.getsourcefile(code if inspect.isroutine(code) or inspect.isclass(code) else type(code))
    except TypeError:
        return None


def _state(path: str | Path) -> tuple[int, ...]:
    """Size and time of a file; nothing for one that is gone or a link to nowhere, which a row's error will say."""
    try:
        state = os.stat(path)
    except OSError:
        return ()
    return state.st_size, state.st_mtime_ns


class Parts:
    """The folder of finished batches.

    Args:
        out: the table they become.
        job: their fingerprint.
        batches: how many there will be.
        restart: throw away what is there.
    Raises: ScoringError if it holds another job's batches, another process is at work on it, or it cannot be written.
    """

    def __init__(self, out: Path, job: Mapping[str, Any], batches: int, *, restart: bool = False) -> None:
        self.folder = out.with_name(f".{out.name}.parts")
        self.batches = batches
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = self._locked(out)
        except OSError as error:
            raise ScoringError(f"{self.folder}: cannot be written: {error.strerror or error}") from error
        try:
            if restart:
                self._clear()
            self._claim(json.loads(json.dumps(job, default=str)))
        except OSError as error:
            self.close()
            raise ScoringError(f"{self.folder}: cannot be written: {error.strerror or error}") from error
        except ScoringError:
            self.close()
            raise

    def path(self, index: int) -> Path:
        """Where batch `index` is kept."""
        return self.folder / f"{index:07d}.jsonl"

    def finished(self) -> set[int]:
        """Numbers of the batches that are there."""
        return {int(path.stem) for path in self.folder.glob("*.jsonl") if path.stem.isdecimal()}

    def read(self) -> Iterator[Scored]:
        """All batches in order, one at a time. Raises: ScoringError for a damaged one."""
        for index in range(self.batches):
            yield read_part(self.path(index))

    def remove(self) -> None:
        """Takes the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Lets go of the folder; takes it away if no batch is in it."""
        if self.folder.exists() and not self.finished():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def _locked(self, out: Path) -> IO[str]:
        lock = (self.folder / "lock").open("w")
        if not try_lock(lock):
            lock.close()
            raise ScoringError(f"{out}: another process is scoring to it; wait for it, or give another --out")
        return lock

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def _claim(self, job: dict[str, Any]) -> None:
        path = self.folder / "job.json"
        if not path.exists():
            self._clear()
            _write_whole(path, json.dumps(job, indent=1))
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        changed = [key for key in job if found.get(key) != job[key]]
        if changed:
            kept = len(self.finished())
            raise ScoringError(
                f"{self.folder} holds {kept} batches of a run that differs in {', '.join(changed)}: "
                "repeat that run's command to go on, or --restart to begin anew"
            )


def write_part(path: Path, scored: Scored) -> None:
    """Writes a batch beside and renames it. Raises: ScoringError if it cannot be written, a full disk included."""
    record = asdict(scored)
    rows = record.pop("rows")
    lines = [json.dumps(each, ensure_ascii=False) for each in (record, *rows)]
    try:
        _write_whole(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise ScoringError(
            f"{path.parent}: cannot be written: {error.strerror or error}; what is scored is kept there: make room and"
            " repeat the command to go on"
        ) from error


def read_part(path: Path) -> Scored:
    """A batch as it was written. Raises: ScoringError if it is damaged."""
    try:
        head, *rows = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # U+2028 ends no line here
        record = json.loads(head)
        scored = Scored(**record, rows=[json.loads(row) for row in rows])
    except (ValueError, TypeError, OSError) as error:
        raise ScoringError(f"{path}: is damaged; delete it and repeat the command, which scores these images again") from error
    if len(scored.rows) != len(scored.failed):
        raise ScoringError(f"{path}: is cut short; delete it and repeat the command, which scores these images again")
    return scored


def _write_whole(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
