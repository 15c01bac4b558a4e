"""Pauses between attempts; the requests themselves are tested with the served judge in test_vlm_server.py."""

import random

import pytest

from xomni_rl.rewards.retrying_http import jittered_pause, quoted, retry_after


def test_pauses_double_up_to_the_longest_and_differ_by_up_to_a_half() -> None:
    state = random.getstate()
    for attempt, most in enumerate([0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]):
        pauses = [jittered_pause(attempt, 0.4, 10) for _ in range(200)]
        assert most / 2 <= min(pauses) < max(pauses) <= most
        # 200 draws from an even distribution miss an end of it by a tenth with a probability of 0.9^200 < 1e-9.
        assert max(pauses) - min(pauses) > 0.8 * most / 2
    assert random.getstate() == state  # a seeded run draws the same with and without trouble


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("inf", None),
        ("nan", None),
        ("²", None),
    ],
)
def test_wish_to_wait_is_a_number_or_nothing(header: str | None, seconds: float | None) -> None:
    assert retry_after(header) == seconds


def test_wish_to_wait_may_be_a_date() -> None:
    past = retry_after("Wed, 21 Oct 2015 07:28:00 GMT")
    assert past is not None
    assert past < 0  # which is no pause


def test_quoted_text_is_one_line_and_short() -> None:
    assert quoted("two\n  lines") == '"two lines"'
    assert quoted("x" * 300) == f'"{"x" * 200}…"'
