"""A vision-language model as a judge behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, OpenAI and their like.

Chat completions over HTTP, images as base64 PNG in `image_url`. P(yes) comes from the log-probabilities of the first token
among the `top_logprobs` likeliest; a spelling that is not among them counts as 0. A server that sends none is noticed:
`answer: text` reads Yes or No from the text instead, which gives 1 or 0.

Questions fail one by one. After as many failures in a row as there are connections the rest is not asked any more, so that a
dead server costs one deadline and not one per question.
"""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
from PIL import Image

from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.bearer import bearer_header, bearer_key, check_variable, masked
from xomni_rl.rewards.retrying_http import HttpError, quoted, request_json
from xomni_rl.rewards.vlm import VlmError, check_questions

ANSWERS = ("logprobs", "text")
_TEXT_TOKENS = 16
_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_SPACES = " \t\n\r\u0120\u010a\u2581"
"""Spaces, and how byte-level and sentence-piece vocabularies write them."""


@dataclass(frozen=True)
class ServerVlm:
    """A judge behind a server.

    Args:
        reward: name of the reward that asks, for messages.
        url: the server's OpenAI base address, such as http://127.0.0.1:8000/v1.
        model: name under which it serves the model.
        api_key_env: environment variable that holds the key; None = the server wants none.
        timeout: seconds that one question may take, retries and pauses included.
        concurrency: questions under way at once, which is also the number of connections kept open.
        retries: most repetitions of a question that failed in passing (no connection, 429, 5xx).
        answer: logprobs: P(yes) from the first token; text: 1 or 0 from the words, for servers without log-probabilities.
        top_logprobs: likeliest tokens to ask for; 20 is the most that OpenAI and vLLM (by default) give.
        extra: further keys of the request, such as {"chat_template_kwargs": {"enable_thinking": false}}.
    Raises: ValueError for values out of range.
    """

    reward: str
    url: str = ""
    model: str = ""
    api_key_env: str | None = None
    timeout: float = 60.0
    concurrency: int = 16
    retries: int = 3
    answer: str = "logprobs"
    top_logprobs: int = 20
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc or _port(address) == 0:
            raise self._refused("url must read like http://127.0.0.1:8000/v1, without a name or password in it")
        if not self.model:
            raise self._refused("model must be the name under which the server serves the model")
        check_variable(f'reward "{self.reward}": api_key_env', self.api_key_env)
        if self.answer not in ANSWERS:
            raise self._refused(unknown_name("answer", str(self.answer), ANSWERS))
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float) or not 0 < self.timeout < np.inf:
            raise self._refused(f"timeout must be a positive number of seconds, got {self.timeout!r}")
        for name, least in (("concurrency", 1), ("retries", 0), ("top_logprobs", 1)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise self._refused(f"{name} must be a whole number of at least {least}, got {getattr(self, name)!r}")

    def yes_probability(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> np.ndarray:
        """P(yes) of N questions: float64 [N]; see `Vlm`. With `answer: text` it is 1 or 0."""
        if self.answer == "text":
            found, failures = self._ask(images, questions, {"max_tokens": _TEXT_TOKENS}, _yes_or_no)
        else:
            wish = {"max_tokens": 1, "logprobs": True, "top_logprobs": self.top_logprobs}
            found, failures = self._ask(images, questions, wish, self._yes_probability)
        probabilities = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
        if failures:
            raise VlmError(failures, probabilities)
        return probabilities

    def generate(self, images: Sequence[np.ndarray], questions: Sequence[str], max_new_tokens: int = 256) -> list[str]:
        """N answers at temperature 0; see `Vlm`."""
        found, failures = self._ask(images, questions, {"max_tokens": max_new_tokens}, _text)
        answers = [value or "" for value in found]
        if failures:
            raise VlmError(failures, answers)
        return answers

    def load(self) -> None:
        """Sees whether the server is there and takes the key. (Not every server lists its models, so that proves nothing.)"""
        try:
            self._request("/models", None)
        except HttpError as error:
            if error.status in (401, 403):
                raise self._unavailable(error) from error
            if error.status is None:
                raise RewardUnavailableError(
                    f'reward "{self.reward}": no judge answers at {self.url}: {error}; start the server there, or give its '
                    f"address as the option url"
                ) from error

    def files(self) -> tuple[Path, ...]:
        """None: what decides lies on the server."""
        return ()

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f'reward "{self.reward}": {reason}')

    def _ask(
        self, images: Sequence[np.ndarray], questions: Sequence[str], wish: Mapping[str, Any], read: Callable[[Any], Any]
    ) -> tuple[list[Any], dict[int, str]]:
        """What `read` finds in each completion (None where it failed), and the failures by index.

        Raises: RewardUnavailableError if an answer shows that no question can be answered.
        """
        check_questions(images, questions)
        if not questions:
            return [], {}
        attempt = _Attempt(patience=max(2, self.concurrency))
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge") as threads:
            distinct = {id(image): image for image in images}  # several questions may concern one image
            urls = dict(zip(distinct, threads.map(_data_url, distinct.values()), strict=True))
            bodies = (self._body(urls[id(image)], text, wish) for image, text in zip(images, questions, strict=True))
            found = list(threads.map(partial(self._answer, read=read, attempt=attempt), range(len(questions)), bodies))
        if attempt.fatal is not None:
            raise attempt.fatal
        return found, dict(sorted(attempt.failures.items()))

    def _answer(self, index: int, body: Mapping[str, Any], read: Callable[[Any], Any], attempt: _Attempt) -> Any:
        """One question's answer; None after filing its failure."""
        if attempt.is_over:
            attempt.fail(index, "not asked, because the server had stopped answering")
            return None
        try:
            found = read(self._request("/chat/completions", body))
        except RewardUnavailableError as error:
            attempt.fatal = error
            return None
        except HttpError as error:
            if error.status in (401, 403, 404):
                attempt.fatal = self._unavailable(error)
            attempt.fail(index, masked(error.reason, self._key()), silent=error.status is None)
            return None
        attempt.answered()
        return found

    def _request(self, path: str, body: Mapping[str, Any] | None) -> Any:
        key = self._key()
        try:
            return request_json(
                self.url.rstrip("/") + path,
                body,
                headers=bearer_header(key),
                seconds=self.timeout,
                retries=self.retries,
                connections=self.concurrency,
            )
        except HttpError as error:
            raise HttpError(masked(error.reason, key), error.status) from None

    def _key(self) -> str | None:
        try:
            return bearer_key(self.api_key_env)
        except ValueError as error:
            raise RewardUnavailableError(
                f'reward "{self.reward}": {error}; put the key of the judge at {self.url} there'
            ) from None

    def _body(self, image_url: str, question: str, wish: Mapping[str, Any]) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "temperature": 0.0, "stream": False, **wish, **self.extra}

    def _unavailable(self, error: HttpError) -> RewardUnavailableError:
        remedy = f'check the option model ("{self.model}") and that url ends as the server\'s does, in most cases with /v1'
        if error.status in (401, 403):
            variable = f"environment variable {self.api_key_env}" if self.api_key_env else "variable that api_key_env names"
            remedy = f"put a key that it takes into the {variable}"
        return RewardUnavailableError(f'reward "{self.reward}": the judge at {self.url} answers {error}; {remedy}')

    def _yes_probability(self, completion: Any) -> float:
        """P(yes) from the log-probabilities of a completion's first token."""
        tokens = _first_token(completion)
        if tokens is None:
            raise RewardUnavailableError(
                f'reward "{self.reward}": the judge at {self.url} sends no log-probabilities; serve the model with a server '
                f"that does, such as vLLM or SGLang, or set answer: text to read Yes or No from its text"
            )
        yes, no = (
            np.logaddexp.reduce([value for token, value in tokens if token == word] or [-np.inf]) for word in ("yes", "no")
        )
        if not (np.isfinite(yes) or np.isfinite(no)):
            shown = ", ".join(f'"{token}"' for token, _ in tokens[:3])
            raise HttpError(f"neither Yes nor No is among its {len(tokens)} likeliest first tokens ({shown}, …)", 200)
        return float(np.exp(yes - np.logaddexp(yes, no)))


