"""Reads a run folder into plain values for the report; knows the folder's layout and nothing of HTML.

A folder of a run that is still going, or was killed, is as welcome as a finished one: whatever is missing is
empty here, and a file that cannot be read is named in `RunData.notes` instead of hiding the rest of the run.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

RUN_FILES = ("metrics.jsonl", "config.yaml", "summary.json")
PREFERRED_HEADLINES = ("ocr_exact", "ocr_char")
NO_SUMMARY = "no summary yet: running, or killed"
_STEP_FILE = re.compile(r"step_(\d+)\.parquet$")


class ReportError(ValueError):
    """The folder is no run folder, or one of its text files is damaged; the message is one sentence."""


@dataclass(frozen=True)
class Sample:
    """One rollout or held-out generation, as its parquet row tells it."""

    prompt_id: str
    prompt: str
    index: int
    score: float  # the composite's; NaN when no component applies
    rewards: dict[str, float]  # component → raw score
    metrics: dict[str, float]  # "<component>_<metric>" → value
    advantage: float
    read: str | None  # what the OCR read; None when nothing was recorded
    image: bytes | None

    @property
    def correct(self) -> bool | None:
        """Whether the OCR read exactly the requested text; None when the run has no such metric."""
        exact = [value for name, value in self.metrics.items() if name.endswith("exact") and not math.isnan(value)]
        return all(value >= 1.0 for value in exact) if exact else None


@dataclass(frozen=True)
class Headline:
    """One held-out figure before and after; `after` is None while only one evaluation exists."""

    name: str
    before: float
    after: float | None
    best: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class Pair:
    """The same held-out prompt and random stream before and after training."""

    prompt: str
    before: Sample
    after: Sample | None


@dataclass(frozen=True)
class AlarmCount:
    """All firings of one alarm."""

    name: str
    count: int
    first_step: int | None
    last_step: int | None
    message: str


@dataclass(frozen=True)
class RunData:
    """Everything the report shows of one run folder."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    summary: dict[str, Any]
    metrics: pd.DataFrame  # index: step; columns: metric names, nested objects flattened with "/"
    headlines: list[Headline]
    pairs: list[Pair]
    heldout_count: int
    heldout_steps: tuple[int, int] | None
    rollouts: list[Sample]
    rollout_step: int | None
    alarms: list[AlarmCount]
    lower_is_better: frozenset[str] = frozenset()  # components whose good calibration image scored below the worthless one
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.summary.get("status", NO_SUMMARY))


def read_run(folder: Path) -> RunData:
    """The run folder's contents.

    Raises: ReportError when the folder has neither metrics, configuration nor summary, or a text file is damaged
        anywhere but in its last line (a killed run may leave half a line).
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder")
    if not is_run(folder):
        raise ReportError(f"{folder} is no run folder: it has no metrics.jsonl, config.yaml or summary.json")
    notes: list[str] = []
    config = read_yaml(folder / "config.yaml")
    summary = read_json(folder / "summary.json")
    metrics = read_metrics(folder / "metrics.jsonl")
    heldout_files = step_files(folder / "heldout")
    before = read_samples(heldout_files[0][1], notes) if heldout_files else []
    after = read_samples(heldout_files[-1][1], notes) if len(heldout_files) > 1 else []
    rollout_files = step_files(folder / "rollouts")
    return RunData(
        folder=folder,
        config=config,
        manifest=read_json(folder / "manifest.json"),
        summary=summary,
        metrics=metrics,
        headlines=headlines(metrics, summary),
        pairs=pair_samples(before, after),
        heldout_count=len(before),
        heldout_steps=(heldout_files[0][0], heldout_files[-1][0]) if heldout_files else None,
        rollouts=read_samples(rollout_files[-1][1], notes) if rollout_files else [],
        rollout_step=rollout_files[-1][0] if rollout_files else None,
        alarms=count_alarms(read_lines(folder / "alarms.jsonl")),
        lower_is_better=lower_is_better(read_json(folder / "reward_checks.json")),
        notes=notes,
    )


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what is left of one."""
    return any((folder / name).exists() for name in RUN_FILES)


def runs_inside(folders: Sequence[Path]) -> list[Path]:
    """Run folders, with a folder that holds runs, such as an ablation's, replaced by those in it, in order of their names."""
    found: list[Path] = []
    for folder in folders:
        inside = [] if is_run(folder) else sorted({path.parent for name in RUN_FILES for path in folder.glob(f"**/{name}")})
        found += inside or [folder]
    return found


@dataclass(frozen=True)
class RunRecord:
    """What a run says of itself in its small files."""

    seed: Any
    steps: Any
    status: str
    commit: str | None  # shortened; "+changes" marks a changed checkout


def read_run_record(folder: Path) -> RunRecord:
    """Seed, steps, status and commit of a run. Raises: ReportError for a damaged file."""
    summary = read_json(folder / "summary.json")
    return RunRecord(
        seed=read_yaml(folder / "config.yaml").get("seed", "unknown"),
        steps=summary.get("steps", "unknown"),
        status=str(summary.get("status", NO_SUMMARY)),
        commit=short_commit(read_json(folder / "manifest.json")),
    )


