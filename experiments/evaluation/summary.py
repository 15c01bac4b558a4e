"""The figures of a suite over a table of samples: per model and category, with intervals, and paired differences of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from xomni_rl.experiments.evaluation.figures import ratio_difference, ratio_interval
from xomni_rl.experiments.evaluation.suite import Figure

PAIR = ["prompt_id", "number"]
"""Columns that say which samples of two models belong together."""


def summarise(
    table: pd.DataFrame, models: Sequence[str], figures: Sequence[Figure], category: str, seed: int = 0
) -> dict[str, Any]:
    """All figures of a table.

    Args:
        table: a row per model and sample: `model`, `prompt_id`, `number`, `error` (None = none) and the figures' columns.
        models: in the order in which they are compared.
        figures: what is computed.
        category: column of the breakdown; "" = none.
        seed: of the resampling.
    Returns: `models`: model → figure → mean, low, high, scored, not_applicable, failed; `categories`: category → model → the
        same; `differences`: of each figure for each two models, the later less the earlier, on the samples that both have.
        A number that there is not is None.
    """
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *(c for f in figures for c in (f.top, f.bottom) if c)])))
    parts = {model: table[table["model"] == model] for model in models}
    found: dict[str, Any] = {"models": {model: _cells(part, figures, seed) for model, part in parts.items()}}
    names = sorted(table[category].astype(str).unique()) if category in table else []
    found["categories"] = {
        name: {model: _cells(part[part[category].astype(str) == name], figures, seed) for model, part in parts.items()}
        for name in names
    }
    found["differences"] = [
        _difference(parts[first], parts[second], figure, seed) | {"first": first, "second": second, "figure": figure.name}
        for first, second in combinations(models, 2)
        for figure in figures
    ]
    return found


def _cells(part: pd.DataFrame, figures: Sequence[Figure], seed: int) -> dict[str, dict[str, Any]]:
    failed = int(part["error"].notna().sum())
    cells = {}
    for figure in figures:
        top, bottom = _columns(part, figure)
        mean, low, high = ratio_interval(top, bottom, list(part["prompt_id"]), _groups(part, figure), seed)
        scored = int((~np.isnan(top + bottom)).sum())
        counts = {"scored": scored, "not_applicable": len(part) - scored - failed, "failed": failed}
        cells[figure.name] = _plain({"mean": mean, "low": low, "high": high}) | counts
    return cells


def _difference(first: pd.DataFrame, second: pd.DataFrame, figure: Figure, seed: int) -> dict[str, Any]:
    both = second.merge(first, on=PAIR, suffixes=("", "_first"))
    bottom = figure.bottom and f"{figure.bottom}_first"
    earlier = _columns(both, Figure(figure.name, f"{figure.top}_first", bottom))
    later = _columns(both, figure)
    found = ratio_difference(later, earlier, list(both["prompt_id"]), _groups(both, figure), seed)
    return _plain(found._asdict()) | {"pairs": int((~np.isnan(np.sum([*later, *earlier], axis=0))).sum())}


def _columns(part: pd.DataFrame, figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """(top [N], bottom [N]); NaN in failed samples."""
    top = part[figure.top].to_numpy(np.float64, na_value=np.nan)
    return top, part[figure.bottom].to_numpy(np.float64, na_value=np.nan) if figure.bottom else np.ones(len(part))


def _groups(part: pd.DataFrame, figure: Figure) -> list[str] | None:
    return [str(value) for value in part[figure.by]] if figure.by else None


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
