"""Several rewards as one: weights, routing, caps, gates, normalisation, schedules, and what happens when one fails.

The composite hands over the [N, K] component matrix; advantages are not its business. What it does to a component, in this
order: route (prompts it is not asked about are NaN), orient (a lower-is-better score is negated), cap, gate (a sample whose
gate is closed gets the floor), normalise. Weights come last, where components are averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from xomni_rl.images import as_image_list
from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import Images, RewardResult, build_reward, check_prompts
from xomni_rl.rewards.combine import NORMALISATIONS, Gate, normalise_components, parse_gate, weighted_average
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.lanes import run_in_lanes
from xomni_rl.rewards.routing import Route
from xomni_rl.rewards.schedule import Schedule

ON_FAILURE = ("stop", "drop")
KEYS = ("components", "normalisation", "gates", "on_failure", "concurrency")
COMPONENT_KEYS = ("reward", "weight", "options", "normalisation", "cap", "schedule", "when")


@dataclass
class CompositeResult:
    """Scores of N samples under K components.

    Args:
        names: the K components.
        components: float32 [N, K], raw; NaN = not applicable (or failed).
        normalised: float32 [N, K], oriented, capped, gated and normalised: what advantages consume; NaN kept.
        weights: float32 [K]; 0 = logged only.
        scores: float32 [N], weighted average of the oriented, capped and gated components over the applicable ones with a
            weight; NaN where none applies.
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


