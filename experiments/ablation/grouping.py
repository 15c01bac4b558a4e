"""Which runs belong together: the same settings, another seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xomni_rl.experiments.ablation.fairness import NOT_SETTINGS
from xomni_rl.experiments.ablation.plan import short_keys
from xomni_rl.experiments.report.data import ReportError, read_yaml
from xomni_rl.policies.settings import flatten

SPEAKING = ("algorithm.name", "reward", "model.path", "prompts.set", "trainer.name", "trainer.learning_rate")
"""Settings that a method is called by before any other."""


def group_runs(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Method → its runs; runs are of one method if nothing but the seed differs in their configurations.

    A method is named by the fewest settings that tell it from the others; with one method, by its algorithm.

    Raises: ReportError for a folder that is no run or comes twice, or two runs of one method with the same seed.
    """
    configs = {folder: _config(folder) for folder in folders}
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ReportError("a run folder is given twice")
    groups: dict[str, list[Path]] = {}
    for folder, config in configs.items():
        groups.setdefault(json.dumps(_settings(config), sort_keys=True, default=str), []).append(folder)
    for found in groups.values():
        seeds = {str(configs[folder].get("seed")): folder for folder in found}
        if len(seeds) < len(found):
            twice = next(folder for folder in found if seeds[str(configs[folder].get("seed"))] != folder)
            raise ReportError(
                f"{twice} and {seeds[str(configs[twice].get('seed'))]} have the same settings and seed; "
                "leave one out, or name methods with --group NAME RUN…"
            )
    names = method_names([_settings(configs[found[0]]) for found in groups.values()])
    return dict(zip(names, groups.values(), strict=True))


def method_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name per mapping of settings, all different if the settings are: "grpo", "grpo,learning_rate=0.0003"."""
    if len(settings) == 1:
        return [str(settings[0].get("algorithm.name", "all runs"))]
    keys = sorted({key for found in settings for key in found}, key=lambda key: (_rank(key), key))
    chosen: list[str] = []
    for key in keys:
        if _distinct(settings, [*chosen, key]) > _distinct(settings, chosen):
            chosen.append(key)
    return [",".join(_words(found, chosen)) or "default" for found in settings]


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder")
    if not (folder / "config.yaml").exists():
        raise ReportError(f"{folder} is no run folder: it has no config.yaml")
    return read_yaml(folder / "config.yaml")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings without folder and seed, and "reward": the names of the components trained on."""
    flat = {key: value for key, value in flatten(config).items() if key not in NOT_SETTINGS}
    components = (config.get("reward") or {}).get("components") or {}
    trained = [name for name, entry in components.items() if (entry or {}).get("weight", 1.0) != 0]
    return flat | {"reward": "+".join(trained)}


def _distinct(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({json.dumps([found.get(key) for key in keys], default=str) for found in settings})


def _words(found: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    named = [(key, name) for key, name in zip(keys, short_keys(keys), strict=True) if key in found]
    return [str(found[key]) if key in SPEAKING[:-1] else f"{name}={found[key]}" for key, name in named]


def _rank(key: str) -> int:
    return SPEAKING.index(key) if key in SPEAKING else len(SPEAKING)
