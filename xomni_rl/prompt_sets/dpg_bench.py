"""DPG-Bench's long prompts, one text file each (arXiv:2403.05135)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xomni_rl.prompt_sets.benchmark import ALL, benchmark_prompts
from xomni_rl.prompts import Prompt, PromptError, Row, decoded, prompt_sets

ORIGIN = "DPG-Bench's are the folder dpg_bench/prompts of github.com/TencentQQGYLab/ELLA"


@prompt_sets.register("dpg_bench")
def dpg_bench(
    split: str, count: int, seed: int, path: str | Path | None = None, heldout_share: float = ALL, **cleaning: Any
) -> list[Prompt]:
    """DPG-Bench's prompts from its folder of text files; ids are the files' names; all held out.

    The questions that its score asks about each image are not read.

    Args:
        split: "train" or "heldout"; training needs a `heldout_share` below 1.
        count: at most this many are returned.
        seed: order, and so which ones when there are more than `count`.
        path: the folder of .txt files, one prompt each.
        heldout_share: share that is held out, by the hash of each text.
        cleaning: options of `Cleaning`.
    Raises: PromptError for a bad file or a missing folder; ValueError for bad options.
    """
    return benchmark_prompts("dpg_bench", split, count, seed, rows, path, heldout_share, ORIGIN, cleaning)


def rows(path: Path) -> Iterator[Row]:
    """The files of the folder in the order of their names; each is one line.

    Raises: PromptError if it is no folder.
    """
    if not path.is_dir():
        raise PromptError(f"{path}: not a folder of .txt files; {ORIGIN}")
    for file in sorted(path.glob("*.txt")):
        try:
            prompt: Prompt | PromptError = Prompt(id=file.stem, text=" ".join(decoded(file.read_bytes()).split()))
        except PromptError as error:
            prompt = error
        yield Row(str(file), 1, prompt)
