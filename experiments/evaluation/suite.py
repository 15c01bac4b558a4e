"""What a benchmark suite is: prompts from its published files, a row per image, and the figures made of the rows.

A suite is one file in `suites/`. It draws nothing and averages nothing: images come from a stack or a folder, and every figure
is a mean of ratios of sums over the rows, so that all suites share intervals, paired differences and counts of what failed.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.prompts import Prompt
from xomni_rl.registry import Registry, unknown_name
from xomni_rl.rewards.base import Reward, RewardError, RewardResult


@dataclass(frozen=True)
class Figure:
    """How a number comes out of the rows: the mean over `by` of Σ top / Σ bottom.

    Args:
        name: as it stands in tables.
        top: column; NaN = the image takes no part.
        bottom: column; "" = 1, which makes it a mean over images.
        by: column of the groups that count alike; "" = none.
        higher_is_better: what "better" means where models are compared.
    """

    name: str
    top: str
    bottom: str = ""
    by: str = ""
    higher_is_better: bool = True

    @property
    def parts(self) -> tuple[Figure, ...]:
        return (self,)

    def combine(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Combined:
    """A number made of figures, resampled with them.

    Args:
        name: as it stands in tables.
        parts: the figures; an image takes part if it does in all of them.
        combine: callable(a value of each part, float or array) -> the number.
        by, higher_is_better: as in `Figure`.
    """

    name: str
    parts: tuple[Figure, ...]
    combine: Callable[..., Any]
    by: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True)
class Sample:
    """An image that a suite wants: of a prompt the `number`-th from 1, in files called like one of `names`, without suffix."""

    prompt: Prompt
    number: int
    names: tuple[str, ...]


Row = dict[str, Any]
"""Columns of one image: numbers (None = not applicable), texts; `error` says why it has none."""


class Suite(ABC):
    """A benchmark's protocol. Options are the keyword arguments of a subclass.

    Attributes a subclass sets:
        name: the name it is registered under.
        images_per_prompt: as published.
        origin: where its prompt files come from, for messages; "" = it needs none.
        category: column by which results are broken down; "" = none.
        draws: whether its files hold prompts that a stack can draw.
        version: goes up whenever rows change.
    """

    name: ClassVar[str]
    images_per_prompt: ClassVar[int] = 4
    origin: ClassVar[str] = ""
    category: ClassVar[str] = "category"
    draws: bool = True
    version: ClassVar[str] = "1"
    options: Mapping[str, Any]

    @abstractmethod
    def prompts(self, path: Path | None) -> list[Prompt]:
        """Prompts of the published file. Raises: PromptError, EvaluationError with where to get it."""

    @abstractmethod
    def score(self, images: list[np.ndarray], samples: Sequence[Sample]) -> list[Row]:
        """A row per image, uint8 [H, W, 3]; an image that something failed on has a row with `error`.

        Raises: RewardUnavailableError if a model that it needs is not here.
        """

    @abstractmethod
    def figures(self) -> tuple[Figure | Combined, ...]:
        """The figures, the benchmark's own first."""

    def names(self, prompt: Prompt, number: int, count: int) -> tuple[str, ...]:
        """Where the image may lie in a folder, without suffix; the first is how it is written. `number` counts from 1."""
        return (f"{prompt.id}_{number}" if count > 1 else prompt.id, f"{prompt.id}_{number}")

    def read(self, image: np.ndarray, number: int) -> np.ndarray:
        """The number-th picture of an image file, which is the image unless files hold several."""
        return image

    def facts(self, prompt: Prompt) -> Row:
        """Columns that an image has whatever it shows; `category` among them."""
        return {}

    def load(self) -> None:  # noqa: B027 - not every suite has a model
        """Sees that all models are here before the first image is drawn. Raises: RewardUnavailableError."""

    def finish(self, rows: list[Row]) -> None:  # noqa: B027 - rows mostly stand alone
        """Adds columns that need all images of a model, in place; rows have `prompt_id`, `number`."""


suites: Registry[type[Suite]] = Registry(
    "suite", package="xomni_rl.experiments.evaluation.suites", entry_point_group="xomni_rl.suites"
)


def build_suite(name: str, options: Mapping[str, Any]) -> Suite:
    """The suite of that name with those options.

    Raises: UnknownNameError; EvaluationError for an option that it does not have; ValueError for a value it refuses.
    """
    kind = suites.get(name)
    known = list(inspect.signature(kind).parameters)
    for option in options:
        if option not in known:
            raise EvaluationError(unknown_name(f'option of suite "{name}"', option, known))
    made = kind(**options)
    made.options = dict(options)
    return made


def samples_of(suite: Suite, prompts: Sequence[Prompt], count: int) -> list[Sample]:
    """`count` samples of each prompt, prompt by prompt."""
    return [Sample(prompt, number, suite.names(prompt, number, count)) for prompt in prompts for number in range(1, count + 1)]


def published_file(suite: str, path: Path | None, origin: str) -> Path:
    """The path of a published file or folder. Raises: EvaluationError with where to get it if it is not given or not there."""
    if path is None:
        raise EvaluationError(f"suite {suite} needs its published prompts: --prompts FILE; {origin}")
    if not path.exists():
        raise EvaluationError(f"{path}: there is no such file or folder; {origin}")
    return path


def reward_scores(reward: Reward, images: list[np.ndarray], prompts: Sequence[Prompt]) -> tuple[RewardResult, dict[int, str]]:
    """A reward's result, NaN where it failed, and index → reason of the failures.

    Raises: RewardError if the reward does not say what it made of the others.
    """
    try:
        return reward(images, prompts), {}
    except RewardError as error:
        if error.partial is None:
            raise
        return error.partial, error.failures


def number_or_none(value: Any) -> float | None:
    """A figure as a row holds it: NaN, not applicable, is None."""
    return None if np.isnan(value) else float(value)
