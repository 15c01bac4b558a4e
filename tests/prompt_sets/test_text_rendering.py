"""Made-up text-rendering prompts: strings, splits, shares of languages, and that rewards can read them."""

import re
from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.prompt_sets.rendering_words import (
    CHINESE_PIECES,
    CHINESE_SCENES,
    ENGLISH_ADJECTIVES,
    ENGLISH_NOUNS,
    ENGLISH_PATTERNS,
    ENGLISH_SCENES,
    ENGLISH_VERBS,
)
from xomni_rl.prompt_sets.text_rendering import chinese_string, english_string, is_heldout
from xomni_rl.prompts import Prompt, prompt_sets, quoted_spans, script_language
from xomni_rl.rewards.text_metrics import longtext_counts, normalise_text, tokens

unhurried = settings(deadline=None, max_examples=40)


def made(**options: Any) -> list[Prompt]:
    return prompt_sets.get("text_rendering")(**{"split": "train", "count": 300, "seed": 0} | options)


def test_same_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    assert made() == made()
    assert [p.text for p in made()] != [p.text for p in made(seed=1)]
    assert len({p.id for split in ("train", "heldout") for p in made(split=split)}) == 600


def test_shares_of_languages_are_exact() -> None:
    # 10 · (3, 1)/4 = 7.5 and 2.5: of equal remainders the first gets the one left over.
    assert Counter(p.language for p in made(count=10, languages={"en": 3, "zh": 1})) == {"en": 8, "zh": 2}
    assert Counter(p.language for p in made()) == {"en": 150, "zh": 150}
    assert {p.language for p in made(languages={"zh": 1})} == {"zh"}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_texts_are_the_quoted_spans_and_the_language_is_that_of_the_sentence(split: str) -> None:
    for prompt in made(split=split):
        assert quoted_spans(prompt.text) == prompt.texts
        assert script_language(prompt.text) == prompt.language


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_string_survives_normalisation_and_every_count(split: str) -> None:
    for prompt in made(split=split):
        for text in prompt.texts:
            assert normalise_text(text, ignore_case=False, unicode_form="NFKC") == text
            units = text.split() if prompt.language == "en" else list(text)
            assert tokens(text) == units
            assert longtext_counts(text, [text], prompt.language) == (len(units), len(units))


@unhurried
@given(st.integers(0, 2**32), st.integers(1, 40), st.booleans())
def test_english_string_has_its_length_and_split(seed: int, length: int, heldout: bool) -> None:
    text = english_string(Random(seed), length, heldout)
    assert len(text.split()) == length
    assert is_heldout(text) == is_heldout(text.lower()) == heldout


@unhurried
@given(st.integers(0, 2**32), st.integers(2, 60), st.booleans())
def test_chinese_string_has_its_length_and_split(seed: int, length: int, heldout: bool) -> None:
    text = chinese_string(Random(seed), length, heldout)
    assert re.fullmatch(rf"[\u4e00-\u9fa5]{{{length}}}", text)
    assert is_heldout(text) == heldout


def test_heldout_string_never_occurs_in_training_not_even_inside_a_longer_one() -> None:
    # One word is the shortest string, so that training has 3000 chances to hold it.
    lengths: dict[str, Any] = {"words": [1, 6], "characters": [2, 10], "strings": [1, 3]}
    training = [f" {text.casefold()} " for p in made(count=3000, **lengths) for text in p.texts]
    heldout = {text.casefold() for p in made(split="heldout", count=300, **lengths) for text in p.texts}
    assert len(heldout) > 300  # two strings in the mean of 300 prompts
    everything = "|".join(training)
    # English strings are looked for as whole words; Chinese has no spaces.
    assert [text for text in heldout if (f" {text} " if text.isascii() else text) in everything] == []


def test_one_atom_in_sixteen_is_held_out_in_both_languages() -> None:
    pieces = CHINESE_PIECES[2]
    pairs = {a + b for piece in pieces for other in pieces for a, b in pairwise(piece + other)}
    for atoms in (pairs, {*ENGLISH_ADJECTIVES, *ENGLISH_NOUNS, *ENGLISH_VERBS}):
        # n independent hashes at 1/16: the share has the standard deviation √(15/n)/16; within 4 of those.
        assert abs(sum(map(is_heldout, atoms)) / len(atoms) - 1 / 16) < 4 * (15 / len(atoms)) ** 0.5 / 16


def test_ranges_are_kept_and_reached() -> None:
    found = made(count=600, strings=[2, 3], words=[2, 3], characters=[3, 4])
    assert {len(p.texts) for p in found} == {2, 3}
    assert {len(text.split()) for p in found for text in p.texts if p.language == "en"} == {2, 3}
    assert {len(text) for p in found for text in p.texts if p.language == "zh"} == {3, 4}
    assert {len(p.texts) for p in made(count=20, strings=[7, 7])} == {7}


def test_scenes_and_size_are_those_asked_for() -> None:
    found = made(scenes=["cake", "mug"], size=[32, 96])
    assert {p.metadata["scene"] for p in found} == {"cake", "mug"}
    assert {p.size for p in found} == {(32, 96)}
    assert {p.metadata["scene"] for p in made(count=600)} == set(ENGLISH_SCENES) == set(CHINESE_SCENES)


def test_patterns_have_the_number_of_words_they_stand_under() -> None:
    assert all(len(pattern.split()) == n for n, patterns in ENGLISH_PATTERNS.items() for pattern in patterns)
    assert all(len(piece) == n for n, pieces in CHINESE_PIECES.items() for piece in pieces)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split must be train or heldout"),
        ({"languages": {"de": 1}}, 'unknown language "de"; .*known: en, zh'),
        ({"languages": {"en": -1}}, 'the weight of "en"'),
        ({"languages": ["zh"]}, r"languages must be weights of languages, such as \{en: 1, zh: 1\}, got \['zh'\]"),
        ({"scenes": "mug"}, r"scenes must be a list of names, such as \[poster, mug\], got 'mug'"),
        ({"scenes": ["postr"]}, 'unknown scene "postr"; nearest: poster'),
        ({"scenes": []}, 'unknown scene ""'),
        ({"words": [0, 2]}, r"words must be \[least, most\] in whole numbers from 1, got \[0, 2\]"),
        ({"characters": [1, 2]}, r"characters must be .* from 2"),
        ({"strings": [3, 2]}, r"strings must be"),
        ({"strings": 2}, r"strings must be .*, got 2"),
    ],
)
def test_bad_option_is_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)
