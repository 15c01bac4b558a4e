"""Prompts from Hugging Face `datasets`: a saved folder, a folder of data files, or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xomni_rl.prompt_sets.cleaning import Cleaning
from xomni_rl.prompt_sets.splitting import Source, check_split, drawn, read_split
from xomni_rl.prompt_sets.tables import Columns, flat, prompt_of
from xomni_rl.prompts import Prompt, PromptError, Row, prompt_sets


@prompt_sets.register("datasets")
def prompts_from_datasets(
    split: str,
    count: int,
    seed: int,
    path: str | Path | None = None,
    name: str | None = None,
    part: str = "train",
    heldout_part: str | None = None,
    heldout_share: float = 0.1,
    columns: Mapping[str, Any] | None = None,
    **cleaning: Any,
) -> list[Prompt]:
    """Prompts of a Hugging Face dataset, local or on the hub; held-out ones by the hash of their text, or from another part.

    Rows are streamed: a hub dataset is not downloaded whole, and no more than `count` prompts are kept. Only the columns
    that are needed are read. No code of a dataset is run.

    Args:
        split: "train" or "heldout".
        count: at most this many are returned.
        seed: order, and so which ones when there are more than `count`.
        path: a folder that `save_to_disk` wrote, a folder of parquet, CSV or JSON files, or a name on the hub.
        name: which configuration of the dataset.
        part: which of its splits to read ("train", "validation", …).
        heldout_part: the one that is held out; None = `part` is split by the hash of each text.
        heldout_share: share of texts that are held out of `part`, in (0, 1].
        columns: field of a prompt → column, as `table` has them.
        cleaning: options of `Cleaning`.
    Raises: PromptError for a bad row, a dataset that cannot be read, or the missing library; ValueError for bad options.
    """
    check_split(split)
    if path is None:
        raise ValueError('prompt set "datasets" needs path, for example prompts.options.path=FOLDER (or a name on the hub)')
    others = ("path", "name", "part", "heldout_part", "heldout_share", "columns")
    kept, where = Cleaning.from_options("datasets", cleaning, others), Columns(dict(columns or {}))
    source = Source(
        f"{path} [{part}]",
        lambda: dataset_rows(path, name, part, where),
        heldout_name=f"{path} [{heldout_part}]",
        heldout_rows=None if heldout_part is None else lambda: dataset_rows(path, name, heldout_part, where),
        heldout_share=heldout_share,
    )
    return read_split(source, split, kept, drawn(count, seed))


def dataset_rows(path: str | Path, name: str | None, part: str, columns: Columns) -> Iterator[Row]:
    """The rows of one part of a dataset.

    Raises: PromptError if the library is missing, or the dataset, the part or a column is not there.
    """
    try:
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError as error:
        raise PromptError(f'{path}: the prompt set "datasets" needs a library: pip install datasets') from error
    place, number = f"{path} [{part}]", 0
    try:
        dataset = _open(path, name, part)
        names = columns.among(dataset.column_names, place)
        for record in dataset.select_columns(flat(names)) if dataset.column_names else dataset:
            yield Row(place, number + 1, prompt_of(record, names, f"{number:04d}", is_text=False), "row")
            number += 1
    except PromptError:
        raise
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        after = f" after row {number}" if number else ""
        hint = "" if Path(path).exists() else "; there is no such folder here, and a name on the hub needs the network"
        raise PromptError(f"{place}: cannot be read{after}: {error}{hint}") from error


def _open(path: str | Path, name: str | None, part: str) -> Any:
    """An iterable dataset with `column_names`; a saved one is read from its memory-mapped files."""
    import datasets

    folder = Path(path)
    if (folder / "dataset_dict.json").exists():
        parts = datasets.load_from_disk(str(path))
        if part not in parts:
            raise PromptError(f'{path}: there is no part "{part}"; its parts: {", ".join(parts)}; prompts.options.part=NAME')
        return parts[part]
    if (folder / "state.json").exists():
        if part != "train":
            raise PromptError(f'{path}: this folder holds one dataset without parts, which is read as "train", not as "{part}"')
        return datasets.load_from_disk(str(path))
    return datasets.load_dataset(str(path), name, split=part, streaming=True)
