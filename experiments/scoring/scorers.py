"""What scores: rewards by name, mixes of the configuration taken apart, and one batch of images under all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.experiments.scoring.errors import ScoringError
from xomni_rl.experiments.scoring.matching import Item
from xomni_rl.images import ImageFileError, load_image
from xomni_rl.registry import UnknownNameError, unknown_name
from xomni_rl.rewards.base import rewards as registered
from xomni_rl.rewards.composite import CompositeReward, build_composite

CONF = Path(__file__).parents[1] / "conf" / "reward"
Components = dict[str, dict[str, Any]]
"""Column of the table → its component's configuration: reward, options, when."""


@dataclass(frozen=True)
class Choice:
    """What is scored.

    Args:
        components: what is scored image by image.
        totals: mix → its components' weights and caps, and its gates, as `build_composite` takes them.
    """

    components: Components
    totals: dict[str, dict[str, Any]] = field(default_factory=dict)


def choice_of(names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None) -> Choice:
    """The components of rewards and mixes, and the totals of those mixes in which more than one component weighs something.

    Args: as in `components_of`.
    Raises: as `components_of`.
    """
    components = components_of(names, options)
    totals = {name: total for name in names if name not in components and (total := _total(name))}
    return Choice(components, totals)


def components_of(names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None) -> Components:
    """The columns that rewards and mixes give.

    Args:
        names: rewards, `module:object`, or mixes such as embedded, whose components are taken each on its own.
        options: component → options, on top of a mix's own.
    Raises: ScoringError for none, one twice, or options for none of them; UnknownNameError for an unknown name.
    """
    found: Components = {}
    for name in names:
        for component, entry in _components(name).items():
            if component in found:
                raise ScoringError(f"a reward is named twice: {component}; name each once, also as part of a mix")
            found[component] = entry
    if not found:
        raise ScoringError("name at least one reward")
    for name, values in (options or {}).items():
        if name not in found:
            raise ScoringError(f'options for "{name}", which is not among the rewards: {", ".join(found)}')
        found[name]["options"] = {**found[name]["options"], **values}
    return found


def mixes() -> list[str]:
    """Names of the configuration's mixes that are no rewards themselves."""
    return sorted(path.stem for path in CONF.glob("*.yaml") if path.stem not in registered.names())


def _components(name: str) -> Components:
    if ":" in name or name in registered.names():
        return {name: {"reward": name, "options": {}}}
    if name not in mixes():
        raise UnknownNameError(unknown_name("reward", name, [*registered.names(), *mixes()]))
    from xomni_rl.config import reward_config

    return {
        component: {"reward": entry.get("reward") or component, "options": dict(entry.get("options") or {})}
        | ({"when": entry["when"]} if entry.get("when") else {})
        for component, entry in reward_config(name)["components"].items()
    }


def _total(name: str) -> dict[str, Any] | None:
    """What makes a mix's total, None where no more than one component has a weight: that is the total."""
    from xomni_rl.config import reward_config

    config = reward_config(name)
    entries = config["components"].items()
    parts = {part: {"weight": entry.get("weight", 1.0), "cap": entry.get("cap")} for part, entry in entries}
    weighing = sum(part["weight"] != 0 for part in parts.values())
    return {"components": parts, "gates": dict(config.get("gates") or {})} if weighing > 1 else None


@dataclass(frozen=True)
class Scorers:
    """What scores.

    Args:
        rewards: column → the reward in a composite of its own, so that one's failure leaves the others' scores.
        totals: mix → the composite that averages its components' scores, and is never called itself.
    """

    rewards: dict[str, CompositeReward]
    totals: dict[str, CompositeReward]

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """Column → direction; in a total every component is turned so that higher is better."""
        return {name: each.parts[0].reward.higher_is_better for name, each in self.rewards.items()} | dict.fromkeys(
            self.totals, True
        )

    @property
    def reading_prompts(self) -> list[str]:
        """The rewards that can't do without prompts."""
        return [name for name, each in self.rewards.items() if each.parts[0].reads_prompts]


