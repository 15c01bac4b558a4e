"""Larger signs: their words and splits, what a prompt says, and where the letters stand."""

import numpy as np
import pytest

from xomni_rl.prompt_sets.long_signs import (
    LINE_HEIGHT,
    SIZES,
    TEMPLATES,
    LongSign,
    draw_sign,
    line_capacity,
    render_long_sign,
)
from xomni_rl.prompt_sets.signs import ALPHABET, COLOURS, is_heldout, render_sign
from xomni_rl.prompts import Prompt, prompt_sets, quoted_spans
from xomni_rl.rewards.text_metrics import tokens


def made(split: str = "train", count: int = 600, **options: object) -> list[Prompt]:
    return prompt_sets.get("long_signs")(split=split, count=count, seed=0, **options)


def test_same_seed_gives_the_same_prompts_and_splits_differ() -> None:
    assert made() == made()
    assert len({p.id for split in ("train", "heldout") for p in made(split)}) == 1200


def test_no_heldout_word_is_in_training_and_heldout_prompts_have_no_other_words() -> None:
    assert not any(is_heldout(word) for p in made() for text in p.texts for word in text.split())
    assert all(is_heldout(word) for p in made("heldout") for text in p.texts for word in text.split())


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_prompt_says_size_colour_and_every_line(split: str) -> None:
    for prompt in made(split):
        name = next(name for name, size in SIZES.items() if size == prompt.size)
        assert name in prompt.text
        assert prompt.checks[0]["colour"] in prompt.text
        assert quoted_spans(prompt.text) == prompt.texts
        assert prompt.checks[1] == {"kind": "lines", "count": len(prompt.texts)}


def test_words_are_what_word_recall_counts() -> None:
    for prompt in made():
        text = " ".join(prompt.texts)
        assert tokens(text) == text.split()
        assert set(text) <= {*ALPHABET, " "}


def test_every_size_number_of_lines_and_length_is_there() -> None:
    found = made()
    assert {p.size for p in found} == set(SIZES.values())
    assert {len(p.texts) for p in found} == {1, 2, 3}
    # Widths 96, 160 and 192 px have room for (width - 8) // 20 = 4, 7 and 9 characters.
    assert {line_capacity(name) for name in SIZES} == {4, 7, 9}
    longest = {name: max(len(t) for p in found if p.size == size for t in p.texts) for name, size in SIZES.items()}
    assert longest == {name: line_capacity(name) for name in SIZES}
    assert max(sum(map(len, p.texts)) for p in found) >= 18


def test_lines_fit_the_sign() -> None:
    for prompt in made():
        assert prompt.size is not None
        assert len(prompt.texts) * LINE_HEIGHT <= prompt.size[0]


def test_sizes_can_be_chosen() -> None:
    assert {p.size for p in made(sizes=["wide", "long"])} == {(64, 192), (32, 192)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split must be"),
        ({"sizes": ["wid"]}, 'unknown size "wid"; nearest: wide'),
        ({"sizes": []}, 'unknown size ""'),
        ({"sizes": "long"}, r"sizes must be a list of names, such as \[long, wide\], got 'long'"),
        ({"colour": "red"}, "no option colour"),
    ],
)
def test_bad_option_is_a_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)  # type: ignore[arg-type]


def test_small_sign_with_four_letters_is_the_sign_of_the_first_domain() -> None:
    # Four letters of 20 px fill 80 of 96 px, so that a margin of 8 px centres them.
    sign = LongSign(("K7AX",), "red", "small", TEMPLATES[0])
    assert np.array_equal(render_long_sign(sign), render_sign("K7AX", "red"))


def test_second_line_is_the_first_one_lower() -> None:
    one = render_long_sign(LongSign(("K7 AX",), "blue", "wide", TEMPLATES[0]))
    two = render_long_sign(LongSign(("K7 AX", "K7 AX"), "blue", "wide", TEMPLATES[0]))
    assert np.array_equal(two[:LINE_HEIGHT], one[:LINE_HEIGHT])
    assert np.array_equal(two[LINE_HEIGHT:], one[:LINE_HEIGHT])
    assert (one[LINE_HEIGHT:] == COLOURS["blue"]).all()


@pytest.mark.parametrize("size", SIZES)
def test_letters_stay_inside(size: str) -> None:
    # A W at the end of nine letters reaches the last column with its fringe: nearer to the ground than to white.
    rng = np.random.default_rng(0)
    for _ in range(30):
        sign = draw_sign(rng, size, heldout=False)
        image = render_long_sign(sign)
        assert image.shape == (*SIZES[size], 3)
        ground = np.array(COLOURS[sign.colour])
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert ((edge - ground) < (255 - ground) / 2).all()
