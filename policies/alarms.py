"""Warnings that save a day: pure functions from a step's metrics to alarms, each with what to do about it.

An alarm whose metric was not computed in a step is not checked in it. Every check that was made is logged as the metric
`alarm/<name>`: 1 when it was raised, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xomni_rl.policies.settings import AlarmSettings

Action = Literal["warn", "stop", "rollback"]


@dataclass(frozen=True)
class Alarm:
    """Something that is probably going wrong.

    Attributes:
        name: what happened; key in `summary.json` and of the metric `alarm/<name>`.
        value: the metric that raised it.
        limit: what it was compared with.
        message: what it is and what to do, in one or two sentences.
        action: "warn"; "stop" = training is to end here; "rollback" = it is to go on from the last checkpoint.
    """

    name: str
    value: float
    limit: float
    message: str
    action: Action = "warn"


@dataclass(frozen=True)
class Check:
    """One rule: `metric` must not be above (or, with `below`, not below) `limit`."""

    name: str
    metric: str
    limit: float | None
    message: str
    below: bool = False
    action: Action = "warn"


def checks(settings: AlarmSettings, *, low: bool = False) -> tuple[Check, ...]:
    """The rules under these settings, `low` = where weights or arithmetic have 16 bits; one whose limit is None is off."""
    return (
        Check(
            "zero_variance",
            "zero_variance_share",
            settings.zero_variance_share,
            "{value:.0%} of the groups have equal rewards and teach nothing: raise trainer.group_size or the sampling "
            "temperature, choose prompts of middling difficulty, or a reward with finer steps",
        ),
        Check(
            "constant_reward",
            "reward_std",
            0.0,
            "every image of the step got the same reward: look at the images in rollouts/ and at what the reward says in "
            "their details column; it may not fit these prompts",
            below=True,
        ),
        Check(
            "ratio_off_one",
            "ratio_max_deviation",
            settings.ratio_tolerance_16_bits if low else settings.ratio_tolerance,
            "the importance ratio of the first update is off 1 by {value:.2g}: sampler and trainer disagree about the same "
            "weights; check the sampling settings, mixed precision and dropout",
        ),
        Check(
            "entropy_collapse",
            "entropy",
            settings.entropy_floor,
            "the policy's entropy is {value:.3f} nats per token: it hardly explores any more; lower "
            "trainer.learning_rate, turn a KL on (algorithm.options.kl_coef) or go back to an earlier checkpoint",
            below=True,
        ),
        Check(
            "failed_scores",
            "failed_share",
            settings.failed_share,
            "scoring failed for {value:.0%} of the images, which are left out of the update: the reasons are in the "
            "details column of rollouts/",
        ),
        Check(
            "kl_limit",
            "kl_reference",
            settings.kl_limit,
            "KL to the reference is {value:.3f} nats per token: raise algorithm.options.kl_coef or lower "
            "trainer.learning_rate; images may score well and look wrong",
            action=settings.kl_action,
        ),
        Check(
            "loss_limit",
            "loss_size",
            settings.loss_limit,
            "the loss is {value:.3g} from 0, where a policy-gradient loss stays near it: lower trainer.learning_rate or "
            "trainer.max_grad_norm",
            action=settings.loss_action,
        ),
    )


def raised_alarms(
    metrics: dict[str, float], settings: AlarmSettings, *, low: bool = False
) -> tuple[list[Alarm], dict[str, float]]:
    """Alarms that a step's metrics raise.

    Args:
        metrics: of one step, by name; those that are absent are not checked.
        settings: the limits. A limit is still fine itself, but for the constant reward, where 0 raises the alarm.
        low: whether weights or arithmetic have 16 bits.
    Returns: the alarms; `alarm/<name>` → 1.0 or 0.0 for every rule that was checked.
    """
    alarms: list[Alarm] = []
    flags: dict[str, float] = {}
    metrics = metrics | {"loss_size": abs(metrics["loss"])} if "loss" in metrics else metrics
    for check in checks(settings, low=low):
        if check.limit is None or check.metric not in metrics:
            continue
        value = metrics[check.metric]
        beyond = value < check.limit if check.below else value > check.limit
        if beyond or (check.name == "constant_reward" and value == 0.0):
            message = check.message.format(value=value)
            alarms.append(Alarm(check.name, value, check.limit, message, check.action))
            flags[f"alarm/{check.name}"] = 1.0
        else:
            flags[f"alarm/{check.name}"] = 0.0
    return alarms, flags


def worth_showing(count: int) -> bool:
    """Whether the count-th firing of one alarm is shown: the 1st, 2nd, 4th, 8th … — all of them are in the file."""
    return count > 0 and count & (count - 1) == 0
