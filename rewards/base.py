"""What a reward is: images and prompts in, one score per image out, with the reason for it.

NaN means *not applicable to this sample* and nothing else. A failure raises `RewardError` with the reward's name and
the indices of the samples; it never becomes a score. A reward that cannot work at all here raises `RewardUnavailableError`.
"""

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

import numpy as np
from PIL import Image

from xomni_rl.images import as_image_list
from xomni_rl.prompts import Prompt
from xomni_rl.registry import Registry, origin, place, unknown_name

Function = TypeVar("Function", bound=Callable[..., Any])
Images = np.ndarray | Sequence[np.ndarray] | Sequence[Image.Image]


@dataclass
class RewardResult:
    """Scores of N samples.

    Args:
        scores: float32 [N]; NaN = not applicable.
        details: N dicts that say why: what was read, what was asked for.
        metrics: further float32 [N] figures of the same computation, logged as `<component>_<metric>`.
    """

    scores: np.ndarray
    details: list[dict[str, Any]]
    metrics: dict[str, np.ndarray] = field(default_factory=dict)


class RewardError(RuntimeError):
    """A reward could not score some samples.

    Args:
        reward: name of the reward.
        failures: sample index → reason.
        partial: result of the whole batch in which the failed samples' scores are NaN, when the others are known.
    """

    def __init__(self, reward: str, failures: Mapping[int, str], partial: RewardResult | None = None) -> None:
        super().__init__(reward, failures, partial)
        self.reward = reward
        self.failures = dict(failures)
        self.partial = partial

    def __str__(self) -> str:
        shown = [f"sample {index}: {reason}" for index, reason in list(self.failures.items())[:3]]
        if len(self.failures) > len(shown):
            shown.append(f"and {len(self.failures) - len(shown)} more")
        return f'reward "{self.reward}" failed on {len(self.failures)} sample(s): {"; ".join(shown)}'


class RewardUnavailableError(RuntimeError):
    """A reward cannot work at all here: a missing file or package, a wrong checkpoint, a server that is not there.

    The message is one sentence that names the reward and the remedy. It concerns no sample, so no `on_failure` drops it.
    """


