"""What a run leaves behind: metrics, tables of rollouts, alarms, summary, manifest — and how to take back what came
after a checkpoint, so that a run that was killed and goes on writes the same files as one that never stopped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.locks import try_lock
from xomni_rl.prompts import Prompt
from xomni_rl.stack.sampler import PADDING

PACKAGES: tuple[str, ...] = ("accelerate", "diffusers", "gymnasium", "numpy", "onnxruntime", "rapidocr", "safetensors")
PACKAGES += ("torch", "transformers", "trl", "xomni-rl")
_STEP = re.compile(r"step_(\d+)\.parquet$")


class RunFolderError(ValueError):
    """A folder that a run cannot be written to or go on from; the message says what to do."""


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; nothing is created before `create`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.alarms = self.path / "alarms.jsonl"
        self.summary = self.path / "summary.json"
        self.manifest = self.path / "manifest.json"
        self.config = self.path / "config.yaml"
        self.rollouts = self.path / "rollouts"
        self.heldout = self.path / "heldout"
        self.checkpoints = self.path / "checkpoints"
        self._lock: IO[str] | None = None

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun in it; one killed before its manifest was there left nothing worth keeping."""
        return self.manifest.exists()

    def create(self, *, again: bool = False) -> None:
        """Makes the folder, or what is missing in it `again`; from now on no other process can train in it until `release`.

        Raises: RunFolderError if it holds a run already or what a run would replace (unless `again`), another process trains
            in it, or it cannot be written to.
        """
        if not again:
            self._check_free()
        try:
            for folder in (self.rollouts, self.heldout, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
            alone = try_lock(self._lock)
        except OSError as error:
            raise RunFolderError(
                f"cannot write the run to {self.path} ({error.strerror}): choose another folder with run=FOLDER"
            ) from error
        if not alone:
            self.release()
            raise RunFolderError(
                f"another process is training in {self.path}: wait for it, or choose another folder with run=FOLDER"
            )

    def release(self) -> None:
        """Lets other processes train in the folder again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check_free(self) -> None:
        if self.holds_run:
            raise RunFolderError(
                f"{self.path} already holds a run: go on with it by resume={self.path}, or choose another folder for run="
            )
        files = [file for file in (self.metrics, self.alarms, self.summary) if file.exists()]
        inside = [path for folder in (self.checkpoints, self.rollouts, self.heldout) for path in _entries(folder)]
        others = [*files, *inside, *([self.config] if self.config.exists() and not _is_config(self.config) else [])]
        if others:
            raise RunFolderError(
                f"{self.path} holds {others[0].relative_to(self.path)} already, which a run would replace: choose another "
                "folder with run=FOLDER, or move it away"
            )

    def append(self, file: Path, row: Mapping[str, Any]) -> None:
        """Adds one JSON line and flushes it. Raises: RunFolderError if it cannot be written."""
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            raise RunFolderError(
                f"cannot write {file} ({error.strerror}): make room or give permission, then go on with resume={self.path}"
            ) from error

    def truncate(self, step: int) -> None:
        """Takes back everything written after `step`, half a last line included; step −1 takes back everything."""
        for file in (self.metrics, self.alarms):
            rows = [row for row in read_rows(file) if row["step"] <= step]
            if file.exists():
                _write_record(file, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        for folder in (self.rollouts, self.heldout):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink()
            for table in folder.glob("step_*.parquet"):
                match = _STEP.search(table.name)
                if match and int(match.group(1)) > step:
                    table.unlink()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, each with a step; a last line cut short by a kill is left out.

    Raises: RunFolderError for a damaged line elsewhere.
    """
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is not a whole line
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RunFolderError(f"{file}:{number}: not JSON ({error}); delete this line to go on") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise RunFolderError(f"{file}:{number}: no object with a step; delete this line to go on")
        rows.append(row)
    return rows


def read_manifest(file: Path) -> dict[str, Any]:
    """What `build_manifest` made. Raises: RunFolderError for a damaged file."""
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{file} is damaged ({_reason(error)}); restore it to go on") from error
    needed = {"config": dict, "torch_threads": int, "weights": dict, "prompts": dict, "resumes": list}
    wrong = [key for key, kind in needed.items() if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind)]
    if wrong:
        raise RunFolderError(f"{file} is damaged (it lacks {', '.join(wrong)}); restore it to go on")
    return manifest


def read_config(file: Path) -> dict[str, Any]:
    """A run's config.yaml. Raises: RunFolderError for a damaged file."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunFolderError(f"{file} is damaged ({str(error).splitlines()[0]}); restore it to go on") from error
    if not isinstance(config, dict) or not {"trainer", "model"} <= config.keys():
        raise RunFolderError(f"{file} is damaged (it is no configuration of a run); restore it to go on")
    return config


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_config(file: Path) -> bool:
    """Whether a config.yaml is a run's, such as one that was killed before its manifest was there."""
    try:
        read_config(file)
    except RunFolderError:
        return False
    return True


def write_atomically(file: Path, text: str) -> None:
    """Replaces a small text file so that a reader or a kill sees the old one or the new one, never half."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Replaces a JSON file atomically. Raises: RunFolderError if it cannot be written."""
    _write_record(file, json.dumps(content, indent=1, default=str) + "\n")


