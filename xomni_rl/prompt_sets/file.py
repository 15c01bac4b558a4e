"""Prompts from a researcher's own file, split into training and held-out ones that can never share a text."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from xomni_rl.prompts import Prompt, PromptError, load_prompts, prompt_sets


@prompt_sets.register("file")
def prompts_from_file(
    split: str,
    count: int,
    seed: int,
    path: str | Path | None = None,
    heldout_path: str | Path | None = None,
    heldout_share: float = 0.1,
) -> list[Prompt]:
    """Prompts of a .jsonl or .txt file; held-out ones by the hash of their text, or from a second file.

    Args:
        split: "train" or "heldout".
        count: at most this many are returned, and fewer when the split holds fewer.
        seed: order, and so which ones when there are more than `count`.
        path: the file.
        heldout_path: the held-out prompts' own file; None = split `path` by the hash of each text, so that a line
            added or moved leaves the other lines where they were.
        heldout_share: share of texts that are held out of `path`, in (0, 1).
    Raises: PromptError for a bad line ("file:line: reason"), an empty split, or a text that is in both files;
        ValueError for bad options.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be train or heldout, got {split!r}")
    if path is None:
        raise ValueError('prompt set "file" needs path, for example prompts.options.path=prompts.jsonl')
    if not 0 < heldout_share < 1:
        raise ValueError(f"heldout_share must be between 0 and 1, got {heldout_share}")
    if heldout_path is None:
        wanted = split == "heldout"
        prompts = [prompt for prompt in load_prompts(path) if _is_heldout(prompt.text, heldout_share) == wanted]
    else:
        prompts = _load_apart(path, heldout_path)[split]
    if not prompts:
        hint = "give heldout_path, or another heldout_share" if heldout_path is None else "its file is empty"
        raise PromptError(f"{path}: there are no prompts for the split {split}; {hint}")
    order = np.random.default_rng(seed).permutation(len(prompts))
    return [prompts[index] for index in order[:count]]


def _is_heldout(text: str, share: float) -> bool:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _load_apart(path: str | Path, heldout_path: str | Path) -> dict[str, list[Prompt]]:
    """Both files' prompts; held-out ids that occur in training too get a prefix, because they seed random streams.

    Raises: PromptError if a text is in both.
    """
    splits = {"train": load_prompts(path), "heldout": load_prompts(heldout_path)}
    for what in ("text", "id"):
        shared = {getattr(p, what) for p in splits["train"]} & {getattr(p, what) for p in splits["heldout"]}
        if shared and what == "text":
            raise PromptError(f'{heldout_path}: {len(shared)} text(s) are in {path} too, such as "{min(shared)}"')
        if shared:
            splits["heldout"] = [replace(prompt, id=f"heldout-{prompt.id}") for prompt in splits["heldout"]]
    return splits
