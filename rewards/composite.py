"""Several rewards as one: weights, normalisation, gates, log-only components, and what happens when one fails.

The composite hands over the [N, K] component matrix; advantages are not its business. What it does to a component, in this
order: orient (a lower-is-better score is negated), gate (a sample whose gate is closed gets the floor), normalise.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xomni_rl.images import as_image_list
from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import (
    Images,
    Reward,
    RewardError,
    RewardResult,
    RewardUnavailableError,
    build_reward,
    check_lengths,
    checked_result,
)

NORMALISATIONS = ("none", "batch", "group")
ON_FAILURE = ("stop", "drop")
EPSILON = 1e-4
"""Added to the standard deviation when normalising, in units of the normalised score."""

_GATE = re.compile(r"\s*([\w.-]+)\s*(>=|<=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
_COMPARE: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
}


@dataclass
class CompositeResult:
    """Scores of N samples under K components.

    Args:
        names: the K components.
        components: float32 [N, K], raw; NaN = not applicable (or failed).
        normalised: float32 [N, K], oriented, gated and normalised: what advantages consume; NaN kept.
        weights: float32 [K]; 0 = logged only.
        scores: float32 [N], weighted average of the oriented and gated components over the applicable ones with a weight;
            NaN where none applies.
        failed: bool [N], samples that some component failed on; all their components are NaN.
        details: N dicts component → detail of that reward.
        metrics: "<component>_<metric>" → float32 [N].
        failures: sample index → "component: reason" of each failed one.
    """

    names: tuple[str, ...]
    components: np.ndarray
    normalised: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    failed: np.ndarray
    details: list[dict[str, dict[str, Any]]]
    metrics: dict[str, np.ndarray]
    failures: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Component:
    """A reward under a name of its own, with its weight in the average (0 = logged only, negative = a penalty)."""

    name: str
    reward: Reward
    weight: float = 1.0


@dataclass(frozen=True)
class Gate:
    """`component` counts only where `by` compares with `threshold`; elsewhere it gets its floor."""

    component: str
    by: str
    comparison: str
    threshold: float

    def is_open(self, scores: np.ndarray) -> np.ndarray:
        """bool [N] from raw scores [N]; open where the gating component does not apply (NaN)."""
        return np.isnan(scores) | _COMPARE[self.comparison](scores, self.threshold)


@dataclass
class CompositeReward:
    """Weighted rewards, called one after the other.

    Args:
        parts: the components; names must differ.
        normalisation: none, batch (each component to mean 0 and deviation 1 over the batch) or group (over each group).
        gates: at most one per component.
        on_failure: stop = the RewardError propagates; drop = failed samples are marked, and the others go on.
    Raises: ValueError for anything that does not fit together.
    """

    parts: Sequence[Component]
    normalisation: str = "none"
    gates: Sequence[Gate] = ()
    on_failure: str = "stop"
    names: tuple[str, ...] = field(init=False)
    weights: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(part.name for part in self.parts)
        self.weights = np.array([part.weight for part in self.parts], dtype=np.float32)
        _check_choice("normalisation", self.normalisation, NORMALISATIONS)
        _check_choice("on_failure", self.on_failure, ON_FAILURE)
        if not self.parts:
            raise ValueError("a composite reward needs at least one component")
        for names, what in ((self.names, "components"), ([gate.component for gate in self.gates], "gates")):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} must have different names, got {', '.join(names)}")
        self._check_weights()
        self._check_gates()

    def __call__(self, images: Images, prompts: Sequence[Prompt], group: np.ndarray | None = None) -> CompositeResult:
        """Scores N images.

        Args:
            images: uint8 [N, H, W, 3], or N uint8 [H, W, 3] arrays or PIL images.
            prompts: N prompts.
            group: int64 [N], which samples belong together; needed by normalisation="group".
        Raises: ValueError for lengths that differ or a missing group; RewardError if a component fails and
            on_failure is "stop".
        """
        pictures = as_image_list(images)
        check_lengths(len(pictures), prompts)
        groups = self._groups(group, len(pictures))
        failures: dict[int, str] = {}
        results = [self._call(part, pictures, prompts, failures) for part in self.parts]
        failed = np.isin(np.arange(len(pictures)), list(failures))
        components = np.stack([result.scores for result in results], axis=1)
        components[failed] = np.nan
        usable = self._gated(components)
        return CompositeResult(
            names=self.names,
            components=components,
            normalised=normalise_components(usable, groups) if self.normalisation != "none" else usable,
            weights=self.weights.copy(),
            scores=weighted_average(usable, self.weights),
            failed=failed,
            details=[
                {name: result.details[index] for name, result in zip(self.names, results, strict=True)}
                for index in range(len(pictures))
            ],
            metrics={
                f"{name}_{metric}": np.where(failed, np.float32(np.nan), values)
                for name, result in zip(self.names, results, strict=True)
                for metric, values in result.metrics.items()
            },
            failures=failures,
        )

    def _groups(self, group: np.ndarray | None, count: int) -> np.ndarray:
        if self.normalisation != "group":
            return np.zeros(count, dtype=np.int64)
        if group is None:
            raise ValueError('normalisation "group" needs group: int64 [N], which samples belong to one prompt')
        if np.shape(group) != (count,):
            raise ValueError(f"group must have shape [{count}], got {list(np.shape(group))}")
        return np.asarray(group, dtype=np.int64)

    def _call(
        self, part: Component, images: list[np.ndarray], prompts: Sequence[Prompt], failures: dict[int, str]
    ) -> RewardResult:
        """The component's result; under "drop", failed samples are NaN in it and get an entry in `failures`."""
        try:
            return _run(part, images, prompts)
        except RewardError as error:
            if self.on_failure == "stop":
                raise
            found = error.failures
            if error.partial is None:
                result, found = _one_by_one(part, images, prompts)
            else:
                result = checked_result(part.name, error.partial, len(images), part.reward.range)
            for index, reason in found.items():
                failures[index] = "; ".join(filter(None, [failures.get(index), f"{part.name}: {reason}"]))
            return result

    def _gated(self, components: np.ndarray) -> np.ndarray:
        """float32 [N, K]: components oriented so that higher is better, closed samples at the floor."""
        signs = np.array([1.0 if part.reward.higher_is_better else -1.0 for part in self.parts], dtype=np.float32)
        usable = components * signs
        for gate in self.gates:
            column = self.names.index(gate.component)
            closed = ~gate.is_open(components[:, self.names.index(gate.by)]) & ~np.isnan(components[:, column])
            usable[closed, column] = signs[column] * self.parts[column].reward.floor
        return usable

    def _check_weights(self) -> None:
        for part in self.parts:
            if not np.isfinite(part.weight):
                raise ValueError(f'weight of "{part.name}" must be finite, got {part.weight}')
        if not self.weights.any():
            raise ValueError("every component has weight 0: there is nothing to train on")

    def _check_gates(self) -> None:
        for gate in self.gates:
            for name in (gate.component, gate.by):
                if name not in self.names:
                    raise ValueError(f"gate: {unknown_name('component', name, self.names)}")
            floor = self.parts[self.names.index(gate.component)].reward.floor
            if not np.isfinite(floor):
                raise ValueError(f'"{gate.component}" cannot be gated: it declares no finite floor (range)')


