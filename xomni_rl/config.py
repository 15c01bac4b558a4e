"""The configuration of a training run: composed by Hydra, checked here key by key before anything is loaded.

`SCHEMA` has the form of the configuration itself; a leaf is a `Rule`. What a reward, an algorithm or a prompt set takes as
its options is theirs to check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xomni_rl.registry import nearest, unknown_name

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_MODULE = "xomni_rl.experiments.conf"


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one sentence with key, value and remedy."""


@dataclass(frozen=True)
class Rule:
    """What one key may hold.

    Attributes:
        kind: "whole number", "number", "text", "switch" (true or false), "mapping" or "list".
        least, most: bounds of a number, both allowed; None = none.
        above: bound of a number, itself not allowed; None = none.
        choices: the only values; () = any.
        optional: whether null is allowed.
        required: whether the key must be there.
    """

    kind: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    required: bool = True


@dataclass(frozen=True)
class Each:
    """A mapping whose keys the user names; every value has the form `schema`."""

    schema: Mapping[str, Any] | Rule


COUNT = Rule("whole number", least=1)
EVERY = Rule("whole number", least=1, optional=True)
SEED = Rule("whole number", least=0, most=2**32 - 1)
SHARE = Rule("number", least=0, most=1)
NOT_NEGATIVE = Rule("number", least=0)
NAME = Rule("text")
OPTIONS = Rule("mapping")
ON_ALARM = Rule("text", choices=("warn", "stop", "rollback"))

SAMPLING = {
    "temperature": Rule("number", above=0),
    "top_k": Rule("whole number", least=0),
    "top_p": Rule("number", above=0, most=1),
    "min_p": SHARE,
    "cfg_scale": NOT_NEGATIVE,
}
NORMALISATIONS = ("none", "batch", "group")
COMPONENT = {
    "reward": Rule("text", required=False),
    "weight": Rule("number", required=False),
    "options": Rule("mapping", required=False),
    "normalisation": Rule("text", choices=NORMALISATIONS, optional=True, required=False),
    "cap": Rule("number", optional=True, required=False),
    "schedule": Rule("mapping", optional=True, required=False),
    "when": Rule("text", optional=True, required=False),
}
REWARD = {
    "components": Each(COMPONENT),
    "normalisation": Rule("text", choices=NORMALISATIONS),
    "gates": Each(NAME),
    "on_failure": Rule("text", choices=("stop", "drop")),
    "concurrency": Rule("whole number", least=1, optional=True, required=False),
}
SCHEMA: dict[str, Any] = {
    "run": Rule("text", optional=True),
    "resume": Rule("text", optional=True),
    "seed": SEED,
    "model": {
        "family": Rule("text", required=False),
        "path": NAME,
        "options": Rule("mapping", required=False),
        "dtype": Rule("text", choices=("float32", "bfloat16", "float16")),
        "device": NAME,
        "gradient_checkpointing": Rule("switch"),
        "rows_at_a_time": Rule("whole number", least=1, optional=True, required=False),
        "reference_offload": Rule("switch", required=False),
        "compile": Rule("switch", required=False),
        "lora": {
            "rank": Rule("whole number", least=1, required=False),
            "alpha": Rule("number", above=0, required=False),
            "targets": Rule("list", required=False),
            "full": Rule("list", required=False),
        },
    },
    "reward": REWARD,
    "algorithm": {"name": NAME, "options": OPTIONS},
    "prompts": {"set": NAME, "options": OPTIONS, "train_count": COUNT, "heldout_count": Rule("whole number", least=0)},
    "trainer": {
        "name": NAME,
        "engine": Rule("text", choices=("native", "trl")),
        "steps": COUNT,
        "max_seconds": Rule("number", above=0, optional=True),
        "prompts_per_step": COUNT,
        "group_size": COUNT,
        "epochs": COUNT,
        "minibatches": COUNT,
        "accumulation": COUNT,
        "optimizer": Rule("text", choices=("adamw", "adamw_8bit"), required=False),
        "learning_rate": NOT_NEGATIVE,
        "warmup_steps": Rule("whole number", least=0),
        "decay_steps": EVERY,
        "weight_decay": NOT_NEGATIVE,
        "max_grad_norm": Rule("number", above=0, optional=True),
        "sampling": SAMPLING,
        "evaluate_every": EVERY,
        "evaluation": {
            "seed": SEED,
            "sampling": SAMPLING,
            "reward": REWARD,
            "grid_prompts": Rule("whole number", least=0),
            "batch_size": COUNT,
        },
        "checkpoint_every": EVERY,
        "keep_checkpoints": COUNT,
        "save_images": Rule("text", choices=("all", "none")),
        "trackers": Rule("list"),
        "alarms": {
            "zero_variance_share": SHARE,
            "entropy_floor": NOT_NEGATIVE,
            "ratio_tolerance": NOT_NEGATIVE,
            "ratio_tolerance_16_bits": NOT_NEGATIVE,
            "failed_share": SHARE,
            "kl_limit": Rule("number", above=0, optional=True),
            "kl_action": ON_ALARM,
            "loss_limit": Rule("number", above=0, optional=True),
            "loss_action": ON_ALARM,
            "nonfinite_action": Rule("text", choices=("stop", "rollback")),
            "max_rollbacks": Rule("whole number", least=0),
        },
        "mixed_precision": Rule("text", choices=("no", "bf16", "fp16")),
        "curriculum": {
            **dict.fromkeys(("low", "high", "floor", "prior", "memory"), Rule("number", least=0, most=1, required=False)),
            "threshold": Rule("number", optional=True, required=False),
        },
        "critic": {"learning_rate": NOT_NEGATIVE, "epochs": COUNT},
    },
}
NULLABLE = ("trainer.evaluation.reward", "trainer.curriculum", "model.lora")
"""Mappings that may be null as a whole."""


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that `xomni-rl train OVERRIDES` runs, checked.

    Raises: ConfigError for an override, key or value that is not possible.

    >>> compose(["algorithm=dr_grpo", "trainer.steps=3"]).trainer.steps
    3
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            config = hydra_compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error) from error
    validate(config)
    return config


