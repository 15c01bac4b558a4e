"""The README's picture: held-out prompts before and after training, and the held-out curve over the seeds.

`python -m xomni_rl.experiments.report.picture runs/seed0 runs/seed1 runs/seed2 --out docs/results/readme.png`

The pictures are the first prompts of the first run's fixed held-out grid, in order: nobody chose them.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from xomni_rl.experiments.ablation.curves import STYLE, draw_curve, heldout_curve, metric_label
from xomni_rl.experiments.ablation.grids import draw_sample
from xomni_rl.experiments.ablation.runs import applicable, common_metrics, common_prompts, curve, load_run
from xomni_rl.experiments.report.data import PREFERRED_HEADLINES, Pair, ReportError, read_run

ROWS, COLUMNS = 5, 2


def readme_picture(folders: Sequence[Path], out: Path, metrics: Sequence[str] = PREFERRED_HEADLINES) -> Path:
    """Draws the picture and writes it as PNG, beside and renamed.

    Args:
        folders: run folders, one per seed; the pictures come from the first.
        out: the PNG to write.
        metrics: held-out metrics of the curve.
    Raises: ReportError when the first run has no held-out pictures before and after, or a run no two evaluations.
    """
    pairs = [pair for pair in read_run(folders[0]).pairs if pair.after is not None and pair.after.image is not None]
    if not pairs:
        raise ReportError(f"{folders[0]} has no held-out pictures before and after")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 4.3), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        halves = figure.subfigures(1, 2, width_ratios=(1.25, 1.0), wspace=0.02, squeeze=False)[0]
        _draw_pairs(halves[0], pairs[: ROWS * COLUMNS])
        _draw_curve(halves[1], folders, metrics)
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(out.name + ".tmp")
        figure.savefig(beside, dpi=180, format="png", metadata={"Software": None})
    os.replace(beside, out)
    return out


def _draw_pairs(figure: SubFigure, pairs: Sequence[Pair]) -> None:
    """A grid of (before, after) pictures with what the OCR read under each."""
    rows = -(-len(pairs) // COLUMNS)
    ratios = [1.0, 1.0, 0.08, 1.0, 1.0]
    axes = figure.subplots(rows, len(ratios), squeeze=False, width_ratios=ratios)
    for axis in axes.flat:
        axis.axis("off")
    for number, pair in enumerate(pairs):
        row, column = number % rows, 3 * (number // rows)
        prompt = textwrap.shorten(pair.prompt, 46, placeholder="…")
        axes[row, column].set_title(prompt, fontsize=8.5, loc="left", pad=3, parse_math=False)
        draw_sample(axes[row, column], pair.before, "before")
        if pair.after is not None:
            draw_sample(axes[row, column + 1], pair.after, "after")


def _draw_curve(figure: SubFigure, folders: Sequence[Path], metrics: Sequence[str]) -> None:
    axis = figure.subplots()
    runs = [load_run(folder) for folder in folders]
    prompts = common_prompts(runs)
    for number, metric in enumerate(common_metrics(runs, metrics)[0]):
        points = curve(runs, metric, applicable(runs, metric, prompts))
        draw_curve(axis, heldout_curve(points, "step"), metric_label(metric), number, markers=True)
    axis.set_ylim(top=1.0)
    axis.set_xlabel("training step")
    seeds = "1 seed" if len(folders) == 1 else f"{len(folders)} seeds"
    axis.set_title(f"Held-out prompts, {seeds}, 95 % interval", loc="left", fontsize=10, fontweight="bold")
    axis.legend(loc="lower right")


def main(arguments: list[str] | None = None) -> int:
    """The command of the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m xomni_rl.experiments.report.picture")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, one per seed")
    parser.add_argument("--out", type=Path, default=Path("docs/results/readme.png"))
    options = parser.parse_args(arguments)
    try:
        print(readme_picture(options.folders, options.out))
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
