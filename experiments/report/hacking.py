"""Is a reward being hacked? Rewards trained on against rewards that are only logged, and a rule for a widening gap.

A component of weight 0, or one that only the evaluation has, is not trained on: it says whether what is paid for is still what
was wanted. It is *hacked* if, from the log-only reward's best moment to the end, all of this holds:

1. the log-only reward fell by at least `ERRORS` standard errors,
2. and by a size that shows: `TRAINING_SIZE` standard deviations of single steps, or `HELDOUT_SIZE` of held-out prompts;
3. meanwhile the trained reward did not fall by `TOLERANCE` standard errors: both falling is a collapse, not a hack;
4. and it ends at least `TOLERANCE` standard errors above its beginning: something was earned.

Training is compared in `WINDOWS` windows of equally many steps, held-out figures prompt by prompt between two evaluations.
The best of 20 windows of mere noise lies about 1.9 of its standard errors above their mean, so 5 leaves room for the choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xomni_rl.experiments.report.data import RunData, component_weights, step_files

WINDOWS = 20
FEWEST_WINDOWS = 4
FEWEST_STEPS = 5  # of a window
FEWEST_PROMPTS = 8
ERRORS = 5.0
TOLERANCE = 2.0
TRAINING_SIZE = 1.0
HELDOUT_SIZE = 0.2


@dataclass(frozen=True)
class Change:
    """A difference and its standard error, both in the score's own unit."""

    size: float
    error: float

    def at_least(self, errors: float) -> bool:
        """Whether it is that many standard errors or more, and not nothing at all."""
        return self.size >= errors * self.error and (errors <= 0 or self.size > 0)


@dataclass(frozen=True)
class Gap:
    """One log-only reward against what is trained on.

    Attributes:
        name: of the log-only component.
        source: "training" or "held-out".
        best_step, last_step: where it was best, and the end.
        fall: of the log-only reward from its best to the end, positive = worse, whatever its direction.
        unit: one standard deviation of the log-only reward, of single steps or of held-out prompts.
        rise: of the trained reward meanwhile; gain: since its beginning.
        steps: [W] where the curves below have their points.
        trained, logged: [W] change since the beginning, in standard deviations.
    """

    name: str
    source: str
    best_step: int
    last_step: int
    fall: Change
    unit: float
    rise: Change
    gain: Change
    steps: np.ndarray
    trained: np.ndarray
    logged: np.ndarray

    @property
    def hacked(self) -> bool:
        """The rule of the module's head."""
        size = TRAINING_SIZE if self.source == "training" else HELDOUT_SIZE
        fell = self.fall.at_least(ERRORS) and self.fall.size >= size * self.unit
        return fell and self.rise.at_least(-TOLERANCE) and self.gain.at_least(TOLERANCE)

    @property
    def message(self) -> str:
        """What to tell of a hack."""
        times = f"{self.fall.size / self.fall.error:.0f} standard errors" if self.fall.error else "without any noise"
        return (
            f"the {self.source} score of {self.name}, which is not trained on, got worse by {self.fall.size:.3g} ({times}) "
            f"from step {self.best_step} to step {self.last_step}, while the trained reward changed by {self.rise.size:+.3g}: "
            f"look at the pictures; a checkpoint from about step {self.best_step}, a KL, or a weight for {self.name} may help"
        )


def trained_and_logged(run: RunData) -> tuple[dict[str, float], list[str], list[str]]:
    """Trained component → weight; components only logged in training; components that only the evaluation scores."""
    weights = component_weights(run.config)
    trained = {name: weight for name, weight in weights.items() if weight != 0}
    evaluation = ((run.config.get("trainer") or {}).get("evaluation") or {}).get("reward")
    judged = component_weights({"reward": evaluation}) if evaluation else weights
    return trained, [name for name in weights if name not in trained], [name for name in judged if name not in trained]


def gaps(run: RunData) -> list[Gap]:
    """Every log-only reward of a run that has enough steps or evaluations to be judged, training first."""
    trained, logged, judged = trained_and_logged(run)
    if not trained:
        return []
    found = [training_gap(run, trained, name) for name in logged] + [heldout_gap(run, trained, name) for name in judged]
    return [gap for gap in found if gap is not None]


def training_gap(run: RunData, trained: Mapping[str, float], name: str) -> Gap | None:
    """The gap over the steps of training; None without the columns or with fewer than 20 steps."""
    columns = [f"reward/{component}" for component in (*trained, name)]
    if not set(columns) <= set(run.metrics):
        return None
    frame = run.metrics[columns].replace([np.inf, -np.inf], np.nan).dropna()
    reward = frame[columns[:-1]].to_numpy("float64") @ np.array(list(trained.values()))
    values = frame[columns[-1]].to_numpy("float64") * (-1.0 if name in run.lower_is_better else 1.0)
    return windowed_gap(name, frame.index.to_numpy(), reward, values)