def write_config(file: Path, config: Mapping[str, Any]) -> None:
    """Replaces config.yaml atomically. Raises: RunFolderError if it cannot be written."""
    _write_record(file, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def _write_record(file: Path, text: str) -> None:
    try:
        write_atomically(file, text)
    except OSError as error:
        raise RunFolderError(f"cannot write {file} ({_reason(error)}): make room or give permission") from error


def _reason(error: Exception) -> str:
    """The system's words for what went wrong, else the error's own."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics that are numbers: one that nothing could be computed from (NaN) is absent from the record."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


class TableWriter:
    """Writes tables of rollouts in a thread of its own: compressing pictures needs no place in the step.

    `join` waits until everything handed over is on disk; the trainer calls it before a checkpoint. A failure in the
    thread is raised at the next call.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Path, dict[str, Any]] | None] = queue.Queue(maxsize=4)
        self._error: RunFolderError | None = None
        self._thread = threading.Thread(target=self._work, name="table-writer", daemon=True)
        self._thread.start()

    def put(self, file: Path, batch: RolloutBatch, advantages: np.ndarray | None, images: int) -> None:
        """Hands over a batch's rows; the first `images` of them keep their picture."""
        self._raise()
        columns = {"batch": batch, "advantages": advantages, "images": images, "tokens": batch.tokens.cpu().numpy()}
        self._queue.put((file, columns))

    def join(self) -> None:
        """Waits for all tables. Raises: RunFolderError if one could not be written."""
        self._queue.join()
        self._raise()

    def close(self) -> None:
        """Writes what is left and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if self._error is None:
                    write_table(job[0], rollout_table(**job[1]))
            except RunFolderError as error:
                self._error = error
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise RunFolderError(f"{self._error}, then go on with resume=") from self._error


def write_table(file: Path, table: pa.Table) -> None:
    """Writes a parquet file beside and renames it. Raises: RunFolderError if it cannot be written; nothing is left."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd", compression_level=1)
        temporary.replace(file)
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write the table {file} ({_reason(error)}): make room or give permission") from error


def rollout_table(
    batch: RolloutBatch, advantages: np.ndarray | None, images: int, tokens: np.ndarray | None = None
) -> pa.Table:
    """One row per rollout.

    Args:
        batch: N rollouts.
        advantages: [N] or [N, T] float32 (then its mean over tokens is kept); None = none were computed.
        images: how many of the first rows keep their picture, as PNG.
        tokens: int64 [N, T] on the CPU; None = the batch's. Padding is left out.
    Returns: columns prompt_id, prompt, group, index, tokens, reward_<component>, metric_<metric>, score, failed,
        advantage, read (what a reward says it read), details (JSON of every component's), image.
    """
    rewards, count = batch.rewards, len(batch.prompts)
    tokens = batch.tokens.cpu().numpy() if tokens is None else tokens
    token_type = pa.int16() if tokens.max(initial=0) < 2**15 else pa.int32()
    pictures = [encode_png(image) for image in batch.images[:images]]
    columns: dict[str, Any] = {
        "prompt_id": [prompt.id for prompt in batch.prompts],
        "prompt": [prompt.text for prompt in batch.prompts],
        "group": batch.group,
        "index": np.arange(count) % batch.group_size,
        "tokens": pa.array([row[there] for row, there in zip(tokens, tokens != PADDING, strict=True)], pa.list_(token_type)),
        **{f"reward_{name}": rewards.components[:, k] for k, name in enumerate(rewards.names)},
        **{f"metric_{name}": values for name, values in rewards.metrics.items()},
        "score": rewards.scores,
        "failed": rewards.failed,
        "read": pa.array([_read(detail) for detail in rewards.details], type=pa.string()),
        "details": [json.dumps(detail, default=str, ensure_ascii=False) for detail in rewards.details],
        "image": pa.array(pictures + [None] * (count - len(pictures)), type=pa.binary()),
    }
    if advantages is not None:
        columns["advantage"] = advantages if advantages.ndim == 1 else _row_means(advantages, tokens != PADDING)
    return pa.table(columns)


def _row_means(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[N] means of values [N, T] where the mask is True, one place at least in each row."""
    return values.mean(axis=1) if mask.all() else np.where(mask, values, 0).sum(axis=1) / mask.sum(axis=1)


def encode_png(image: np.ndarray) -> bytes:
    """A picture uint8 [H, W, 3] as PNG, at the quickest compression: tables are written at every step."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


def _read(detail: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What the first component that reads anything read."""
    texts = (found.get("read") for found in detail.values())
    return next((str(text) for text in texts if text is not None), None)


def build_manifest(
    config: Mapping[str, Any],
    seeds: Mapping[str, int],
    weights: Mapping[str, str],
    prompts: Mapping[str, Sequence[Prompt]],
) -> dict[str, Any]:
    """What made this run: resolved config, commit, package versions, seeds, hashes of weights and prompts, platform."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": dict(config),
        "commit": code_commit(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        "command": sys.argv,
        "seeds": dict(seeds),
        "weights": dict(weights),
        "prompts": {name: {"count": len(made), "sha256": prompts_hash(made)} for name, made in prompts.items()},
        "resumes": [],
    }


def prompts_hash(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of prompts in their order, every field of them."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps(asdict(prompt), sort_keys=True, default=str, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def code_commit() -> str | None:
    """The commit of this code, with "+changes" if the checkout differs from it; None if it is not in a checkout."""
    here = Path(__file__).resolve()
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # not the repository that a .venv lies in
        changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
        return _git(here.parent, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return ran.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
