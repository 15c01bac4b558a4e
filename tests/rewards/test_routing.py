"""Routing rules: what each form means, that values are text, and that nothing else is a rule."""

import pytest

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.routing import Route

FACTS = {"source": "web page", "level": 3, "set": {"kind": "a-b"}}
WRITTEN = Prompt("1", "a sign", texts=("OPEN",), language="en", metadata=FACTS)
QUOTED = Prompt("2", 'a sign that says "OPEN"', language="en", metadata={"source": "aesthetic"})
PLAIN = Prompt("3", "一只猫", language="zh", checks=({"class": "cat", "count": 1},), metadata={"final": True})
PROMPTS = [WRITTEN, QUOTED, PLAIN]


@pytest.mark.parametrize(
    ("rule", "routed"),
    [
        ("texts", [0, 1]),
        ("no_texts", [2]),
        ("checks", [2]),
        ("no_checks", [0, 1]),
        ("language == zh", [2]),
        ("language != zh", [0, 1]),
        ("language=='en'", [0, 1]),
        ("metadata.source == aesthetic", [1]),
        ("metadata.source == web page", [0]),
        ('metadata.source == "web page"', [0]),
        ("metadata.source != aesthetic", [0, 2]),  # a key that is not there equals nothing
        ("metadata.level == 3", [0]),
        ("metadata.final == true", [2]),
        ("metadata.set.kind == a-b", [0]),
        ("metadata.set.kind.deeper == a-b", []),
        ("texts and language == en and metadata.source != aesthetic", [0]),
        ("no_texts and language == en", []),
    ],
)
def test_rule_routes_the_prompts_that_it_describes(rule: str, routed: list[int]) -> None:
    assert Route(rule).indices(PROMPTS).tolist() == routed


def test_and_inside_quotes_is_part_of_the_value() -> None:
    both = Prompt("4", "p", metadata={"source": "pen and ink"})
    assert Route('metadata.source == "pen and ink" and no_texts').applies(both)
    with pytest.raises(ValueError, match='unknown rule "ink"'):
        Route("metadata.source == pen and ink")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("text", 'unknown rule "text"; nearest: texts'),
        ("", "must be texts, no_texts"),
        ("language = zh", "must be texts"),
        ("language == ", "must be texts"),
        ("size == 3", "must be texts"),
        ("metadata == 3", "must be texts"),
        ("texts or checks", "must be texts"),
        ("texts and", "must be texts"),
        ("__import__('os').remove('x')", "must be texts"),
        ("metadata.a == 'b", "must be texts"),
    ],
)
def test_anything_else_is_refused_with_the_forms_there_are(rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Route(rule)
