"""A large folder scored, killed three times and gone on with, against the same run left alone; its memory."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xomni_rl.experiments.benchmarks._score_runs import command, kept, killed_at, make_images, watched

IMAGES = 10_000
REWARDS = ("sharpness", "colorfulness", "contrast", "jpeg_compressibility")
BATCH = 32
"""The command's own default."""
KILLS = (0.2, 0.5, 0.8)
EARLY = 0.1


def run(images: int = IMAGES, folder: Path | None = None) -> dict[str, Any]:
    """Measures both runs; `python -m xomni_rl.experiments.benchmarks.score 100000` takes more images.

    Args:
        images: how many; 16 × 16 px each.
        folder: where they are made, which must be empty; None = a temporary one.
    Returns: `ratio` (largest memory of the run left alone at its end / when a tenth was scored), `peak_mb` and `early_mb`
        (those), `images`, `images_per_second` of that run, `kills` (batches kept at each), `identical` (1: the tables have
        the same bytes).
    Raises: RuntimeError if the tables differ.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return run(images, Path(made))
    make_images(folder / "images", images)
    batches = -(-images // BATCH)
    alone, stopped = folder / "alone.parquet", folder / "stopped.parquet"
    whole = watched(command(folder / "images", alone, REWARDS, 1), alone, batches, [EARLY])
    words = {workers: command(folder / "images", stopped, REWARDS, workers) for workers in (1, 2)}
    kills = [killed_at(words[workers], stopped, int(share * batches)) for share, workers in zip(KILLS, (1, 2, 1), strict=True)]
    watched(words[2], stopped, batches, [])
    if alone.read_bytes() != stopped.read_bytes():
        raise RuntimeError("the table of the run that was killed differs from that of the one left alone")
    if kept(stopped):
        raise RuntimeError("batches were left beside the whole table")
    figures = {
        "ratio": whole.peaks[1.0] / whole.peaks[EARLY],
        "peak_mb": whole.peaks[1.0],
        "early_mb": whole.peaks[EARLY],
        "images": images,
        "images_per_second": images / whole.seconds,
        "kills": kills,
        "identical": 1,
    }
    _print(figures, batches)
    return figures


def _print(figures: dict[str, Any], batches: int) -> None:
    table = Table(title=f"{figures['images']} images under {', '.join(REWARDS)}")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_row("largest memory when a tenth was scored", f"{figures['early_mb']:.0f} MB")
    table.add_row("largest memory at the end", f"{figures['peak_mb']:.0f} MB")
    table.add_row("images per second, one process, table and summary included", f"{figures['images_per_second']:.0f}")
    table.add_row(f"killed with so many of {batches} batches kept", ", ".join(map(str, figures["kills"])))
    table.add_row("table of the killed run against that of the one left alone", "same bytes")
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="?", type=int, default=IMAGES, help=f"how many; default {IMAGES}")
    run(parser.parse_args().images)
