"""Scores folders of images, from any generator, with any set of rewards: what `xomni-rl score` runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from xomni_rl.experiments.scoring.errors import ScoringError, ScoringInterruptedError
from xomni_rl.experiments.scoring.files import check_writable, counted, some
from xomni_rl.experiments.scoring.gallery import check_gallery, write_gallery
from xomni_rl.experiments.scoring.matching import Item, Match, match_folder, without_prompts
from xomni_rl.experiments.scoring.parts import Parts, fingerprint
from xomni_rl.experiments.scoring.scorers import Choice, Scorers, build_scorers, choice_of
from xomni_rl.experiments.scoring.show import print_summary, progress
from xomni_rl.experiments.scoring.summary import Summary, summarise
from xomni_rl.experiments.scoring.table import OUTPUT_SUFFIXES, columns_of, rows_of, write_table
from xomni_rl.experiments.scoring.workers import Task, arithmetic_threads, in_this_process, in_workers

Folders = str | Path | Sequence[str | Path] | Mapping[str, str | Path]


@dataclass(frozen=True)
class Options:
    """How folders are scored.

    Args:
        options: reward → its options.
        match: auto, name, index or a column, as in `match_folder`.
        partial: leave out prompts without an image and images without a prompt.
        recursive: look through folders inside; None = only if no image lies in the folder itself.
        batch_size: images per call of a reward, and per piece that is kept.
        workers: processes; 1 = this one.
        threads: of the arithmetic in each of them; the last bits of a model's scores can depend on it, on `workers` never.
        restart: throw away what an interrupted run has kept.
        gallery: page of HTML to write; None = none.
        seed: of the bootstraps.
    Raises: ScoringError for a number below 1.
    """

    options: Mapping[str, Mapping[str, Any]] | None = None
    match: str = "auto"
    partial: bool = False
    recursive: bool | None = None
    batch_size: int = 32
    workers: int = 1
    threads: int = 1
    restart: bool = False
    gallery: str | Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "threads"):
            if getattr(self, name) < 1:
                raise ScoringError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class FolderScores:
    """What scoring gave.

    Args:
        out: the table that was written.
        images: how many rows it has.
        summary: of its columns.
        gallery: the page that was written; None = none.
    """

    out: Path
    images: int
    summary: Summary
    gallery: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether every file was an image and every reward scored it; if not, a command ends with status 1."""
        return not any(self.summary.failed.values())

    @property
    def table(self) -> pd.DataFrame:
        """The table, read back."""
        if self.out.suffix.lower() == ".parquet":
            return pd.read_parquet(self.out)
        kept: dict[str, Any] = dict.fromkeys(("model", "file", "prompt_id", "prompt"), str)
        if self.out.suffix.lower() == ".csv":
            return pd.read_csv(self.out, dtype=kept)
        return pd.read_json(self.out, lines=True, dtype=kept)


def score_folder(
    images: Folders,
    prompts: str | Path | None,
    rewards: Sequence[str],
    out: str | Path,
    *,
    console: Console | None = None,
    **options: Any,
) -> FolderScores:
    """Scores every image of a folder, or of several, and writes one row per image.

    Args:
        images: folder of image files; several are models to compare, by name or by the folders' names.
        prompts: their prompts, see `read_prompt_file`; None = prompts.jsonl in each folder, or none if no reward reads any.
        rewards: names of rewards, `module:object`, or mixes.
        out: .csv, .jsonl or .parquet file; written beside and renamed, so that an old one stays whole until the end.
        console: where the progress bar and the summary go; None = nowhere.
        options: fields of `Options`.
    Raises: ScoringError if images and prompts do not match or work cannot go on; ScoringInterruptedError for Ctrl-C;
        PromptError, UnknownNameError and ValueError for bad prompts, rewards and options. What is scored by then is kept.
    """
    how = Options(**options)
    out = _checked_output(Path(out))
    choice = choice_of(rewards, how.options)
    scorers = build_scorers(choice)
    folders = _named(images)
    items = _matched(folders, _prompt_files(folders, prompts, scorers, how.match), how, console)
    page = None if how.gallery is None else Path(how.gallery)
    if page is not None:
        check_gallery(page, len(items), folders.values())
    tasks = [items[start : start + how.batch_size] for start in range(0, len(items), how.batch_size)]
    parts = Parts(out, fingerprint(choice, how.batch_size, how.threads, items), len(tasks), restart=how.restart)
    try:
        _score_missing(choice, tasks, parts, how, console)
        columns = columns_of(items, parts)
        _write(out, parts, items, columns)
        better = scorers.higher_is_better
        summary = summarise(items, parts, columns, better, how.seed)
        if console is not None:
            print_summary(summary, f"{counted(len(items), 'image')} → {out}", console)
        if page is not None:
            page = write_gallery(page, items, rows_of(items, parts, columns), columns, summary, better)
        parts.remove()
    except KeyboardInterrupt as error:
        kept = sum(len(tasks[index]) for index in parts.finished())
        raise ScoringInterruptedError(
            f"interrupted: {kept} of {len(items)} images are scored and kept; repeat the command to go on"
        ) from error
    finally:
        parts.close()
    return FolderScores(out, len(items), summary, page)


