"""What scores: rewards by name, mixes of the configuration taken apart, and one batch of images under all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xomni_rl.experiments.scoring.errors import ScoringError
from xomni_rl.experiments.scoring.matching import Item
from xomni_rl.images import ImageFileError, load_image
from xomni_rl.registry import UnknownNameError, unknown_name
from xomni_rl.rewards.base import rewards as registered
from xomni_rl.rewards.composite import CompositeReward, build_composite

CONF = Path(__file__).parents[1] / "conf" / "reward"
Components = dict[str, dict[str, Any]]
"""Column of the table → its component's configuration: reward, options, when."""


def components_of(names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None) -> Components:
    """The columns that rewards and mixes give.

    Args:
        names: rewards, `module:object`, or mixes such as embedded, whose components are taken each on its own: what a mix
            weighs, caps, gates and normalises concerns training.
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


def build_scorers(components: Components) -> dict[str, CompositeReward]:
    """Each reward in a composite of its own, so that one's failure leaves the others' scores."""
    return {name: build_composite({"components": {name: entry}, "on_failure": "drop"}) for name, entry in components.items()}


@dataclass
class Scored:
    """One batch, as it is kept.

    Args:
        figures: reward → its columns of numbers: its own, then its metrics.
        kinds: column of details → int, float, bool or str.
        rows: one per image: column → value, without what there is none of; "error" says why.
        failed: rewards that failed, per image.
        unreadable: per image, whether the file is no image.
    """

    figures: dict[str, list[str]]
    kinds: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[list[str]] = field(default_factory=list)
    unreadable: list[bool] = field(default_factory=list)


def score_batch(scorers: Mapping[str, CompositeReward], items: Sequence[Item]) -> Scored:
    """Scores of a batch. Raises: RewardUnavailableError if a reward cannot work at all."""
    scored = Scored({name: [name] for name in scorers}, rows=[{} for _ in items], failed=[[] for _ in items])
    loaded = {}
    for index, item in enumerate(items):
        try:
            loaded[index] = load_image(item.path)
        except (ImageFileError, OSError) as error:
            scored.rows[index]["error"] = str(error)
    scored.unreadable = [index not in loaded for index in range(len(items))]
    for name, scorer in scorers.items():
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
    return scored


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
