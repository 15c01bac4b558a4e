"""What the sets of benchmark files share: a benchmark is for evaluation, so all of it is held out unless one says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xomni_rl.prompt_sets.cleaning import Cleaning
from xomni_rl.prompt_sets.splitting import Source, check_split, drawn, read_split
from xomni_rl.prompts import Prompt, PromptError, Row, decoded, filled_lines, json_object

ALL = 1.0
ReadRecord = Callable[[dict[str, Any], int], Prompt]
"""callable(object of a line, its position from 0) -> prompt; raises PromptError, or KeyError for a missing key."""


def benchmark_prompts(
    owner: str,
    split: str,
    count: int,
    seed: int,
    rows: Callable[[Path], Iterator[Row]],
    path: str | Path | None,
    heldout_share: float,
    origin: str,
    cleaning: Mapping[str, Any],
) -> list[Prompt]:
    """Prompts of a benchmark's file or folder.

    Args:
        owner: name of the prompt set.
        split, count, seed: as every prompt set has them.
        rows: the rows of a path that exists.
        path: the file or folder.
        heldout_share: 1 = the benchmark is held out whole, and nothing of it may be trained on.
        origin: where such files come from, for the message that none is there.
        cleaning: options of `Cleaning`.
    Raises: PromptError for a bad row, a missing path, or the split train of a benchmark that is held out whole; ValueError
        for bad options.
    """
    check_split(split)
    if path is None:
        raise ValueError(f'prompt set "{owner}" needs path: prompts.options.path=PATH; {origin}')
    if not Path(path).exists():
        raise PromptError(f"{path}: there is no such file or folder; {origin}")
    kept = Cleaning.from_options(owner, cleaning, ("path", "heldout_share"))
    if split == "train" and heldout_share == ALL:
        raise PromptError(
            f"{path}: {owner} is a benchmark and held out whole; train on other prompts (prompts=mixture takes it under "
            "heldout_sources), or on a part of it with prompts.options.heldout_share=0.5"
        )
    return read_split(Source(str(path), lambda: rows(Path(path)), heldout_share=heldout_share), split, kept, drawn(count, seed))


def json_rows(path: Path, read: ReadRecord) -> Iterator[Row]:
    """The lines of a benchmark's JSON-lines file as rows."""
    for position, (number, raw) in enumerate(filled_lines(path)):
        try:
            prompt: Prompt | PromptError = read(json_object(decoded(raw)), position)
        except KeyError as error:
            prompt = PromptError(f"the key {str(error).replace(chr(39), chr(34))} is missing")
        except PromptError as error:
            prompt = error
        yield Row(str(path), number, prompt)
