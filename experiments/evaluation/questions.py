"""Yes-or-no questions that depend on each other, put to a vision-language model: DPG-Bench's and OneIG-Bench's.

A question may have parents; where the answer to a parent is no, it counts as no itself ("is the dog brown?" without a dog).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.longtext_counts import check_choices
from xomni_rl.experiments.evaluation.suite import Suite
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.vlm import Vlm, VlmError, build_vlm, judge_options

ASKED = "{question} Answer with Yes or No only."
"""What is put to the model."""


@dataclass(frozen=True)
class Question:
    """One question of a prompt.

    Args:
        number: of the question in its prompt, from 1.
        text: the question.
        parents: numbers of the questions it depends on.
        category: what it is about, as published ("attribute - color").
    """

    number: int
    text: str
    parents: tuple[int, ...] = ()
    category: str = ""

    @property
    def broad(self) -> str:
        """The category's first level: "attribute"."""
        return self.category.partition("-")[0].strip()


class QuestionSuite(Suite):
    """A suite whose images a VLM is asked about; `questions` has those of each prompt id.

    Args:
        compat: published or fixed, see the suite's module.
        vlm: the judge: {backend: local, weights: …} or {backend: server, url: …, model: …}; None = Qwen2.5-VL-7B-Instruct here.
        grid: image files hold 2×2 pictures, called like the prompt, as the published scripts want them.
    Raises: EvaluationError, ValueError for values that there are not.
    """

    def __init__(self, compat: str = "published", vlm: Mapping[str, Any] | None = None, grid: bool = False) -> None:
        check_choices("en", compat)
        self.compat, self.grid = compat, grid
        self.vlm = build_vlm(self.name, judge_options(self.name, vlm))
        self.questions: dict[str, list[Question]] = {}

    def names(self, prompt: Prompt, number: int, count: int) -> tuple[str, ...]:
        """ID_1, or with grid ID."""
        return (prompt.id,) if self.grid else super().names(prompt, number, count)

    def read(self, image: np.ndarray, number: int) -> np.ndarray:
        return quarter(image, number) if self.grid else image

    def load(self) -> None:
        self.vlm.load()


def quarter(image: np.ndarray, number: int) -> np.ndarray:
    """The number-th, from 1, of 2×2 pictures, row by row: uint8 [H, W, 3] -> [H/2, W/2, 3].

    Raises: EvaluationError for another number or an odd side.
    """
    height, width = image.shape[:2]
    if not 1 <= number <= 4 or height % 2 or width % 2:
        raise EvaluationError(f"a grid holds 2×2 pictures of one size; there is no picture {number} in {width}×{height} px")
    row, column = divmod(number - 1, 2)
    return image[row * height // 2 :, column * width // 2 :][: height // 2, : width // 2]


def check_graph(questions: Sequence[Question]) -> None:
    """Raises EvaluationError for a number that is there twice, or a parent that is not there."""
    numbers = [question.number for question in questions]
    for question in questions:
        if numbers.count(question.number) > 1:
            raise EvaluationError(f"question {question.number} is there twice")
        missing = [parent for parent in question.parents if parent not in numbers]
        if missing:
            raise EvaluationError(f"question {question.number} depends on question {missing[0]}, which is not there")


def after_dependencies(answers: Mapping[int, bool], questions: Sequence[Question]) -> dict[int, bool]:
    """The answers, in which no to a question means no to all that depends on it, however far down."""
    found = dict(answers)
    changed = True
    while changed:
        changed = False
        for question in questions:
            if found[question.number] and not all(found[parent] for parent in question.parents):
                found[question.number], changed = False, True
    return found


def after_one_pass(answers: Mapping[int, bool], questions: Sequence[Question]) -> dict[int, bool]:
    """The answers after one pass in the given order, in which a parent that has become no counts as no: DPG-Bench's script.

    The same as `after_dependencies` if parents stand before what depends on them.
    """
    found = dict(answers)
    for question in questions:
        found[question.number] = found[question.number] and all(found[parent] for parent in question.parents)
    return found


def after_direct_parents(answers: Mapping[int, bool], questions: Sequence[Question]) -> dict[int, bool]:
    """The answers, in which no to a question means no to its children alone: OneIG-Bench's script."""
    return {each.number: answers[each.number] and all(answers[parent] for parent in each.parents) for each in questions}


def ask(
    vlm: Vlm, images: Sequence[np.ndarray], questions: Sequence[Sequence[Question]]
) -> tuple[list[dict[int, float]], dict[int, str]]:
    """P(yes) to every question about each image, and image → reason of those of which one has no answer.

    Args:
        vlm: the judge; all questions of all images are put in one call.
        images: N uint8 [H, W, 3].
        questions: N lists.
    Raises: RewardUnavailableError if the judge cannot work at all.
    """
    asked = [(index, question) for index, each in enumerate(questions) for question in each]
    if not asked:
        return [{} for _ in images], {}
    failed: Mapping[int, str] = {}
    try:
        texts = [ASKED.format(question=question.text) for _, question in asked]
        chances = vlm.yes_probability([images[index] for index, _ in asked], texts)
    except VlmError as error:
        if error.partial is None:
            raise
        failed, chances = error.failures, np.asarray(error.partial, dtype=np.float64)
    found: list[dict[int, float]] = [{} for _ in images]
    failures: dict[int, str] = {}
    for position, (index, question) in enumerate(asked):
        found[index][question.number] = float(chances[position])
        if position in failed:
            failures.setdefault(index, f'question "{question.text:.80}": {failed[position]}')
    return found, failures


def is_yes(chances: Mapping[int, float]) -> dict[int, bool]:
    """Whether Yes is likelier than No."""
    return {number: chance > 0.5 for number, chance in chances.items()}