def build_scorers(choice: Choice) -> Scorers:
    """The scorers of a choice. Raises: UnknownNameError, ValueError for rewards and options that there are not."""
    components = choice.components
    totals = {}
    for mix, total in choice.totals.items():
        parts = {name: components[name] | own for name, own in total["components"].items()}
        totals[mix] = build_composite({**total, "components": parts})
    alone = {name: build_composite({"components": {name: entry}, "on_failure": "drop"}) for name, entry in components.items()}
    return Scorers(alone, totals)


@dataclass
class Scored:
    """One batch, as it is kept.

    Args:
        figures: reward → its columns of numbers: its own, then its metrics; mix → its total.
        kinds: column of details → int, float, bool or str.
        rows: one per image: column → value, without what there is none of; "error" says why.
        failed: rewards that failed and totals that miss one of them, per image.
        unreadable: per image, whether the file is no image.
    """

    figures: dict[str, list[str]]
    kinds: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[list[str]] = field(default_factory=list)
    unreadable: list[bool] = field(default_factory=list)


def score_batch(scorers: Scorers, items: Sequence[Item]) -> Scored:
    """Scores of a batch. Raises: RewardUnavailableError if a reward cannot work at all."""
    scored = Scored({name: [name] for name in scorers.rewards}, rows=[{} for _ in items], failed=[[] for _ in items])
    loaded = {}
    for index, item in enumerate(items):
        try:
            loaded[index] = load_image(item.path)
        except (ImageFileError, OSError) as error:
            scored.rows[index]["error"] = str(error)
    scored.unreadable = [index not in loaded for index in range(len(items))]
    for name, scorer in scorers.rewards.items():
        result = scorer(list(loaded.values()), [items[index].prompt for index in loaded])
        scored.figures[name] += list(result.metrics)
        for place, index in enumerate(loaded):
            row = scored.rows[index]
            for key, value in result.details[place].get(name, {}).items():
                _add_detail(scored, row, f"{name}_{key}", value)
            row[name] = _number(result.components[place, 0])
            row |= {metric: _number(values[place]) for metric, values in result.metrics.items()}
            if place in result.failures:
                scored.failed[index].append(name)
                row["error"] = "; ".join(filter(None, [row.get("error"), result.failures[place]]))
    for mix, composite in scorers.totals.items():
        _add_total(scored, mix, composite)
    return scored


def _add_total(scored: Scored, mix: str, composite: CompositeReward) -> None:
    """The mix's average of each image's scores; where a component that decides it failed, it failed too."""
    raw = [[row.get(name) for name in composite.names] for row in scored.rows]
    totals = composite.averaged(np.array(raw, dtype=np.float32))  # None becomes NaN
    deciding = {part.name for part in composite.parts if part.weight} | {gate.by for gate in composite.gates}
    scored.figures[mix] = [mix]
    for row, total, failed, unreadable in zip(scored.rows, totals, scored.failed, scored.unreadable, strict=True):
        if not unreadable and deciding & set(failed):
            failed.append(mix)
        elif not unreadable:
            row[mix] = _number(total)


def _add_detail(scored: Scored, row: dict[str, Any], column: str, value: Any) -> None:
    """A detail and its column's kind; what has no plain form is kept as JSON."""
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if plain is None or (isinstance(plain, float) and not math.isfinite(plain)):
        scored.kinds.setdefault(column, "none")
        return
    if type(plain) not in (str, bool, int, float) or (type(plain) is int and abs(plain) >= 2**63):
        plain = as_json(plain)
    row[column] = plain
    scored.kinds[column] = wider(scored.kinds.get(column, "none"), type(plain).__name__)


def wider(first: str, second: str) -> str:
    """The kind that holds values of both: none < int < float, anything else with another is str."""
    if "none" in (first, second) or first == second:
        return second if first == "none" else first
    return "float" if {first, second} == {"int", "float"} else "str"


def as_json(value: object) -> str:
    """JSON on one line, other objects as their text."""
    import json

    return json.dumps(value, ensure_ascii=False, default=str)


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
