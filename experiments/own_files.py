"""Whose files an output folder holds: those of an earlier call are replaced, somebody else's are not."""

from collections.abc import Iterable
from pathlib import Path


def foreign_file(folder: Path, names: Iterable[str], mark: str) -> Path | None:
    """The first of `names` in a folder without `mark`, which every earlier call left there; None = all may be written."""
    if (folder / mark).exists():
        return None
    return next((folder / name for name in names if (folder / name).exists()), None)
