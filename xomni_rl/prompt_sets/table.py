"""Prompts from parquet, CSV, TSV or JSON-lines files with columns of any name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xomni_rl.prompt_sets.cleaning import Cleaning
from xomni_rl.prompt_sets.splitting import Source, check_split, drawn, read_split
from xomni_rl.prompt_sets.tables import Columns, table_rows
from xomni_rl.prompts import Prompt, prompt_sets


@prompt_sets.register("table")
def prompts_from_table(
    split: str,
    count: int,
    seed: int,
    path: str | Path | None = None,
    heldout_path: str | Path | None = None,
    heldout_share: float = 0.1,
    columns: Mapping[str, Any] | None = None,
    **cleaning: Any,
) -> list[Prompt]:
    """Prompts of parquet, CSV, TSV or JSON-lines files with columns of any name; held-out ones as `file` has them.

    Files are read a piece at a time, and no more than `count` prompts are kept.

    Args:
        split: "train" or "heldout".
        count: at most this many are returned.
        seed: order, and so which ones when there are more than `count`.
        path: a file, or a folder whose files are read in the order of their names.
        heldout_path: the same for the held-out prompts; None = `path` is split by the hash of each text.
        heldout_share: share of texts that are held out of `path`, in (0, 1].
        columns: field of a prompt → column, such as {text: caption, texts: words, id: key, metadata: [url, score]}; fields
            that are not named come from the columns of their own names, and other columns are not read.
        cleaning: options of `Cleaning`.
    Raises: PromptError for a bad row ("file, row 12: reason"), a column that is not there, or an empty split; ValueError for
        bad options.
    """
    check_split(split)
    if path is None:
        raise ValueError('prompt set "table" needs path, for example prompts.options.path=captions.parquet')
    kept = Cleaning.from_options("table", cleaning, ("path", "heldout_path", "heldout_share", "columns"))
    where = Columns(dict(columns or {}))
    source = Source(
        str(path),
        lambda: table_rows(path, where),
        heldout_name=str(heldout_path),
        heldout_rows=None if heldout_path is None else lambda: table_rows(heldout_path, where),
        heldout_share=heldout_share,
    )
    return read_split(source, split, kept, drawn(count, seed))
