"""Is the requested text legible in the image? Read by one of five engines and compared with the request.

Scores      how close the read text is to the requested one, in [0, 1]; higher is better; a blank image scores 0.
Not applicable (NaN)  to a prompt that asks for no text; with `published_edit` to one without straight double quotes.
Engines     `rapidocr` (default: PP-OCRv6), `ppocrv4` (a second reader in this package), `paddleocr`, `got_ocr2`, `vlm`; the
            table in `ocr_readers.py` says what each needs. Train on one and log another one at weight 0: a score that rises
            with the first alone is not text. `rapidocr` and `ppocrv4` read lines independently but find them alike
            (`layout=auto` uses PP-OCRv6's detection for both).
Cost        about 10 ms of one core per clear 32×96 sign (`layout=line`), up to twice that for unclear ones, which are read
            twice; twice as much with `ppocrv4`; detection adds 10–300 ms per image (`layout=auto`). `got_ocr2` and `vlm` need
            a GPU to be of use.
Weights     PP-OCR, Apache-2.0, inside the rapidocr wheel and in `weights/ppocrv4`; nothing is downloaded. GOT-OCR 2.0:
            Apache-2.0, by path or from the model hub.
Ways to hack it  text that only this reader can read (score held-out images with another one); with `recall`, `longtext` and
            `published_edit`, a page of spam that contains the target; with `precision`, one right word out of many.
Source      `longtext` is LongText-Bench's count, arXiv:2507.22058; `published_edit` the reward in common use (first
            straight-quoted span only; 1 if the target is a substring). Departs from the latter in all other metrics: all
            spans count, the whole read text counts, and a failure is an error instead of 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt, quoted_spans
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import Reward, RewardError, RewardResult, rewards
from xomni_rl.rewards.ocr_readers import Line, build_reader
from xomni_rl.rewards.text_metrics import (
    METRICS,
    UNICODE_FORMS,
    joined_target,
    longtext_counts,
    normalise_text,
    published_edit,
    published_target,
)

METRIC_NAMES = (*METRICS, "longtext", "published_edit")
_EXTRA_METRICS = {"exact": METRICS["exact"], "char": METRICS["edit"]}


@rewards.register("ocr")
class OcrReward(Reward):
    """How well the requested text can be read in the image.

    Args:
        metric: edit (1 − distance / longer length), exact, cer (1 − distance / target length, cut at 0); precision,
            recall, f1 over words (CJK: characters); longtext (LongText-Bench's recall: words, or characters if the prompt's
            language is zh); published_edit (the flawed reward in common use, for comparison).
        layout: "line" if every image is one line of text (recognition only), "auto" to find the lines first. The engines
            got_ocr2 and vlm read whole images either way.
        ignore_case: compare without case; longtext and published_edit have rules of their own.
        unicode: Unicode normal form in which texts are compared: NFKC, NFC or none; longtext and published_edit: as read.
        min_confidence: drop lines read with less; None = 0.5 for `auto` (stray marks are read as text), 0 for `line` and for
            `published_edit`. The engines got_ocr2 and vlm state no confidence and drop nothing.
        engine: rapidocr, ppocrv4, paddleocr, got_ocr2 or vlm.
        engine_options: the engine's own: fields of `PaddleReader` or `GotReader`; of `VlmReader`, with those of `build_vlm`.
        model_path: engine rapidocr: another PaddleOCR recognition model in ONNX, with its alphabet in the metadata; None =
            the wheel's.
        workers: engines rapidocr and ppocrv4: threads; None = usable cores.
    Raises: ValueError for another metric, layout, form or engine, an option that the engine does not have, or numbers out of
        range.
    """

    name = "ocr"
    version = "2"
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
        engine: str = "rapidocr",
        engine_options: Mapping[str, Any] | None = None,
        model_path: str | None = None,
        workers: int | None = None,
    ) -> None:
        _check_choice("metric", metric, METRIC_NAMES)
        _check_choice("unicode", unicode, UNICODE_FORMS)
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must be in [0, 1], got {min_confidence}")
        self.metric, self.ignore_case, self.unicode = metric, ignore_case, unicode
        least = 0.5 if layout == "auto" and metric != "published_edit" else 0.0
        self.min_confidence = least if min_confidence is None else min_confidence
        self.reader = build_reader(engine, layout, model_path, workers, engine_options or {})

    def load(self) -> None:
        self.reader.load()

    def files(self) -> tuple[Path, ...]:
        return self.reader.files()

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; metrics: `exact`, `char` (= edit).

        Details: `read`, `target`; `confidence` (mean over lines) if lines were read and the reader states one; for longtext
        `matched` and `total`, whose sums give the benchmark's score of a file.

        Raises: RewardError for the samples that the engine could not read, with the others' scores as `partial`;
            RewardUnavailableError if the engine cannot work at all.
        """
        reasons = [self._not_applicable(prompt) for prompt in prompts]
        wanted = [index for index, reason in enumerate(reasons) if reason is None]
        result = RewardResult(
            scores=np.full(len(images), np.nan, dtype=np.float32),
            details=[{"read": None, "target": None, "reason": reason} for reason in reasons],
            metrics={name: np.full(len(images), np.nan, dtype=np.float32) for name in _EXTRA_METRICS},
        )
        if not wanted:
            return result
        pages, failed = self.reader.read([images[index] for index in wanted])
        failures = {wanted[position]: reason for position, reason in failed.items()}
        for index, page in zip(wanted, pages, strict=True):
            if index in failures:
                target = " ".join(self.targets(prompts[index]))
                result.details[index] = {"read": None, "target": target, "reason": failures[index]}
            else:
                self._fill(result, index, page, prompts[index])
        if failures:
            raise RewardError(self.name, failures, result)
        return result

    def targets(self, prompt: Prompt) -> list[str]:
        """The strings that must be legible, normalised: the prompt's `texts`, else all its quoted spans."""
        texts = [self._normalise(text) for text in _asked(prompt)]
        return [text for text in texts if text]

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A sign that says what is asked for, and one that says nothing."""
        from xomni_rl.prompt_sets.signs import render_sign

        prompt = Prompt(id="self-check", text='a blue sign that says "K7AX"', texts=("K7AX",))
        return render_sign("K7AX", "blue"), render_sign("", "blue"), prompt

    def _not_applicable(self, prompt: Prompt) -> str | None:
        """Why the prompt cannot be scored; None if it can."""
        if self.metric == "published_edit":
            return None if published_target(prompt.text) else "the prompt has no text in straight double quotes"
        if not self.targets(prompt):
            return "the prompt asks for no text"
        if self.metric == "longtext" and not longtext_counts("", _asked(prompt), prompt.language)[1]:
            return "LongText-Bench counts none of the characters that the prompt asks for"
        return None

    def _fill(self, result: RewardResult, index: int, page: list[Line], prompt: Prompt) -> None:
        lines = [line for line in page if line.text.strip() and self._is_sure(line)]
        raw = " ".join(line.text for line in lines)
        read, targets = self._normalise(raw), self.targets(prompt)
        target = joined_target(read, targets)
        detail: dict[str, Any] = {"read": raw, "target": target}
        if self.metric == "longtext":
            matched, total = longtext_counts(raw, _asked(prompt), prompt.language)
            result.scores[index] = matched / total
            detail |= {"matched": matched, "total": total}
        elif self.metric == "published_edit":
            detail["target"] = published_target(prompt.text) or ""
            result.scores[index] = published_edit([line.text for line in lines], detail["target"])
        else:
            result.scores[index] = METRICS[self.metric](read, target)
        for name, metric in _EXTRA_METRICS.items():
            result.metrics[name][index] = metric(read, target) if targets else np.nan
        confidences = [line.confidence for line in lines if line.confidence is not None]
        if lines and len(confidences) == len(lines):
            detail["confidence"] = round(float(np.mean(confidences)), 4)
        result.details[index] = detail

    def _is_sure(self, line: Line) -> bool:
        return line.confidence is None or line.confidence >= self.min_confidence

    def _normalise(self, text: str) -> str:
        return normalise_text(text, ignore_case=self.ignore_case, unicode_form=self.unicode)


def _asked(prompt: Prompt) -> tuple[str, ...]:
    return prompt.texts or quoted_spans(prompt.text)


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(unknown_name(name, str(value), choices))