def normalise_components(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(x − mean) / (std + EPSILON) of each component over each group's applicable samples.

    The deviation has N − 1 below (torch's and TRL's default); one applicable sample, and equal ones, become 0.

    Args:
        values: float [N, K]; NaN = not applicable, kept.
        group: int [N].
    Returns: float32 [N, K].
    Raises: ValueError if the shapes differ.
    Source: group normalisation per component is GDPO's, arXiv:2601.05242. Departs from it: its closing normalisation of
        the summed advantages over the batch belongs to the advantage function.
    """
    if values.ndim != 2 or group.shape != values.shape[:1]:
        raise ValueError(f"expected values [N, K] and group [N], got {list(values.shape)} and {list(group.shape)}")
    normalised = np.full(values.shape, np.nan, dtype=np.float32)
    for label in np.unique(group):
        for column in range(values.shape[1]):
            rows = np.flatnonzero((group == label) & ~np.isnan(values[:, column]))
            scores = values[rows, column].astype(np.float64)
            if len(rows):
                deviation = scores.std(ddof=1) if len(rows) > 1 else 0.0
                normalised[rows, column] = (scores - scores.mean()) / (deviation + EPSILON)
    return normalised


def weighted_average(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ w·x / Σ |w| over the applicable components with a weight; NaN where there is none.

    Args:
        values: float [N, K]; NaN = not applicable.
        weights: float [K]; negative = a penalty, 0 = logged only.
    Returns: float32 [N].
    """
    present = ~np.isnan(values) & (weights != 0)
    total = (present * np.abs(weights)).sum(axis=1, dtype=np.float64)
    mass = (np.where(present, values, 0.0) * weights).sum(axis=1, dtype=np.float64)
    return np.divide(mass, total, out=np.full(len(values), np.nan), where=total > 0).astype(np.float32)


def build_composite(config: Mapping[str, Any]) -> CompositeReward:
    """A composite from its configuration.

    Args:
        config: {components: {NAME: {reward: …, weight: 1.0, options: {…}}}, normalisation: none, gates:
            {NAME: "OTHER > 0.2"}, on_failure: stop}; in a component, `reward` defaults to NAME.
    Raises: ValueError with the nearest names for an unknown key; UnknownNameError for an unknown reward.
    """
    _check_keys("key of the reward configuration", config, ("components", "normalisation", "gates", "on_failure"))
    components = config.get("components") or {}
    if not isinstance(components, Mapping):
        raise ValueError(f"components must map names to rewards, got {components!r}")
    return CompositeReward(
        parts=[_build_component(str(name), entry or {}) for name, entry in components.items()],
        normalisation=config.get("normalisation") or "none",
        gates=[parse_gate(str(name), str(rule)) for name, rule in (config.get("gates") or {}).items()],
        on_failure=config.get("on_failure") or "stop",
    )


def parse_gate(component: str, rule: str) -> Gate:
    """A gate from "OTHER > 0.2" (also >=, <, <=). Raises: ValueError for another form."""
    match = _GATE.fullmatch(rule)
    if match is None:
        raise ValueError(f'gate of "{component}" must read like "clip > 0.2" (>, >=, < or <=), got "{rule}"')
    by, comparison, threshold = match.groups()
    return Gate(component, by, comparison, float(threshold))


def _build_component(name: str, entry: Mapping[str, Any]) -> Component:
    if not isinstance(entry, Mapping):
        raise ValueError(f'component "{name}" must have the keys reward, weight, options, got {entry!r}')
    _check_keys(f'key of component "{name}"', entry, ("reward", "weight", "options"))
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f'weight of "{name}" must be a number, got {weight!r}')
    options = {str(key): value for key, value in (entry.get("options") or {}).items()}
    return Component(name, build_reward(str(entry.get("reward", name)), **options), float(weight))


