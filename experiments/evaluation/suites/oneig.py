"""OneIG-Bench, the part that needs a VLM alone: alignment, by questions that depend on each other (arXiv:2506.07977).

`compat=published` lets a no count against the questions that depend on it directly, as the published script does; `fixed`
against all that depend on it, however far down. Text is the suite `oneig_text`. Left out: reasoning, style and diversity, which
need other models.
"""

from __future__ import annotations

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
    after_direct_parents,
    ask,
    check_graph,
    is_yes,
)
from xomni_rl.experiments.evaluation.suite import Figure, Row, Sample, published_file, suites
from xomni_rl.prompts import Prompt

ORIGIN = "OneIG-Bench's questions are scripts/alignment/Q_D/{anime,human,object}.json of github.com/OneIG-Bench/OneIG-Benchmark"


@suites.register("oneig")
class OneIg(QuestionSuite):
    """OneIG-Bench's alignment by any VLM, of folders of images; text is oneig_text; reasoning, style, diversity are left out.

    Args: as in `QuestionSuite`.
    """

    name = "oneig"
    origin = ORIGIN
    draws = False

    def prompts(self, path: Path | None) -> list[Prompt]:
        """Of one file, or of all of a folder. The files hold no prompts, so that nothing can be drawn from them."""
        place = published_file(self.name, path, self.origin)
        for file in sorted(place.glob("*.json")) if place.is_dir() else [place]:
            self.questions |= read_questions(file)
        return [
            Prompt(id=identity, text=identity, metadata={"part": identity.partition("/")[0]}) for identity in self.questions
        ]

    def facts(self, prompt: Prompt) -> Row:
        return {"category": prompt.metadata["part"]}

    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        graphs = [self.questions[sample.prompt.id] for sample in samples]
        answers, failures = ask(self.vlm, images, graphs)
        rule = after_direct_parents if self.compat == "published" else after_dependencies
        rows: list[Row] = []
        for index, (graph, chances) in enumerate(zip(graphs, answers, strict=True)):
            if index in failures:
                rows.append({"error": failures[index]})
                continue
            said = {question.text: round(chances[question.number], 4) for question in graph}
            final = list(rule(is_yes(chances), graph).values())
            rows.append({"alignment": float(np.mean(final)), "answers": json.dumps(said, ensure_ascii=False)})
        return rows

    def figures(self) -> tuple[Figure, ...]:
        return (Figure("alignment", "alignment"),)


def read_questions(file: Path) -> dict[str, list[Question]]:
    """ "PART/ID" → questions, of a file {ID: {"question": {"1": …}, "dependency": {"1": [0], …}}}; both may be JSON texts.

    Raises: EvaluationError with the file and prompt for another form; OSError as it comes.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = {f"{file.stem}/{identity}": _graph(entry) for identity, entry in content.items()}
        for graph in found.values():
            check_graph(graph)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvaluationError(f"{file}: is no file of OneIG-Bench's questions ({error!s}); {ORIGIN}") from error
    return found


def _graph(entry: Mapping[str, Any]) -> list[Question]:
    texts, parents = (
        json.loads(entry[key]) if isinstance(entry[key], str) else entry[key] for key in ("question", "dependency")
    )
    return [
        Question(int(number), str(text), tuple(int(parent) for parent in parents[number] if int(parent)))
        for number, text in texts.items()
    ]
