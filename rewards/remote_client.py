"""The HTTP side of the reward `remote`: pooled connections, failover, retries of what can be retried, one deadline.

Requests run in an event loop of their own thread, one per process, so that a deadline holds whatever a server does: it is
the only way to stop waiting for one that sends a byte now and then.
"""

import asyncio
import json
import os
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.bearer import bearer_header, bearer_key, masked
from xomni_rl.rewards.remote_answers import (
    LONGEST_PAUSE_S,
    AnswerError,
    Found,
    TooLargeAnswerError,
    all_failed,
    check_agreement,
    chunk_ends,
    parse_answer,
    refusal,
)
from xomni_rl.rewards.retrying_http import jittered_pause
from xomni_rl.rewards.wire import (
    Limits,
    Outcome,
    RewardCard,
    RewardList,
    ScoreItem,
    SelfCheck,
    WireError,
    encode_image,
    item_of,
)

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
CONNECT_S = 5.0
LOOK_S = 10.0
"""How long a server may take to say what it serves."""
FIRST_PAUSE_S = 0.25
MOST_ANSWER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Servers:
    """Where a reward is served and how it is asked; see `RemoteReward`."""

    urls: tuple[str, ...]
    component: str | None
    metric: str | None
    token_env: str | None
    timeout: float
    concurrency: int
    retries: int
    batch_size: int
    image_format: str


