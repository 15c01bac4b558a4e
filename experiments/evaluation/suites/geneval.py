"""GenEval: objects, counts, colours and positions, found by a detector (arXiv:2310.11513)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.experiments.evaluation.longtext_counts import check_choices
from xomni_rl.experiments.evaluation.suite import (
    Figure,
    Row,
    Sample,
    Suite,
    number_or_none,
    published_file,
    reward_scores,
    suites,
)
from xomni_rl.prompt_sets.geneval import ORIGIN, rows
from xomni_rl.prompts import Prompt, usable_prompts
from xomni_rl.rewards.rules import RulesReward

PUBLISHED = {"threshold": 0.3, "counting_threshold": 0.9, "overlap": 1.0}
"""The published script's, which are its own detector's (Mask2Former's)."""


@suites.register("geneval")
class GenEval(Suite):
    """GenEval's 553 prompts: is all there that is asked for, in its number, colour and place? Mean of the tasks' scores.

    Args:
        compat: published: the published thresholds (0.3, for counting 0.9) and no removal of duplicate boxes, made for another
            detector than any here; fixed: those of the reward `rules`.
        weights: detector in transformers' layout; None = PekingU/rtdetr_v2_r101vd.
        threshold, counting_threshold, overlap: instead of those that `compat` sets.
        colour_model, colour_weights: open_clip's model that tells colours, as published (ViT-L-14, openai); None = pixels.
        device, dtype, batch_size: of the detector.
    Raises: EvaluationError, ValueError for values that there are not.
    """

    name = "geneval"
    origin = ORIGIN

    def __init__(
        self,
        compat: str = "published",
        weights: str | None = None,
        threshold: float | None = None,
        counting_threshold: float | None = None,
        overlap: float | None = None,
        colour_model: str | None = None,
        colour_weights: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        check_choices("en", compat)
        given = {"threshold": threshold, "counting_threshold": counting_threshold, "overlap": overlap}
        own: dict[str, Any] = PUBLISHED if compat == "published" else {}
        chosen = own | {key: value for key, value in given.items() if value is not None}
        self.rules = RulesReward(
            mode="all",
            weights=weights,
            colour_model=colour_model,
            colour_weights=colour_weights,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            **chosen,
        )

    def prompts(self, path: Path | None) -> list[Prompt]:
        return list(usable_prompts(rows(published_file(self.name, path, self.origin))))

    def names(self, prompt: Prompt, number: int, count: int) -> tuple[str, ...]:
        """Flat, or as the published script lays them out: 00000/samples/0000.png."""
        return (*super().names(prompt, number, count), f"{prompt.id}/samples/{number - 1:04d}")

    def facts(self, prompt: Prompt) -> Row:
        return {"category": prompt.metadata["tag"]}

    def load(self) -> None:
        self.rules.detector.load()
        self.rules.load()

    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        result, failures = reward_scores(self.rules, images, [sample.prompt for sample in samples])
        found: list[Row] = []
        for index, (correct, detail) in enumerate(zip(result.scores, result.details, strict=True)):
            if index in failures:
                found.append({"error": failures[index]})
                continue
            checks = detail.get("checks", [])
            why = "; ".join(f"{check['asked']}: found {check['found']}" for check in checks if not check["holds"])
            found.append({"correct": number_or_none(correct), "wrong": why})
        return found

    def finish(self, rows: list[Row]) -> None:
        """Whether any image of the prompt is correct, which is published beside the score."""
        best: dict[str, float] = {}
        for row in rows:
            if row.get("correct") is not None:
                best[row["prompt_id"]] = max(best.get(row["prompt_id"], 0.0), row["correct"])
        for row in rows:
            row["any_correct"] = None if row.get("error") else best.get(row["prompt_id"])

    def figures(self) -> tuple[Figure, ...]:
        return (Figure("score", "correct", by="category"), Figure("images", "correct"), Figure("prompts", "any_correct"))