def short_commit(manifest: Mapping[str, Any]) -> str | None:
    """The manifest's commit, shortened; its mark "+changes" for a changed checkout stays."""
    commit = manifest.get("commit")
    if not commit:
        return None
    name, mark, changes = str(commit).partition("+")
    return name[:10] + mark + changes


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; [] when there is none. A last line cut short is left out."""
    if not path.exists():
        return []
    lines = _text(path).splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if number == len(lines):
                break
            raise ReportError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ReportError(f"{path}:{number}: expected an object, found {type(row).__name__}")
        rows.append(row)
    return rows


def read_metrics(path: Path) -> pd.DataFrame:
    """metrics.jsonl as a float frame indexed by step; for a step written twice the later line counts."""
    rows = [_flatten(row) for row in read_lines(path)]
    if not rows:
        return pd.DataFrame(index=pd.Index([], name="step", dtype="int64"))
    if any("step" not in row for row in rows):
        raise ReportError(f"{path}: a line has no step")
    try:
        frame = pd.DataFrame(rows).groupby("step", sort=True).last()
        frame.index = frame.index.astype("int64")
        return frame.astype("float64")
    except (TypeError, ValueError) as error:
        raise ReportError(f"{path}: a metric or step is no number ({error})") from error


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every step_<number>.parquet in the folder, in order of steps."""
    found = ((_STEP_FILE.search(path.name), path) for path in folder.glob("step_*.parquet"))
    return sorted((int(match.group(1)), path) for match, path in found if match)


def component_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Reward component → weight, as the configuration has it."""
    reward = config.get("reward") or {}
    components = (reward.get("components") or {}) if isinstance(reward, Mapping) else None
    if not isinstance(components, Mapping):
        raise ReportError(f"config.yaml: reward.components must be a mapping, not {components or reward!r}")
    return {name: float((entry or {}).get("weight", 1.0)) for name, entry in components.items()}


def read_samples(path: Path, notes: list[str]) -> list[Sample]:
    """The rows of one rollouts or held-out table; an unreadable file becomes a note and no rows."""
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        notes.append(f"{path.parent.name}/{path.name} could not be read: {str(error).splitlines()[0]}")
        return []
    return [_sample(row) for row in rows]


def pair_samples(before: list[Sample], after: list[Sample]) -> list[Pair]:
    """Held-out samples with a picture, joined by prompt and index; order of the first evaluation."""
    later = {(sample.prompt_id, sample.index): sample for sample in after}
    pairs = (Pair(first.prompt, first, later.get((first.prompt_id, first.index))) for first in before)
    return [pair for pair in pairs if pair.before.image is not None]


def headlines(metrics: pd.DataFrame, summary: Mapping[str, Any]) -> list[Headline]:
    """Held-out figures before → after, the OCR's exact and character accuracy first.

    The summary's figures where there is one, else the first and last evaluation in the metrics.
    """
    heldout = summary.get("heldout") or {}
    before, after = dict(heldout.get("before") or {}), dict(heldout.get("after") or {})
    best = dict(heldout.get("best") or {})
    for column in [name for name in metrics.columns if name.startswith("heldout/")]:
        series = metrics[column].dropna()
        name = column.removeprefix("heldout/")
        if name not in before and len(series):
            before[name] = float(series.iloc[0])
        if name not in after and len(series) > 1:
            after[name] = float(series.iloc[-1])
    names = [name for name in PREFERRED_HEADLINES if name in before]
    names += sorted(name for name in before if name not in names and name != "step")
    best_step = int(best["step"]) if "step" in best else None
    return [
        Headline(name, float(before[name]), _optional(after.get(name)), _optional(best.get(name)), best_step)
        for name in names
        if _optional(before[name]) is not None
    ]


def count_alarms(rows: list[dict[str, Any]]) -> list[AlarmCount]:
    """One entry per alarm name, in the order in which they first fired; the last message is kept."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(str(row.get("alarm", row.get("name", "alarm"))), []).append(row)
    return [
        AlarmCount(name, len(found), found[0].get("step"), found[-1].get("step"), str(found[-1].get("message", "")))
        for name, found in grouped.items()
    ]


def lower_is_better(checks: Mapping[str, Any]) -> frozenset[str]:
    """From the calibration scores [good image, worthless image]; the evaluation's own rewards come after, and win."""
    found = {}
    for name, check in checks.items():
        scores = (check or {}).get("scores")
        if scores and None not in scores:
            found[name.removeprefix("evaluation/")] = scores[0] < scores[1]
    return frozenset(name for name, lower in found.items() if lower)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} when there is none. Raises: ReportError if it is damaged or no object."""
    if not path.exists():
        return {}
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise ReportError(f"{path}: not JSON of ours ({error})") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; {} when there is none. Raises: ReportError if it is damaged."""
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ReportError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    """A file's text. Raises: ReportError if it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: damaged, byte {error.start} is no text") from error


def _sample(row: Mapping[str, Any]) -> Sample:
    rewards = {key.removeprefix("reward_"): _number(row[key]) for key in row if key.startswith("reward_")}
    metrics = {key.removeprefix("metric_"): _number(row[key]) for key in row if key.startswith("metric_")}
    read = row.get("read")
    return Sample(
        prompt_id=str(row.get("prompt_id", "")),
        prompt=str(row.get("prompt", "")),
        index=int(row.get("index") or 0),
        score=_number(row.get("score")),
        rewards=rewards,
        metrics=metrics,
        advantage=_number(row.get("advantage")),
        read=None if read is None else str(read),
        image=row.get("image"),
    )


def _flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}/"))
        elif value is None or isinstance(value, (int, float)):
            flat[f"{prefix}{key}"] = value
    return flat


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _optional(value: Any) -> float | None:
    number = _number(value)
    return None if math.isnan(number) else number
