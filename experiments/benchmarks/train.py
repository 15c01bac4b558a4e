"""A training step: where its time goes, what it costs beside TRL's, and how the cost grows: `xomni-rl bench train`.

Where it goes. The default configuration on the embedded stack, with everything a real run writes: tables with images, metrics,
TensorBoard, a checkpoint. Sampling and the update are the model's time, decoding the decoder's, scoring the reward's; all
else — choosing prompts, figures, tables, logs, and a checkpoint's share at the configured interval — is outside.

Beside TRL's. The same job with stock `trl.GRPOTrainer` (`_trl_peer.py`), each in a process of its own, in turns: at the
embedded size, and with the published model's vocabularies on the embedded body (`_full_vocabulary.py`). Fails unless both do
the same (`_same_job.py`).

How it grows. With prompts, images per prompt and image tokens (`_train_cost.py`).
"""

from __future__ import annotations

import importlib.util
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from xomni_rl.config import compose
from xomni_rl.experiments.benchmarks._full_vocabulary import with_full_vocabulary
from xomni_rl.experiments.benchmarks._same_job import check_same
from xomni_rl.experiments.benchmarks._train_cost import cost
from xomni_rl.experiments.benchmarks._train_sides import job_config
from xomni_rl.experiments.benchmarks._turns import Turns, measured, ratios, take_turns
from xomni_rl.experiments.run import build_parts, plain_config
from xomni_rl.policies.records import read_rows
from xomni_rl.policies.trainer import train
from xomni_rl.stack.stack import Stack

WARM_UP = 3
PARTS = ("sample", "decode", "reward", "update", "other")
EMBEDDED = Turns(warm_up=2, rounds=6, steps=2)
FULL_VOCABULARY = Turns(warm_up=1, rounds=3, steps=1)
FEWER_IMAGES = ("trainer.prompts_per_step=2", "trainer.group_size=8")
"""At the full vocabulary: a step of TRL's takes ten seconds with 16 images."""