def _run(part: Component, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """One component over the batch, any failure of it being a RewardError under the component's name."""
    try:
        result = part.reward(images, prompts)
    except RewardUnavailableError:
        raise
    except RewardError as error:
        raise RewardError(part.name, error.failures, error.partial) from error
    except Exception as error:
        # Rewards from elsewhere raise what they like; which sample it was is not known.
        reason = f"{type(error).__name__}: {error}"
        raise RewardError(part.name, dict.fromkeys(range(len(images)), reason)) from error
    return checked_result(part.name, result, len(images), part.reward.range)


def _one_by_one(part: Component, images: list[np.ndarray], prompts: Sequence[Prompt]) -> tuple[RewardResult, dict[int, str]]:
    """The component's result sample by sample after the batch failed, and index → reason where it fails again."""
    failures: dict[int, str] = {}
    scores = np.full(len(images), np.nan, dtype=np.float32)
    details: list[dict[str, Any]] = [{} for _ in images]
    metrics: dict[str, np.ndarray] = {}
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        try:
            single = _run(part, [image], [prompt])
        except RewardError as error:
            failures[index] = "; ".join(error.failures.values())
            details[index] = {"reason": failures[index]}
            continue
        scores[index], details[index] = single.scores[0], single.details[0]
        for name, values in single.metrics.items():
            metrics.setdefault(name, np.full(len(images), np.nan, dtype=np.float32))[index] = values[0]
    return RewardResult(scores, details, metrics), failures


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(unknown_name(name, str(value), choices))


def _check_keys(what: str, config: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in config:
        if key not in known:
            raise ValueError(unknown_name(what, str(key), known))