def reward_config(choice: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composite configuration that `reward=CHOICE` stands for, checked, for `build_composite`.

    Args:
        choice: a file of the group `reward`, a registered reward, `module:object` or `file.py:object`.
        overrides: as on the command line: "reward.components.ocr.weight=0.5".
    Raises: ConfigError for an unknown choice, or an override that is not possible or not of the reward.

    >>> reward_config("ocr", ["reward.components.ocr.weight=0.5"])["components"]["ocr"]["weight"]
    0.5
    """
    for override in overrides:
        if not re.match(r"[+~]{0,2}reward[.=]", override):
            raise ConfigError(f'the override "{override}" is not of the reward; write reward.components.NAME.KEY=VALUE')
    found: dict[str, Any] = validate(compose([f"reward={choice}", *overrides]))["reward"]
    return found


def validate(config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """The configuration as plain, resolved values.

    Raises: ConfigError for the first key that is unknown or missing, or whose value is of the wrong type or out of range.
    """
    plain = _plain(config)
    _check(plain, SCHEMA, "")
    for key in ("reward", "trainer.evaluation.reward"):
        reward = _select(plain, key)
        if reward is not None and not reward["components"]:
            raise ConfigError(f"{key}.components is empty; name at least one, such as reward=ocr")
    return plain


def explained(error: Exception) -> ConfigError:
    """Hydra's or OmegaConf's error as one sentence, with the nearest keys and choices."""
    text = str(error)
    if "Could not find 'hydra/launcher/submitit_slurm'" in text:
        return ConfigError("hydra/launcher=slurm needs Hydra's plug-in for Slurm: pip install 'xomni-rl[slurm]'")
    if found := re.search(r"Could not find '((?:hydra/)?[^'/]+)/([^']*)'", text):
        group, choice = found.groups()
        choices = re.search(r"Available options in '[^']+':\n((?:\t.+\n?)+)", text)
        return ConfigError(unknown_name(f"choice of group {group},", choice, choices.group(1).split() if choices else ()))
    if found := re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text):
        # The cause knows which key inside the override's value it was.
        inner = re.search(r"full_key: (\S+)", str(error.__cause__))
        return _unknown_key(inner.group(1) if inner else found.group(1), text)
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return ConfigError(f"{found.group(1)} must be given: add {found.group(1)}=VALUE")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("See https://")]
    if found := re.match(r"Error merging override (.+)", text):
        return ConfigError(
            f"the override {found.group(1)} is of another kind than what the key holds (a mapping, or one value)"
        )
    if type(error).__name__ == "OverrideParseException":
        return ConfigError(
            f"an override cannot be read ({lines[0]}); write key=value, in single quotes if it is no plain value"
        )
    return ConfigError("; ".join(lines[:2]) or type(error).__name__)


def register_resolvers() -> None:
    """What `conf/` relies on: names of sweep folders, rewards without a file, Ray as a launcher. Again, it changes nothing."""
    from omegaconf import OmegaConf

    from xomni_rl.experiments.launch.ray_launcher import register_ray_launcher
    from xomni_rl.reward_choices import register_reward_choices

    register_reward_choices()
    register_ray_launcher()

    def sweep_folder(run: str | None) -> str:
        return run or str(Path("runs") / datetime.now().strftime("sweep_%Y-%m-%d_%H-%M-%S"))

    def folder_name(number: int, overrides: str) -> str:
        return re.sub(r"[^\w.=,+-]+", "-", f"{number}_{overrides}")[:120].rstrip("_-")

    OmegaConf.register_new_resolver("xomni_rl.sweep_folder", sweep_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("xomni_rl.folder_name", folder_name, replace=True)


def _plain(config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        created = config if OmegaConf.is_config(config) else OmegaConf.create(dict(config))
        missing = sorted(OmegaConf.missing_keys(created))
        if missing:
            raise ConfigError(f"{missing[0]} must be given: add {missing[0]}=VALUE")
        plain: dict[str, Any] = OmegaConf.to_container(created, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise explained(error) from error
    return plain


def _check(value: Any, schema: Any, key: str) -> None:
    if isinstance(schema, Rule):
        _check_leaf(value, schema, key)
        return
    if value is None and key in NULLABLE:
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be a mapping of keys to values, but is {value!r}")
    prefix = f"{key}." if key else ""
    if isinstance(schema, Each):
        for name, entry in value.items():
            _check(entry, schema.schema, f"{prefix}{name}")
        return
    for name in value:
        if name not in schema:
            raise ConfigError(unknown_name("configuration key", f"{prefix}{name}", [f"{prefix}{known}" for known in schema]))
    for name, entry in schema.items():
        if name not in value and isinstance(entry, Rule) and not entry.required:
            continue
        if name not in value:
            raise ConfigError(f"configuration key {prefix}{name} is missing; see `xomni-rl train --cfg job` for all of them")
        _check(value[name], entry, f"{prefix}{name}")


_TYPES: dict[str, tuple[type, ...]] = {
    "whole number": (int,),
    "number": (int, float),
    "text": (str,),
    "switch": (bool,),
    "mapping": (Mapping,),
    "list": (list, tuple),
}


def _check_leaf(value: Any, rule: Rule, key: str) -> None:
    if value is None and rule.optional:
        return
    good = isinstance(value, _TYPES[rule.kind]) and (rule.kind == "switch" or not isinstance(value, bool))
    if good and rule.choices and value not in rule.choices:
        close = nearest(value, rule.choices)
        hint = f" (nearest: {close[0]})" if close else ""
        raise ConfigError(f"{key} must be one of {', '.join(rule.choices)}, but is {value!r}{hint}")
    if good and rule.kind in ("number", "whole number"):
        good = math.isfinite(value) and not (
            (rule.least is not None and value < rule.least)
            or (rule.most is not None and value > rule.most)
            or (rule.above is not None and value <= rule.above)
        )
    if not good:
        raise ConfigError(f"{key} must be {_wanted(rule)}, but is {value!r}; override it with {key}=VALUE")


def _wanted(rule: Rule) -> str:
    words = {"switch": "true or false", "text": "text", "mapping": "a mapping", "list": "a list"}
    wanted = words.get(rule.kind, f"a {rule.kind}")
    bounds = [("of at least", rule.least), ("above", rule.above), ("at most", rule.most)]
    wanted += "".join(f"{' and' if i else ''} {w} {b}" for i, (w, b) in enumerate(x for x in bounds if x[1] is not None))
    return wanted + (" or null" if rule.optional else "")


def _select(plain: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        plain = plain[part]
    return plain


def _unknown_key(key: str, text: str) -> ConfigError:
    keys = known_keys()
    close = nearest(key, keys)
    last = key.rpartition(".")[2]
    by_last = {known.rpartition(".")[2]: known for known in reversed(keys)}
    close = [*dict.fromkeys([*close, *(by_last[name] for name in nearest(last, by_last))])][:3]
    hint = f"; nearest: {', '.join(close)}" if close else "; see `xomni-rl train --cfg job` for all keys"
    adding = re.search(r"To append to your config use (\S.*)", text)
    return ConfigError(
        f'unknown configuration key "{key}"{hint}' + (f"; to add it on purpose: {adding.group(1)}" if adding else "")
    )


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted key of the default configuration, branches included."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    register_resolvers()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        plain = OmegaConf.to_container(hydra_compose("config"))
    return tuple(_dotted(plain, ""))


def _dotted(value: Any, prefix: str) -> list[str]:
    keys: list[str] = []
    if isinstance(value, Mapping):
        for name, entry in value.items():
            keys += [f"{prefix}{name}", *_dotted(entry, f"{prefix}{name}.")]
    return keys
