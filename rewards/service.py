"""What a reward server does, without HTTP: decodes, bounds what waits, asks every reward that is wanted, gathers answers.

Every reward has a queue and a thread of its own, so that a slow one does not hold up the others.
"""

import asyncio
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.batching import Batcher, ClosedError
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.rewards.wire import (
    PROTOCOL_VERSION,
    SCORE,
    Health,
    Identity,
    Limits,
    Outcome,
    RewardCard,
    ScoreItem,
    ScoreRequest,
    SelfCheck,
    TooLargeError,
    WireError,
    decode_image,
    encode_image,
    item_of,
    open_image,
    outcomes_of,
    plain,
    prompt_of,
)

Sample = tuple[np.ndarray, Prompt]


class OverloadedError(RuntimeError):
    """More is waiting than the server takes; it may be tried again."""


class Scorer(Protocol):
    """One served reward, wherever it runs."""

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per uint8 [H, W, 3] image and prompt. Raises: OverloadedError; what makes all of them fail."""

    async def card(self) -> RewardCard:
        """What the reward says of itself."""

    async def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """The reward's own good and worthless image, and their prompt. Raises: NotImplementedError without one."""

    async def states(self) -> list[str]:
        """The state of each replica, in a word."""

    async def close(self) -> None:
        """Answers what is waiting and takes nothing more."""