class Reward(ABC):
    """A batched scorer of images. A subclass writes `score` and sets what it does not want the default of.

    Attributes:
        name: the name it is registered under; by default the class's.
        version: goes up whenever scores change, so that old tables stay comparable.
        range: lowest and highest score; the worst end is what a worthless image gets.
        higher_is_better: direction of the score.
        needs: fields of the prompt that it reads ("text", "texts", "checks"); none = images without prompts can be scored.
        cost: what one image costs, in words.
    """

    name: str
    version: str = "unversioned"
    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True
    needs: tuple[str, ...] = ()
    cost: str = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not hasattr(cls, "name"):
            cls.name = cls.__name__

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> RewardResult:
        """Scores N images, in one batch.

        The images go on as read-only views: components share them, and one that writes must not change another's scores.

        Args:
            images: uint8 [N, H, W, 3], or N uint8 [H, W, 3] arrays or PIL images of any sizes.
            prompts: N prompts, one per image.
        Returns: scores float32 [N] inside `range` or NaN, N details, float32 [N] metrics.
        Raises: ValueError if the numbers differ or an image or a prompt has another form; RewardError if scoring fails.
        """
        pictures = [_read_only(picture) for picture in as_image_list(images)]
        check_prompts(len(pictures), prompts)
        result = _as_result(self.score(pictures, prompts), len(pictures))
        return checked_result(self.name, result, len(pictures), self.range)

    @abstractmethod
    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores N uint8 [H, W, 3] images against N prompts; `__call__` checks what goes in and out.

        A reward from elsewhere may return N numbers instead, as a function does.
        """

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """(good image, worthless image, prompt): uint8 [H, W, 3] pictures that must score near the two ends.

        Raises: NotImplementedError if the reward offers none.
        """
        raise NotImplementedError(f'reward "{self.name}" has no self_check')

    def load(self) -> None:  # noqa: B027 - not every reward has something to load
        """Loads what scoring needs (a model, a session); the first score does it too. Doing it again changes nothing.

        Raises: RewardUnavailableError with the remedy if something is missing or wrong.
        """

    def files(self) -> tuple[Path, ...]:
        """Files that decide the scores (weights, judge prompts): hashed into records. Raises: RewardUnavailableError."""
        return ()

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        """Writes a tiny random checkpoint in the published layout into `folder`, for dry runs and tests.

        Returns: the options that make the reward use it; {} for a reward that needs no checkpoint.
        """
        return {}

    @property
    def floor(self) -> float:
        """The worst score: what a worthless image and a gated-off sample get."""
        return self.range[0] if self.higher_is_better else self.range[1]


class FunctionReward(Reward):
    """A plain function `(images, prompts, **options) -> RewardResult or [N] numbers` as a reward.

    The function may carry `version`, `range`, `higher_is_better`, `needs`, `cost` and `self_check` as attributes, which
    the decorator `reward` sets; without a `range` it is unbounded, and without `needs` it may read the prompt's text.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "version": "unversioned",
        "range": (-np.inf, np.inf),
        "higher_is_better": True,
        "needs": ("text",),
        "cost": "",
    }

    def __init__(self, name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.name = name
        self.function = function
        self.options = dict(options)
        for attribute, default in self.defaults.items():
            setattr(self, attribute, getattr(function, attribute, default))

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        return _as_result(self.function(images, prompts, **self.options), len(images))

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        pair = getattr(self.function, "self_check", None)
        if pair is None:
            return super().self_check()
        checked: tuple[np.ndarray, np.ndarray, Prompt] = pair()
        return checked


rewards: Registry[type[Reward] | Callable[..., Any]] = Registry(
    "reward", package="xomni_rl.rewards", entry_point_group="xomni_rl.rewards"
)


def reward(
    name: str | None = None,
    *,
    version: str = "1",
    range: tuple[float, float] = (-np.inf, np.inf),
    higher_is_better: bool = True,
    needs: Sequence[str] = (),
    cost: str = "",
    self_check: Callable[[], tuple[np.ndarray, np.ndarray, Prompt]] | None = None,
) -> Callable[[Function], Function]:
    """Decorator that says of a plain function `(images, prompts, **options)` what a `Reward` class says of itself.

    Args:
        name: also registers it under this name; None = reached as `module:function` or by an entry point.
        version, range, higher_is_better, needs, cost: see `Reward`.
        self_check: a function that returns (good image, worthless image, prompt).
    Raises: ValueError for a range that is none, naming the function, or an unknown field in `needs`.
    """
    if name is not None and not isinstance(name, str):
        raise ValueError('write @reward() or @reward("name"), with parentheses')
    low, high = range
    for need in needs:
        if need not in Prompt.__dataclass_fields__:
            raise ValueError(unknown_name("field of a prompt", need, Prompt.__dataclass_fields__))
    attributes = {"version": version, "range": (low, high), "higher_is_better": higher_is_better, "needs": tuple(needs)}
    attributes |= {"cost": cost} | ({"self_check": self_check} if self_check else {})

    def declare(function: Function) -> Function:
        if not low < high:
            given = f"got ({low:g}, {high:g}) for {function.__name__} at {place(function)}"
            raise ValueError(f"the range of a reward goes from its lowest to its highest score, {given}")
        for attribute, value in attributes.items():
            setattr(function, attribute, value)
        return function if name is None else rewards.register(name)(function)

    return declare


def build_reward(name: str, **options: Any) -> Reward:
    """The reward registered as `name` (or `module:object`), made with those options.

    Raises: UnknownNameError for an unknown name; UserCodeError for a module that cannot be imported; ValueError for an
        option that it does not have or a value it refuses, and for a class from elsewhere that cannot be made.
    """
    entry = rewards.get(name)
    if isinstance(entry, Reward):
        if options:
            raise ValueError(f'reward "{name}" is an object that is made already; it takes no options')
        return entry
    if not callable(entry):
        raise ValueError(f'reward "{name}" is neither a Reward class nor a function but {type(entry).__name__}')
    made_of = entry if isinstance(entry, type) and issubclass(entry, Reward) else None
    _check_options(name, entry, options, skip=2 if made_of is None else 0)
    _check_types(name, entry, options)
    return FunctionReward(name, entry, options) if made_of is None else _made(name, made_of, options)


def _made(name: str, entry: type[Reward], options: Mapping[str, Any]) -> Reward:
    """An object of the class; what a class from elsewhere raises, which may be anything, becomes a sentence with its place."""
    try:
        return entry(**options)
    except RewardUnavailableError:
        raise
    except (Exception, SystemExit) as error:
        if entry.__module__.startswith("xomni_rl."):
            raise
        raise ValueError(f'reward "{name}" cannot be made: {origin(error, place(entry))}') from error


def _check_options(name: str, entry: Callable[..., Any], options: Mapping[str, Any], skip: int) -> None:
    """Raises ValueError with the nearest names for an option that the entry does not take."""
    parameters = list(inspect.signature(entry).parameters.values())[skip:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            raise ValueError(unknown_name(f'option of reward "{name}"', option, known))


def _check_types(name: str, entry: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option of another kind than the entry's annotation says, as far as that is plain."""
    try:
        hints = {each.name: each.annotation for each in inspect.signature(entry, eval_str=True).parameters.values()}
    except (NameError, TypeError, AttributeError, SyntaxError):  # of a user's function, whose annotations may be anything
        return
    for option, value in options.items():
        hint = hints.get(option, Any)
        allowed = _alternatives(Any if hint is inspect.Parameter.empty else hint)
        if not any(_is_kind(value, each) for each in allowed):
            kinds = " or ".join(_KINDS[each] for each in allowed)
            raise ValueError(f'option {option} of reward "{name}" must be {kinds}, got {value!r}')


_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Mapping: "a mapping",
    Sequence: "a list",
    type(None): "null",
}


def _alternatives(hint: Any) -> list[Any]:
    """The kinds that an annotation allows; [Any] if one of them is not among `_KINDS`."""
    union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(each) or each for each in union]
    return kinds if all(kind in _KINDS for kind in kinds) else [Any]


def _is_kind(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is str:
        return isinstance(value, str | os.PathLike)
    if kind in (int, float):
        return not isinstance(value, bool) and isinstance(value, int if kind is int else int | float)
    return isinstance(value, kind) and not (kind is Sequence and isinstance(value, str))


def check_prompts(count: int, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError unless there is one `Prompt` per image."""
    if len(prompts) != count:
        raise ValueError(f"one prompt per image is needed, got {count} images and {len(prompts)} prompts")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            kind = type(prompt).__name__
            raise ValueError(f'prompts must be Prompt objects, got {kind} at index {index}; write Prompt("an id", "the text")')


def checked_result(name: str, result: RewardResult, count: int, bounds: tuple[float, float]) -> RewardResult:
    """The result in float32, after checking it.

    Raises: ValueError if a length is not `count` or a value no number; RewardError for infinite scores and scores out of
        `bounds`.
    """
    arrays = {key: _numbers(name, key, values) for key, values in {"scores": result.scores, **result.metrics}.items()}
    scores = arrays["scores"]
    for key, values in arrays.items():
        if values.shape != (count,):
            raise ValueError(f'reward "{name}" returned {key} of shape {list(values.shape)}, expected [{count}]')
    if len(result.details) != count:
        raise ValueError(f'reward "{name}" returned {len(result.details)} details, expected {count}')
    low, high = bounds
    slack = 1e-6 * max(1.0, *(abs(bound) for bound in bounds if np.isfinite(bound)), 0.0)
    wrong = np.isinf(scores) | (scores < low - slack) | (scores > high + slack)
    if wrong.any():
        failures = {int(i): f"score {scores[i]:g} is not in [{low:g}, {high:g}]" for i in np.flatnonzero(wrong)}
        kept = np.where(wrong, np.float32(np.nan), scores)
        raise RewardError(name, failures, RewardResult(kept, result.details, _metrics(arrays)))
    return RewardResult(np.clip(scores, low, high), result.details, _metrics(arrays))


def _as_result(returned: Any, count: int) -> RewardResult:
    """What a reward returned: a result, or N numbers without details."""
    return returned if isinstance(returned, RewardResult) else RewardResult(returned, [{} for _ in range(count)])


def _numbers(name: str, key: str, values: Any) -> np.ndarray:
    """The values in float32. None is refused although NumPy makes NaN of it: it is what a forgotten `return` gives."""
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return array.astype(np.float32, copy=False)
    found = next(type(each).__name__ for each in np.asarray(values, dtype=object).flat if not isinstance(each, float | int))
    raise ValueError(
        f'reward "{name}" returned {key} that are not all numbers but hold {found}; return one number per image, NaN where it'
        " does not apply"
    )


def _read_only(image: np.ndarray) -> np.ndarray:
    view = image.view()
    view.flags.writeable = False
    return view


def _metrics(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: values for key, values in arrays.items() if key != "scores"}
