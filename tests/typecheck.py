"""Runs mypy on the whole package: `python -m tests.typecheck [mypy's options]` from the repository's root.

The rooms are installed as subpackages by setuptools' package-dir, which mypy does not know. So it is shown a tree of
symbolic links laid out as the installed package is, and its messages are given back with the real paths.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / ".mypy_cache" / "tree"  # always the same place, so that mypy's cache stays valid
ROOMS = ("rewards", "envs", "policies", "experiments")


def linked_tree() -> Path:
    """A fresh folder with `xomni_rl` as it is installed: links to the package's own entries and to the rooms."""
    shutil.rmtree(TREE, ignore_errors=True)
    package = TREE / "xomni_rl"
    package.mkdir(parents=True)
    for entry in (ROOT / "xomni_rl").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for room in ROOMS:
        (package / room).symlink_to(ROOT / room)
    return TREE


def real_paths(text: str) -> str:
    """mypy's messages with the tree's paths replaced by those relative to the root."""
    tree = re.escape(os.path.relpath(TREE, ROOT))
    text = re.sub(rf"(?:{re.escape(str(ROOT))}/)?{tree}/xomni_rl/({'|'.join(ROOMS)})/", r"\1/", text)
    return re.sub(rf"(?:{re.escape(str(ROOT))}/)?{tree}/", "", text)


def main(arguments: list[str]) -> int:
    """mypy's exit status."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "pyproject.toml",
        "-p",
        "xomni_rl",
        *arguments,
    ]
    environment = {**os.environ, "MYPYPATH": str(linked_tree())}
    ran = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=False)
    print(real_paths(ran.stdout), end="")
    return ran.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
