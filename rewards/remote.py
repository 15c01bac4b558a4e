"""A reward that is scored elsewhere: by `xomni-rl serve`, or by a UniRL reward service.

Scores      what the served reward scores, in its range and direction, which are asked of the server at the first use.
Not applicable (NaN)  where the served reward does not apply.
Cost        that of the served reward, and sending the image: base64 PNG, JSON, HTTP.
Weights     none here; the server's.
Failures    a server that is not there at the start: RewardUnavailableError. Later: a RewardError for the samples that were
            not scored within the deadline, by any of the servers, with the others' scores.
Ways to hack it  those of the served reward; `image_format=jpeg` adds JPEG's losses to every image alike.
Source      wire format of the public UniRL reward service; see `docs/rewards/served.md`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import Images, Reward, RewardError, RewardResult, rewards
from xomni_rl.rewards.bearer import check_variable
from xomni_rl.rewards.remote_answers import Found
from xomni_rl.rewards.remote_client import Servers, session
from xomni_rl.rewards.wire import IMAGE_FORMATS, ScoreItem, decode_image, open_image, prompt_of

_MOST_PIXELS = 2**24


@rewards.register("remote")
class RemoteReward(Reward):
    """A reward served over HTTP, by one server or several.

    `version`, `range`, `higher_is_better`, `needs` and `cost` are the served reward's: reading one asks the server, once.

    Args:
        url: address of a server, such as http://127.0.0.1:8200.
        urls: several servers of the same reward: requests are spread over them, and go to the others if one fails.
        component: which of the server's rewards; None = its only one.
        metric: which of that reward's figures is the score; None = its score (UniRL: the first).
        token_env: environment variable that holds the bearer token; None = no token.
        timeout: seconds for a whole batch, with all retries.
        concurrency: requests under way at the same time.
        retries: how often all servers are tried again, with growing pauses, after errors that may pass.
        batch_size: images per request.
        image_format: png and webp keep every pixel, jpeg does not.
    Raises: ValueError for an address that is none, and numbers out of range.
    """

    name = "remote"

    def __init__(
        self,
        url: str | None = None,
        urls: Sequence[str] = (),
        component: str | None = None,
        metric: str | None = None,
        token_env: str | None = None,
        timeout: float = 120.0,
        concurrency: int = 4,
        retries: int = 5,
        batch_size: int = 32,
        image_format: str = "png",
    ) -> None:
        if image_format not in IMAGE_FORMATS:
            raise ValueError(unknown_name("image_format", str(image_format), IMAGE_FORMATS))
        for option, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0), ("batch_size", batch_size, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{option} must be a whole number of at least {least}, got {value!r}")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
        check_variable("token_env", token_env)
        addresses = _checked_urls(url, urls)
        self.servers = Servers(
            addresses, component, metric, token_env, float(timeout), concurrency, retries, batch_size, image_format
        )

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> RewardResult:
        if len(prompts) == 0 and not isinstance(images, Image.Image) and len(images) == 0:
            return RewardResult(np.zeros(0, np.float32), [])  # before the range is asked for: nothing is contacted
        return super().__call__(images, prompts)

    def load(self) -> None:
        """Asks the servers what they serve. Raises: RewardUnavailableError if none answers, or they do not agree."""
        session(self.servers).look()

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores, details and metrics as the server gives them.

        Raises: RewardError for the samples that it failed on or that were not scored in time; RewardUnavailableError.
        """
        outcomes = session(self.servers).score(images, prompts)
        names = sorted({name for outcome in outcomes for name in outcome.metrics})
        result = RewardResult(
            scores=np.array([math.nan if outcome.error else outcome.score for outcome in outcomes], dtype=np.float32),
            details=[outcome.detail for outcome in outcomes],
            metrics={
                name: np.array([outcome.metrics.get(name, math.nan) for outcome in outcomes], np.float32) for name in names
            },
        )
        failures = {index: outcome.error for index, outcome in enumerate(outcomes) if outcome.error is not None}
        if failures:
            raise RewardError(self.name, failures, result)
        return result

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """The served reward's own pictures. Raises: NotImplementedError if the server gives none."""
        good, worthless = session(self.servers).self_check()
        return _image(good), _image(worthless), prompt_of(good, 0)

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        """Nothing to write: this process serves the reward `ocr` to itself."""
        from xomni_rl.rewards.server import demonstration_url

        return {"url": demonstration_url()}

    @property
    def version(self) -> str:  # type: ignore[override]
        return self._found.card.version

    @property
    def range(self) -> tuple[float, float]:  # type: ignore[override]
        return self._found.card.bounds()

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return self._found.card.higher_is_better

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._found.card.needs

    @property
    def cost(self) -> str:  # type: ignore[override]
        return f"{self._found.card.cost or 'not stated'}; at {', '.join(self.servers.urls)}"

    @property
    def _found(self) -> Found:
        return session(self.servers).look()


def _image(item: ScoreItem) -> np.ndarray:
    return decode_image(open_image(item, 0, _MOST_PIXELS), 0)


def _checked_urls(url: str | None, urls: Sequence[str]) -> tuple[str, ...]:
    """The addresses without a slash at the end. Raises: ValueError if there is none, or one is no http(s) address."""
    if isinstance(urls, str):
        raise ValueError(f"urls must be a list of addresses, got {urls!r}; one alone is the option url")
    addresses = tuple(str(each).rstrip("/") for each in ([url] if url else []) + list(urls))
    if not addresses:
        raise ValueError('reward "remote" needs the address of a server: url=http://HOST:PORT')
    for each in addresses:
        parts = urlsplit(each)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{each!r} is no address of a server; it must read like http://127.0.0.1:8200")
    return addresses
