"""JSON requests to a server that may be slow, overloaded, restarting or broken: pooled, with a deadline and bounded retries."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 32 * 2**20
"""An answer larger than this is refused."""
_CONNECT_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.4, 15.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_random = random.Random()  # of its own: drawing from the global one would change what a seeded run draws


class HttpError(RuntimeError):
    """A request without a usable answer, after all attempts.

    Args:
        reason: what happened, in words.
        status: of the last answer; None = no answer came (no connection, broken off, too late).
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        return self.reason

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self.status is None or self.status == 429 or self.status >= 500


def request_json(
    url: str,
    body: Mapping[str, Any] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    seconds: float,
    retries: int,
    connections: int,
) -> Any:
    """The parsed JSON answer to a POST of `body`, or to a GET without one.

    Repeated, after growing and jittered pauses or what `Retry-After` asks for, when there is no connection, or it breaks off,
    or the status is 429 or 5xx. Never after another status: that is an answer.

    Args:
        seconds: time for it all, pauses included.
        retries: most repetitions.
        connections: size of the process's pool for this server, kept open between requests.
    Raises: HttpError.
    """
    deadline = time.monotonic() + seconds
    content = None if body is None else json.dumps(body).encode()
    for attempt in range(retries + 1):
        asked_pause = None
        try:
            status, asked_pause, answer = _exchange(url, content, dict(headers or {}), deadline, connections)
            if status == 200:
                return _parsed(answer)
            error = HttpError(f"HTTP {status}: {_message(answer)}", status)
        except HttpError as raised:
            error = raised
        pause = max(jittered_pause(attempt, _FIRST_PAUSE, _LONGEST_PAUSE), asked_pause or 0.0)
        left = deadline - time.monotonic()
        if attempt == retries or not error.is_passing or pause >= left:
            break
        time.sleep(pause)
    if left <= 0 and error.status is None:
        raise HttpError(f"no answer within {seconds:g} s") from error
    raise error


def jittered_pause(attempt: int, first: float, longest: float) -> float:
    """Seconds to wait after an attempt (from 0): twice as long each time, less up to a half, so that clients do not march.

    Args:
        first: of the first pause at most.
        longest: of any pause.
    """
    return min(first * 2**attempt, longest) * _random.uniform(0.5, 1.0)


def _exchange(
    url: str, content: bytes | None, headers: dict[str, str], deadline: float, connections: int
) -> tuple[int, float | None, bytes]:
    """Status, seconds that the server asks to wait, and body of one attempt. Raises: HttpError without a status."""
    import httpx

    pool = _pool(os.getpid(), urlsplit(url).netloc, connections, urlsplit(url).hostname in _LOOPBACK)
    left = max(deadline - time.monotonic(), 0.001)
    timeout = httpx.Timeout(left, connect=min(left, _CONNECT_SECONDS))
    headers = {"Content-Type": "application/json", "Accept": "application/json", **headers}
    answer = bytearray()
    try:
        with pool.stream(
            "GET" if content is None else "POST", url, content=content, headers=headers, timeout=timeout
        ) as response:
            # In pieces: httpx's own timeout starts anew with every piece, and a body may be endless.
            for piece in response.iter_bytes():
                answer += piece
                if len(answer) > MOST_BYTES:
                    raise HttpError(f"the answer is larger than {MOST_BYTES >> 20} MiB", response.status_code)
                if time.monotonic() > deadline:
                    raise HttpError("the answer came too slowly")
            return response.status_code, retry_after(response.headers.get("Retry-After")), bytes(answer)
    except httpx.HTTPError as error:
        raise HttpError(f"no answer ({type(error).__name__}: {error})".replace(": )", ")")) from error


@lru_cache(maxsize=32)
def _pool(_process: int, _server: str, connections: int, loopback: bool) -> httpx.Client:
    """The process's connections to a server; a forked process gets its own. Proxies of the environment are not for loopback."""
    import httpx

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.Client(limits=limits, trust_env=not loopback)


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise HttpError(f"the answer is not JSON but {quoted(answer.decode(errors='replace'))}", 200) from error


def _message(answer: bytes) -> str:
    """What the server says of its error: OpenAI's, FastAPI's and other forms."""
    text = answer.decode(errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return quoted(text)
    for key in ("error", "message", "detail"):
        if isinstance(found, Mapping) and key in found:
            found = found[key]
    return quoted(found if isinstance(found, str) else text)


def quoted(text: str, most: int = 200) -> str:
    """The text in quotes on one line, cut after `most` characters."""
    line = " ".join(text.split())
    return f'"{line[:most]}…"' if len(line) > most else f'"{line}"'


def retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header: a number or a date; None if there is none that can be read."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0) if value.strip()[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