class Session:
    """The connections to the servers of one reward, in this process. Use `session`."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.found: Found | None = None
        self._client: httpx.AsyncClient | None = None
        self._turn = 0
        self._lock = threading.Lock()

    def look(self) -> Found:
        """What is served, asked for once. Raises: RewardUnavailableError if no server answers or they do not agree."""
        with self._lock:
            if self.found is None:
                key = self._key()  # before the coroutine is made, which must not be left unawaited
                self.found = _in_loop(self._look(), key)
            return self.found

    def self_check(self) -> tuple[ScoreItem, ScoreItem]:
        """The served reward's own (good, worthless) entries of `requests`. Raises: NotImplementedError if it has none."""
        name, key = self.look().name, self._key()
        return _in_loop(self._self_check(name), key)

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[Outcome]:
        """One outcome per sample; what could not be scored by the deadline is an error.

        Raises: RewardUnavailableError for what concerns no sample: a refused token, another version than at first.
        """
        found, key = self.look(), self._key()
        return [_without_key(outcome, key) for outcome in _in_loop(self._score(found, images, prompts), key)]

    async def _look(self) -> Found:
        answers = await asyncio.gather(*(self._look_at(url) for url in self.servers.urls), return_exceptions=True)
        cards: dict[str, Found] = {}
        problems: list[str] = []
        for url, answer in zip(self.servers.urls, answers, strict=True):
            if isinstance(answer, AnswerError):
                problems.append(f"{url}: {answer}")
            elif isinstance(answer, BaseException):
                raise answer
            else:
                cards[url] = answer
        if not cards:
            raise RewardUnavailableError(
                f'reward "remote": no server can be asked ({"; ".join(problems)}); start one with '
                f"`xomni-rl serve reward=…`, or give its address as the option url"
            )
        check_agreement(cards)
        return next(iter(cards.values()))

    async def _look_at(self, url: str) -> Found:
        try:
            async with asyncio.timeout(min(LOOK_S, self.servers.timeout)):
                listed = RewardList.model_validate_json(await self._ask("GET", f"{url}/rewards"))
        except TimeoutError as error:
            raise AnswerError("did not answer in time", retry=True) from error
        except ValueError as error:
            raise AnswerError("answers, but is no reward server", retry=False) from error
        name = self.servers.component
        if name is None and len(listed.rewards) == 1:
            name = listed.rewards[0]
        if name is None:
            known = ", ".join(sorted(listed.rewards)) or "nothing"
            raise RewardUnavailableError(f'reward "remote": {url}: it serves {known}; say which as the option component')
        if name not in listed.rewards:
            raise RewardUnavailableError(f'reward "remote": {url}: {unknown_name("reward", name, listed.rewards)}')
        return Found(name, listed.cards.get(name, RewardCard()), listed.limits or Limits())

    async def _self_check(self, name: str) -> tuple[ScoreItem, ScoreItem]:
        from urllib.parse import quote

        reasons = []
        for url in self.servers.urls:
            try:
                async with asyncio.timeout(self.servers.timeout):
                    body = await self._ask("GET", f"{url}/rewards/{quote(name, safe='')}/self_check")
                pair = SelfCheck.model_validate_json(body)
                return pair.good, pair.worthless
            except (AnswerError, TimeoutError, ValueError) as error:
                reasons.append(f"{url}: {error or 'did not answer in time'}")
        raise NotImplementedError(f'reward "remote" got no pictures to check itself with ({"; ".join(reasons)})')

    async def _score(self, found: Found, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[Outcome]:
        end = time.monotonic() + self.servers.timeout
        turns = asyncio.Semaphore(self.servers.concurrency)
        chunks = chunk_ends([image.shape[0] * image.shape[1] for image in images], self.servers.batch_size, found.limits)
        parts = [slice(start, stop) for start, stop in zip([0, *chunks], chunks, strict=False)]
        work = [self._score_in_time(found, images[part], prompts[part], end, turns) for part in parts]
        answers = await asyncio.gather(*work, return_exceptions=True)
        outcomes: list[Outcome] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            outcomes += answer
        return outcomes

    async def _score_in_time(
        self, found: Found, images: Sequence[np.ndarray], prompts: Sequence[Prompt], end: float, turns: asyncio.Semaphore
    ) -> list[Outcome]:
        """The outcomes of one request; whatever goes wrong with all of it is the error of each sample."""
        reasons: list[str] = []
        try:
            async with asyncio.timeout(end - time.monotonic()), turns:
                return await self._score_chunk(found, images, prompts, reasons)
        except TimeoutError:
            last = f"; last: {reasons[-1]}" if reasons else ""
            reason = f"not scored within {self.servers.timeout:g} s by {', '.join(self.servers.urls)}{last}"
            return all_failed(reason, len(images))

    async def _score_chunk(
        self, found: Found, images: Sequence[np.ndarray], prompts: Sequence[Prompt], reasons: list[str]
    ) -> list[Outcome]:
        """One request, or two of half the size if it is too large, and so on."""
        try:
            body = await asyncio.to_thread(self._body, found.name, images, prompts)
            if len(body) > found.limits.body_bytes:
                raise TooLargeAnswerError(f"{len(body)} bytes are more than the server takes", retry=False)
            return parse_answer(await self._ask_all(body, reasons), len(images), found, self.servers.metric)
        except (AnswerError, WireError) as error:
            if isinstance(error, TooLargeAnswerError) and len(images) > 1:
                middle = len(images) // 2
                first = await self._score_chunk(found, images[:middle], prompts[:middle], reasons)
                return first + await self._score_chunk(found, images[middle:], prompts[middle:], reasons)
            return all_failed(str(error), len(images))

    def _body(self, name: str, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> bytes:
        pairs = zip(images, prompts, strict=True)
        items = [item_of(encode_image(image, self.servers.image_format), prompt, [name]) for image, prompt in pairs]
        try:
            return json.dumps({"requests": items}, allow_nan=False, default=_as_dict).encode()
        except (TypeError, ValueError) as error:
            raise WireError(f"a prompt's checks or metadata cannot be sent as JSON: {error}") from error

    async def _ask_all(self, body: bytes, reasons: list[str]) -> bytes:
        """The answer of the first server that gives one, all of them being tried in turn, again and again with pauses.

        Raises: AnswerError if no retry is left or none makes sense; RewardUnavailableError for a refused token.
        """
        urls = self.servers.urls
        self._turn += 1  # the requests of one batch start at different servers
        first = self._turn
        for attempt in range(self.servers.retries + 1):
            pause = 0.0
            for offset in range(len(urls)):
                url = urls[(first + offset) % len(urls)]
                try:
                    return await self._ask("POST", f"{url}/score", body)
                except AnswerError as error:
                    if not error.retry:
                        raise type(error)(f"{url}: {error}", retry=False) from error
                    reasons.append(f"{url}: {error}")
                    pause = max(pause, error.after)
            if attempt < self.servers.retries:
                await asyncio.sleep(pause + jittered_pause(attempt, FIRST_PAUSE_S, LONGEST_PAUSE_S))
        raise AnswerError(f"{reasons[-1]} ({len(reasons)} attempts)", retry=False)

    async def _ask(self, method: str, url: str, body: bytes | None = None) -> bytes:
        """The body of a good answer. Raises: AnswerError; RewardUnavailableError for a refused token."""
        import httpx

        key = self._key()
        headers = ({"Content-Type": "application/json"} if body is not None else {}) | bearer_header(key)
        try:
            async with self._open_client().stream(method, url, content=body, headers=headers) as response:
                content = bytearray()
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MOST_ANSWER_BYTES:
                        raise AnswerError(f"answers more than {MOST_ANSWER_BYTES} bytes", retry=False)
        except httpx.ConnectError as error:
            raise AnswerError(f"cannot be reached ({error})", retry=True) from error
        except httpx.TransportError as error:
            # Scoring changes nothing at the server: what broke off half-way can be sent again.
            raise AnswerError(f"broke off ({type(error).__name__}{f': {error}' if str(error) else ''})", retry=True) from error
        except httpx.HTTPError as error:
            raise AnswerError(f"answers garbage ({error})", retry=False) from error
        if response.status_code == 200:
            return bytes(content)
        text = masked(content.decode("utf-8", "replace"), key)  # before it is cut, which would leave a piece of the key
        raise refusal(url, response.status_code, text, response.headers.get("retry-after"), self.servers.token_env)

    def _key(self) -> str | None:
        try:
            return bearer_key(self.servers.token_env)
        except ValueError as error:
            raise RewardUnavailableError(
                f'reward "remote": {error}; put the server\'s token (option token_env) there'
            ) from None

    def _open_client(self) -> "httpx.AsyncClient":
        import httpx

        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=max(self.servers.concurrency, 2))
            # The deadline is ours. Proxies of the environment are for the web, not for a reward server nearby.
            timeout = httpx.Timeout(None, connect=min(CONNECT_S, self.servers.timeout))
            self._client = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)
        return self._client


_sessions: dict[tuple[int, Servers], Session] = {}
_loops: dict[int, asyncio.AbstractEventLoop] = {}
_lock = threading.Lock()


def session(servers: Servers) -> Session:
    """The one session of this process with those servers. (Connections and threads do not outlive a fork.)"""
    with _lock:
        return _sessions.setdefault((os.getpid(), servers), Session(servers))


def _in_loop(work: Coroutine[Any, Any, T], key: str | None) -> T:
    """The result of a coroutine in the event loop of this process, which is started if need be; no error shows the key."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="remote rewards", daemon=True).start()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except (RewardUnavailableError, NotImplementedError) as error:
        raise type(error)(masked(str(error), key)) from None
    except BaseException:
        future.cancel()  # an interrupt must not leave requests behind
        raise


def _without_key(outcome: Outcome, key: str | None) -> Outcome:
    return replace(
        outcome,
        detail=masked(outcome.detail, key),
        metrics=masked(outcome.metrics, key),
        error=masked(outcome.error, key),
    )


def _as_dict(value: Any) -> dict[str, Any]:
    """For JSON: any mapping as a dict. Raises: TypeError for everything else."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r:.40}")
