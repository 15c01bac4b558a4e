"""What tests of whole runs ask of a configuration and of the folder it made."""

from pathlib import Path
from typing import Any

from xomni_rl.policies.records import read_rows


def rows(config: dict[str, Any]) -> list[dict[str, Any]]:
    """metrics.jsonl of the configuration's run."""
    return read_rows(Path(config["run"]) / "metrics.jsonl")


def with_reward(config: dict[str, Any], function: str, **more: Any) -> dict[str, Any]:
    """The configuration with another of the cheap rewards."""
    file = config["reward"]["components"]["red"]["reward"].rpartition(":")[0]
    return config | {"reward": {"components": {"red": {"reward": f"{file}:{function}"}}, **more}}
