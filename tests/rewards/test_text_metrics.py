"""Text metrics: hand-derived values, bounds, and what spam is worth."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xomni_rl.rewards.text_metrics import (
    METRICS,
    cer_similarity,
    edit_similarity,
    f1,
    joined_target,
    longtext_counts,
    normalise_text,
    precision,
    published_edit,
    published_target,
    recall,
    tokens,
)

unhurried = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
GOLDEN = Path(__file__).parents[1] / "golden" / "longtext_bench"
TEXTS = st.text(alphabet="AB ab1漢字.é", max_size=15)


def normal(text: str, *, ignore_case: bool = False, unicode_form: str = "NFKC") -> str:
    return normalise_text(text, ignore_case=ignore_case, unicode_form=unicode_form)


@pytest.mark.parametrize(
    ("read", "target", "similarity"),
    [
        ("K7AX", "K7AX", 1.0),
        ("K7AY", "K7AX", 3 / 4),  # 1 substitution, 4 characters
        ("", "K7AX", 0.0),
        ("K7AXK7AX", "K7AX", 1 / 2),  # 4 insertions, longer text 8
        ("ABCD", "WXYZ", 0.0),
        ("", "", 1.0),
    ],
)
def test_edit_similarity(read: str, target: str, similarity: float) -> None:
    assert edit_similarity(read, target) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("read", "target", "similarity"),
    [
        ("K7AY", "K7AX", 3 / 4),
        ("K7AXQ", "K7AX", 3 / 4),  # 1 insertion over a target of 4 (edit would say 4/5)
        ("K7AXK7AXQQ", "K7AX", 0.0),  # 6 insertions: a rate of 1.5, cut
    ],
)
def test_cer_similarity(read: str, target: str, similarity: float) -> None:
    assert cer_similarity(read, target) == pytest.approx(similarity)


def test_word_metrics_count_multisets() -> None:
    # Wanted: the ×2, cat. Read: the, cat, cat, dog. Matched: the, cat = 2.
    read, target = "the cat cat dog", "the the cat"
    assert precision(read, target) == pytest.approx(2 / 4)
    assert recall(read, target) == pytest.approx(2 / 3)
    assert f1(read, target) == pytest.approx(2 * 2 / (4 + 3))


def test_words_that_differ_in_vowel_signs_are_different() -> None:
    assert f1("दिन", "दान") == 0


def test_nothing_read_is_worth_nothing() -> None:
    assert {name: metric("", "K7AX") for name, metric in METRICS.items()} == dict.fromkeys(METRICS, 0.0)


def test_spam_that_contains_the_target_scores_low() -> None:
    # 1 wanted word of 50: f1 = 2·1 / (50 + 1), precision = 1/50; edit = 1 − 245 / 249 (49 words of 4 and their spaces).
    spam = " ".join(["SALE"] * 25 + ["K7AX"] + ["SALE"] * 24)
    assert edit_similarity(spam, "K7AX") == pytest.approx(4 / 249)
    assert f1(spam, "K7AX") == pytest.approx(2 / 51)
    assert precision(spam, "K7AX") == pytest.approx(1 / 50)
    assert METRICS["exact"](spam, "K7AX") == 0
    assert cer_similarity(spam, "K7AX") == 0
    assert recall(spam, "K7AX") == 1  # the documented blind spot


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't STOP, now!", ["Don't", "STOP", "now"]),
        ("你好 world 世界", ["你", "好", "world", "世", "界"]),
        ("안녕 세상", ["안녕", "세상"]),  # Hangul has spaces between words
        ("दिन दान", ["दिन", "दान"]),  # their vowel signs alone tell these words apart
        ("cafe\u0301!", ["cafe\u0301"]),
        ("1\ufe0f", ["1"]),  # a variation selector picks the glyph and spells nothing
        ("?!", ["?", "!"]),
        ("K7AX", ["K7AX"]),
        ("", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_unicode_forms() -> None:
    assert normal("ＡＢ１") == "AB1"
    assert normal("ＡＢ１", unicode_form="NFC") == "ＡＢ１"
    assert normal("e\u0301", unicode_form="NFC") == "é"
    assert normal("e\u0301", unicode_form="none") == "e\u0301"
    with pytest.raises(ValueError, match="NFKC, NFC, none"):
        normal("a", unicode_form="NFD")


def test_case_is_kept_unless_ignored() -> None:
    assert normal("Straße") == "Straße"
    assert normal("Straße", ignore_case=True) == "strasse"


def test_spaces_are_single_and_not_between_cjk_characters() -> None:
    assert normal("  a \n b  ") == "a b"
    assert normal("你好 世界") == "你好世界"
    assert normal("你好 world") == "你好 world"


@pytest.mark.parametrize(
    ("read", "target"),
    [
        ("你好，\n世界", "你好，世界"),
        ("你好,\n世界", "你好，世界"),  # the reader's own comma
        ("注意！\n（小心）", "注意！（小心）"),
        ("他说：\n“你好”", "他说：“你好”"),
        ("［你好］\n世界～", "［你好］世界～"),
        ("你好。\n世界", "你好。世界"),
    ],
)
@pytest.mark.parametrize("form", ["NFKC", "NFC"])
def test_line_break_beside_cjk_punctuation_counts_for_nothing(read: str, target: str, form: str) -> None:
    same_comma = read if form == "NFKC" else read.replace(",", "，")  # the forms of a comma are equal under NFKC alone
    assert normal(same_comma, unicode_form=form) == normal(target, unicode_form=form)


def test_line_break_beside_cjk_punctuation_counts_for_nothing_between_targets() -> None:
    targets = [normal("注意！"), normal("（小心）")]
    assert joined_target(normal("注意！\n（小心）"), targets) == normal("注意！（小心）")


@pytest.mark.parametrize("text", ["Stop! (now)", "it's 'so' - so", "world 你好", "你好 world (1)"])
def test_space_beside_latin_letters_is_kept(text: str) -> None:
    assert normal(text) == text


def test_targets_in_any_order_match() -> None:
    assert joined_target("WORLD HELLO", ["HELLO", "WORLD"]) == "WORLD HELLO"
    assert joined_target("HELO WORLD", ["HELLO", "WORLD"]) == "HELLO WORLD"
    assert joined_target("", ["B", "A"]) == "B A"  # nothing read: the order given
    assert joined_target("世界你好", ["你好", "世界"]) == "世界你好"


def test_many_targets_match_by_their_place_in_the_read_text() -> None:
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf"]
    read = "golf foxtrot echo delta charlie bravo alpha"
    assert joined_target(read, words) == read
    assert joined_target(" ".join(words), words) == " ".join(words)


@unhurried
@given(read=TEXTS, target=TEXTS.filter(str.strip))
def test_every_metric_is_in_range_and_one_for_the_target(read: str, target: str) -> None:
    read, target = normal(read), normal(target)
    for metric in METRICS.values():
        assert 0 <= metric(read, target) <= 1
        assert metric(target, target) == 1
    assert f1(read, target) <= max(precision(read, target), recall(read, target)) + 1e-12
    assert edit_similarity(read, target) == edit_similarity(target, read)


@unhurried
@given(text=TEXTS)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normal(text, ignore_case=True)
    assert normal(once, ignore_case=True) == once


@unhurried
@given(targets=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=4), read=TEXTS)
def test_chosen_order_is_never_worse_than_the_given_one(targets: list[str], read: str) -> None:
    given_order = joined_target(" ".join(targets), [" ".join(targets)])
    chosen = joined_target(read, targets)
    from rapidfuzz.distance import Levenshtein

    assert Levenshtein.distance(read, chosen) <= Levenshtein.distance(read, given_order)


def golden_rows(language: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / f"{language}.jsonl").read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_longtext_counts_are_those_of_the_public_script(language: str) -> None:
    rows = golden_rows(language)
    counts = [longtext_counts(row["recognised"], row["ground_truth"], language) for row in rows]
    assert counts == [(row["matched"], row["total"]) for row in rows]
    score = json.loads((GOLDEN / f"{language}_score.json").read_text())["score"]
    matched, total = (sum(column) for column in zip(*counts, strict=True))
    assert matched / total == pytest.approx(score, abs=1e-12)  # sums over sums: not the mean over samples


@pytest.mark.parametrize(
    ("read", "wanted", "language", "counts"),
    [
        # Wanted: don't → dont, stop ×2, café. Read: dont, stop, cafe (é is kept, so another word): dont and stop match.
        ("DON'T stop! cafe", ["Don't stop,", "STOP café"], "en", (2, 4)),
        ("雪 HELLO 雪", ["hello"], "en", (1, 1)),  # ideographs do not turn English into characters
        ("你 好，世界", ["你好", "你"], "zh", (2, 3)),  # 你 is wanted twice and read once
        ("Ab", ["ab"], "zh", (1, 2)),  # Chinese is not lower-cased: only b matches
        ("HELLO", ["Ωμέγα"], "en", (0, 0)),  # neither Latin nor Chinese: nothing to count
        ("hello spam spam spam", ["hello"], "en", (1, 1)),  # blind to spam
        ("", ["hello you"], "en", (0, 2)),
    ],
)
def test_longtext_counts(read: str, wanted: list[str], language: str, counts: tuple[int, int]) -> None:
    assert longtext_counts(read, wanted, language) == counts


@unhurried
@given(read=TEXTS, wanted=st.lists(TEXTS, min_size=1, max_size=3), language=st.sampled_from(["en", "zh"]))
def test_longtext_matches_no_more_than_was_wanted_or_read(read: str, wanted: list[str], language: str) -> None:
    matched, total = longtext_counts(read, wanted, language)
    assert 0 <= matched <= total
    assert longtext_counts(" ".join(wanted), wanted, language) == (total, total)


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('a sign that says "New York" and "Tokyo"', "newyork"),  # the first span only, without spaces or case
        ('an unclosed "Quote', "quote"),
        ("a sign that says “K7AX” or 「漢字」", None),  # curly and CJK quotes are not seen
        ('a sign that says "" or "K7AX"', None),
        ('a sign that says " "', None),
        ("a cat", None),
    ],
)
def test_published_target(prompt: str, target: str | None) -> None:
    assert published_target(prompt) == target


@pytest.mark.parametrize(
    ("lines", "target", "score"),
    [
        (["New", "York"], "newyork", 1.0),
        (["SALE new york SALE"], "newyork", 1.0),  # the documented flaw: spam that contains it pays in full
        (["K7AY"], "k7ax", 3 / 4),
        (["QQQQQQQQ"], "k7ax", 0.0),  # distance 8, cut at 4
        ([], "k7ax", 0.0),
        (["York", "New"], "newyork", 1 - 6 / 7),  # lines in another order: 3 of "new" deleted, 3 inserted
    ],
)
def test_published_edit(lines: list[str], target: str, score: float) -> None:
    assert published_edit(lines, target) == pytest.approx(score)
