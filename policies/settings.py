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
        ratio_tolerance_16_bits: likewise where weights or arithmetic have 16 bits: sampler and trainer round otherwise, each by
            0.02 nats (root mean square; 0.2 at most among 2304 tokens of the embedded stack).
        failed_share: more than this share of images without a score because scoring failed, in [0, 1].
        kl_limit: KL to the reference above this, nats per token; None = no limit.
        kl_action: what then: "warn", "stop" to end training there, or "rollback" to go on from the last checkpoint at half the
            learning rate.
        loss_limit: loss further from 0 than this; None = no limit.
        loss_action: likewise.
        nonfinite_action: what a loss or gradient that is not finite does: "stop" or "rollback".
        max_rollbacks: after so many the next one ends training.
    """

    zero_variance_share: float = 0.8
    entropy_floor: float = 0.05
    ratio_tolerance: float = 1e-3
    ratio_tolerance_16_bits: float = 0.5
    failed_share: float = 0.1
    kl_limit: float | None = None
    kl_action: Literal["warn", "stop", "rollback"] = "warn"
    loss_limit: float | None = None
    loss_action: Literal["warn", "stop", "rollback"] = "stop"
    nonfinite_action: Literal["stop", "rollback"] = "stop"
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        for name in ("kl_action", "loss_action", "nonfinite_action"):
            allowed = ("stop", "rollback") if name == "nonfinite_action" else ("warn", "stop", "rollback")
            if getattr(self, name) not in allowed:
                wanted = " or ".join(f'"{action}"' for action in allowed)
                raise SettingsError(f"trainer.alarms.{name} must be {wanted}, not {getattr(self, name)!r}")
        _require("alarms.max_rollbacks", self.max_rollbacks, minimum=0, whole=True)

    @property
    def may_roll_back(self) -> bool:
        return "rollback" in (self.kl_action, self.loss_action, self.nonfinite_action)


@dataclass(frozen=True)
class CurriculumSettings:
    """Prompts drawn by pass rate; see `xomni_rl.policies.curriculum.PassRates`, which checks the values.

    Attributes:
        low, high: the band of pass rates that teach, in [0, 1].
        floor: weight of a prompt outside it, above 0.
        prior: pass rate of a prompt not seen yet, in [0, 1].
        memory: share of a prompt's old pass rate that stays at each observation, in [0, 1].
        threshold: a rollout passes from this score on; None = the score itself is its pass rate, and must be in [0, 1].
    """

    low: float = 0.1
    high: float = 0.9
    floor: float = 0.05
    prior: float = 0.5
    memory: float = 0.5
    threshold: float | None = None


@dataclass(frozen=True)
class CriticSettings:
    """The critic of algorithms that have one; see `xomni_rl.policies.critic.Critic`."""

    learning_rate: float = 1e-3
    epochs: int = 4

    def __post_init__(self) -> None:
        _require("critic.learning_rate", self.learning_rate, minimum=0)
        _require("critic.epochs", self.epochs, minimum=1, whole=True)


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
        optimizer: "adamw", or "adamw_8bit" with both moments in one byte each.
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
        curriculum: draw prompts by pass rate; None = every prompt once in each pass.
        critic: of algorithms that have one.
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
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
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
    curriculum: CurriculumSettings | None = None
    critic: CriticSettings = field(default_factory=CriticSettings)

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
        if self.optimizer not in ("adamw", "adamw_8bit"):
            raise SettingsError(f'trainer.optimizer must be "adamw" or "adamw_8bit", not {self.optimizer!r}')
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
                "curriculum": _curriculum(trainer.get("curriculum")),
                "critic": _make(CriticSettings, dict(trainer.get("critic") or {}), "trainer.critic"),
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


def _curriculum(values: Mapping[str, Any] | None) -> CurriculumSettings | None:
    if values is None:
        return None
    made = _make(CurriculumSettings, dict(values), "trainer.curriculum")
    shares = {name: getattr(made, name) for name in ("low", "high", "floor", "prior", "memory")}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise SettingsError(f"trainer.curriculum.{name} must be in [0, 1], not {share!r}")
    if made.low > made.high or made.floor == 0:
        raise SettingsError(f"trainer.curriculum needs low ≤ high and a floor above 0, not {shares}")
    return made


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


FROZEN = (
    *("seed", "model.path", "model.dtype", "model.lora", "prompts", "algorithm.name"),
    *("trainer.engine", "trainer.prompts_per_step", "trainer.group_size"),
    *("trainer.evaluation.seed", "trainer.evaluation.sampling", "trainer.evaluation.reward"),
)
"""Settings that a run keeps to its end: with others it would be another run, or its held-out scores would be of two kinds."""


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that differ: dotted name → [before, after]; `run` and `resume` are left out.

    Where `trainer.evaluation.reward` is null it counts as `reward`, which the evaluation takes then.
    """
    old, new = flatten(_with_evaluation_reward(before)), flatten(_with_evaluation_reward(after))
    names = sorted({*old, *new} - {"run", "resume"})
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name, MISSING) != new.get(name, MISSING)}


def check_resumable(changes: Mapping[str, list[Any]]) -> None:
    """Raises SettingsError if a setting changed that a run must keep."""
    for name, (before, after) in changes.items():
        if any(name == frozen or name.startswith(frozen + ".") for frozen in FROZEN):
            null = " (null = the reward trained on)" if name.startswith("trainer.evaluation.reward") else ""
            raise SettingsError(
                f"{name}{null} cannot change in a run that goes on: it was {before!r} and is {after!r}; "
                f"leave it out, or start another run with run=FOLDER"
            )


def _with_evaluation_reward(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the reward that held-out images are scored with, which null leaves unsaid."""
    trainer = dict(config.get("trainer") or {})
    evaluation = dict(trainer.get("evaluation") or {})
    if evaluation.get("reward") is None:
        evaluation["reward"] = config.get("reward")
    return {**config, "trainer": {**trainer, "evaluation": evaluation}}


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
