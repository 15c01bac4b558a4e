"""Whether runs may be compared: what is the same in all of them, what differs by intent, and what speaks against it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xomni_rl.experiments.ablation.runs import Run
from xomni_rl.experiments.report.provenance import warnings as provenance_warnings
from xomni_rl.policies.settings import flatten

Methods = Mapping[str, Sequence[Run]]
NOT_SETTINGS = ("run", "resume", "seed")


@dataclass(frozen=True)
class Fairness:
    """Args:
    equal: what is the same in all runs, in words.
    warnings: sentences, one for each thing that makes the comparison unfair or cannot be checked.
    differing: setting → method → its value, for settings that differ between methods.
    """

    equal: list[str]
    warnings: list[str]
    differing: dict[str, dict[str, Any]]


def check_fairness(methods: Methods) -> Fairness:
    """Compares the runs' records.

    Initial weights, generation budget, held-out prompts, evaluation settings, packages and machine must be equal everywhere;
    training prompts and their order for equal seeds.

    Args:
        methods: method → its runs, one per seed.
    """
    equal, warnings = [], _seed_warnings(methods)
    runs = [(name, run) for name, found in methods.items() for run in found]
    for what, value in EVERYWHERE.items():
        words, said = _compare(what, [(_label(methods, name, run), value(run)) for name, run in runs])
        equal += words
        warnings += said
    words, said = _compare_order(runs)
    equal += words
    warnings += said + _settings_warnings(methods) + _status_warnings(methods)
    warnings += provenance_warnings({name: [run.folder for run in found] for name, found in methods.items()})
    return Fairness(equal, warnings, differing_settings(methods))


def settings(run: Run) -> dict[str, Any]:
    """A run's configuration as dotted names, without folder and seed."""
    return {key: value for key, value in flatten(run.config).items() if key not in NOT_SETTINGS}


def differing_settings(methods: Methods) -> dict[str, dict[str, Any]]:
    """Setting → method → value, where methods differ; a setting that a method does not have is absent."""
    firsts = {name: settings(runs[0]) for name, runs in methods.items()}
    keys = sorted({key for found in firsts.values() for key in found})
    missing = object()
    return {
        key: {name: found[key] for name, found in firsts.items() if key in found}
        for key in keys
        if len({_comparable(found.get(key, missing)) for found in firsts.values()}) > 1
    }


def _weights(run: Run) -> Any:
    return run.manifest.get("weights")


def _heldout(run: Run) -> Any:
    return ((run.manifest.get("prompts") or {}).get("heldout") or {}).get("sha256")


def _budget(run: Run) -> Any:
    samples = run.samples(run.summary.get("steps", run.last))
    return None if math.isnan(samples) else int(samples)


def _evaluation(run: Run) -> Any:
    """The evaluation's settings; a reward of null is the one trained on."""
    evaluation = dict((run.config.get("trainer") or {}).get("evaluation") or {})
    if not evaluation:
        return None
    evaluation.pop("batch_size", None)  # every prompt has a random stream of its own
    evaluation.pop("grid_prompts", None)
    evaluation["reward"] = _scored(evaluation.get("reward") or run.config.get("reward") or {})
    return flatten(evaluation)


def _scored(reward: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a composite's raw scores: not the weights, and not how many components are scored at a time."""
    components = reward.get("components") or {}
    return {
        "components": {name: {k: v for k, v in (entry or {}).items() if k != "weight"} for name, entry in components.items()},
        "gates": reward.get("gates"),
    }


def _machine(run: Run) -> Any:
    facts = {name: run.manifest.get(name) for name in ("python", "platform", "torch_threads")}
    return None if run.manifest.get("packages") is None else {**run.manifest["packages"], **facts}


EVERYWHERE: dict[str, Callable[[Run], Any]] = {
    "initial weights": _weights,
    "images generated in training": _budget,
    "held-out prompts": _heldout,
    "evaluation settings": _evaluation,
    "packages and machine": _machine,
}


def _compare(what: str, found: Sequence[tuple[str, Any]]) -> tuple[list[str], list[str]]:
    """([what] if all are equal, warnings otherwise)."""
    unknown = [name for name, value in found if value is None]
    if unknown:
        return [], [f"{what}: not checked, {_listed(unknown)} did not record it"]
    if len({_comparable(value) for _, value in found}) == 1:
        value = found[0][1]
        return [f"{what} ({value:,})" if isinstance(value, int) else what], []
    if not isinstance(found[0][1], Mapping):
        return [], [f"{what} differ: {_by_value(found)}"]
    keys = sorted({key for _, value in found for key in value})
    apart = [key for key in keys if len({_comparable(value.get(key)) for _, value in found}) > 1]
    details = "; ".join(f"{key} {_by_value([(name, value.get(key)) for name, value in found])}" for key in apart[:3])
    more = f"; and {len(apart) - 3} more" if len(apart) > 3 else ""
    return [], [f"{what} differ: {details}{more}"]


def _compare_order(runs: Sequence[tuple[str, Run]]) -> tuple[list[str], list[str]]:
    """Training prompts and their order, among runs of the same seed."""
    what = "training prompts and their order for equal seeds"
    by_seed: dict[str, list[tuple[str, Any]]] = {}
    for name, run in runs:
        prompts = ((run.manifest.get("prompts") or {}).get("train") or {}).get("sha256")
        per_step = (run.config.get("trainer") or {}).get("prompts_per_step")
        order = None if prompts is None else f"{prompts[:8]} × {per_step} a step"
        by_seed.setdefault(str(run.seed), []).append((name, order))
    results = [_compare(what, found) for found in by_seed.values()]
    warnings = list(dict.fromkeys(warning for _, said in results for warning in said))
    return ([] if warnings else [what]), warnings


def _seed_warnings(methods: Methods) -> list[str]:
    seeds = {name: sorted(str(run.seed) for run in runs) for name, runs in methods.items()}
    found = [f"{name} has a seed twice" for name, own in seeds.items() if len(set(own)) < len(own)]
    if len({tuple(own) for own in seeds.values()}) > 1:
        found.append("seeds differ: " + "; ".join(f"{name} {', '.join(own)}" for name, own in seeds.items()))
    return found


def _settings_warnings(methods: Methods) -> list[str]:
    """Methods whose own runs differ in more than the seed."""
    found = []
    for name, runs in methods.items():
        own = [settings(run) for run in runs]
        keys = sorted({key for values in own for key in values})
        apart = [key for key in keys if len({_comparable(values.get(key)) for values in own}) > 1]
        if apart:
            found.append(f"the runs of {name} differ in {_listed(apart)}")
    return found


def _status_warnings(methods: Methods) -> list[str]:
    """Runs that did not come to their end."""
    ended = ("finished", "max_seconds")
    return [
        f"{name} seed {run.seed}: {run.summary.get('status', 'no summary: it was killed, or is still running')}"
        for name, runs in methods.items()
        for run in runs
        if run.summary.get("status") not in ended
    ]


def _by_value(found: Sequence[tuple[str, Any]]) -> str:
    """ "4 in grpo; 8 in gspo"."""
    grouped: dict[str, list[str]] = {}
    for name, value in found:
        grouped.setdefault(_shown(value), []).append(name)
    return "; ".join(f"{value} in {_listed(list(dict.fromkeys(names)))}" for value, names in grouped.items())


def _shown(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text[:8] if isinstance(value, str) and len(value) == 64 else text  # a hash


def _label(methods: Methods, name: str, run: Run) -> str:
    return name if len(methods[name]) == 1 else f"{name} seed {run.seed}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _comparable(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
