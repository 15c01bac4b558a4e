"""Questions about the facts of a prompt: what is asked, what is not, and what cannot be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from xomni_rl.prompt_sets.signs import sign_prompt
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.facts import PLACEHOLDERS, FactError, Question, fact_questions, prompt_question, read_questions
from xomni_rl.rewards.vlm import JUDGE_PROMPTS

SHORT = {kind: " ".join(f"{{{name}}}" for name in names) for kind, names in PLACEHOLDERS.items()}
"""Questions that consist of their placeholders."""


def asked(*checks: Mapping[str, Any], texts: Sequence[str] = (), text: str = "a picture") -> list[str]:
    found, _ = fact_questions(Prompt("p", text, tuple(texts), checks), SHORT)
    return [f"{question.kind}: {question.text}" for question in found]


def test_every_text_is_asked_for_and_quotes_count_without_texts() -> None:
    assert asked(texts=["OPEN", "24 h"], text='a sign that says "CLOSED"') == ["text: OPEN", "text: 24 h"]
    assert asked(text='signs that say "CLOSED" and “zu”') == ["text: CLOSED", "text: zu"]
    assert asked() == []


def test_sign_of_the_embedded_domain_is_asked_for_its_text_and_its_ground() -> None:
    found, skipped = fact_questions(sign_prompt("K7AX", "blue", 'a {colour} sign that says "{text}"', "s"), SHORT)
    assert found == [Question("text", "K7AX"), Question("background", "blue")]
    assert skipped == []


@pytest.mark.parametrize(
    ("check", "questions"),
    [
        ({"class": "dog"}, ["class: dog"]),
        ({"class": "dog", "count": 1}, ["class: dog"]),  # GenEval's "some"
        ({"class": "dog", "count": 3}, ["count: dog 3"]),
        ({"class": "dog", "count": 0}, ["count: dog 0"]),
        ({"class": "dog", "color": "brown"}, ["class: dog", "colour: dog brown"]),
        ({"class": "dog", "colour": "brown", "count": 2}, ["count: dog 2", "colour: dog brown"]),
        ({"class": "dog", "position": "left of the cat"}, ["class: dog", "position: dog left of the cat"]),
        ({"class": "dog", "position": "in the middle"}, ["class: dog", "position: dog at this place in the middle"]),
        ({"class": "dog", "exclude": True}, ["count: dog 0"]),
        ({"class": "dog", "count": 1, "exclude": True}, ["count: dog 0"]),
        ({"class": "dog", "exclude": False}, ["class: dog"]),
        ({"kind": "background", "colour": "red", "rgb": [190, 30, 40]}, ["background: red"]),
    ],
)
def test_check_becomes_questions(check: Mapping[str, Any], questions: list[str]) -> None:
    assert asked(check) == questions


def test_exactly_two_in_genevals_words_is_one_question() -> None:
    # Its counting prompts: at least 2, and not 3 or more.
    prompt = Prompt("p", "two dogs", (), ({"class": "dog", "count": 2}, {"class": "dog", "count": 3, "exclude": True}))
    found, skipped = fact_questions(prompt, SHORT)
    assert found == [Question("count", "dog 2")]
    assert skipped == [{"class": "dog", "count": 3, "exclude": True}]


def test_position_counts_the_classes_that_are_to_be_shown() -> None:
    ground, gone = {"kind": "background", "colour": "red"}, {"class": "bird", "exclude": True}
    found = asked(ground, {"class": "cat"}, gone, {"class": "dog", "position": ["left of", 0]})
    assert found[-1] == "position: dog left of cat"  # 0 is the cat: neither ground nor what must not be there counts
    found = asked({"class": "dog", "position": ["above", 1]}, {"class": "cat"})
    assert found[1] == "position: dog above cat"


def test_same_question_is_asked_once() -> None:
    assert asked({"class": "dog"}, {"class": "dog", "count": 1}) == ["class: dog"]


def test_check_that_states_nothing_to_ask_about_is_skipped_and_named() -> None:
    checks = ({"kind": "background"}, {"kind": "mood", "value": "sad"}, {})
    assert fact_questions(Prompt("p", "p", (), checks), SHORT) == ([], list(checks))


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ({"class": 3}, "check 1: class must be words, got 3"),
        ({"class": " "}, "check 1: class must be words"),
        ({"class": "dog", "count": "two"}, "check 1: count must be a whole number of at least 0, got 'two'"),
        ({"class": "dog", "count": -1}, "check 1: count must be"),
        ({"class": "dog", "count": True}, "check 1: count must be"),
        ({"class": "dog", "color": ["red"]}, "check 1: color must be words"),
        ({"kind": "background", "colour": 5}, "check 1: colour must be words, got 5"),
        ({"class": "dog", "exclude": "yes"}, "check 1: exclude must be true or false, got 'yes'"),
        ({"class": "dog", "position": ["left of", 1]}, "check 1: position must be like"),  # itself
        ({"class": "dog", "position": ["left of", 2]}, "check 1: position must be like"),
        ({"class": "dog", "position": ["left of", -1]}, "check 1: position must be like"),
        ({"class": "dog", "position": [3, 0]}, "check 1: position must be like"),
        ({"class": "dog", "position": 7}, "check 1: position must be like"),
    ],
)
def test_check_of_another_form_is_named_by_its_place(check: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(FactError, match=reason):
        asked({"class": "cat"}, check)


def test_braces_in_a_prompt_are_words() -> None:
    prompt = Prompt("p", "a {count} of {prompt}", ("{text}",))
    assert prompt_question(prompt, SHORT) == Question("prompt", "a {count} of {prompt}")
    assert fact_questions(prompt, SHORT)[0] == [Question("text", "{text}")]


def test_shipped_questions_ask_all_that_is_stated() -> None:
    questions = read_questions("x", JUDGE_PROMPTS / "vlm_alignment.txt")
    assert set(questions) == set(PLACEHOLDERS)
    assert all(question.endswith("Answer with Yes or No only.") for question in questions.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("count: {class} {count}", "count: {class}"), r"questions.txt:5: expected .* with \{class\}, \{count\}, once"),
        (("count: {class} {count}", "count: {class} {count} {text}"), "questions.txt:5: expected"),
        (("count: {class} {count}", "count: {class} {count"), "questions.txt:5: expected"),
        (("count: {class} {count}", "counts: {class} {count}"), "questions.txt:5: expected .* of prompt, text, "),
        (("count: {class} {count}", "class: {class}"), "questions.txt:5: expected .* once"),
        (("count: {class} {count}", ""), 'lacks the question "count"'),
    ],
)
def test_wrong_file_of_questions_is_named_with_its_line(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    file = tmp_path / "questions.txt"
    lines = [f"{kind}: {question}" for kind, question in SHORT.items()]
    file.write_text("\n".join(lines).replace(*change))
    with pytest.raises(RewardUnavailableError, match=reason):
        read_questions("x", file)


def test_missing_file_of_questions_is_named(tmp_path: Path) -> None:
    with pytest.raises(RewardUnavailableError, match=r'"x": the judge.s questions cannot be read: .*none\.txt'):
        read_questions("x", tmp_path / "none.txt")
