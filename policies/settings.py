"""The trainer's part of the configuration as checked dataclasses, so that a wrong value is named before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypeVar

from xomni_rl.registry import unknown_name
from xomni_rl.stack.sampler import SamplingConfig

T = TypeVar("T")


class SettingsError(ValueError):
    """A setting the trainer cannot use, or may not change in a run that goes on; the message is one sentence."""


@dataclass(frozen=True)
class AlarmSettings:
    """When to warn.

    Attributes:
        zero_variance_share: more than this share of groups without variance, in [0, 1].
        entropy_floor: mean entropy of a token below this, nats.
        ratio_tolerance: importance ratio of the first update further from 1 than this.
        failed_share: more than this share of images without a score because scoring failed, in [0, 1].
        kl_limit: KL to the policy before training above this, nats per token; None = no limit.
        kl_action: "warn", or "stop" to end training there.
    """

    zero_variance_share: float = 0.8
    entropy_floor: float = 0.05
    ratio_tolerance: float = 1e-3
    failed_share: float = 0.1
    kl_limit: float | None = None
    kl_action: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        if self.kl_action not in ("warn", "stop"):
            raise SettingsError(f'trainer.alarms.kl_action must be "warn" or "stop", not {self.kl_action!r}')


@dataclass(frozen=True)
class EvaluationSettings:
    """Held-out evaluation.

    Attributes:
        seed: of the held-out images' random streams; the same at every evaluation, so that figures are paired.
        sampling: how held-out images are sampled.
        reward: configuration of the evaluation's reward; for the record, the trainer is handed the object.
        grid_prompts: how many held-out prompts keep their image in the table.
        batch_size: images at a time.
    """

    seed: int = 1234
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: Mapping[str, Any] | None = None
    grid_prompts: int = 16
    batch_size: int = 64


@dataclass(frozen=True)
class TrainerSettings:
    """Group `trainer` of the configuration, and `seed`.

    Attributes:
        seed: of prompts' order and rollouts.
        engine: what trains: "native", or "trl" for TRL's GRPOTrainer.
        steps: training steps: one rollout and its updates each.
        max_seconds: no further step once so many seconds of training, without evaluation, are spent across resumes;
            None = no limit.
        prompts_per_step, group_size: P prompts with G images each.
        epochs: passes over one rollout.
        minibatches: optimizer steps per pass.
        accumulation: backward passes per optimizer step.
        learning_rate: AdamW's, at the end of warm-up.
        warmup_steps: optimizer steps over which the learning rate rises linearly.
        decay_steps: optimizer steps over which it then falls linearly to a tenth, where it stays; None = constant.
        weight_decay: AdamW's.
        max_grad_norm: gradients are scaled down to this norm; None = not clipped.
        sampling: the distribution rollouts are drawn from, and trained under.
        evaluate_every: held-out evaluation every so many steps, and before and after; None = never.
        checkpoint_every: likewise for checkpoints; None = only the last and the best.
        keep_checkpoints: how many of the newest stay; the best stays in any case.
        save_images: whether the rollouts' tables hold the images.
        trackers: trackers of accelerate by name.
        mixed_precision: "no", "bf16" or "fp16".
    """

    seed: int = 0
    name: str = "default"
    engine: Literal["native", "trl"] = "native"
    steps: int = 400
    max_seconds: float | None = 540
    prompts_per_step: int = 8
    group_size: int = 8
    epochs: int = 1
    minibatches: int = 1
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 5
    decay_steps: int | None = 400
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluate_every: int | None = 50
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint_every: int | None = 50
    keep_checkpoints: int = 2
    save_images: Literal["all", "none"] = "all"
    trackers: tuple[str, ...] = ("tensorboard",)
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"

    def __post_init__(self) -> None:
        least_one = ("steps", "prompts_per_step", "group_size", "epochs", "minibatches", "accumulation")
        for name in (*least_one, "keep_checkpoints"):
            _require(name, getattr(self, name), minimum=1, whole=True)
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), minimum=1, whole=True)
        _require("warmup_steps", self.warmup_steps, minimum=0, whole=True)
        if self.decay_steps is not None:
            _require("decay_steps", self.decay_steps, minimum=1, whole=True)
        for name in ("learning_rate", "weight_decay"):
            _require(name, getattr(self, name), minimum=0)
        if self.max_seconds is not None:
            _require("max_seconds", self.max_seconds, minimum=0)
        if self.engine not in ("native", "trl"):
            raise SettingsError(f'trainer.engine must be "native" or "trl", not {self.engine!r}')
        if self.save_images not in ("all", "none"):
            raise SettingsError(f'trainer.save_images must be "all" or "none", not {self.save_images!r}')
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise SettingsError(f'trainer.mixed_precision must be "no", "bf16" or "fp16", not {self.mixed_precision!r}')

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainerSettings:
        """The settings of a resolved configuration (plain mappings and values).

        Raises: SettingsError for an unknown key (naming the nearest) or a value out of range.
        """
        trainer = dict(config.get("trainer") or {})
        evaluation = dict(trainer.pop("evaluation", None) or {})
        evaluation["sampling"] = _sampling(evaluation.get("sampling"), "trainer.evaluation.sampling")
        return _make(
            cls,
            trainer
            | {
                "seed": int(config.get("seed", 0)),
                "sampling": _sampling(trainer.get("sampling"), "trainer.sampling"),
                "evaluation": _make(EvaluationSettings, evaluation, "trainer.evaluation"),
                "alarms": _make(AlarmSettings, dict(trainer.get("alarms") or {}), "trainer.alarms"),
                "trackers": tuple(trainer.get("trackers", ("tensorboard",)) or ()),
            },
            "trainer",
        )


def _sampling(values: Mapping[str, Any] | None, where: str) -> SamplingConfig:
    try:
        return _make(SamplingConfig, dict(values or {}), where)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from error


def _make(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a mapping. Raises: SettingsError for a key it does not have."""
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise SettingsError(unknown_name(f"setting of {where}", str(key), known))
    return kind(**values)


def _require(name: str, value: object, *, minimum: float, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not good or not value >= minimum:  # type: ignore[operator]
        raise SettingsError(f"trainer.{name} must be {kind} of {minimum:g} or more, not {value!r}")


FROZEN = ("seed", "model.path", "model.dtype", "prompts", "algorithm.name", "trainer.engine")
FROZEN += ("trainer.prompts_per_step", "trainer.group_size")
"""Settings that a run keeps to its end: with others it would be another run."""


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that differ: dotted name → [before, after]; `run` and `resume` are left out."""
    old, new = flatten(before), flatten(after)
    names = sorted({*old, *new} - {"run", "resume"})
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name, MISSING) != new.get(name, MISSING)}


def check_resumable(changes: Mapping[str, list[Any]]) -> None:
    """Raises SettingsError if a setting changed that a run must keep."""
    for name, (before, after) in changes.items():
        if any(name == frozen or name.startswith(frozen + ".") for frozen in FROZEN):
            raise SettingsError(
                f"{name} cannot change in a run that goes on: it was {before!r} and is {after!r}; "
                f"leave it out, or start another run with run=FOLDER"
            )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; lists stay values.

    >>> flatten({"trainer": {"steps": 3}, "seed": 0})
    {'trainer.steps': 3, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
