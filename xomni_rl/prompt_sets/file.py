"""Prompts from a researcher's own file, split into training and held-out ones that can never share a text."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.prompt_sets.cleaning import Cleaning
from xomni_rl.prompt_sets.splitting import Source, check_split, read_split
from xomni_rl.prompts import Prompt, line_rows, prompt_sets


@prompt_sets.register("file")
def prompts_from_file(
    split: str,
    count: int,
    seed: int,
    path: str | Path | None = None,
    heldout_path: str | Path | None = None,
    heldout_share: float = 0.1,
    **cleaning: Any,
) -> list[Prompt]:
    """Prompts of a .jsonl or .txt file; held-out ones by the hash of their text, or from a second file.

    Args:
        split: "train" or "heldout".
        count: at most this many are returned, and fewer when the split holds fewer.
        seed: order, and so which ones when there are more than `count`.
        path: the file.
        heldout_path: the held-out prompts' own file; None = split `path` by the hash of each text, so that a line
            added or moved leaves the other lines where they were.
        heldout_share: share of texts that are held out of `path`, in (0, 1].
        cleaning: options of `Cleaning`.
    Raises: PromptError for a bad line ("file:line: reason"), an empty split, or a text that is in both files;
        ValueError for bad options.
    """
    check_split(split)
    if path is None:
        raise ValueError('prompt set "file" needs path, for example prompts.options.path=prompts.jsonl')
    kept = Cleaning.from_options("file", cleaning, ("path", "heldout_path", "heldout_share"))
    source = Source(
        str(path),
        lambda: line_rows(path),
        heldout_name=str(heldout_path),
        heldout_rows=None if heldout_path is None else lambda: line_rows(heldout_path),
        heldout_share=heldout_share,
    )

    def shuffled(prompts: Iterable[Prompt]) -> list[Prompt]:
        found = list(prompts)
        return [found[index] for index in np.random.default_rng(seed).permutation(len(found))[:count]]

    return read_split(source, split, kept, shuffled)
