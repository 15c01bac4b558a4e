"""Cleaning: normal text, repetitions, lengths, languages by script, what is said of what is left out."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.prompt_sets.cleaning import (
    Cleaning,
    EmptySplitError,
    PromptWarning,
    Sieve,
    fingerprint,
    normal_text,
)
from xomni_rl.prompts import Prompt, PromptError, script_language

unhurried = settings(deadline=None, max_examples=100)
TEXTS = st.text(st.sampled_from("abcAB .,!？“你好 \t"), min_size=1, max_size=8).filter(str.strip)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(str(i), text) for i, text in enumerate(texts)]


def kept(cleaning: Cleaning, *texts: str) -> list[str]:
    return [p.text for p in Sieve(cleaning).kept(prompts(*texts))]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A  Sign, that\tsays “ＯＰＥＮ”!", "a sign that says open"),
        ("Straße", "strasse"),
        ("你好， 世界！", "你好世界"),
        ("一张海报 says hi", "一张海报 says hi"),
        ("don't stop", "don t stop"),
        ("a 🐱 + b", "a 🐱 + b"),  # symbols are no punctuation
        ("?!", "?!"),
    ],
)
def test_normal_text(text: str, normal: str) -> None:
    assert normal_text(text) == normal


@unhurried
@given(TEXTS)
def test_normal_text_of_normal_text_is_itself(text: str) -> None:
    assert normal_text(normal_text(text)) == normal_text(text)


@unhurried
@given(st.lists(TEXTS, max_size=20))
def test_deduplication_keeps_the_first_of_every_text_in_order(texts: list[str]) -> None:
    # Reference: a dictionary keeps the first place of each key.
    expected: dict[str, str] = {}
    for text in texts:
        expected.setdefault(normal_text(text), text)
    assert kept(Cleaning(), *texts) == list(expected.values())
    assert kept(Cleaning(deduplicate=False), *texts) == texts


@unhurried
@given(st.lists(TEXTS, max_size=10), st.lists(TEXTS, max_size=10))
def test_nothing_of_the_excluded_is_kept(texts: list[str], evaluation: list[str]) -> None:
    sieve = Sieve(Cleaning(), {fingerprint(text) for text in evaluation})
    found = {normal_text(p.text) for p in sieve.kept(prompts(*texts))}
    assert found == {normal_text(text) for text in texts} - {normal_text(text) for text in evaluation}


def test_lengths_are_inclusive_and_counted_in_characters() -> None:
    assert kept(Cleaning(min_characters=2, max_characters=3), "a", "ab", "你好吗", "abcd") == ["ab", "你好吗"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red sign", "en"),
        ("un panneau rouge", "en"),  # Latin letters
        ("一块红色的招牌", "zh"),
        ("海报上写着“GRAND OPENING SALE TODAY ONLY”", "zh"),  # what is to be drawn is another matter
        ("a sign that says “今日特价优惠欢迎光临本店”", "en"),
        ("赤い看板に「ABC」と書いてある", "other"),
        ("빨간 간판", "other"),
        ("красный знак", "other"),
        ("“你好”", "zh"),  # nothing but quotes: they count
        ("123 !", "other"),
    ],
)
def test_script_language(text: str, language: str) -> None:
    assert script_language(text) == language


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_prompt_of_the_long_text_benchmark_has_its_language_by_script(benchmarks: Path, language: str) -> None:
    lines = (benchmarks / "longtext_bench" / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    assert len(texts) == 160
    assert {script_language(text) for text in texts} == {language}


def test_language_is_the_prompts_own_or_told_by_script_and_then_set() -> None:
    given_prompts = [Prompt("a", "一块招牌"), Prompt("b", "a sign"), Prompt("c", "знак"), Prompt("d", "a sign!", language="zh")]
    own = Sieve(Cleaning(languages=("zh",)))
    assert [p.id for p in own.kept(given_prompts)] == ["a", "d"]
    by_script = Sieve(Cleaning(languages=("zh", "en"), language_by="script", deduplicate=False))
    assert [(p.id, p.language) for p in by_script.kept(given_prompts)] == [("a", "zh"), ("b", "en"), ("d", "en")]
    assert by_script.account() == "1 in another language"


def test_chinese_prompt_with_another_language_is_left_out_and_the_option_that_keeps_it_is_named() -> None:
    sieve = Sieve(Cleaning(languages=("zh",)))
    assert not list(sieve.kept([Prompt("a", "一块招牌", language="en"), Prompt("b", "a sign")]))
    with pytest.raises(EmptySplitError, match=r"1 in Chinese .* language en \(kept with .*language_by=script\), 1 in another"):
        sieve.report("file", "train", 0, "change the file")
    assert list(Sieve(Cleaning(languages=("zh",), language_by="script")).kept([Prompt("a", "一块招牌", language="en")]))


def test_account_counts_every_reason_once_and_an_empty_split_is_an_error() -> None:
    sieve = Sieve(Cleaning(min_characters=2, max_characters=5), {fingerprint("evil")})
    assert [p.text for p in sieve.kept(prompts("a", "ab", "AB", "abcdef", "evil", "Evil!"))] == ["ab"]
    # "a" is too short; "AB" repeats; "abcdef" is too long; "evil" and "Evil!" are used for evaluation.
    assert sieve.account() == "1 too short, 1 repeated, 1 too long, 2 used for evaluation"
    with pytest.warns(PromptWarning, match="file: left out of the split train: 1 too short, 1 repeated"):
        sieve.report("file", "train", 1, "")
    with pytest.raises(PromptError, match=r"file: there are no prompts for the split train \(1 too short.*\); try this"):
        sieve.report("file", "train", 0, "try this")
