"""DPG-Bench: its arithmetic against a computation of its own, and the suite with a tiny judge behind a real server."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.rewards.judge_server import MODEL, JudgeServer, status
from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.pictures import Drawing
from xomni_rl.experiments.evaluation.questions import (
    ASKED,
    Question,
    after_dependencies,
    after_direct_parents,
    after_one_pass,
    check_graph,
    quarter,
)
from xomni_rl.experiments.evaluation.run import Evaluation, evaluate
from xomni_rl.experiments.evaluation.suite import build_suite
from xomni_rl.experiments.evaluation.suites.dpg import COLUMNS, answer_row
from xomni_rl.experiments.evaluation.summary import summarise
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

KINDS = ("entity - whole", "attribute - color", "relation - spatial", "global -")
SERVED = {"backend": "server", "url": "http://127.0.0.1:1/v1", "model": MODEL}


def table(tmp_path: Path, rows: list[tuple], columns: tuple[str, ...] = COLUMNS) -> Path:
    path = tmp_path / "dpg_bench.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def questions(item: str, *graph: tuple[str, str, str]) -> list[tuple]:
    """Rows of one prompt from (dependency, category, question)."""
    return [
        (item, f"the prompt {item}", number, parents, f"{category} (thing)", text)
        for number, (parents, category, text) in enumerate(graph, start=1)
    ]


ROWS = [
    *questions(
        "midjourney7", ("0", KINDS[0], "Is there a dog?"), ("0", KINDS[3], "Is it a photo?"), ("2", KINDS[1], "In colour?")
    ),
    *questions("2", ("0", KINDS[0], "Is there a sign?"), ("1", KINDS[1], "Is the sign red?"), ("1,2", KINDS[2], "Is it left?")),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeServer]:
    with JudgeServer(write_tiny_vlm(tmp_path_factory.mktemp("judge"))) as running:
        yield running


def noise(prompt: Prompt, number: int) -> np.ndarray:
    return np.random.default_rng([len(prompt.id), number]).integers(0, 256, size=(56, 56, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("answers", "once", "all_down", "direct"),
    [
        # 3 depends on 2, 2 on 1. No to 1: 2 falls; 3 falls with it, but not where children alone do.
        ("nyy", "nnn", "nnn", "nny"),
        ("yny", "ynn", "ynn", "ynn"),
        ("yyy", "yyy", "yyy", "yyy"),
    ],
)
def test_dependencies(answers: str, once: str, all_down: str, direct: str):
    chain = [Question(1, "a"), Question(2, "b", (1,)), Question(3, "c", (2,))]
    given = {number: letter == "y" for number, letter in enumerate(answers, start=1)}
    for rule, expected in ((after_one_pass, once), (after_dependencies, all_down), (after_direct_parents, direct)):
        assert "".join("ny"[value] for value in rule(given, chain).values()) == expected


def test_order_of_the_table_matters_as_published_alone():
    """The child stands before its parent, which becomes no itself afterwards."""
    graph = [Question(1, "a"), Question(3, "c", (2,)), Question(2, "b", (1,))]
    given = {1: False, 3: True, 2: True}
    assert after_one_pass(given, graph)[3]
    assert not after_dependencies(given, graph)[3]


def test_scores_on_synthetic_answers_are_those_of_an_independent_computation():
    """Random graphs in which parents come first: an answer counts if it and all its ancestors are yes."""
    rng = np.random.default_rng(0)
    rows, scores, per_kind = [], [], defaultdict(list)
    for image in range(200):
        size = int(rng.integers(1, 9))
        graph = [
            Question(
                n, "?", tuple(int(p) for p in rng.choice(n, size=rng.integers(0, min(n, 3)), replace=False) if p), KINDS[n % 4]
            )
            for n in range(1, size + 1)
        ]
        answers = {n: bool(rng.random() < 0.7) for n in range(1, size + 1)}

        def holds(n: int, graph=graph, answers=answers) -> bool:
            return answers[n] and all(holds(parent, graph, answers) for parent in graph[n - 1].parents)

        counted = [holds(question.number) for question in graph]
        scores.append(np.mean(counted))
        for question, fine in zip(graph, counted, strict=True):
            per_kind[question.category.split(" -")[0]].append(fine)
        identity = {"model": "m", "prompt_id": str(image), "number": 1, "error": None}
        rows.append(identity | answer_row(graph, answers, "fixed"))
    suite = build_suite("dpg", {"vlm": SERVED, "compat": "fixed"})
    suite.questions = {"any": [Question(1, "?", (), kind) for kind in KINDS]}
    cells = summarise(pd.DataFrame(rows), ["m"], suite.figures(), "")["models"]["m"]
    assert cells["score"]["mean"] == pytest.approx(np.mean(scores))
    assert {name: cells[name]["mean"] for name in per_kind} == pytest.approx({k: np.mean(v) for k, v in per_kind.items()})


def test_published_categories_leave_dependencies_out():
    graph = [Question(1, "a", (), KINDS[0]), Question(2, "b", (1,), KINDS[1])]
    published, fixed = (answer_row(graph, {1: False, 2: True}, compat) for compat in ("published", "fixed"))
    assert published == {"score": 0.0, "yes_entity": 0.0, "asked_entity": 1.0, "yes_attribute": 1.0, "asked_attribute": 1.0}
    assert fixed == published | {"yes_attribute": 0.0}


def run(tmp_path: Path, server: JudgeServer, drawing: Drawing, rendered: Callable, **options) -> Evaluation:
    suite = build_suite("dpg", {"vlm": {**SERVED, "url": server.url, "concurrency": 2}, **options})
    file = table(tmp_path, ROWS)
    folder = rendered(suite, suite.prompts(file), 2, tmp_path / "images", noise)
    two = Drawing(drawing.sampling, count=2)
    return evaluate(suite, {"m": str(folder)}, tmp_path / "out", two, lambda place: place, prompts=file)


def test_suite_with_a_served_judge_gives_what_the_judge_says(
    tmp_path: Path, server: JudgeServer, drawing: Drawing, rendered: Callable
):
    server.reset()
    found = run(tmp_path, server, drawing, rendered, compat="fixed")
    expected = []
    for row in found.table.itertuples():
        texts = [record[5] for record in ROWS if record[0] == row.prompt_id]
        image = noise(Prompt(id=row.prompt_id, text="any"), row.number)
        chances = [server.reference.yes_probability(image, ASKED.format(question=text)) for text in texts]
        assert json.loads(row.answers) == pytest.approx(dict(zip(texts, chances, strict=True)), abs=2e-4)
        first, second, third = (chance > 0.5 for chance in chances)
        both = first and second
        kept = [first, second, second and third] if row.prompt_id == "midjourney7" else [first, both, both and third]
        expected.append(np.mean(kept))
    assert list(found.table["score"]) == pytest.approx(expected)
    assert found.summary["models"]["m"]["score"]["mean"] == pytest.approx(np.mean(expected))
    assert found.complete


def test_published_passes_over_the_first_row_and_sees_the_last_picture_alone(
    tmp_path: Path, server: JudgeServer, drawing: Drawing, rendered: Callable
):
    server.reset()
    found = run(tmp_path, server, drawing, rendered)
    first = found.table[found.table["prompt_id"] == "midjourney7"]
    assert list(json.loads(first["answers"].iloc[0])) == ["Is it a photo?", "In colour?"]
    assert found.summary["models"]["m"]["entity"]["scored"] == 1  # of prompt 2 the last picture; the other's question is row 1
    assert found.table["asked_relation"].notna().tolist() == [False, False, False, True]


def test_question_without_an_answer_fails_its_image_alone(
    tmp_path: Path, server: JudgeServer, drawing: Drawing, rendered: Callable
):
    server.reset()

    async def refuses_red(_number: int, body):
        return status(400, "no") if "red" in body["messages"][0]["content"][1]["text"] else None

    server.fault = refuses_red
    found = run(tmp_path, server, drawing, rendered, compat="fixed")
    cell = found.summary["models"]["m"]["score"]
    assert (cell["scored"], cell["failed"]) == (2, 2)
    assert found.table["error"].dropna().str.startswith('question "Is the sign red?').all()
    server.reset()
    again = run(tmp_path, server, drawing, rendered, compat="fixed")
    assert again.complete  # what failed is asked again
    assert len(server.bodies) == 6  # and nothing else: three questions about two images


def test_dependency_on_the_row_that_the_script_passes_over_fails(
    tmp_path: Path, server: JudgeServer, drawing: Drawing, rendered: Callable
):
    server.reset()
    file = table(tmp_path, questions("7", ("0", KINDS[0], "Is there a dog?"), ("1", KINDS[1], "Is it red?")))
    suite = build_suite("dpg", {"vlm": {**SERVED, "url": server.url}})
    folder = rendered(suite, suite.prompts(file), 1, tmp_path / "images", noise)
    found = evaluate(suite, {"m": str(folder)}, tmp_path / "out", drawing, lambda place: place, prompts=file)
    assert found.table["error"].str.contains("question 2 depends on question 1.*compat=fixed does not").all()


def test_grid_is_cut_row_by_row():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2)
    assert [int(quarter(image, number)[0, 0, 0]) for number in (1, 2, 3, 4)] == [0, 2, 8, 10]
    with pytest.raises(EvaluationError, match="there is no picture 5"):
        quarter(image, 5)


@pytest.mark.parametrize(
    ("rows", "columns", "reason"),
    [
        ([], COLUMNS, "there is no question in this file"),
        (ROWS, (*COLUMNS[:-1], "question"), "has no column question_natural_language"),
        ([("a", "text", "one", "0", "entity - whole (x)", "?")], COLUMNS, "row 1: invalid literal"),
        ([("a", "text", "1", "", "entity - whole (x)", "?")], COLUMNS, "row 1: one of item_id, .* is empty"),
        (questions("a", ("0", KINDS[0], "?"), ("5", KINDS[0], "?")), COLUMNS, "question 2 depends on question 5"),
    ],
)
def test_table_of_another_form_is_refused_with_its_origin(tmp_path: Path, rows: list, columns: tuple, reason: str):
    suite = build_suite("dpg", {"vlm": SERVED})
    with pytest.raises(EvaluationError, match=f"{reason}.*github.com/TencentQQGYLab/ELLA"):
        suite.prompts(table(tmp_path, rows, columns))


def test_question_that_is_there_twice_is_refused():
    with pytest.raises(EvaluationError, match="question 1 is there twice"):
        check_graph([Question(1, "a"), Question(1, "b")])
