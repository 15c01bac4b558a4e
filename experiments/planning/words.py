"""What is written after `xomni-rl plan`: overrides of a training run, and words of the plan's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xomni_rl.config import CONFIG_MODULE, explained, register_resolvers, validate
from xomni_rl.experiments.planning.gpus import parse_gpus
from xomni_rl.experiments.planning.job import LAUNCHES, Job, PlanError, job_of

OWN = ("gpus", "launch", "size", "prompt_tokens")
"""Words that are no override."""


def planned(words: Sequence[str]) -> Job:
    """The job that words describe.

    Args:
        words: overrides as of `xomni-rl train`, and KEY=VALUE of `OWN`; `trainer=LAUNCH` is short for
            `launch=LAUNCH trainer=paper`.
    Raises: ConfigError, PlanError, GpuError, SettingsError, AlgorithmError for what is not possible.
    """
    own, overrides = split_words(words)
    count, gpu = parse_gpus(own.get("gpus", "1x80GB"))
    return job_of(
        composed(overrides),
        count,
        gpu,
        launch=own.get("launch"),
        size=_size(own["size"]) if "size" in own else None,
        prompt_tokens=_count(own, "prompt_tokens") or 128,
    )


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that `xomni-rl train OVERRIDES` runs, checked alike, but for prompt files that are still to be named.

    No prompt is read, and what a step holds does not depend on which they are.

    Raises: ConfigError for an override, key or value that is not possible.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            config = compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error) from error
    for key in OmegaConf.missing_keys(config):
        if key.startswith("prompts."):
            OmegaConf.update(config, key, "")
    return validate(config)


def split_words(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The plan's own words by key, and the overrides.

    >>> split_words(["trainer=ddp", "gpus=2xH100", "seed=1"])
    ({'launch': 'ddp', 'gpus': '2xH100'}, ['trainer=paper', 'seed=1'])
    """
    own: dict[str, str] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in OWN:
            own[key] = value
        elif key == "trainer" and value in LAUNCHES:
            own["launch"] = value
            overrides.append("trainer=paper")
        else:
            overrides.append(word)
    return own, overrides


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not found:
        raise PlanError(f"size must read HEIGHTxWIDTH in px, such as 1152x1152, not {text!r}")
    return int(found[1]), int(found[2])


def _count(own: dict[str, str], key: str) -> int | None:
    if key not in own:
        return None
    if not own[key].isdecimal() or int(own[key]) < 1:
        raise PlanError(f"{key} must be a whole number of at least 1, not {own[key]!r}")
    return int(own[key])
