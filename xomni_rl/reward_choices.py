"""`reward=NAME` without a file: every registered reward, and any `module:object`, is a choice of the group `reward`.

Hydra asks its sources of configuration in turn; this one comes after the folders, so a file of the same name wins.
"""

from __future__ import annotations

import re
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

GROUP = "reward"


class RewardChoices(ConfigSource):
    """A source of configuration that makes up `reward/NAME`: one component of weight 1 with the reward's own defaults."""

    @staticmethod
    def scheme() -> str:
        return "rewards"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") == GROUP

    def is_config(self, config_path: str) -> bool:
        choice = _choice(config_path)
        return choice is not None and (":" in choice or choice in _names())

    def load_config(self, config_path: str) -> ConfigResult:
        choice = _choice(config_path)
        if choice is None:
            raise ConfigLoadError(f"{config_path} is no choice of the group {GROUP}")
        config = OmegaConf.create(single_reward(choice))
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", config, header={"package": None})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if results_filter == ObjectType.GROUP:
            return [GROUP] if not config_path.strip("/") else []
        return _names() if self.is_group(config_path) else []


def single_reward(reference: str) -> dict[str, Any]:
    """The composite configuration of one reward with its own defaults.

    Args:
        reference: registered name, `module:object` or `file.py:object`. The component is named after it or its object,
            without dots, which would divide a key: hpsv2_1 for hpsv2.1.
    """
    last = re.split(r"[:.]", reference)[-1] if ":" in reference else reference
    name = re.sub(r"\W", "_", last)
    return {
        "components": {name: {"reward": reference, "weight": 1.0, "options": {}}},
        "normalisation": "none",
        "gates": {},
        "on_failure": "stop",
        "concurrency": None,
    }


def register_reward_choices() -> None:
    """Makes the source known to Hydra; doing it again changes nothing."""
    Plugins.instance().register(RewardChoices)


def _choice(config_path: str) -> str | None:
    """The part after `reward/`; None for another group's."""
    group, _, choice = config_path.partition("/")
    return choice or None if group == GROUP else None


def _names() -> list[str]:
    from xomni_rl.rewards.base import rewards

    return rewards.names()
