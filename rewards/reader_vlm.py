"""Any vision-language model as a reader, on this machine or behind an OpenAI-compatible server.

What it is told is `judge_prompts/read_text.txt`. Such a model reads unusual lettering and long text well, but it also guesses:
it tends to write down the word that should stand there, misspelled or not. Hold it out rather than train on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.rewards.ocr_readers import Line, Pages
from xomni_rl.rewards.vlm import Vlm, VlmError, build_vlm

INSTRUCTION = Path(__file__).parent / "judge_prompts" / "read_text.txt"
NO_TEXT = "<no text>"
"""What the instruction asks for if there is nothing to read."""


@dataclass(frozen=True)
class VlmReader:
    """Reads by asking a vision-language model.

    Args:
        vlm: the model.
        max_new_tokens: longest answer in tokens; what is longer is cut.
    Raises: ValueError if max_new_tokens is not a whole number of at least 1.
    """

    vlm: Vlm
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise ValueError(f'reward "ocr": max_new_tokens must be a whole number of at least 1, got {self.max_new_tokens!r}')

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> VlmReader:
        """The reader of {max_new_tokens, and the keys of `build_vlm`}. Raises: ValueError for another key or value."""
        own = {"max_new_tokens": options["max_new_tokens"]} if "max_new_tokens" in options else {}
        judge = {key: value for key, value in options.items() if key not in own}
        return cls(build_vlm("ocr", judge, option="engine_options.weights"), **own)

    def read(self, images: Sequence[np.ndarray]) -> Pages:
        """Lines of N uint8 [H, W, 3] images, and index → reason for failed ones; see `Reader`."""
        question = INSTRUCTION.read_text(encoding="utf-8").strip()
        failures: dict[int, str] = {}
        try:
            answers = self.vlm.generate(images, [question] * len(images), max_new_tokens=self.max_new_tokens)
        except VlmError as error:
            if error.partial is None:  # the others' answers are not known: not one sample has a page
                raise
            failures, answers = dict(error.failures), [str(answer) for answer in error.partial]
        for index, answer in enumerate(answers):
            if not answer.strip() and index not in failures:  # not "no text": a model that sees none is told to say so
                failures[index] = f"the model answered nothing, not even {NO_TEXT}"
        return [answer_lines(answer) for answer in answers], failures

    def load(self) -> None:
        """Loads the model, or sees whether the server is there; see `Reader`."""
        self.vlm.load()

    def files(self) -> tuple[Path, ...]:
        """The instruction, and the model's files; see `Reader`."""
        return (INSTRUCTION, *self.vlm.files())


def answer_lines(answer: str) -> list[Line]:
    """The lines of an answer, without blank ones; none if it says that there is no text."""
    lines = [line.strip() for line in answer.split("\n")]
    return [Line(line) for line in lines if line and line.lower().rstrip(".") != NO_TEXT]
