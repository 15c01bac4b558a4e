"""An evaluation from places to tables: draw or find the images of each, score them, average, write.

OUT/images/MODEL/…png     what a stack drew
OUT/scores/MODEL.jsonl    rows as they are scored; what makes a stopped run go on
OUT/samples.parquet       a row per model and image
OUT/summary.json          figures with intervals, by category, paired differences, options, what was evaluated
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.journal import Journal, row_key
from xomni_rl.experiments.evaluation.pictures import Drawing, digest, draw_images, find_images, is_stack, prompt_digest
from xomni_rl.experiments.evaluation.suite import Row, Sample, Suite, samples_of
from xomni_rl.experiments.evaluation.summary import summarise
from xomni_rl.images import ImageFileError, load_image

LoadStack = Callable[[str], Any]
"""callable(place) -> a stack of any family."""
_FIRST = ("model", "prompt_id", "number", "category", "prompt", "file")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave: the samples table, the summary as summary.json holds it, and where both are."""

    table: pd.DataFrame
    summary: dict[str, Any]
    out: Path

    @property
    def complete(self) -> bool:
        """Whether every image was there and scored; if not, a command ends with status 1."""
        return bool(self.table["error"].isna().all())


def labels_of(places: Sequence[str]) -> dict[str, str]:
    """Model → place of "NAME=PLACE" or "PLACE", whose last part is the name then.

    >>> labels_of(["embedded", "tuned=runs/seed1"])
    {'embedded': 'embedded', 'tuned': 'runs/seed1'}

    Raises: EvaluationError for none, or two of one name.
    """
    found: dict[str, str] = {}
    for given in places:
        named = re.fullmatch(r"([\w.+-]+)=(.+)", given)
        label, place = (named[1], named[2]) if named else (Path(given).resolve().name or "images", given)
        label = re.sub(r"[^\w.+-]", "-", label)
        if label in found:
            raise EvaluationError(f'two models are called "{label}"; give names, as in before={found[label]} after={place}')
        found[label] = place
    if not found:
        raise EvaluationError("nothing to evaluate: give embedded, or the folder of a stack, a run or of images")
    return found


def evaluate(
    suite: Suite,
    places: Mapping[str, str],
    out: Path,
    drawing: Drawing,
    load_stack: LoadStack,
    *,
    prompts: Path | None = None,
    limit: int = 0,
    batch_size: int = 32,
    console: Console | None = None,
) -> Evaluation:
    """Evaluates models on a suite, and writes the tables; run again, it goes on where it was.

    Args:
        suite: what is asked, scored and averaged.
        places: model → "embedded", a stack's or run's folder, or a folder of images.
        out: folder of everything that is written.
        drawing: how stacks draw; its `count` images per prompt are expected of folders, too.
        load_stack: loads a place that is no folder of images.
        prompts: the suite's published file.
        limit: only the first so many prompts; 0 = all.
        batch_size: images scored at a time.
        console: where progress is shown; None = nowhere.
    Raises: EvaluationError, PromptError and what stacks and rewards raise if nothing can be evaluated; a single image that is
        missing or fails is a row with `error`.
    """
    asked = suite.prompts(prompts)
    asked = asked[:limit] if limit else asked
    if not asked:
        raise EvaluationError(f"suite {suite.name}: there is no prompt to evaluate")
    samples = samples_of(suite, asked, drawing.count)
    stacks = [place for place in places.values() if is_stack(place)]
    if stacks and not suite.draws:
        raise EvaluationError(
            f"suite {suite.name}: its files hold no prompts, so {stacks[0]} can't draw them; draw the images elsewhere, "
            "and give their folder"
        )
    found = {model: find_images(Path(place), samples) for model, place in places.items() if not is_stack(place)}
    suite.load()
    rows: list[Row] = []
    sources: dict[str, Any] = {}
    for model, place in places.items():
        if model in found:
            files = found[model]
            sources[model] = {"place": place, "images": len(set(files) - {None})}
        else:
            stack = load_stack(place)
            sources[model] = {"place": place, "weights": (weights := stack.weight_hashes())}
            with _progress(console, f"{model}: images", len(samples)) as advance:
                files = draw_images(stack, samples, out / "images" / model, drawing, advance, weights)
        with _progress(console, f"{model}: scores", len(samples)) as advance:
            scored = _score(suite, samples, files, Journal(out / "scores" / f"{model}.jsonl"), batch_size, advance)
        rows += [{"model": model, **row} for row in scored]
    table = _table(rows)
    summary = {
        "suite": suite.name,
        "version": suite.version,
        "options": dict(suite.options),
        "sources": sources,
        "prompts": {"count": len(asked), "hash": digest([prompt_digest(prompt) for prompt in asked])},
        "drawing": {"seed": drawing.seed, "count": drawing.count, "size": drawing.size, "sampling": asdict(drawing.sampling)},
        **summarise(table, list(places), suite.figures(), suite.category),
    }
    _write(table, summary, out)
    return Evaluation(table, summary, out)


