"""Which runs an ablation has: the combinations of swept keys, their folders, and what an earlier call already planned.

`seed` is the replication axis; the combinations of all other swept keys are the variants. A folder's plan is in its
`ablation.json`; calling again with more choices adds runs, with other settings it is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xomni_rl.config import compose, explained, validate
from xomni_rl.policies.settings import changed_settings

PLAN = "ablation.json"
FORMAT = 1
GROUPS = ("model", "reward", "algorithm", "prompts", "trainer")
LONGEST_NAME = 80


class AblationError(ValueError):
    """An ablation that cannot be run as asked; the message is one sentence."""


@dataclass(frozen=True)
class Choice:
    """One override: its key ("trainer.learning_rate"), the whole text ("trainer.learning_rate=0.001"), the value as text."""

    key: str
    text: str
    value: str


@dataclass
class PlannedRun:
    """One run of the plan, as `ablation.json` has it.

    Attributes:
        variant: name of its variant.
        seed: of the run.
        folder: relative to the ablation's.
        overrides: what `xomni-rl train` is given, besides `run=`.
        config_sha256: of the resolved configuration without folder.
        variant_sha256: of the same without seed.
        status: "waiting", "running", "finished", "max_seconds", "stopped: …", "failed" or "interrupted".
        attempts: processes started for it, over all calls.
        error: the last line of its log, if it failed.
        seconds: of wall-clock time, over all calls.
    """

    variant: str
    seed: int
    folder: str
    overrides: list[str]
    config_sha256: str
    variant_sha256: str
    status: str = "waiting"
    attempts: int = 0
    error: str | None = None
    seconds: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.variant} seed {self.seed}"


@dataclass
class Plan:
    """What `ablation.json` holds.

    Attributes:
        axes: swept keys, over all calls, without the seed.
        fixed: overrides that are the same for all runs, of the first call.
        first: the first variant's choices, as overrides.
        base: resolved configuration of the first variant, without folder and seed: what later calls must agree with.
        runs: in the order they were asked for.
        calls: how each call was made.
    """

    axes: list[str]
    fixed: list[str]
    first: list[str]
    base: dict[str, Any]
    runs: list[PlannedRun] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(run.variant for run in self.runs))

    def record(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        folder: of the ablation; None = not given.
        slots: for every override but `run`, its choices in the order given; one choice = fixed.
    """

    folder: str | None
    slots: Sequence[Sequence[Choice]]


def parse(overrides: Sequence[str]) -> Request:
    """The overrides with their sweeps (comma lists, `range(…)`, `glob(…)`, `choice(…)`) taken apart.

    Raises: ConfigError for text that is no override; AblationError for `resume=`, or a sweep over folders.
    """
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from xomni_rl.config import CONFIG_MODULE, register_resolvers

    register_resolvers()
    folder, slots = None, []
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            for found in parser.parse_overrides(list(overrides)):
                if found.key_or_group == "run":
                    folder = _folder(found)
                elif found.key_or_group == "resume":
                    raise AblationError("resume= is for one run; call the ablation again with the same run=FOLDER to go on")
                else:
                    slots.append(_choices(found, parser))
    except HydraException as error:
        raise explained(error) from error
    return Request(folder, slots)


def extend(
    request: Request, saved: Plan | None, config_dir: Path | None = None
) -> tuple[Plan, list[PlannedRun], dict[str, dict[str, Any]]]:
    """The folder's plan with what is asked for added.

    Args:
        request: of this call.
        saved: the folder's plan so far.
        config_dir: a folder of the user's own configurations.
    Returns: the plan; the runs this call asked for, old ones included; folder → resolved configuration of those.
    Raises: AblationError for settings that contradict the saved plan; ConfigError for what cannot be composed.
    """
    axes = [*(saved.axes if saved else []), *(slot[0].key for slot in request.slots if len(slot) > 1)]
    axes = [key for key in dict.fromkeys(axes) if key != "seed"]
    fixed = [slot[0].text for slot in request.slots if slot[0].key not in (*axes, "seed")]
    if saved is not None:
        _check_same_base(request, saved, axes, config_dir)
    plan = saved or Plan([], fixed, [], {})
    asked, configs = [], {}
    for combination in combinations(request.slots):
        config = resolved(combination, config_dir)
        run = _planned(plan, [choice for choice in combination if choice.key in axes], combination, config)
        if run not in asked:
            asked.append(run)
        configs[run.folder] = config
        if not plan.base:
            plan.first = [choice.text for choice in combination if choice.key in axes]
            plan.base = _without(config, "seed")
    plan.axes = axes
    return plan, asked, configs


def combinations(slots: Sequence[Sequence[Choice]]) -> Iterator[list[Choice]]:
    """Every combination of choices in the order of the overrides; seeds turn fastest."""
    order = sorted(range(len(slots)), key=lambda index: slots[index][0].key == "seed")
    for chosen in itertools.product(*(slots[index] for index in order)):
        placed = dict(zip(order, chosen, strict=True))
        yield [placed[index] for index in range(len(slots))]


def resolved(choices: Sequence[Choice], config_dir: Path | None = None) -> dict[str, Any]:
    """The configuration of one combination, without folder. Raises: ConfigError."""
    return _without(validate(compose([*search_path(config_dir), *(choice.text for choice in choices)])), "run", "resume")


