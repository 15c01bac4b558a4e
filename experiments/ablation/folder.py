"""Whether a comparison may be written to a folder, found out before the work; loads nothing that draws."""

from __future__ import annotations

from pathlib import Path

from xomni_rl.experiments.ablation.runs import AXES
from xomni_rl.experiments.own_files import foreign_file
from xomni_rl.experiments.report.data import ReportError

PAGE = "comparison.html"
FILES = (
    *("table.csv", "table.md", "table.tex", "grid.png"),
    *(f"curves_{axis}.{kind}" for axis in AXES for kind in ("png", "svg")),
)


def check_folder(out: Path) -> None:
    """Raises ReportError if a folder holds files of a comparison's names, and no comparison that they could be of."""
    if foreign := foreign_file(out, FILES, PAGE):
        raise ReportError(
            f"{foreign} would be replaced and is of no comparison ({out} has no {PAGE}): choose another folder, or move it away"
        )
