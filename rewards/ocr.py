"""Is the requested text legible in the image? Read by the PP-OCR models of the rapidocr wheel.

Scores      how close the read text is to the requested one, in [0, 1]; higher is better; a blank image scores 0.
Not applicable (NaN)  to a prompt that asks for no text.
Cost        about 10 ms of one core per clear 32×96 sign (`layout=line`), up to twice that for unclear ones, which are read
            twice; detection adds 10–300 ms per image (`layout=auto`).
Weights     PP-OCR, Apache-2.0, inside the rapidocr wheel; nothing is downloaded.
Ways to hack it  text that only this reader can read (score held-out images with another one); with `recall`, a page of spam
            that contains the target; with `precision`, one right word out of many.
Source      departs from the reward in common use (first straight-quoted span only; 1 if the target is a substring; 0 on
            an exception): all spans count, the whole read text counts, and a failure is an error.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt, quoted_spans
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import Reward, RewardError, RewardResult, rewards
from xomni_rl.rewards.ocr_engine import Line, OcrEngine, OcrEngineError
from xomni_rl.rewards.text_metrics import METRICS, UNICODE_FORMS, joined_target, normalise_text

_NO_TARGET = "the prompt asks for no text"
_EXTRA_METRICS = {"exact": METRICS["exact"], "char": METRICS["edit"]}


@rewards.register("ocr")
class OcrReward(Reward):
    """How well the requested text can be read in the image, by PP-OCR.

    Args:
        metric: edit (1 − distance / longer length), exact, cer (1 − distance / target length, cut at 0), or precision,
            recall, f1 over words (CJK: characters).
        layout: "line" if every image is one line of text (recognition only), "auto" to find the lines first.
        ignore_case: compare without case.
        unicode: Unicode normal form in which texts are compared: NFKC, NFC or none.
        min_confidence: drop lines read with less; None = 0 for `line`, 0.5 for `auto` (stray marks are read as text).
        model_path: another PaddleOCR recognition model in ONNX, with its alphabet in the metadata; None = the wheel's.
        workers: threads; None = usable cores.
    Raises: ValueError for another metric, layout or form, or numbers out of range.
    """

    name = "ocr"
    version = "1"
    range = (0.0, 1.0)
    higher_is_better = True
    needs = ("texts", "text")
    cost = "about 10 ms of one core per 32×96 line, 20 if unclear; detection adds 10–300 ms per image"

    def __init__(
        self,
        metric: str = "edit",
        layout: str = "auto",
        ignore_case: bool = False,
        unicode: str = "NFKC",
        min_confidence: float | None = None,
        model_path: str | None = None,
        workers: int | None = None,
    ) -> None:
        _check_choice("metric", metric, tuple(METRICS))
        _check_choice("layout", layout, ("line", "auto"))
        _check_choice("unicode", unicode, UNICODE_FORMS)
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must be in [0, 1], got {min_confidence}")
        self.metric, self.layout = metric, layout
        self.ignore_case, self.unicode = ignore_case, unicode
        self.min_confidence = (0.5 if layout == "auto" else 0.0) if min_confidence is None else min_confidence
        self.engine = OcrEngine(model_path, workers)

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `read`, `target`, `confidence` (mean over lines); metrics: `exact`, `char`.

        Raises: RewardError for the samples that the engine could not read, with the others' scores as `partial`.
        """
        targets = [self.targets(prompt) for prompt in prompts]
        wanted = [index for index, target in enumerate(targets) if target]
        result = RewardResult(
            scores=np.full(len(images), np.nan, dtype=np.float32),
            details=[{"read": None, "target": None, "reason": _NO_TARGET} for _ in images],
            metrics={name: np.full(len(images), np.nan, dtype=np.float32) for name in _EXTRA_METRICS},
        )
        if not wanted:
            return result
        pages, failures = self._read([images[index] for index in wanted], wanted)
        for index, page in zip(wanted, pages, strict=True):
            if index in failures:
                result.details[index] = {"read": None, "target": " ".join(targets[index]), "reason": failures[index]}
            else:
                self._fill(result, index, page, targets[index])
        if failures:
            raise RewardError(self.name, failures, result)
        return result

    def targets(self, prompt: Prompt) -> list[str]:
        """The strings that must be legible, normalised: the prompt's `texts`, else all its quoted spans."""
        texts = [self._normalise(text) for text in prompt.texts or quoted_spans(prompt.text)]
        return [text for text in texts if text]

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A sign that says what is asked for, and one that says nothing."""
        from xomni_rl.prompt_sets.signs import render_sign

        prompt = Prompt(id="self-check", text='a blue sign that says "K7AX"', texts=("K7AX",))
        return render_sign("K7AX", "blue"), render_sign("", "blue"), prompt

    def _read(self, images: list[np.ndarray], indices: list[int]) -> tuple[list[list[Line]], dict[int, str]]:
        """The lines of each image, and the failures by the sample's index in the whole batch."""
        try:
            if self.layout == "auto":
                pages, failed = self.engine.read_pages(images)
            else:
                lines, failed = self.engine.read_lines(images)
                pages = [[line] if line is not None else [] for line in lines]
        except OcrEngineError as error:
            raise RewardError(self.name, dict.fromkeys(indices, str(error))) from error
        return pages, {indices[position]: reason for position, reason in failed.items()}

    def _fill(self, result: RewardResult, index: int, page: list[Line], targets: list[str]) -> None:
        lines = [line for line in page if line.text.strip() and line.confidence >= self.min_confidence]
        raw = " ".join(line.text for line in lines)
        read = self._normalise(raw)
        target = joined_target(read, targets)
        result.scores[index] = METRICS[self.metric](read, target)
        for name, metric in _EXTRA_METRICS.items():
            result.metrics[name][index] = metric(read, target)
        confidence = round(float(np.mean([line.confidence for line in lines])), 4) if lines else 0.0
        result.details[index] = {"read": raw, "target": target, "confidence": confidence}

    def _normalise(self, text: str) -> str:
        return normalise_text(text, ignore_case=self.ignore_case, unicode_form=self.unicode)


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(unknown_name(name, str(value), choices))
