"""The figures of a suite over a table of samples: per model and category, with intervals, and paired differences of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from xomni_rl.experiments.evaluation.figures import Ratio, combined_difference, combined_interval
from xomni_rl.experiments.evaluation.suite import Combined, Figure

PAIR = ["prompt_id", "number"]
"""Columns that say which samples of two models belong together."""


def summarise(
    table: pd.DataFrame, models: Sequence[str], figures: Sequence[Figure | Combined], category: str, seed: int = 0
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
    used = (column for figure in figures for part in figure.parts for column in (part.top, part.bottom) if column)
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *used])))
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


def _cells(part: pd.DataFrame, figures: Sequence[Figure | Combined], seed: int) -> dict[str, dict[str, Any]]:
    failed = int(part["error"].notna().sum())
    cells = {}
    for figure in figures:
        ratios = [_columns(part, each) for each in figure.parts]
        mean, low, high = combined_interval(ratios, figure.combine, list(part["prompt_id"]), _groups(part, figure), seed)
        scored = _complete(ratios)
        counts = {"scored": scored, "not_applicable": len(part) - scored - failed, "failed": failed}
        cells[figure.name] = _plain({"mean": mean, "low": low, "high": high}) | counts
    return cells


def _difference(first: pd.DataFrame, second: pd.DataFrame, figure: Figure | Combined, seed: int) -> dict[str, Any]:
    both = second.merge(first, on=PAIR, suffixes=("", "_first"))
    later = [_columns(both, part) for part in figure.parts]
    earlier = [_columns(both, part, "_first") for part in figure.parts]
    found = combined_difference(later, earlier, figure.combine, list(both["prompt_id"]), _groups(both, figure), seed)
    if not figure.higher_is_better:
        found = found._replace(probability_better=1 - found.probability_better)
    return _plain(found._asdict()) | {"pairs": _complete([*later, *earlier])}


def _columns(part: pd.DataFrame, figure: Figure, suffix: str = "") -> Ratio:
    """(top [N], bottom [N]); NaN in failed samples."""
    top = part[figure.top + suffix].to_numpy(np.float64, na_value=np.nan)
    return top, part[figure.bottom + suffix].to_numpy(np.float64, na_value=np.nan) if figure.bottom else np.ones(len(part))


def _complete(ratios: Sequence[Ratio]) -> int:
    """How many samples take part."""
    return int((~np.isnan(np.sum([column for ratio in ratios for column in ratio], axis=0))).sum())


def _groups(part: pd.DataFrame, figure: Figure | Combined) -> list[str] | None:
    return [str(value) for value in part[figure.by]] if figure.by else None


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
