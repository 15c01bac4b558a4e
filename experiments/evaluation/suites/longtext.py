"""LongText-Bench: how much of the long texts that a prompt asks for can be read in the images (arXiv:2507.22058)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.longtext_counts import counts
from xomni_rl.experiments.evaluation.readings import ReadingSuite
from xomni_rl.experiments.evaluation.suite import Figure, Row, Sample, published_file, suites
from xomni_rl.prompt_sets.longtext_bench import ORIGIN, rows
from xomni_rl.prompts import Prompt, usable_prompts


@suites.register("longtext")
class LongText(ReadingSuite):
    """LongText-Bench, English or Chinese: words or characters read over those wanted, summed over all images.

    Args: as in `ReadingSuite`; what compat means: see `longtext_counts`.
    """

    name = "longtext"
    origin = ORIGIN

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

    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        texts, failures = self.texts_in(images)
        found: list[Row] = []
        for index, (read, sample) in enumerate(zip(texts, samples, strict=True)):
            if index in failures:
                found.append({"error": failures[index]})
                continue
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
