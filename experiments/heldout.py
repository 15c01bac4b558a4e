"""The held-out evaluation of an experiment on stacks that are there, at one guidance scale after another.

    python -m xomni_rl.experiments.heldout start=embedded rl=runs/central/algorithm=grpo/0 rl=runs/central/algorithm=grpo/1 \\
        --override experiment=central --cfg 1 --cfg 2 --out runs/guidance

What is evaluated is what training evaluates: the same prompts, streams and rewards (`trainer.evaluation`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from xomni_rl.config import ConfigError, compose
from xomni_rl.experiments.ablation import statistics
from xomni_rl.experiments.run import load_split, load_stack, plain_config, trained_stack
from xomni_rl.policies.evaluation import evaluate
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.rewards.composite import build_composite
from xomni_rl.stack.stack import Stack

FIGURES = ("reward_", "metric_")
"""How the columns begin that hold a score of a prompt."""


def heldout(
    stacks: Mapping[str, Sequence[str]], cfg_scales: Sequence[float], config: Mapping[str, Any], console: Console | None = None
) -> pd.DataFrame:
    """Evaluates stacks.

    Args:
        stacks: name → one place for each seed: "embedded", a stack's folder, or a run's, whose last checkpoint counts.
        cfg_scales: guidance scales; 1 = none.
        config: resolved configuration; `model`, `prompts`, `trainer` and `seed` are read.
        console: where progress is shown; None = standard error.
    Returns: a row for each name, scale and figure: mean over seeds and prompts with its 95 % interval (`low`, `high`).
    Raises: StackError, RunFolderError, CheckpointError for a place that holds none; RewardError as a reward raises it.
    """
    settings, model = TrainerSettings.from_config(config).evaluation, dict(config.get("model") or {})
    reward = build_composite(settings.reward or config["reward"])
    prompts = load_split(config, "heldout", int(config["seed"]))
    jobs = [(name, place, scale) for name, places in stacks.items() for place in places for scale in cfg_scales]
    found: dict[tuple[str, float], list[pd.DataFrame]] = {}
    for name, place, scale in track(jobs, "evaluating", console=console or Console(stderr=True)):
        sampling = replace(settings.sampling, cfg_scale=scale)
        policy = StackPolicy(stack_at(place, model), sampling)
        table = evaluate(policy, prompts, reward, replace(settings, sampling=sampling, grid_prompts=0)).table.to_pandas()
        found.setdefault((name, scale), []).append(table[[column for column in table if column.startswith(FIGURES)]])
    return pd.DataFrame([row for (name, scale), tables in found.items() for row in _rows(name, scale, tables)])


def stack_at(place: str, model: Mapping[str, Any]) -> Stack:
    """The stack of a run folder, or of whatever else `model.path` may be."""
    if (Path(place) / "config.yaml").is_file():
        return trained_stack(place, "last")
    return load_stack({**model, "path": place})


def _rows(name: str, scale: float, tables: Sequence[pd.DataFrame]) -> list[dict[str, Any]]:
    rows = []
    for column in tables[0]:
        scores = np.stack([table[column].to_numpy(np.float64) for table in tables])  # [seeds, prompts]
        scores = scores[:, ~np.isnan(scores).any(axis=0)]
        if not scores.size:
            continue
        one = statistics.mean(scores)
        metric = str(column).partition("_")[2]
        figures = {"mean": one.value, "low": one.low, "high": one.high}
        rows.append(
            {"name": name, "cfg_scale": scale, "metric": metric, **figures, "seeds": len(scores), "prompts": scores.shape[1]}
        )
    return rows


def main(
    stacks: Annotated[list[str], typer.Argument(metavar="NAME=PLACE…", help="embedded, or a folder; a name again: a seed.")],
    out: Annotated[Path, typer.Option(help="Folder for heldout.csv and heldout.md.")],
    cfg: Annotated[list[float] | None, typer.Option(help="Guidance scale; may be repeated. Default: 1, none.")] = None,
    override: Annotated[list[str] | None, typer.Option(help="Of the configuration, such as experiment=central.")] = None,
) -> None:
    """Evaluate stacks on an experiment's held-out prompts, and write a table."""
    places: dict[str, list[str]] = {}
    for text in stacks:
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise ConfigError(f'"{text}" is not NAME=PLACE, such as start=embedded')
        places.setdefault(name, []).append(place)
    found = heldout(places, cfg or [1.0], plain_config(compose(override or [])))
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "heldout.csv", found.to_csv(index=False, float_format="%.6f"))
    _write(out / "heldout.md", markdown(found))
    table = Table(*found.columns)
    for row in found.itertuples(index=False):
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def markdown(found: pd.DataFrame) -> str:
    """A line for each name and scale, a column for each metric: mean [interval]."""
    cells = [f"{row['mean']:.3f} [{row.low:.3f}, {row.high:.3f}]" for _, row in found.iterrows()]
    wide = found.assign(cell=cells).pivot(index=["name", "cfg_scale"], columns="metric", values="cell")
    wide = wide.loc[list(dict.fromkeys(zip(found.name, found.cfg_scale, strict=True))), list(dict.fromkeys(found.metric))]
    head = "| stack | guidance | " + " | ".join(wide.columns) + " |\n|---|---:|" + "---|" * len(wide.columns) + "\n"
    lines = [
        f"| {name} | {scale:g} | {' | '.join(row)} |\n" for (name, scale), row in zip(wide.index, wide.values, strict=True)
    ]
    return head + "".join(lines)


def _write(path: Path, text: str) -> None:
    beside = path.with_suffix(".writing")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


if __name__ == "__main__":
    typer.run(main)