def _score(
    suite: Suite,
    samples: Sequence[Sample],
    files: Sequence[Path | None],
    journal: Journal,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[Row]:
    """A row per sample, in their order; what the journal holds is not scored again."""
    rows: list[Row] = []
    for start in range(0, len(samples), batch_size):
        batch = list(zip(samples[start : start + batch_size], files[start : start + batch_size], strict=True))
        keys = [None if file is None else row_key(suite, sample, file) for sample, file in batch]
        broken = _score_missing(suite, batch, keys, journal)
        for index, ((sample, file), key) in enumerate(zip(batch, keys, strict=True)):
            scored = broken.get(index) or journal.rows[str(key)]
            own = {"prompt_id": sample.prompt.id, "number": sample.number, "prompt": sample.prompt.text}
            rows.append(own | {"file": str(file or "")} | suite.facts(sample.prompt) | scored)
        advance(len(batch))
    suite.finish(rows)
    return rows


def _score_missing(
    suite: Suite, batch: Sequence[tuple[Sample, Path | None]], keys: Sequence[str | None], journal: Journal
) -> dict[int, Row]:
    """Scores what the journal lacks and files it there; index → row of images that are missing or damaged."""
    broken: dict[int, Row] = {}
    images: dict[int, np.ndarray] = {}
    for index, ((sample, file), key) in enumerate(zip(batch, keys, strict=True)):
        if file is None:
            broken[index] = {"error": f"there is no image {sample.names[0]}.png"}
        elif key not in journal.rows:
            try:
                images[index] = suite.read(load_image(file), sample.number)
            except (ImageFileError, EvaluationError, OSError) as error:
                broken[index] = {"error": str(error)}
    if images:
        scored = suite.score(list(images.values()), [batch[index][0] for index in images])
        # A judge that was away may be back the next time: what failed is asked again.
        good = [(str(keys[index]), row) for index, row in zip(images, scored, strict=True) if not row.get("error")]
        broken |= {index: row for index, row in zip(images, scored, strict=True) if row.get("error")}
        journal.add([key for key, _ in good], [row for _, row in good])
    return broken


def _table(rows: list[Row]) -> pd.DataFrame:
    columns = dict.fromkeys([*_FIRST, *(column for row in rows for column in row if column != "error"), "error"])
    table = pd.DataFrame(rows, columns=list(columns))
    numeric = [
        column for column in table if column not in _FIRST and all(_is_number(value) for value in table[column].tolist())
    ]
    table = table.astype({**dict.fromkeys(numeric, np.float64), "number": np.int64})
    errors = [error if isinstance(error, str) else None for error in table["error"]]
    return table.assign(error=pd.Series(errors, dtype=object))


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


@contextmanager
def _progress(console: Console | None, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that moves the bar on by so many images."""
    if console is None:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


def _write(table: pd.DataFrame, summary: Mapping[str, Any], out: Path) -> None:
    """Writes beside and renames, so that whoever reads sees the old files or the whole new ones."""
    out.mkdir(parents=True, exist_ok=True)
    parquet, text = (out / f".{name}.writing" for name in ("samples.parquet", "summary.json"))
    table.to_parquet(parquet, index=False)
    text.write_text(json.dumps(summary, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(parquet, out / "samples.parquet")
    os.replace(text, out / "summary.json")
