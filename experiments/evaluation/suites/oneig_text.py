"""OneIG-Bench's text: how exactly the texts that a prompt asks for stand in the images (arXiv:2506.07977).

`compat=published` is the public script's arithmetic, `fixed` repairs its faults: see `oneig_counts`. Published, a black
picture, which stands for one that could not be made, takes no part; fixed, it is an image without text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.oneig_counts import text_counts, text_score
from xomni_rl.experiments.evaluation.questions import quarter
from xomni_rl.experiments.evaluation.readings import ReadingSuite
from xomni_rl.experiments.evaluation.suite import Combined, Figure, Row, Sample, published_file, suites
from xomni_rl.prompt_sets.tables import open_table
from xomni_rl.prompts import Prompt, PromptError, script_language, usable_prompts
from xomni_rl.prompts import Row as FileRow

ORIGIN = (
    "OneIG-Bench's texts are scripts/text/text_content.csv or text_content_zh.csv of github.com/OneIG-Bench/OneIG-Benchmark"
)
PROMPT_COLUMNS = ("prompt_en", "prompt_cn")


@suites.register("oneig_text")
class OneIgText(ReadingSuite):
    """OneIG-Bench's text, English or Chinese: edit distance, completion and words of the texts asked for, and their score.

    Args:
        grid: image files hold 2×2 pictures, called like the prompt, as the published script wants them.
        others: as in `ReadingSuite`.
    """

    name = "oneig_text"
    origin = ORIGIN
    category = ""

    def __init__(
        self,
        language: str | None = None,
        compat: str = "published",
        engine: str = "rapidocr",
        layout: str = "auto",
        engine_options: Mapping[str, Any] | None = None,
        min_confidence: float = 0.5,
        grid: bool = False,
    ) -> None:
        super().__init__(language, compat, engine, layout, engine_options, min_confidence)
        self.grid = grid

    def prompts(self, path: Path | None) -> list[Prompt]:
        """Of one of the two files; they can be drawn if it has the column of prompts."""
        file = published_file(self.name, path, self.origin)
        table = open_table(file)
        columns = table.names or []
        if not {"id", "text_content"} <= set(columns):
            raise EvaluationError(f"{file}: has no columns id and text_content; {ORIGIN}")
        wording = next((name for name in PROMPT_COLUMNS if name in columns), "")
        self.draws = bool(wording)
        used = ["id", "text_content", *filter(None, [wording])]
        found = list(usable_prompts(_rows(file, table.records(used), wording)))
        letters = "\n".join(text for prompt in found for text in prompt.texts)
        self.language = self.language or ("zh" if script_language(letters) == "zh" else "en")
        return found

    def names(self, prompt: Prompt, number: int, count: int) -> tuple[str, ...]:
        """ID_1, or with grid ID; also in a folder `text`."""
        names = (prompt.id,) if self.grid else super().names(prompt, number, count)
        return (*names, *(f"text/{name}" for name in names))

    def read(self, image: np.ndarray, number: int) -> np.ndarray:
        return quarter(image, number) if self.grid else image

    def facts(self, prompt: Prompt) -> Row:
        return {"target": "\n".join(prompt.texts)}

    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        texts, failures = self.texts_in(images)
        rows: list[Row] = []
        for index, (image, read, sample) in enumerate(zip(images, texts, samples, strict=True)):
            if index in failures:
                rows.append({"error": failures[index]})
                continue
            cell, language = sample.prompt.metadata["cell"], self.language or "en"
            counted = text_counts(read, cell, sample.prompt.texts, language, self.compat)
            applies = image.any() if self.compat == "published" else counted.total > 0
            numbers = {**counted._asdict(), "complete": counted.distance == 0}
            rows.append({name: float(value) if applies else None for name, value in numbers.items()} | {"read": read})
        return rows

    def figures(self) -> tuple[Figure | Combined, ...]:
        distance = Figure("edit distance", "distance", higher_is_better=False)
        parts = (distance, Figure("completion", "complete"), Figure("words", "matched", "total"))
        text = Combined("text", parts, partial(text_score, language=self.language or "en"))
        return (text, *parts[1:], distance)


def _rows(file: Path, records: Iterator[tuple[int, Any]], wording: str) -> Iterator[FileRow]:
    for number, record in records:
        try:
            if isinstance(record, PromptError):
                raise record
            cell = record["text_content"]
            prompt: Prompt | PromptError = Prompt(
                id=record["id"], text=record[wording] if wording else record["id"], texts=_texts(cell), metadata={"cell": cell}
            )
        except PromptError as error:
            prompt = error
        yield FileRow(str(file), number, prompt)


def _texts(cell: str) -> tuple[str, ...]:
    """The strings of a list as Python writes it; a cell that is none is one text. Raises: PromptError if there is no text."""
    try:
        found = ast.literal_eval(cell) if cell.startswith("[") else [cell]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = [cell]
    texts = tuple(text for text in found if isinstance(text, str) and text.strip())
    if not texts:
        raise PromptError('the column "text_content" holds no text')
    return texts
