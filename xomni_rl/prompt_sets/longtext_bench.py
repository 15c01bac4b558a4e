"""LongText-Bench's prompts with the texts that the image must show, in English and Chinese (arXiv:2507.22058)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xomni_rl.prompt_sets.benchmark import ALL, benchmark_prompts, json_rows
from xomni_rl.prompts import Prompt, PromptError, Row, prompt_sets, script_language

ORIGIN = "LongText-Bench's are the English and the Chinese JSON-lines file of X-Omni/LongText-Bench on the Hugging Face hub"


@prompt_sets.register("longtext_bench")
def longtext_bench(
    split: str, count: int, seed: int, path: str | Path | None = None, heldout_share: float = ALL, **cleaning: Any
) -> list[Prompt]:
    """LongText-Bench's prompts with the texts to be read in the image, from one of its files or a folder of both; all held out.

    A prompt's language is told by its script. Ids are those of the published images in each language, as en-0007.

    Args:
        split: "train" or "heldout"; training needs a `heldout_share` below 1.
        count: at most this many are returned.
        seed: order, and so which ones when there are more than `count`.
        path: a file with one object a line: {"prompt", "text": […], "prompt_id", "category", "length"}; or a folder of them.
        heldout_share: share that is held out, by the hash of each text.
        cleaning: options of `Cleaning`.
    Raises: PromptError for a bad line or a missing file; ValueError for bad options.
    """
    return benchmark_prompts("longtext_bench", split, count, seed, rows, path, heldout_share, ORIGIN, cleaning)


def rows(path: Path) -> Iterator[Row]:
    """The lines of the file, or of every .jsonl file of the folder in the order of their names."""
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        yield from json_rows(file, _prompt)


def _prompt(record: dict[str, Any], position: int) -> Prompt:
    number, text = record["prompt_id"], record["prompt"]
    if type(number) is not int or not isinstance(text, str):
        raise PromptError(f'"prompt_id" must be a whole number and "prompt" a string, got {number!r} and {text!r}')
    language = "zh" if script_language(text) == "zh" else "en"
    facts: dict[str, Any] = {key: record[key] for key in ("category", "length") if key in record}
    return Prompt(id=f"{language}-{number:04d}", text=text, texts=record["text"], language=language, metadata=facts)