class _Attempt:
    """How the questions of one batch fare; filled from several threads."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.failures: dict[int, str] = {}
        self.fatal: RewardUnavailableError | None = None
        self._silent = 0
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether asking on is pointless: nothing can be answered, or too many in a row got no answer."""
        return self.fatal is not None or self._silent >= self.patience

    def fail(self, index: int, reason: str, silent: bool = False) -> None:
        with self._lock:
            self.failures[index] = reason
            self._silent += silent

    def answered(self) -> None:
        with self._lock:
            self._silent = 0


def _port(address: SplitResult) -> int | None:
    """The port, None without one, 0 for one that cannot be."""
    try:
        return address.port
    except ValueError:
        return 0


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", compress_level=1)  # lossless: JPEG would change the score
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _choice(completion: Any) -> Mapping[str, Any]:
    try:
        choice = completion["choices"][0]
        is_choice = isinstance(choice["message"], Mapping)
    except (KeyError, IndexError, TypeError):
        is_choice = False
    if not is_choice:
        raise HttpError(f"the answer is no chat completion but {quoted(str(completion))}", 200)
    if choice.get("finish_reason") == "content_filter":
        raise HttpError("the server's content filter held the answer back", 200)
    return choice


def _text(completion: Any) -> str:
    content = _choice(completion)["message"].get("content")
    if not isinstance(content, str):
        raise HttpError(f"the completion holds no text but {quoted(str(content))}", 200)
    return content.strip()


def _yes_or_no(completion: Any) -> float:
    """1 for an answer whose first word is yes, 0 for no."""
    answer = _text(completion)
    match = _YES_OR_NO.match(answer)
    if match is None:
        raise HttpError(f"the answer is neither Yes nor No but {quoted(answer)}", 200)
    return 1.0 if match[1].lower() == "yes" else 0.0


def _first_token(completion: Any) -> list[tuple[str, float]] | None:
    """(token without spaces, in lower case; log-probability, nats) of the first place; None if the server gives none."""
    logprobs = _choice(completion).get("logprobs")
    if not logprobs:
        return None
    try:
        if not logprobs["content"]:
            raise HttpError("the completion is empty", 200)
        top = [
            (entry["token"].strip(_SPACES).lower(), float(entry["logprob"])) for entry in logprobs["content"][0]["top_logprobs"]
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise HttpError(f"the log-probabilities cannot be read: {quoted(str(logprobs))}", 200) from error
    if any(np.isnan(value) for _, value in top):
        raise HttpError("the log-probabilities hold NaN", 200)
    return top or None
