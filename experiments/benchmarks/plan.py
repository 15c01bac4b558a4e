"""Peak memory of a training step as planned, against what it takes in a fresh process."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from xomni_rl.experiments.planning.check import CASES, compare


def run() -> dict[str, float]:
    """Measures every case of `xomni_rl.experiments.planning.check`.

    Returns: `ratio`, planned / measured of the case that is furthest off, and that of each case under its name.
    """
    table = Table(title="a training step on the CPU, MiB above the loaded libraries")
    table.add_column("case")
    for column in ("part", "planned", "measured", "planned / measured"):
        table.add_column(column, justify="right")
    ratios: dict[str, float] = {}
    for case in CASES:
        for part, row in compare(case).items():
            table.add_row(case.name, part, f"{row['planned']:.0f}", f"{row['measured']:.0f}", f"{row['ratio']:.2f}")
            if part == "peak":
                ratios[case.name] = row["ratio"]
    Console().print(table)
    return {"ratio": max(ratios.values(), key=lambda ratio: max(ratio, 1 / ratio)), **ratios}