@dataclass
class CompositeReward:
    """Weighted rewards. Those with nothing in common are called at the same time; results are as if one after another.

    The first time that a component scores anything, all are called one after another: it then imports packages and loads
    models, and two threads that import the same packages for the first time can wait for each other for ever.

    Args:
        parts: the components; names must differ.
        normalisation: none, batch (a component to mean 0 and deviation 1 over the batch) or group (over each group); of
            every component that does not say otherwise.
        gates: at most one per component.
        on_failure: stop = the RewardError of the first failing component propagates; drop = failed samples are marked, and
            the others go on. A RewardUnavailableError always propagates.
        concurrency: most components scored at a time; None = all, 1 = one after another.
        scored_before: names of components that have scored something in this process; the composite keeps it itself.
    Raises: ValueError for anything that does not fit together.
    """

    parts: Sequence[Component]
    normalisation: str = "none"
    gates: Sequence[Gate] = ()
    on_failure: str = "stop"
    concurrency: int | None = None
    names: tuple[str, ...] = field(init=False)
    weights: np.ndarray = field(init=False)
    scored_before: set[str] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.names = tuple(part.name for part in self.parts)
        self.weights = np.array([part.weight for part in self.parts], dtype=np.float32)
        _check_choice("normalisation", self.normalisation, NORMALISATIONS)
        _check_choice("on_failure", self.on_failure, ON_FAILURE)
        if not self.parts:
            raise ValueError("a composite reward needs at least one component")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, or null for all components at a time, got {self.concurrency}")
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
            group: int64 [N], which samples belong together; needed where a component's normalisation is "group".
        Raises: ValueError for lengths that differ or a missing group; RewardError if a component fails and
            on_failure is "stop"; RewardUnavailableError if one cannot work at all.
        """
        pictures = as_image_list(images)
        check_prompts(len(pictures), prompts)
        groups = self._groups(group, len(pictures))
        results, failures = self._results(pictures, prompts)
        failed = np.isin(np.arange(len(pictures)), list(failures))
        components = np.stack([result.scores for result in results], axis=1)
        components[failed] = np.nan
        usable = self._usable(components)
        return CompositeResult(
            names=self.names,
            components=components,
            normalised=self._normalised(usable, groups),
            weights=self.weights.copy(),
            scores=self.averaged(components),
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

    def averaged(self, components: np.ndarray) -> np.ndarray:
        """float32 [N]: the scores that go with raw components, float32 [N, K], wherever these were scored."""
        return weighted_average(self._usable(components), self.weights)

    def normalised(self, components: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
        """What advantages consume of raw scores: where a batch was scored in parts, and "batch" must mean all of it.

        Args:
            components: float32 [N, K], as a result has them.
            group: as for scoring.
        Returns: float32 [N, K], as a result of all N at once has them.
        """
        return self._normalised(self._usable(components), self._groups(group, len(components)))

    def at(self, step: int) -> "CompositeReward":
        """The composite with its weights as they are at a training step (the first is 1); itself if none is scheduled."""
        if all(part.schedule is None for part in self.parts):
            return self
        return replace(self, parts=[replace(part, weight=_weight_at(part, step), schedule=None) for part in self.parts])

    def varying_weights(self, step: int) -> dict[str, float]:
        """Component → weight at a training step, of those whose weight changes during training."""
        return {part.name: _weight_at(part, step) for part in self.parts if part.weight and _varies(part)}

    def __getstate__(self) -> dict[str, Any]:
        """A copy may live in another process, where nothing has been imported yet."""
        return vars(self) | {"scored_before": set()}

    def _results(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> tuple[list[RewardResult], dict[int, str]]:
        """Each component's result, and "component: reason" by the index of each sample that one failed on."""
        asked = {part.name for part in self.parts if part.is_asked(prompts)}
        threads = self.concurrency if asked <= self.scored_before else 1
        scorers = [id(part.scorer) for part in self.parts]
        if self.on_failure == "stop":
            results = run_in_lanes([partial(part.scored, images, prompts) for part in self.parts], scorers, threads)
            self.scored_before |= asked
            return results, {}
        attempts = [partial(part.scored_where_possible, images, prompts) for part in self.parts]
        outcomes = run_in_lanes(attempts, scorers, threads)
        self.scored_before |= asked
        failures: dict[int, str] = {}
        for name, (_, failed) in zip(self.names, outcomes, strict=True):
            for index, reason in failed.items():
                failures[index] = "; ".join(filter(None, [failures.get(index), f"{name}: {reason}"]))
        return [result for result, _ in outcomes], failures

    def _groups(self, group: np.ndarray | None, count: int) -> np.ndarray:
        if "group" not in self.normalised_by:
            return np.zeros(count, dtype=np.int64)
        if group is None:
            raise ValueError('normalisation "group" needs group: int64 [N], which samples belong to one prompt')
        if np.shape(group) != (count,):
            raise ValueError(f"group must have shape [{count}], got {list(np.shape(group))}")
        return np.asarray(group, dtype=np.int64)

    @property
    def normalised_by(self) -> set[str]:
        """The normalisations in use, "none" among them."""
        return set(self._normalisations())

    def _normalisations(self) -> list[str]:
        return [part.normalisation or self.normalisation for part in self.parts]

    def _usable(self, components: np.ndarray) -> np.ndarray:
        """float32 [N, K]: components oriented so that higher is better, capped, closed samples at the floor."""
        usable = np.stack([part.oriented(components[:, k]) for k, part in enumerate(self.parts)], axis=1)
        for gate in self.gates:
            column = self.names.index(gate.component)
            closed = ~gate.is_open(components[:, self.names.index(gate.by)]) & ~np.isnan(components[:, column])
            usable[closed, column] = self.parts[column].sign * self.parts[column].reward.floor
        return usable

    def _normalised(self, usable: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """float32 [N, K]: each component normalised in its own way."""
        normalised = usable.copy()
        kinds = np.array(self._normalisations())
        for kind, labels in (("batch", np.zeros_like(groups)), ("group", groups)):
            if (kinds == kind).any():
                normalised[:, kinds == kind] = normalise_components(usable[:, kinds == kind], labels)
        return normalised

    def _check_weights(self) -> None:
        if not self.weights.any():
            raise ValueError("every component has weight 0: there is nothing to train on")
        # Weights are linear between knots and never change sign: if any is left at every knot, one is everywhere.
        for step in sorted({step for part in self.parts if part.schedule for step, _ in part.schedule.knots}):
            if not any(_weight_at(part, step) for part in self.parts):
                raise ValueError(f"the schedules give every component weight 0 at step {step}: there is nothing to train on")

    def _check_gates(self) -> None:
        for gate in self.gates:
            for name in (gate.component, gate.by):
                if name not in self.names:
                    raise ValueError(f"gate: {unknown_name('component', name, self.names)}")
            floor = self.parts[self.names.index(gate.component)].reward.floor
            if not np.isfinite(floor):
                raise ValueError(f'"{gate.component}" cannot be gated: it declares no finite floor (range)')


def build_composite(config: Mapping[str, Any]) -> CompositeReward:
    """A composite from its configuration.

    Args:
        config: {components: {NAME: {reward: …, weight: 1.0, options: {…}, …}}, normalisation: none, gates:
            {NAME: "OTHER > 0.2"}, on_failure: stop, concurrency: null}. In a component, `reward` defaults to NAME; the
            keys normalisation, cap, schedule ({step: factor}) and when (see `Route`) may be there too.
    Raises: ValueError with the nearest names for an unknown key; UnknownNameError for an unknown reward.
    """
    _check_keys("key of the reward configuration", config, KEYS)
    components = config.get("components") or {}
    if not isinstance(components, Mapping):
        raise ValueError(f"components must map names to rewards, got {components!r}")
    gates = config.get("gates") or {}
    if not isinstance(gates, Mapping):
        raise ValueError(f'gates must map components to rules such as "clip > 0.2", got {gates!r}')
    concurrency = config.get("concurrency")
    if concurrency is not None and type(concurrency) is not int:
        raise ValueError(f"concurrency must be a whole number of at least 1, or null, got {concurrency!r}")
    return CompositeReward(
        parts=[_build_component(str(name), entry or {}) for name, entry in components.items()],
        normalisation=config.get("normalisation") or "none",
        gates=[parse_gate(str(name), str(rule)) for name, rule in gates.items()],
        on_failure=config.get("on_failure") or "stop",
        concurrency=concurrency,
    )


def _build_component(name: str, entry: Mapping[str, Any]) -> Component:
    if not isinstance(entry, Mapping):
        raise ValueError(f'component "{name}" must have the keys reward, weight, options, got {entry!r}')
    _check_keys(f'key of component "{name}"', entry, COMPONENT_KEYS)
    schedule, when, options = entry.get("schedule"), entry.get("when"), entry.get("options") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f'options of component "{name}" must map names to values, got {options!r}')
    try:
        made_schedule = None if schedule is None else Schedule.parse(schedule)
        made_route = None if when is None else Route(str(when))
    except ValueError as error:
        raise ValueError(f'component "{name}": {error}') from error
    return Component(
        name,
        build_reward(str(entry.get("reward") or name), **{str(key): value for key, value in options.items()}),
        _number(name, "weight", entry.get("weight", 1.0)),
        normalisation=entry.get("normalisation"),
        cap=None if entry.get("cap") is None else _number(name, "cap", entry["cap"]),
        schedule=made_schedule,
        when=made_route,
    )


def _number(component: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'{key} of "{component}" must be a number, got {value!r}')
    return float(value)


def _weight_at(part: Component, step: int) -> float:
    return part.weight * (1.0 if part.schedule is None else part.schedule.factor(step))


def _varies(part: Component) -> bool:
    return part.schedule is not None and len({factor for _, factor in part.schedule.knots}) > 1


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(unknown_name(name, str(value), choices))


def _check_keys(what: str, config: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in config:
        if key not in known:
            raise ValueError(unknown_name(what, str(key), known))
