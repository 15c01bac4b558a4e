"""Scores a folder of images, from any generator, with any set of rewards: what `xomni-rl score` runs.

Images belong to prompts by file name (stem == prompt id) or, if no name is an id, by order. A file that is no image and a
sample that a reward fails on are named and counted; the rest is scored.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from scipy.stats import bootstrap

from xomni_rl.images import ImageFileError, load_image
from xomni_rl.prompts import Prompt, load_prompts
from xomni_rl.rewards.base import build_reward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeResult, CompositeReward

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")
CONFIDENCE = 0.95
RESAMPLES = 2000
_SHOWN = 8


class ScoringError(ValueError):
    """Images, prompts and output that do not go together; the message names the files."""


@dataclass(frozen=True)
class RewardSummary:
    """One reward over a folder.

    Args:
        mean: over the scored images; NaN if there is none.
        low, high: 95 % bootstrap interval of the mean; NaN below two images.
        scored, not_applicable, failed: how many images; unreadable files count in none of them.
    """

    mean: float
    low: float
    high: float
    scored: int
    not_applicable: int
    failed: int


@dataclass(frozen=True)
class FolderScores:
    """What scoring a folder gave.

    Args:
        out: the table that was written.
        table: one row per image file, in the order of the prompts.
        summary: reward (and `reward_metric`) → its summary.
        unreadable: file name → why it is no image.
        failures: reward → file name → why it has no score.
    """

    out: Path
    table: pd.DataFrame
    summary: dict[str, RewardSummary]
    unreadable: dict[str, str]
    failures: dict[str, dict[str, str]]

    @property
    def complete(self) -> bool:
        """Whether every file was an image and every reward scored it; if not, a command ends with status 1."""
        return not self.unreadable and not any(self.failures.values())


def score_folder(
    images: str | Path,
    prompts_path: str | Path,
    rewards: Sequence[str],
    out: str | Path,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    console: Console | None = None,
) -> FolderScores:
    """Scores every image of a folder and writes one row per image.

    Args:
        images: folder of image files.
        prompts_path: .jsonl or .txt file of prompts.
        rewards: names of rewards (or `module:object`).
        out: .csv, .jsonl or .parquet file; written beside and renamed, so that an old one stays whole until the end.
        options: reward → its options.
        batch_size: images per call of a reward.
        seed: of the bootstrap.
        console: where the progress bar and the summary table go; None = nowhere.
    Raises: ScoringError if images and prompts do not match, or `out` cannot be written; PromptError, UnknownNameError and
        ValueError for bad prompts, rewards and options.
    """
    if batch_size < 1:
        raise ScoringError(f"batch_size must be at least 1, got {batch_size}")
    out = _checked_output(Path(out))
    scorers = _build(rewards, options or {})
    pairs = match_images(image_files(Path(images)), load_prompts(prompts_path))
    rows: list[dict[str, Any]] = [{"file": path.name, "prompt_id": p.id, "prompt": p.text} for path, p in pairs]
    unreadable: dict[str, str] = {}
    failures: dict[str, dict[str, str]] = {name: {} for name in scorers}
    figures = {name: [name] for name in scorers}  # reward → its columns of numbers
    with _progress(console, len(pairs)) as advance:
        for start in range(0, len(pairs), batch_size):
            batch = range(start, min(start + batch_size, len(pairs)))
            loaded = dict(_load(pairs, rows, batch, unreadable))
            for name, scorer in scorers.items():
                result = scorer(list(loaded.values()), [pairs[index][1] for index in loaded])
                _fill_rows(name, result, [rows[index] for index in loaded], failures[name])
                figures[name] = [*dict.fromkeys([*figures[name], *result.metrics])]
            advance(len(batch))
    scores = FolderScores(out, _table(rows, figures), {}, unreadable, failures)
    _write(scores.table, out)
    scores.summary.update(_summaries(scores, figures, seed))
    if console is not None:
        _report(scores, console)
    return scores


def image_files(folder: Path) -> list[Path]:
    """Files of a folder with an image's suffix, in natural order (2.png before 10.png); hidden ones are left out.

    Raises: ScoringError if it is no folder or has none.
    """
    if not folder.is_dir():
        raise ScoringError(f"{folder}: is no folder of images")
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    if not files:
        raise ScoringError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(files, key=_natural)


def match_images(files: Sequence[Path], prompts: Sequence[Prompt]) -> list[tuple[Path, Prompt]]:
    """(image, prompt) pairs in the order of the prompts.

    If any file's stem is a prompt's id, all of them must be, one file per prompt; otherwise files in the given order
    belong to the prompts in theirs, and the numbers must be equal.

    Raises: ScoringError naming the files and prompts that have no or several partners.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    stems: dict[str, list[Path]] = {}
    for path in files:
        stems.setdefault(path.stem, []).append(path)
    if not stems.keys() & by_id.keys():
        if len(files) != len(prompts):
            raise ScoringError(
                f"{len(files)} images and {len(prompts)} prompts: no file name is a prompt id, and they can only be matched"
                f" in order if there are as many; the first image is {files[0].name}, the first id {prompts[0].id}"
            )
        return list(zip(files, prompts, strict=True))
    several = [path.name for paths in stems.values() if len(paths) > 1 for path in paths]
    strangers = [path.name for path in files if path.stem not in by_id]
    missing = [identifier for identifier in by_id if identifier not in stems]
    for what, names in (
        ("several images for one prompt", several),
        ("images whose name is no prompt id", strangers),
        ("prompts without an image", missing),
    ):
        if names:
            raise ScoringError(f"{what}: {_some(names)}")
    return [(stems[prompt.id][0], prompt) for prompt in prompts]