def run(steps: int = 20, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Measures all three and prints a table of each.

    Args:
        steps: counted steps of the first, after 3 that aren't.
        overrides: of the default configuration, as on the command line.
    Returns: what `shares` returns; `ratio_to_trl` and `memory_ratio_to_trl`, ours / TRL's, of the seconds of a step and of the
        peak memory that training adds, and the same with `_full_vocabulary`; `ratio_to_bridge`, our own loop / TRL as our
        trainer's engine; `trl` and `trl_full_vocabulary`, what they are made of; `cost`, see `_train_cost.cost`.
    Raises: RuntimeError without TRL, if a side fails, or if they do not do the same.
    """
    if importlib.util.find_spec("trl") is None:
        raise RuntimeError("bench train compares with TRL, which is not installed: pip install 'xomni-rl[trl]'")
    figures = shares(steps, overrides)
    embedded = beside_trl(("ours", "trl", "bridge"), EMBEDDED, overrides)
    full = beside_trl_full_vocabulary(FULL_VOCABULARY, overrides)
    print_sides({"embedded": embedded, "V 168,512": full})
    return figures | named(embedded, "") | named(full, "_full_vocabulary") | {"cost": cost(overrides)}


def named(found: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """Figures of a comparison under the names that `run` returns."""
    return {f"{name}{suffix}": value for name, value in found.items() if "ratio" in name} | {f"trl{suffix}": dict(found)}


def beside_trl(names: Sequence[str], turns: Turns, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trainers on one job, "ours" and "trl" among them.

    Returns: `ratio_to_…` (median over the turns), `ratios_to_…` (all turns) and `memory_ratio_to_…` for each other one,
        for each side what `measured` returns, and `agreement`, see `check_same`.
    """
    sides, done = take_turns(names, turns, overrides)
    with tempfile.TemporaryDirectory() as folder:
        agreement = check_same(done, job_config(turns.total, overrides, Path(folder)))
    found: dict[str, Any] = {}
    for name in [name for name in names if name != "ours"]:
        each = ratios(sides, name)
        found |= {f"ratio_to_{name}": median(each), f"ratios_to_{name}": [round(ratio, 3) for ratio in each]}
        found[f"memory_ratio_to_{name}"] = sides["ours"].mib / sides[name].mib
    return found | {name: measured(side) for name, side in sides.items()} | {"agreement": agreement}


def beside_trl_full_vocabulary(turns: Turns, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The same, on a stack with the published model's vocabularies and the embedded body."""
    with tempfile.TemporaryDirectory() as folder:
        with_full_vocabulary(Stack.from_pretrained("embedded")).save_pretrained(folder)
        return beside_trl(("ours", "trl"), turns, [*overrides, *FEWER_IMAGES, "model=folder", f"model.path={folder}"])


def shares(steps: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains some steps and prints a table of seconds per step.

    Returns: `ratio` = share of the step outside model, decoder and reward (the demand: under 0.05), `seconds` per part and
        in total (medians over steps), `checkpoint_seconds` (of one), `checkpoint_every`, `images_per_second`, `steps`.
    """
    with tempfile.TemporaryDirectory() as folder:
        least = [f"run={folder}/run", f"trainer.steps={WARM_UP + steps}", "trainer.max_seconds=null"]
        config = plain_config(compose([*overrides, *least, "trainer.evaluate_every=null"]))
        every = config["trainer"]["checkpoint_every"]
        config["trainer"]["checkpoint_every"] = None  # one at the end, measured on its own
        summary = train(config, **build_parts(config), console=Console(file=io.StringIO()))
        rows = read_rows(Path(folder) / "run" / "metrics.jsonl")[WARM_UP:]
    seconds = {part: median(row["time"][part] for row in rows) for part in (*PARTS, "total")}
    checkpoint = summary.seconds["checkpoint"]
    share = checkpoint / every if every else 0.0
    figures = {
        "ratio": (seconds["other"] + share) / (seconds["total"] + share),
        "seconds": seconds,
        "checkpoint_seconds": checkpoint,
        "checkpoint_every": every,
        "images_per_second": config["trainer"]["prompts_per_step"] * config["trainer"]["group_size"] / seconds["total"],
        "steps": len(rows),
    }
    print_table(figures, share)
    return figures


def print_table(figures: dict[str, Any], checkpoint_share: float) -> None:
    """One row per part of the step: seconds and share."""
    total = figures["seconds"]["total"] + checkpoint_share
    parts = {part: figures["seconds"][part] for part in PARTS} | {"checkpoint's share": checkpoint_share, "total": total}
    table = Table("part", "s per step", "share", title=f"training, median of {figures['steps']} steps")
    for part, spent in parts.items():
        table.add_row(part, f"{spent:.4f}", f"{spent / total:.1%}")
    Console().print(table)
    Console().print(f"outside model, decoder and reward: {figures['ratio']:.2%} of a step (at most 5 %)")


def print_sides(found: Mapping[str, Mapping[str, Any]]) -> None:
    """A row per size and side."""
    table = Table(title="a training step: ours, stock GRPOTrainer (trl), TRL as our engine (bridge)")
    for column in ("size", "trainer", "s", "quartiles", "ours/it", "MiB", "ours/it"):
        table.add_column(column, justify="left" if column in ("size", "trainer") else "right")
    for size, row in found.items():
        for side in [name for name in ("ours", "trl", "bridge") if name in row]:
            one = row[side]
            quartiles = "–".join(f"{quartile:.3f}" for quartile in one["quartiles"])
            figures = ("ratio", "memory_ratio")
            over, memory = ("", "") if side == "ours" else (f"{row[f'{name}_to_{side}']:.3f}" for name in figures)
            table.add_row(size, side, f"{one['seconds']:.3f}", quartiles, over, f"{one['mib']:.0f}", memory)
    Console().print(table)


if __name__ == "__main__":
    run()