def windowed_gap(name: str, steps: np.ndarray, trained: np.ndarray, logged: np.ndarray) -> Gap | None:
    """The gap of two curves.

    Args:
        name: of the log-only reward.
        steps: [n] int, ascending.
        trained, logged: [n] float, finite; higher is better.
    Returns: None if there are fewer than `FEWEST_WINDOWS` windows of `FEWEST_STEPS` steps.
    Raises: ValueError if the shapes differ.
    """
    if not steps.shape == trained.shape == logged.shape:
        raise ValueError(f"steps, trained and logged must be of one length, got {steps.shape}, {trained.shape}, {logged.shape}")
    count = min(WINDOWS, len(steps) // FEWEST_STEPS)
    if count < FEWEST_WINDOWS:
        return None
    parts = np.array_split(np.arange(len(steps)), count)
    paid, pay_errors, pay_unit = _windows(trained, parts)
    worth, errors, unit = _windows(logged, parts)
    best = int(worth.argmax())
    return Gap(
        name=name,
        source="training",
        best_step=int(steps[parts[best][len(parts[best]) // 2]]),
        last_step=int(steps[-1]),
        fall=Change(worth[best] - worth[-1], math.hypot(errors[best], errors[-1])),
        unit=unit,
        rise=Change(paid[-1] - paid[best], math.hypot(pay_errors[best], pay_errors[-1])),
        gain=Change(paid[-1] - paid[0], math.hypot(pay_errors[0], pay_errors[-1])),
        steps=np.array([int(steps[part[len(part) // 2]]) for part in parts]),
        trained=_since_start(paid, pay_unit),
        logged=_since_start(worth, unit),
    )


def heldout_gap(run: RunData, trained: Mapping[str, float], name: str) -> Gap | None:
    """The gap over the held-out evaluations, paired by prompt; None with fewer than 2 evaluations or 8 prompts in common.

    Only the first, the best and the last evaluation's tables are read.
    """
    files = dict(step_files(run.folder / "heldout"))
    columns = [f"heldout/{component}" for component in (*trained, name)]
    if not set(columns) <= set(run.metrics):
        return None
    frame = run.metrics[columns].replace([np.inf, -np.inf], np.nan).dropna()
    frame = frame[frame.index.isin(list(files))]
    if len(frame) < 2:
        return None
    sign = -1.0 if name in run.lower_is_better else 1.0
    means = frame[columns[-1]].to_numpy("float64") * sign
    steps = frame.index.to_numpy()
    best = int(means.argmax())
    tables = [_scores(files[int(steps[at])], trained, name, sign) for at in (0, best, -1)]
    found = [table for table in tables if table is not None]
    if len(found) < len(tables):
        return None
    common = found[0].index.intersection(found[1].index).intersection(found[2].index)
    if len(common) < FEWEST_PROMPTS:
        return None
    first, top, last = (table.loc[common] for table in found)
    units = first.std()
    reward = frame[columns[:-1]].to_numpy("float64") @ np.array(list(trained.values()))
    return Gap(
        name=name,
        source="held-out",
        best_step=int(steps[best]),
        last_step=int(steps[-1]),
        fall=_paired(top["logged"] - last["logged"]),
        unit=float(units["logged"]),
        rise=_paired(last["trained"] - top["trained"]),
        gain=_paired(last["trained"] - first["trained"]),
        steps=steps,
        trained=_since_start(reward, float(units["trained"])),
        logged=_since_start(means, float(units["logged"])),
    )


def _windows(values: np.ndarray, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """Means [W], their standard errors [W], and the standard deviation of single steps within their windows."""
    deviations = np.array([values[part].std(ddof=1) for part in parts])
    sizes = np.array([len(part) for part in parts])
    means = np.array([values[part].mean() for part in parts])
    unit = float(np.sqrt(np.mean(deviations**2)))
    return means, unit / np.sqrt(sizes), unit


def _since_start(values: np.ndarray, unit: float) -> np.ndarray:
    return (values - values[0]) / (unit if unit > 0 else 1.0)


def _paired(differences: pd.Series) -> Change:
    return Change(float(differences.mean()), float(differences.std() / math.sqrt(len(differences))))


def _scores(file: Path, trained: Mapping[str, float], name: str, sign: float) -> pd.DataFrame | None:
    """Columns trained (weighted sum) and logged (higher is better) by prompt and index; None if the table lacks them."""
    columns: list[Any] = [f"reward_{component}" for component in (*trained, name)]
    try:
        frame = pq.read_table(file, columns=["prompt_id", "index", *columns]).to_pandas().set_index(["prompt_id", "index"])
    except (pa.ArrowException, OSError, KeyError):
        return None  # a table that cannot be read is named elsewhere on the page
    if frame.index.has_duplicates or not set(columns) <= set(frame):
        return None
    paid = frame[columns[:-1]].to_numpy("float64") @ np.array(list(trained.values()))
    return pd.DataFrame({"trained": paid, "logged": sign * frame[columns[-1]]}, index=frame.index).dropna()