def summarise(scores: np.ndarray, failed: int, seed: int) -> RewardSummary:
    """The summary of one column.

    Args:
        scores: float [N]; NaN = no score.
        failed: how many of those have none because the reward failed.
        seed: of the bootstrap (percentile method).
    """
    values = scores[~np.isnan(scores)].astype(np.float64)
    low = high = np.nan
    if len(values) >= 2:
        interval = bootstrap(
            (values,),
            np.mean,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            batch=100,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    mean = float(values.mean()) if len(values) else np.nan
    return RewardSummary(mean, low, high, len(values), len(scores) - len(values) - failed, failed)


def _build(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, CompositeReward]:
    """Each reward in a composite of its own, so that one's failure leaves the others' scores."""
    if not names:
        raise ScoringError("name at least one reward")
    if len(set(names)) != len(names):
        raise ScoringError(f"a reward is named twice: {', '.join(names)}")
    for name in options:
        if name not in names:
            raise ScoringError(f'options for "{name}", which is not among the rewards: {", ".join(names)}')
    return {
        name: CompositeReward([Component(name, build_reward(name, **options.get(name, {})))], on_failure="drop")
        for name in names
    }


def _load(
    pairs: Sequence[tuple[Path, Prompt]], rows: list[dict[str, Any]], batch: range, unreadable: dict[str, str]
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, image) of a batch's readable files; the others get an entry in `unreadable` and in their row."""
    for index in batch:
        path = pairs[index][0]
        try:
            yield index, load_image(path)
        except (ImageFileError, OSError) as error:
            unreadable[path.name] = str(error)
            rows[index]["error"] = str(error)


def _fill_rows(name: str, result: CompositeResult, rows: list[dict[str, Any]], failures: dict[str, str]) -> None:
    for index, row in enumerate(rows):
        row[name] = float(result.components[index, 0])
        for key, value in result.details[index].get(name, {}).items():
            row[f"{name}_{key}"] = value if isinstance(value, str | int | float | None) else _json(value)
        row |= {metric: float(values[index]) for metric, values in result.metrics.items()}
        if index in result.failures:
            failures[row["file"]] = result.failures[index].removeprefix(f"{name}: ")
            row["error"] = "; ".join(filter(None, [row.get("error"), result.failures[index]]))


def _table(rows: list[dict[str, Any]], figures: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Scores and metrics right after the prompt, then details; the error last, also where no row has one."""
    first = ["file", "prompt_id", "prompt", *(column for columns in figures.values() for column in columns)]
    rest = [column for row in rows for column in row if column not in (*first, "error")]
    table = pd.DataFrame(rows, columns=[*first, *dict.fromkeys(rest), "error"])
    return table.astype(dict.fromkeys(first[3:], np.float64))


def _summaries(scores: FolderScores, figures: Mapping[str, Sequence[str]], seed: int) -> dict[str, RewardSummary]:
    readable = scores.table[~scores.table["file"].isin(scores.unreadable)]
    return {
        column: summarise(readable[column].to_numpy(), len(scores.failures[name]), seed)
        for name, columns in figures.items()
        for column in columns
    }


def _report(scores: FolderScores, console: Console) -> None:
    table = Table(title=f"{len(scores.table)} images → {scores.out}")
    for column in ("reward", "mean", "95 % interval", "scored", "not applicable", "failed"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name, row in scores.summary.items():
        interval = f"{row.low:.4f} – {row.high:.4f}" if row.scored >= 2 else "–"
        mean = f"{row.mean:.4f}" if row.scored else "–"
        table.add_row(name, mean, interval, str(row.scored), str(row.not_applicable), str(row.failed))
    console.print(table)
    for reason in scores.unreadable.values():
        console.print(f"not scored: {reason}", markup=False, style="red")
    for name, failures in scores.failures.items():
        for file, reason in failures.items():
            console.print(f"{name} failed on {file}: {reason}", markup=False, style="red")


@contextmanager
def _progress(console: Console | None, total: int) -> Iterator[Callable[[int], None]]:
    """A function that moves the bar on by so many images."""
    if console is None:
        yield lambda _: None
        return
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("scoring", total=total)
        yield lambda count: progress.advance(task, count)


def _checked_output(out: Path) -> Path:
    """Finds out before the work, not after it, that the table could not be written."""
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ScoringError(f"{out}: scores are written to {', '.join(OUTPUT_SUFFIXES)} files")
    if out.is_dir():
        raise ScoringError(f"{out}: is a folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}."):
            pass
    except OSError as error:
        raise ScoringError(f"{out}: cannot be written: {error.strerror or error}") from error
    return out


def _write(table: pd.DataFrame, out: Path) -> None:
    """Writes beside and renames, so that whoever reads `out` sees the old table or the whole new one."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        beside = Path(folder) / out.name
        try:
            if out.suffix.lower() == ".csv":
                table.to_csv(beside, index=False)
            elif out.suffix.lower() == ".parquet":
                table.to_parquet(beside, index=False)
            else:
                lines = [_json({key: _none_for_nan(value) for key, value in row.items()}) for row in _records(table)]
                beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(beside, out)
        except OSError as error:
            raise ScoringError(f"{out}: cannot be written: {error.strerror or error}") from error


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def _none_for_nan(value: object) -> object:
    return None if isinstance(value, float) and np.isnan(value) else value


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts digits by their value, then by name, so that 2.png comes before 10.png and 02.png keeps a fixed place."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
