"""Writes a comparison: tables, curves, grid and page."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from xomni_rl.experiments.ablation.comparison import Comparison, Target, compare
from xomni_rl.experiments.ablation.curves import write_curves
from xomni_rl.experiments.ablation.folder import PAGE, check_folder
from xomni_rl.experiments.ablation.grids import write_grid
from xomni_rl.experiments.ablation.page import write_page
from xomni_rl.experiments.ablation.tables import csv_table, latex, markdown
from xomni_rl.experiments.report.data import ReportError


def write_comparison(
    groups: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    metrics: Sequence[str] = (),
    targets: Sequence[Target] = (),
    notes: Sequence[str] = (),
    cost_notes: Sequence[str] = (),
) -> tuple[Comparison, list[Path]]:
    """Compares run folders and writes table.csv, .md and .tex, curves_*.png and .svg, grid.png and comparison.html.

    Args:
        groups, metrics, targets, notes, cost_notes: as `comparison.compare` takes them.
        out: folder to write to; made if need be. Files are written beside and renamed.
    Returns: the comparison, and the files.
    Raises: ReportError as `compare` and `check_folder` do, or if the folder cannot be written to.
    """
    check_folder(out)
    found = compare(groups, metrics=metrics, targets=targets, notes=notes, cost_notes=cost_notes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".comparison.") as name:
            beside = Path(name)
            written = [write_page(found, beside / PAGE)]  # renamed first: it says whose the others are
            for file, text in (("table.csv", csv_table(found)), ("table.md", markdown(found)), ("table.tex", latex(found))):
                written.append(beside / file)
                written[-1].write_text(text, encoding="utf-8")
            written += write_curves(found, beside) + write_grid(found, beside / "grid.png")
            for path in written:
                os.replace(path, out / path.name)
    except OSError as error:
        raise ReportError(f"cannot write the comparison to {out} ({error.strerror}): choose another folder") from error
    return found, [out / path.name for path in written]