class LocalScorer:
    """A reward of this process, in a thread of its own.

    Args:
        component: the reward under the name it is served by.
        max_batch, max_wait_s: of its `Batcher`.
        turns: lock shared with the other components that call the same object.
    """

    def __init__(
        self,
        component: Component,
        max_batch: int = 64,
        max_wait_s: float = 0.002,
        turns: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.component = component
        self.turns = turns or threading.Lock()
        self.batcher: Batcher[Sample, Outcome] = Batcher(self._outcomes, max_batch, max_wait_s)

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        return await self.batcher.submit(samples)

    async def card(self) -> RewardCard:
        reward = self.component.reward
        low, high = (bound if math.isfinite(bound) else None for bound in reward.range)
        return RewardCard(
            reward=reward.name,
            version=str(reward.version),
            range=(low, high),
            higher_is_better=reward.higher_is_better,
            needs=reward.needs,
            cost=reward.cost,
            weight=self.component.weight,
        )

    async def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        return await asyncio.to_thread(self.component.reward.self_check)

    async def states(self) -> list[str]:
        return ["ready"]

    async def close(self) -> None:
        await self.batcher.close()

    def _outcomes(self, samples: list[Sample]) -> list[Outcome]:
        with self.turns:
            try:
                found = self.component.scored_where_possible([image for image, _ in samples], [prompt for _, prompt in samples])
            except RewardUnavailableError as error:
                return [Outcome(error=str(error)) for _ in samples]
        return outcomes_of(*found)


def local_scorers(reward: CompositeReward, max_batch: int = 64, max_wait_s: float = 0.002) -> dict[str, LocalScorer]:
    """Every component of a composite, loaded. Gates, normalisation and the average stay with the client.

    Raises: RewardUnavailableError if one cannot be loaded.
    """
    locks: dict[int, threading.Lock] = {}
    for part in reward.parts:
        part.reward.load()
        locks.setdefault(id(part.scorer), threading.Lock())
    return {part.name: LocalScorer(part, max_batch, max_wait_s, locks[id(part.scorer)]) for part in reward.parts}


class Service:
    """What the HTTP application does, without HTTP.

    Args:
        scorers: name → reward.
        limits: what it takes.
    """

    def __init__(self, scorers: Mapping[str, Scorer], limits: Limits) -> None:
        self.scorers = scorers
        self.limits = limits
        self.waiting_images = 0
        self.waiting_pixels = 0
        self._cards: dict[str, RewardCard] | None = None

    async def cards(self) -> dict[str, RewardCard]:
        if self._cards is None:
            self._cards = {name: await scorer.card() for name, scorer in self.scorers.items()}
        return self._cards

    async def health(self) -> Health:
        states = {name: await scorer.states() for name, scorer in self.scorers.items()}
        return Health(rewards=states, waiting_images=self.waiting_images)

    async def self_check(self, name: str) -> SelfCheck:
        """Raises: KeyError for a name that is not served; NotImplementedError if the reward has no pictures."""
        good, worthless, prompt = await self.scorers[name].self_check()
        items = [ScoreItem.model_validate(item_of(encode_image(image), prompt, [name])) for image in (good, worthless)]
        return SelfCheck(good=items[0], worthless=items[1])

    async def score(self, request: ScoreRequest) -> dict[str, Any]:
        """The answer, as `ScoreResponse` describes it, ready for JSON.

        Raises: WireError for what cannot be scored as it came; OverloadedError; TimeoutError after `limits.seconds`.
        """
        items = request.requests
        wanted = [self._wanted(item, index) for index, item in enumerate(items)]
        if len(items) > self.limits.images:
            raise TooLargeError(f"{len(items)} images are more than the limit of {self.limits.images} per request")
        self._check_room(len(items), 0)
        prompts = [prompt_of(item, index) for index, item in enumerate(items)]
        async with asyncio.timeout(self.limits.seconds):
            opened = await asyncio.to_thread(self._open, items)
            pixels = sum(image.width * image.height for image in opened)
            with self._taken(len(items), pixels):
                images = await asyncio.to_thread(lambda: [decode_image(image, index) for index, image in enumerate(opened)])
                return await self._scored(items, list(zip(images, prompts, strict=True)), wanted)

    def _wanted(self, item: ScoreItem, index: int) -> list[str]:
        names = list(self.scorers) if item.required_rewards is None else list(dict.fromkeys(item.required_rewards))
        for name in names:
            if name not in self.scorers:
                raise WireError(f"requests[{index}].required_rewards: {unknown_name('reward', name, self.scorers)}")
        return names

    def _open(self, items: Sequence[ScoreItem]) -> list[Any]:
        opened = []
        pixels = 0
        for index, item in enumerate(items):
            opened.append(open_image(item, index, self.limits.pixels))
            pixels += opened[-1].width * opened[-1].height
            if pixels > self.limits.request_pixels:
                raise TooLargeError(f"the images have more than the limit of {self.limits.request_pixels} px per request")
        return opened

    def _check_room(self, images: int, pixels: int) -> None:
        full = self.waiting_images + images > self.limits.waiting_images
        if full or self.waiting_pixels + pixels > self.limits.waiting_pixels:
            raise OverloadedError(f"{self.waiting_images} images are waiting already; try again later")

    @contextmanager
    def _taken(self, images: int, pixels: int) -> Iterator[None]:
        self._check_room(images, pixels)
        self.waiting_images += images
        self.waiting_pixels += pixels
        try:
            yield
        finally:
            self.waiting_images -= images
            self.waiting_pixels -= pixels

    async def _scored(self, items: Sequence[ScoreItem], samples: list[Sample], wanted: list[list[str]]) -> dict[str, Any]:
        names = [name for name in self.scorers if any(name in each for each in wanted)]
        indices = {name: [index for index, each in enumerate(wanted) if name in each] for name in names}
        found = await asyncio.gather(*(self._outcomes(name, [samples[index] for index in indices[name]]) for name in names))
        lists: dict[str, list[Any]] = {key: [{} for _ in items] for key in ("results", "errors", "details")}
        lists["not_applicable"] = [[] for _ in items]
        for name, outcomes in zip(names, found, strict=True):
            for index, outcome in zip(indices[name], outcomes, strict=True):
                lists["details"][index][name] = plain(outcome.detail)
                if outcome.error is not None:
                    lists["errors"][index][name] = outcome.error
                elif math.isnan(outcome.score):
                    lists["not_applicable"][index].append(name)
                else:
                    lists["results"][index][name] = _figures(outcome)
        versions = {name: card.version for name, card in (await self.cards()).items() if name in names}
        identities = [_identity(item, each, versions) for item, each in zip(items, wanted, strict=True)]
        return {**lists, "versions": versions, "identities": identities, "protocol_version": PROTOCOL_VERSION}

    async def _outcomes(self, name: str, samples: Sequence[Sample]) -> list[Outcome]:
        try:
            return await self.scorers[name].score(samples)
        except (OverloadedError, ClosedError, asyncio.CancelledError):
            raise
        except Exception as error:  # one reward's trouble must not cost the scores of the others
            return [Outcome(error=f"{type(error).__name__}: {error}") for _ in samples]


def _figures(outcome: Outcome) -> dict[str, float]:
    """The score, which comes first, and the further figures."""
    return {SCORE: outcome.score} | {name: value for name, value in outcome.metrics.items() if name != SCORE}


def _identity(item: ScoreItem, wanted: Sequence[str], versions: Mapping[str, str]) -> dict[str, Any]:
    named = {name: getattr(item, name) for name in Identity.model_fields}
    return {**named, "scorer_version": versions[wanted[0]] if len(wanted) == 1 else None}
