"""A config.json of a published folder, read before a library believes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGEST = 10**7
"""No width, count or size of a published model is larger; one that is would be memory asked for in vain."""
MOST_LAYERS = 1000
OUTSIDE = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "fusion_config",
    "auto_map",
    "transformers_weights",
)
"""Keys that make libraries fetch or run something outside of this folder's weights; they are left out."""


def read_config(path: Path, **expected: str) -> dict[str, Any]:
    """What a configuration says, without what would have code or other files looked for.

    Args:
        path: of the file.
        expected: what must be in it, such as the model's type; a library takes its defaults for what is missing.
    Raises: FileNotFoundError if there is none; ValueError if it is damaged, quantised or beyond all measure.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} lacks {path.name}: copy it again")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: copy it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged, it holds no table: copy it again")
    for key, value in expected.items():
        if config.get(key) != value:
            raise ValueError(
                f"{path} is damaged, or of another model: {key} is {config.get(key)!r}, not {value!r}; copy it again"
            )
    if config.get("quantization_config"):
        raise ValueError(f"{path} describes quantised weights, which are not read: give a folder with floating point ones")
    _check_measure(config, path)
    return {key: value for key, value in config.items() if key not in OUTSIDE}


def _check_measure(config: dict[str, Any], path: Path) -> None:
    for key, value in config.items():
        most = MOST_LAYERS if "layers" in key else LARGEST
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                _check_measure(each, path)
            elif isinstance(each, int) and each > most:
                raise ValueError(f"{path} is damaged, {key} is {each}: copy it again")


def first_problem(check: Callable[[], object]) -> str | None:
    """What a check raises, in one line; None if it raises nothing."""
    try:
        check()
    except Exception as error:  # libraries' errors about damaged files share no class
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


@contextmanager
def one_sentence(path: Path) -> Iterator[None]:
    """Turns what libraries raise over a damaged file into a ValueError that names it; their errors share no class."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = lines[-1].strip() if type(error).__name__.startswith("StrictDataclass") else lines[0]
        raise ValueError(f"{path} is damaged, or of another architecture: {said}; copy it again") from error