def search_path(config_dir: Path | None) -> list[str]:
    """The override with which Hydra also looks into a folder of the user's own."""
    return [] if config_dir is None else [f"hydra.searchpath=[rewards://registry,{quoted(f'file://{config_dir.resolve()}')}]"]


def quoted(text: str) -> str:
    """Text as a value of an override, whatever is in it; as it is where that reads the same."""
    if re.fullmatch(r"[A-Za-z0-9_.-]*/[A-Za-z0-9_./-]*", text):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text=text, quote=Quote.single).with_quotes())


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved configuration without folder; 1 and 1.0 are the same."""
    text = json.dumps(_canonical(_without(config, "run", "resume")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_plan(folder: Path) -> Plan | None:
    """The plan of an ablation's folder; None if there is none. Raises: AblationError if it is damaged."""
    file = folder / PLAN
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT:
            raise ValueError("of another version")
        runs = [PlannedRun(**run) for run in record.pop("runs")]
        return Plan(runs=runs, **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AblationError(f"{file} cannot be read ({error}); restore it, or choose another folder with run=FOLDER") from error


def variant_name(choices: Sequence[Choice], config: Mapping[str, Any]) -> str:
    """ "grpo", or "grpo,learning_rate=0.0003": a group's choice by its value, another key with its last part.

    Without a swept key the variant is called after its algorithm.
    """
    if not choices:
        return str((config.get("algorithm") or {}).get("name", "run"))
    names = short_keys([choice.key for choice in choices])
    parts = zip(choices, names, strict=True)
    return ",".join(choice.value if choice.key in GROUPS else f"{name}={choice.value}" for choice, name in parts)


def short_keys(keys: Sequence[str]) -> list[str]:
    """The last part of each key, of a reward's component with its name; the whole key where two would be called alike.

    >>> short_keys(["trainer.learning_rate", "reward.components.clip.weight"])
    ['learning_rate', 'clip.weight']
    """
    component = "reward.components."
    short = [key.removeprefix(component) if key.startswith(component) else key.rpartition(".")[2] for key in keys]
    return [name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)]


def _planned(plan: Plan, choices: Sequence[Choice], combination: Sequence[Choice], config: Mapping[str, Any]) -> PlannedRun:
    """The run of a combination: one that the plan has already, else a new one at its end."""
    digest, variant = config_hash(config), config_hash(_without(config, "seed"))
    for run in plan.runs:
        if run.config_sha256 == digest:
            return run
    seed = int(config["seed"])
    name = next((run.variant for run in plan.runs if run.variant_sha256 == variant), None) or variant_name(choices, config)
    while any((run.variant, run.seed) == (name, seed) for run in plan.runs):
        name += "'"  # another value that is written alike
    folder = _folder_name(name, {run.variant: Path(run.folder).parent.name for run in plan.runs})
    run = PlannedRun(name, seed, f"{folder}/{seed}", [choice.text for choice in combination], digest, variant)
    plan.runs.append(run)
    return run


def _folder_name(variant: str, taken: Mapping[str, str]) -> str:
    """A folder for a variant, the one it has already or a free one."""
    if variant in taken:
        return taken[variant]
    name = re.sub(r"[^\w.=,+-]+", "-", variant)[:LONGEST_NAME].strip("-.") or "variant"
    numbers = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(found for found in numbers if found not in taken.values())


def _check_same_base(request: Request, saved: Plan, axes: Sequence[str], config_dir: Path | None) -> None:
    """Composes the first variant again from this call's fixed settings. Raises: AblationError naming what differs."""
    fixed = [slot[0].text for slot in request.slots if slot[0].key not in (*axes, "seed")]
    now_swept = [text for text in saved.fixed if _key(text) in axes]
    texts = [*fixed, *now_swept, *saved.first]
    now = _without(validate(compose([*search_path(config_dir), *texts])), "run", "resume", "seed")
    changes = changed_settings(saved.base, now)
    if changes:
        words = [f"{key} was {before!r} and is {after!r}" for key, (before, after) in changes.items()]
        more = f"; and {len(words) - 4} more" if len(words) > 4 else ""
        raise AblationError(
            f"the ablation was begun with other settings: {'; '.join(words[:4])}{more}; "
            "give the same ones, or choose another folder with run=FOLDER"
        )


def _choices(found: Any, parser: Any) -> list[Choice]:
    """A parsed override of Hydra's as its choices."""
    if not found.is_sweep_override():
        return [Choice(_key(found.get_key_element()), found.input_line, _shown(found))]
    if not found.is_discrete_sweep():
        raise AblationError(f"{found.input_line} is no list of values; write them with commas, or as range(…) or choice(…)")
    texts = [f"{found.get_key_element()}={value}" for value in found.sweep_string_iterator()]
    single = [parser.parse_override(text) for text in dict.fromkeys(texts)]
    return [Choice(_key(one.get_key_element()), one.input_line, _shown(one)) for one in single]


def _shown(found: Any) -> str:
    """The value of an override as a person would write it."""
    if found.is_delete():
        return ""
    value = found.value()
    return value if isinstance(value, str) else str(found.get_value_element_as_str(space_after_sep=True))


def _folder(found: Any) -> str:
    if found.is_sweep_override():
        raise AblationError("run= names the one folder of the ablation; it cannot be swept")
    return str(found.value())


def _canonical(value: Any) -> Any:
    """Mappings and lists with whole numbers as integers."""
    if isinstance(value, Mapping):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _key(text: str) -> str:
    return text.split("=", 1)[0].lstrip("+~")


def _without(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}
