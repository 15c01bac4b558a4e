"""The reward suite: a second reward on one backbone, a composite against its slowest part, a server against calling it."""

import json
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

PARTS = {
    "shared backbone": ("_shared_backbone", "two rewards on one CLIP model / one", "at most 1.15"),
    "composite": ("_composite", "all components / the slowest, or what the cores force", "at most 1.1"),
    "server": ("_server", "images per second served on loopback / in process", "at least 0.9"),
}


def run() -> dict[str, Any]:
    """Measures the three parts, each in a process of its own, so that memory and caches are its own, and prints a table.

    Returns: `ratio` of the shared backbone, and the figures of each part under its name.
    Raises: RuntimeError with a part's last words if it fails.
    """
    figures = {part: _measured(module) for part, (module, _, _) in PARTS.items()}
    table = Table("part", "what", "ratio", "asked", "memory")
    for part, (_, what, asked) in PARTS.items():
        row = figures[part]
        ratio = row["over_bound"] if part == "composite" else row["ratio"]
        memory = next((value for key, value in row.items() if key.startswith("memory")), None)
        table.add_row(part, what, f"{ratio:.3f}", asked, "" if memory is None else f"{memory:.0f} MB")
    server = figures["server"]
    table.add_row("", "p99 / median at 200 concurrent requests", f"{server['p99_over_median']:.2f}", "under 3", "")
    table.add_row("", "requests lost of those", f"{server['lost']}", "0", "")
    Console().print(table)
    return {"ratio": figures["shared backbone"]["ratio"], **figures}


def _measured(module: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"{__package__}.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr.strip().splitlines()[-1:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
