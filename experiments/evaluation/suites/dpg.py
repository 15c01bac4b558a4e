"""DPG-Bench: long prompts taken apart into questions that depend on each other, answered by a VLM (arXiv:2403.05135).

`compat=published` is the arithmetic of the published script, whose faults `fixed` repairs: it passes over the first row of the
table of questions; its category scores leave the dependencies out and look at the last picture of each prompt only; a parent
that stands after its child in the table counts as it was answered. An image that fails is left out there without a word; here
it is counted beside the mean, in both.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.questions import (
    Question,
    QuestionSuite,
    after_dependencies,
    after_one_pass,
    ask,
    check_graph,
    is_yes,
)
from xomni_rl.experiments.evaluation.suite import Figure, Row, Sample, published_file, suites
from xomni_rl.prompts import Prompt

ORIGIN = "DPG-Bench's prompts with their questions are dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA"
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


@suites.register("dpg")
class Dpg(QuestionSuite):
    """DPG-Bench's questions with their dependencies, answered by any VLM; score of the prompts and of each broad category.

    Args: as in `QuestionSuite`.
    """

    name = "dpg"
    origin = ORIGIN
    category = ""

    def prompts(self, path: Path | None) -> list[Prompt]:
        prompts, self.questions = read_questions(published_file(self.name, path, self.origin))
        if self.compat == "published":
            first = prompts[0].id
            self.questions[first] = self.questions[first][1:]
        return [prompt for prompt in prompts if self.questions[prompt.id]]

    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        graphs = [self.questions[sample.prompt.id] for sample in samples]
        broken = {index: reason for index, graph in enumerate(graphs) if (reason := _missing_parent(graph))}
        answers, failures = ask(self.vlm, images, [[] if index in broken else graph for index, graph in enumerate(graphs)])
        failures |= broken
        return [
            {"error": failures[index]} if index in failures else self._row(graph, chances)
            for index, (graph, chances) in enumerate(zip(graphs, answers, strict=True))
        ]

    def finish(self, rows: list[Row]) -> None:
        """As published, the categories are those of the last picture of each prompt."""
        if self.compat == "published":
            last = max(row["number"] for row in rows)
            for row in rows:
                if row["number"] != last:
                    row.update({key: None for key in row if key.startswith(("yes_", "asked_"))})

    def figures(self) -> tuple[Figure, ...]:
        broad = sorted({question.broad for graph in self.questions.values() for question in graph})
        return (Figure("score", "score"), *(Figure(name, f"yes_{name}", f"asked_{name}") for name in broad))

    def _row(self, graph: Sequence[Question], chances: Mapping[int, float]) -> Row:
        return answer_row(graph, is_yes(chances), self.compat) | {
            "answers": json.dumps({question.text: round(chances[question.number], 4) for question in graph}, ensure_ascii=False)
        }


def answer_row(graph: Sequence[Question], answers: Mapping[int, bool], compat: str) -> Row:
    """`score`, the share of yes after the dependencies, and per broad category how many were asked and answered with yes.

    Args:
        graph: the questions of a prompt, in the table's order.
        answers: number → whether the answer is yes.
        compat: published or fixed.
    """
    final = after_one_pass(answers, graph) if compat == "published" else after_dependencies(answers, graph)
    by_category = answers if compat == "published" else final
    row: Row = {"score": float(np.mean([final[question.number] for question in graph]))}
    for question in graph:
        for key, value in (("yes", float(by_category[question.number])), ("asked", 1.0)):
            row[f"{key}_{question.broad}"] = row.get(f"{key}_{question.broad}", 0.0) + value
    return row


def read_questions(path: Path) -> tuple[list[Prompt], dict[str, list[Question]]]:
    """The prompts, and prompt id → its questions, of the published table.

    Raises: EvaluationError with the file and row for another form; OSError as it comes.
    """
    prompts: dict[str, Prompt] = {}
    questions: dict[str, list[Question]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
        if missing:
            raise EvaluationError(f"{path}: has no column {missing[0]}; {ORIGIN}")
        for number, record in enumerate(table, start=1):
            try:
                question = _question(record)
            except ValueError as error:
                raise EvaluationError(f"{path}, row {number}: {error}; {ORIGIN}") from error
            identity = record["item_id"]
            prompts.setdefault(identity, Prompt(id=identity, text=record["text"]))
            questions.setdefault(identity, []).append(question)
    if not prompts:
        raise EvaluationError(f"{path}: there is no question in this file; {ORIGIN}")
    for identity, graph in questions.items():
        try:
            check_graph(graph)
        except EvaluationError as error:
            raise EvaluationError(f"{path}: {identity}: {error}; {ORIGIN}") from error
    return list(prompts.values()), questions


def _question(record: Mapping[str, Any]) -> Question:
    """Raises ValueError for a number that is none, or an empty question."""
    if any(not isinstance(record[column], str) or not record[column].strip() for column in COLUMNS):
        raise ValueError(f"one of {', '.join(COLUMNS)} is empty")
    parents = (int(part) for part in record["dependency"].split(","))
    category = record["tuple"].partition("(")[0].strip()
    number = int(record["proposition_id"])
    return Question(number, record["question_natural_language"].strip(), tuple(each for each in parents if each), category)


def _missing_parent(graph: Sequence[Question]) -> str | None:
    """As published, the first row is not there, and what depends on it cannot be scored."""
    try:
        check_graph(graph)
    except EvaluationError as error:
        return f"{error}, because the published script passes over the table's first row; compat=fixed does not"
    return None
