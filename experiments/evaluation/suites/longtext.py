"""LongText-Bench: how much of the long texts that a prompt asks for can be read in the images (arXiv:2507.22058)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.longtext_counts import check_choices, counts
from xomni_rl.experiments.evaluation.suite import Figure, Row, Sample, Suite, published_file, suites
from xomni_rl.prompt_sets.longtext_bench import ORIGIN, rows
from xomni_rl.prompts import Prompt, usable_prompts
from xomni_rl.rewards.ocr_readers import build_reader


@suites.register("longtext")
class LongText(Suite):
    """LongText-Bench, English or Chinese: words or characters read over those wanted, summed over all images.

    Args:
        language: en counts words, zh characters; None = that of the file.
        compat: published or fixed, see `longtext_counts`.
        engine, layout, engine_options: the reader, as in the reward `ocr`; for a served model engine=vlm with
            engine_options={backend: server, url: …, model: …}.
        min_confidence: lines read with less are left out; readers that state none leave out nothing.
    Raises: EvaluationError, ValueError for values that there are not.
    """

    name = "longtext"
    origin = ORIGIN

    def __init__(
        self,
        language: str | None = None,
        compat: str = "published",
        engine: str = "rapidocr",
        layout: str = "auto",
        engine_options: Mapping[str, Any] | None = None,
        min_confidence: float = 0.5,
    ) -> None:
        check_choices(language or "en", compat)
        if not isinstance(min_confidence, int | float) or not 0 <= min_confidence <= 1:
            raise EvaluationError(f"option min_confidence must be in [0, 1], got {min_confidence!r}")
        self.language, self.compat, self.min_confidence = language, compat, min_confidence
        self.reader = build_reader(engine, layout, None, None, engine_options or {})

    def prompts(self, path: Path | None) -> list[Prompt]:
        file = published_file(self.name, path, self.origin)
        found = list(usable_prompts(rows(file)))
        languages = sorted({self.language or prompt.language for prompt in found})
        if len({prompt.language for prompt in found}) > 1:
            raise EvaluationError(f"{file}: holds both languages, whose images have the same names; give one of its files")
        self.language = (languages or ["en"])[0]
        return found

    def names(self, prompt: Prompt, number: int, count: int) -> tuple[str, ...]:
        return (f"{prompt.id.rpartition('-')[2]}_{number}",)

    def facts(self, prompt: Prompt) -> Row:
        return {
            "category": prompt.metadata.get("category", "none"),
            "length": prompt.metadata.get("length", ""),
            "target": "\n".join(prompt.texts),
        }

    def load(self) -> None:
        self.reader.load()

    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        pages, failures = self.reader.read(images)
        found: list[Row] = []
        for index, (page, sample) in enumerate(zip(pages, samples, strict=True)):
            if index in failures:
                found.append({"error": failures[index]})
                continue
            read = "\n".join(line.text for line in page if line.confidence is None or line.confidence >= self.min_confidence)
            matched, total, extent = counts(read, sample.prompt.texts, self.language or "en", self.compat)
            numbers = {"matched": matched, "total": total, "read_units": extent, "twice": 2 * matched, "both": total + extent}
            row: Row = {name: float(value) if total else None for name, value in numbers.items()}
            found.append(row | {"read": read})
        return found

    def figures(self) -> tuple[Figure, ...]:
        score = Figure("score", "matched", "total")
        if self.compat == "published":
            return (score,)
        return (score, Figure("precision", "matched", "read_units"), Figure("f1", "twice", "both"))
