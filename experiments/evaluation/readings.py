"""What suites share that read the text in images: the reader, and what it read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.longtext_counts import check_choices
from xomni_rl.experiments.evaluation.suite import Suite
from xomni_rl.rewards.ocr_readers import build_reader


class ReadingSuite(Suite):
    """A suite whose images are read.

    Args:
        language: en or zh; None = that of the file.
        compat: published or fixed, see the suite's module.
        engine, layout, engine_options: the reader, as in the reward `ocr`; for a served model engine=vlm with
            engine_options={backend: server, url: …, model: …}.
        min_confidence: lines read with less are left out; readers that state none leave out nothing.
    Raises: EvaluationError, ValueError for values that there are not.
    """

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

    def load(self) -> None:
        self.reader.load()

    def texts_in(self, images: list[np.ndarray]) -> tuple[list[str], Mapping[int, str]]:
        """What was read in each image, line by line, and index → reason of those that the reader failed on."""
        pages, failures = self.reader.read(images)
        least = self.min_confidence
        kept = [[line.text for line in page if line.confidence is None or line.confidence >= least] for page in pages]
        return ["\n".join(lines) for lines in kept], failures
