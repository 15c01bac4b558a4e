"""Where a table's runs come from, and whether they were made and scored by the same code."""

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from xomni_rl.experiments.report.data import read_run_record, step_files


def provenance(groups: Mapping[str, Sequence[Path]]) -> list[str]:
    """One Markdown line per run: method, folder (from the one they are all in), seed, steps, why it ended, commit."""
    lines = []
    parents = [folder.resolve().parent for folders in groups.values() for folder in folders]
    inside = os.path.commonpath(parents) if parents else ""
    for label, folders in groups.items():
        for folder in folders:
            record = read_run_record(folder)
            facts = [f"seed {record.seed}", f"{record.steps} steps", record.status, f"commit {record.commit or 'unknown'}"]
            lines.append(f"- {label}: `{folder.resolve().relative_to(inside).as_posix()}` ({', '.join(facts)})")
    return lines


def warnings(groups: Mapping[str, Sequence[Path]]) -> list[str]:
    """What speaks against comparing the runs; empty when nothing does.

    Different commits are named. Two runs that drew the same tokens before training but were scored differently were
    scored by different code (or another decoder), whatever their commits say.
    """
    folders = [folder for found in groups.values() for folder in found]
    found = []
    commits = sorted({read_run_record(folder).commit or "unknown" for folder in folders})
    if len(commits) > 1:
        found.append(f"the runs were made by different code: commits {', '.join(commits)}")
    elif len(folders) > 1 and commits[0].endswith("+changes"):
        found.append(f"the runs were made by a changed checkout ({commits[0]}), which may not have been the same for all")
    first = [_first_table(folder) for folder in folders]
    for (name, one), (other, two) in combinations(zip([f.name for f in folders], first, strict=True), 2):
        share = _rescored(one, two)
        if share:
            found.append(
                f"{name} and {other} drew the same tokens before training, but {share:.1%} of them were scored "
                "differently: the reward or the decoder changed between the runs"
            )
    return found


def _first_table(folder: Path) -> pd.DataFrame:
    """The held-out table before training, or an empty one."""
    files = step_files(folder / "heldout")
    return pq.read_table(files[0][1]).to_pandas() if files else pd.DataFrame()


def _rescored(one: pd.DataFrame, two: pd.DataFrame) -> float:
    """Share of rows with the same prompt and tokens whose figures differ by more than rounding; 0 if none match."""
    keys = ["prompt_id", "index"]
    if not {*keys, "tokens"} <= set(one) & set(two):
        return 0.0
    figures = [name for name in map(str, one) if name.startswith(("metric_", "reward_")) and name in two]
    both = one[[*keys, "tokens", *figures]].merge(two[[*keys, "tokens", *figures]], on=keys, suffixes=("", "_other"))
    same = [np.array_equal(a, b) for a, b in zip(both["tokens"], both["tokens_other"], strict=True)]
    both = both[np.array(same, dtype=bool)]
    if both.empty or not figures:
        return 0.0
    values, others = both[figures].to_numpy("float64"), both[[f"{name}_other" for name in figures]].to_numpy("float64")
    return float((~np.isclose(values, others, atol=1e-4, equal_nan=True)).any(axis=1).mean())