def _named(images: Folders) -> dict[str, Path]:
    """Model → folder; a single folder has no name."""
    if isinstance(images, Mapping):
        return {name: Path(folder) for name, folder in images.items()}
    folders = [Path(images)] if isinstance(images, str | Path) else [Path(folder) for folder in images]
    if len(folders) == 1:
        return {"": folders[0]}
    for depth in range(1, max(len(folder.resolve().parts) for folder in folders) + 1):
        names = ["/".join(folder.resolve().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(folders):
            return dict(zip(names, folders, strict=True))
    raise ScoringError(f"a folder is given twice: {some([str(folder) for folder in folders])}")


def _prompt_files(
    folders: Mapping[str, Path], prompts: str | Path | None, scorers: Scorers, match: str
) -> dict[str, Path | None]:
    """Model → its prompts; None for all where there are none and no reward reads any. Raises: ScoringError if one does."""
    files = {model: folder / "prompts.jsonl" if prompts is None else Path(prompts) for model, folder in folders.items()}
    missing = [path for path in files.values() if prompts is None and not path.exists()]
    if not missing:
        return dict(files)
    problem = f"there are no prompts at {missing[0]}; give --prompts FILE"
    if len(missing) < len(files):
        raise ScoringError(f"{problem}: other folders have theirs")
    if scorers.reading_prompts:
        raise ScoringError(f"{problem}, without which nothing is scored by: {', '.join(scorers.reading_prompts)}")
    if match != "auto":
        raise ScoringError(f"{problem}: --match {match} is for images with prompts")
    return dict.fromkeys(files)


def _matched(
    folders: Mapping[str, Path], prompts: Mapping[str, Path | None], how: Options, console: Console | None
) -> list[Item]:
    items: list[Item] = []
    for model, folder in folders.items():
        found = _match(folder, prompts[model], how, model)
        if console is not None:
            console.print(Text(_how_matched(folder, found)), soft_wrap=True)
        items += found.items
    return items


def _match(folder: Path, prompts: Path | None, how: Options, model: str) -> Match:
    if prompts is None:
        return Match(without_prompts(folder, recursive=how.recursive, model=model), "", [], [])
    return match_folder(folder, prompts, match=how.match, partial=how.partial, recursive=how.recursive, model=model)


def _how_matched(folder: Path, match: Match) -> str:
    text = f"{folder}: {counted(len(match.items), 'image')}"
    if not match.how:
        return f"{text}, no prompts"
    prompts = len({item.prompt.id for item in match.items})
    text += f" of {counted(prompts, 'prompt')}, matched by {match.how}"
    if match.missing:
        text += f"; left out {counted(len(match.missing), 'prompt')} without an image: {some(match.missing)}"
    if match.strangers:
        text += f"; left out {counted(len(match.strangers), 'image')} without a prompt: {some(match.strangers)}"
    return text


def _score_missing(
    choice: Choice, tasks: Sequence[Sequence[Item]], parts: Parts, how: Options, console: Console | None
) -> None:
    """Scores the batches that are not there yet."""
    finished = parts.finished()
    done = sum(len(tasks[index]) for index in finished)
    total = sum(len(task) for task in tasks)
    if done and console is not None:
        console.print(f"going on: {done} of {total} images were scored before", highlight=False)
    missing: Iterator[Task] = (Task(parts.path(i), items) for i, items in enumerate(tasks) if i not in finished)
    count = min(how.workers, len(tasks) - len(finished))

    def warn(text: str) -> None:
        (console or Console(stderr=True)).print(Text(text, "yellow"), soft_wrap=True)

    with progress(console, total, done) as advance, arithmetic_threads(how.threads):
        alone = count <= 1
        kept = in_this_process(choice, missing) if alone else in_workers(choice, missing, count, how.threads, warn)
        for images in kept:
            advance(images)


def _write(out: Path, parts: Parts, items: Sequence[Item], columns: Any) -> None:
    """Writes beside and renames, so that whoever reads `out` sees the old table or the whole new one."""
    beside = parts.folder / f"whole{out.suffix.lower()}"
    try:
        write_table(beside, rows_of(items, parts, columns), columns.kinds())
        os.replace(beside, out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ScoringError(
            f"{out}: cannot be written: {error.strerror or error}; all scores are kept in {parts.folder}: make room and"
            " repeat the command"
        ) from error


def _checked_output(out: Path) -> Path:
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ScoringError(f"{out}: scores are written to {', '.join(OUTPUT_SUFFIXES)} files")
    if out.is_dir():
        raise ScoringError(f"{out}: is a folder")
    check_writable(out)
    return out
