"""The reward suite: a second reward on one backbone, a composite against its slowest part, a server against calling it."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

PARTS = {
    "shared backbone": ("_shared_backbone", "two rewards on one CLIP model / one", "at most 1.15"),
    "composite": ("_composite", "all components / the slowest, or what the cores force", "at most 1.1"),
    "server": ("_server", "images per second served on loopback / in process", "at least 0.9"),
}


_PROGRAM = "import sys, json, {module} as part; print(json.dumps(part.measure(**json.loads(sys.argv[1])), default=float))"


def run(options: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Measures the three parts, each in a process of its own, so that memory and caches are its own, and prints a table.

    Args:
        options: part → arguments of its `measure`, such as a smaller batch.
    Returns: `ratio` of the shared backbone, and the figures of each part under its name.
    Raises: RuntimeError with a part's last words if it fails.
    """
    figures = {part: _measured(module, (options or {}).get(part, {})) for part, (module, _, _) in PARTS.items()}
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


def _measured(module: str, options: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-c", _PROGRAM.format(module=f"{__package__}.{module}"), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module.strip('_')}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
