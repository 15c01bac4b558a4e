"""Where a training step's time goes, and how much of it lies outside model, decoder and reward: `xomni-rl bench train`.

It runs the default configuration on the embedded stack, with everything a real run writes: tables with images, metrics,
TensorBoard, a checkpoint. Sampling and the update are the model's time, decoding the decoder's, scoring the reward's; all
else — choosing prompts, figures, tables, logs, and a checkpoint's share at the configured interval — is
outside.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from xomni_rl.config import compose
from xomni_rl.experiments.run import build_parts, plain_config
from xomni_rl.policies.records import read_rows
from xomni_rl.policies.trainer import train

WARM_UP = 3
PARTS = ("sample", "decode", "reward", "update", "other")


def run(steps: int = 20, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains some steps and prints a table of seconds per step.

    Args:
        steps: counted steps, after 3 that aren't.
        overrides: of the default configuration, as on the command line.
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


if __name__ == "__main__":
    run()
