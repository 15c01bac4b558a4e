"""What the client of a reward server makes of its answers: scores, failures of samples, what may be tried again."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.retrying_http import retry_after
from xomni_rl.rewards.wire import SCORE, Limits, Outcome, RewardCard

RETRIED = (429, 502, 503, 504)
LONGEST_PAUSE_S = 8.0


@dataclass(frozen=True)
class Found:
    """What was found at the servers: the reward's name there, its card, and what a request may hold."""

    name: str
    card: RewardCard
    limits: Limits


class AnswerError(Exception):
    """A request that failed; `retry` tells whether it may be tried again, `after` the server's own wish in seconds."""

    def __init__(self, reason: str, retry: bool, after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry = retry
        self.after = after


class TooLargeAnswerError(AnswerError):
    """A request that the server would take in parts."""


def chunk_ends(pixels: Sequence[int], size: int, limits: Limits) -> list[int]:
    """Where to cut a batch into requests: the end of each, so that none has more images or pixels than allowed.

    >>> chunk_ends([10, 10, 10, 50], 2, Limits(request_pixels=50))
    [2, 3, 4]
    """
    ends: list[int] = []
    count = total = 0
    for index, here in enumerate(pixels):
        if count and (count == min(size, limits.images) or total + here > limits.request_pixels):
            ends.append(index)
            count = total = 0
        count, total = count + 1, total + here
    return [*ends, len(pixels)] if pixels else []


def parse_answer(body: bytes, count: int, found: Found, metric: str | None) -> list[Outcome]:
    """The outcomes of `count` samples in an answer to POST /score.

    Args:
        body: JSON as `ScoreResponse` describes it; UniRL's service leaves out what this package adds.
        found: whose score is wanted.
        metric: which of the reward's figures is the score; None = the first.
    Raises: AnswerError if the answer is not of that form; RewardUnavailableError if another version answered.
    """
    try:
        answer = json.loads(body)
        lists = [answer["results"], answer.get("errors") or [{}] * count, answer.get("not_applicable") or [[]] * count]
        details = answer.get("details") or [{}] * count
        version = (answer.get("versions") or {}).get(found.name, found.card.version)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AnswerError(f"answers garbage instead of scores ({type(error).__name__}: {error})", retry=False) from error
    for entries, kind in zip([*lists, details], (dict, dict, list, dict), strict=True):
        if not isinstance(entries, list) or len(entries) != count or not all(isinstance(entry, kind) for entry in entries):
            raise AnswerError(f"answers garbage instead of one entry for each of {count} images", retry=False)
    if version != found.card.version:
        raise RewardUnavailableError(
            f'reward "remote": the server scores with version {version} of "{found.name}" and not with {found.card.version} '
            f"as it did at first; start the run anew"
        )
    rows = zip(*lists, details, strict=True)
    return [_outcome(result, errors, skipped, detail, found.name, metric) for result, errors, skipped, detail in rows]


def _outcome(
    result: Mapping[str, Any],
    errors: Mapping[str, Any],
    not_applicable: Sequence[Any],
    details: Mapping[str, Any],
    name: str,
    metric: str | None,
) -> Outcome:
    detail = details[name] if isinstance(details.get(name), dict) else {}
    figures = result.get(name)
    if name in errors:
        return Outcome(detail=detail, error=str(errors[name]))
    if name in not_applicable:
        return Outcome(detail=detail)
    if not isinstance(figures, dict) or not figures:
        return Outcome(detail=detail, error=f'the answer has neither a score of "{name}" nor an error')
    key = next(iter(figures)) if metric is None else metric
    if key not in figures:
        return Outcome(detail=detail, error=unknown_name(f"figure of {name}", key, figures))
    if not _is_finite(figures[key]):
        return Outcome(detail=detail, error=f"the answer's score is {figures[key]!r:.40}, which is no finite number")
    others = {other: float(value) for other, value in figures.items() if other not in (key, SCORE) and _is_finite(value)}
    return Outcome(float(figures[key]), detail, others)


def _is_finite(value: Any) -> bool:
    """Whether it is a number that float64 holds; whole numbers in JSON have any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def all_failed(reason: str, count: int) -> list[Outcome]:
    return [Outcome(error=reason, detail={"reason": reason}) for _ in range(count)]


def check_agreement(found: Mapping[str, Found]) -> None:
    """Raises: RewardUnavailableError if two servers serve different things under the name."""
    (first, one), *others = found.items()
    for url, other in others:
        for key in ("reward", "version", "range", "higher_is_better"):
            ours, theirs = getattr(one.card, key), getattr(other.card, key)
            if ours != theirs:
                raise RewardUnavailableError(
                    f'reward "remote": the servers do not agree on the {key} of "{one.name}": {first} says {ours}, '
                    f"{url} says {theirs}; serve the same reward on all"
                )


def refusal(url: str, status: int, text: str, wish: str | None, token_env: str | None) -> Exception:
    """The exception for an answer with another status than 200; `wish` is its `Retry-After`."""
    try:
        said = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = text[:200]
    if status in (401, 403):
        remedy = "give the option token_env" if token_env is None else f"check the token in {token_env}"
        return RewardUnavailableError(f'reward "remote": {url} refuses the token (HTTP {status}); {remedy}')
    kind = TooLargeAnswerError if status == 413 else AnswerError
    after = min(retry_after(wish) or 0.0, LONGEST_PAUSE_S)
    return kind(f"HTTP {status}: {said}", retry=status in RETRIED, after=after)
