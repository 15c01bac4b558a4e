"""What a policy algorithm is, the parts most are assembled from, and the registry that finds one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from xomni_rl.registry import Registry, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from xomni_rl.policies.losses import Aggregation, KLEstimator
    from xomni_rl.policies.losses.correction import Correction
    from xomni_rl.policies.losses.policy import Surrogate

Advantage = Callable[..., "np.ndarray"]
Filter = Callable[["np.ndarray", "np.ndarray", "np.ndarray"], "np.ndarray"]
Loss = Callable[..., "tuple[Tensor, dict[str, Tensor]]"]
KLPlace = Literal["loss", "reward"]
ReferenceKind = Literal["frozen", "ema", "reset"]

NEEDS = frozenset({"greedy", "values", "entropy", "sampler_logprobs", "group"})
"""What an algorithm may ask the trainer to compute beyond rewards and log-probabilities."""


class AlgorithmError(ValueError):
    """Options that do not make an algorithm; the message is one sentence for the person who wrote them."""


@dataclass(frozen=True)
class Reference:
    """The policy that a KL is measured to.

    Attributes:
        kind: frozen = the weights training began from; ema = an average that follows the policy; reset = a copy, renewed
            every so often.
        decay: ema: share of the average that stays at each training step, in [0, 1].
        every: reset: training steps between renewals, ≥ 1.
    """

    kind: ReferenceKind = "frozen"
    decay: float = 0.99
    every: int = 100


@dataclass(frozen=True)
class Algorithm:
    """A policy algorithm: plain functions' worth of choices, with no model and no state inside.

    Attributes:
        name: what logs and tables call it.
        advantage: (rewards [N, K], weights [K], group [N]) -> [N] or [N, T] float32; NaN for a rollout without a reward.
            With "greedy" in needs it is also given greedy=[N, K], the scores of the greedy image of each row's prompt; with
            "values", values=[N, T], a critic's, and mask=[N, T], True = a token, if images differ in size.
        loss: (logprobs, old_logprobs, advantages, mask, reference or None) -> (loss [], metrics). With "entropy" in needs it is
            also given entropy=[N, T]; with "sampler_logprobs" those, and old_logprobs are the trainer's own; with "group",
            group=[N].
        filter: (rewards [N, K], weights [K], group [N]) -> [N] bool; True = takes part in the update. It is given the
            rewards as scored, before any KL is taken from them.
        needs: see `NEEDS`.
        reference: the policy a KL is measured to; None = no reference log-probabilities are computed.
        kl_in_reward: coefficient of the KL taken from the reward (`rewards_with_kl`); 0 = none.
        kl_estimator: estimator for that KL, which `sequence_kl` is to be given.
        returns: (rewards, weights, group, values, and mask as for the advantage) -> [N, T]: what the critic is to predict; with
            "values" in needs.
        resample_rounds: how often groups that teach nothing may be replaced by other prompts' (DAPO's dynamic sampling).
        least_group_size: fewer images per prompt leave nothing to compare.
        loss_weighs: what the loss is a mean of, so that the losses of parts of a batch are weighted by how many they have. It
            matters where images differ in size.
    Raises: AlgorithmError if it needs something that no trainer computes, or a critic without `returns`.
    """

    name: str
    advantage: Advantage
    loss: Loss
    filter: Filter
    needs: frozenset[str] = frozenset()
    reference: Reference | None = None
    kl_in_reward: float = 0.0
    kl_estimator: KLEstimator = "k1"
    returns: Advantage | None = None
    resample_rounds: int = 0
    least_group_size: int = 1
    loss_weighs: Literal["rollouts", "tokens"] = "rollouts"

    def __post_init__(self) -> None:
        for need in self.needs - NEEDS:
            raise AlgorithmError(unknown_name(f"need of algorithm {self.name},", need, NEEDS))
        if ("values" in self.needs) != (self.returns is not None):
            raise AlgorithmError(f'algorithm {self.name}: "values" in needs and `returns` go together')


algorithms: Registry[Callable[..., Algorithm]] = Registry(
    "algorithm", package="xomni_rl.policies.algorithms", entry_point_group="xomni_rl.algorithms"
)


def build_algorithm(name: str, options: Mapping[str, Any] | None = None) -> Algorithm:
    """The algorithm of that registered name (or `module:object`), made with the options.

    Raises: UnknownNameError for a name nobody registered; AlgorithmError for an option the algorithm does not take
        (naming the nearest), a required one that is missing, a value it refuses, or an entry that makes no Algorithm.
    """
    factory = algorithms.get(name)
    options = {str(key): value for key, value in (options or {}).items()}
    _check_options(name, factory, options)
    try:
        algorithm = factory(**options)
        if not isinstance(algorithm, Algorithm):
            raise AlgorithmError(f'"{name}" must return an Algorithm, but returned {type(algorithm).__name__}')
        try_out(algorithm)
    except AlgorithmError:
        raise
    except ValueError as error:
        named = str(error).partition(" ")[0] in options
        raise AlgorithmError(f"algorithm.options.{error}" if named else f"algorithm {name}: {error}") from error
    return algorithm


def try_out(algorithm: Algorithm) -> dict[str, Tensor]:
    """Advantages and loss of one small group, so that a knob out of range is named before anything is drawn.

    Returns: the loss's metrics; none if the filter keeps nothing of such a group.
    Raises: ValueError, as the algorithm's functions raise it.
    """
    import numpy as np
    import torch

    size = max(2, algorithm.least_group_size)
    rewards, weights = np.linspace(0, 1, size, dtype=np.float32)[:, None], np.ones(1, np.float32)
    group = np.zeros(size, np.int64)
    keep = torch.from_numpy(algorithm.filter(rewards, weights, group))
    if not keep.any():
        return {}
    known = {"greedy": rewards, "values": np.zeros((size, 1), np.float32)}
    known = {need: values for need, values in known.items() if need in algorithm.needs}
    advantages = torch.from_numpy(algorithm.advantage(rewards, weights, group, **known))[keep]
    logprobs = torch.zeros(len(advantages), 1)
    extras = {"entropy": logprobs, "sampler_logprobs": logprobs, "group": torch.from_numpy(group)[keep]}
    extras = {need: values for need, values in extras.items() if need in algorithm.needs}
    reference = None if algorithm.reference is None else logprobs
    return algorithm.loss(logprobs, logprobs, advantages, torch.ones_like(logprobs, dtype=torch.bool), reference, **extras)[1]


def policy_gradient(
    name: str,
    advantage: Advantage,
    surrogate: Surrogate,
    *,
    aggregation: Aggregation = "token_mean",
    needs: frozenset[str] = frozenset(),
    returns: Advantage | None = None,
    least_group_size: int = 2,
    filter: str = "keep_all",
    filter_options: Mapping[str, Any] | None = None,
    compare_kept: bool = False,
    resample_rounds: int = 0,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    kl_in: KLPlace = "loss",
    reference: ReferenceKind = "frozen",
    reference_decay: float = 0.99,
    reference_every: int = 100,
    entropy_coef: float = 0.0,
    correction: Correction = "none",
    correction_cap: float = 2.0,
    correction_floor: float = 0.0,
) -> Algorithm:
    """An algorithm from its advantage and surrogate, with the options that all of these share (`COMMON_OPTIONS`).

    Args:
        name, advantage, needs, returns, least_group_size: see `Algorithm`.
        surrogate, aggregation: of `policy_loss`.
        filter, filter_options: a name in `xomni_rl.policies.filters.FILTERS`, and its keywords.
        compare_kept: compute advantages among the rollouts that the filter keeps, instead of among all.
        resample_rounds: see `Algorithm`.
        kl_coef: β, weight of the KL to the reference; 0 = no reference is computed.
        kl_estimator: k1, k2 or k3; k1 belongs in the reward, k2 and k3 in the loss.
        kl_in: "loss", or "reward" to take the KL from the reward before advantages.
        reference, reference_decay, reference_every: see `Reference`.
        entropy_coef: γ, entropy bonus per nat; 0 = none.
        correction, correction_cap, correction_floor: importance weights between sampler and trainer; see `importance_weights`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.filters import advantages_over_kept
    from xomni_rl.policies.losses.correction import CORRECTIONS  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.policy import policy_loss

    require_choice("aggregation", aggregation, ("token_mean", "sequence_mean", "constant_length"))
    require_choice("kl_estimator", kl_estimator, ("k1", "k2", "k3"))
    require_choice("kl_in", kl_in, ("loss", "reward"))
    require_choice("correction", correction, CORRECTIONS)
    require_at_least("correction_cap", correction_cap, 1.0)
    require_at_least("correction_floor", correction_floor, 0.0)
    require_at_least("resample_rounds", resample_rounds, 0)
    chosen = chosen_filter(filter, filter_options)
    if compare_kept:
        advantage = advantages_over_kept(advantage, chosen)
    if entropy_coef:
        needs = needs | {"entropy"}
    if correction != "none":
        needs = needs | {"sampler_logprobs"}
    return Algorithm(
        name=name,
        advantage=advantage,
        loss=partial(
            policy_loss,
            surrogate=surrogate,
            aggregation=aggregation,
            kl_coef=kl_coef if kl_in == "loss" else 0.0,
            kl_estimator=kl_estimator,
            entropy_coef=entropy_coef,
            correction=correction,
            correction_cap=correction_cap,
            correction_floor=correction_floor,
        ),
        filter=chosen,
        needs=needs,
        reference=chosen_reference(kl_coef, reference, reference_decay, reference_every),
        kl_in_reward=kl_coef if kl_in == "reward" else 0.0,
        kl_estimator=kl_estimator,
        returns=returns,
        resample_rounds=int(resample_rounds),
        least_group_size=least_group_size,
        loss_weighs="tokens" if aggregation == "token_mean" else "rollouts",
    )


COMMON_OPTIONS = tuple(inspect.signature(policy_gradient).parameters)[7:]
"""Options that every algorithm made by `policy_gradient` takes, from `filter` on."""


def chosen_filter(name: str, options: Mapping[str, Any] | None = None) -> Filter:
    """The filter of that name with its keywords bound. Raises: AlgorithmError for an unknown name or keyword."""
    import numpy as np

    from xomni_rl.policies.filters import FILTERS

    require_choice("filter", name, FILTERS)
    made, given = FILTERS[name], dict(options or {})
    known = list(inspect.signature(made).parameters)[3:]
    for key in given:
        if key not in known:
            raise AlgorithmError(unknown_name(f"option of filter {name},", str(key), known))
    bound = partial(made, **given) if given else made
    try:
        bound(np.zeros((0, 1), np.float32), np.ones(1, np.float32), np.zeros(0, np.int64))
    except (TypeError, ValueError) as error:
        raise AlgorithmError(f"algorithm.options.filter_options: {error}") from error
    return bound


def chosen_reference(kl_coef: float, kind: str, decay: float, every: int) -> Reference | None:
    """The reference that the options describe; None if its KL costs nothing. Raises: AlgorithmError for a bad value."""
    require_at_least("kl_coef", kl_coef, 0.0)
    require_choice("reference", kind, ("frozen", "ema", "reset"))
    require_at_least("reference_decay", decay, 0.0)
    require_at_least("reference_every", every, 1)
    if decay > 1.0:
        raise AlgorithmError(f"algorithm.options.reference_decay must be at most 1, but is {decay}")
    return Reference(kind, decay, int(every)) if kl_coef > 0 else None  # type: ignore[arg-type]  # checked above


def require_choice(option: str, value: str, choices: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Raise AlgorithmError unless `value` is one of the choices, naming them and the nearest."""
    if value not in choices:
        raise AlgorithmError(unknown_name(f"value of algorithm.options.{option},", str(value), choices))


def require_at_least(option: str, value: float, least: float) -> None:
    """Raise AlgorithmError unless `value` is a number ≥ least."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise AlgorithmError(f"algorithm.options.{option} must be a number of {least:g} or more, but is {value!r}")


def _check_options(name: str, factory: Callable[..., Algorithm], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    own = {key: value for key, value in parameters.items() if value.kind is not value.VAR_KEYWORD}
    passed_on = [key for key, value in parameters.items() if value.kind is value.VAR_KEYWORD]
    if passed_on and passed_on != ["common"]:
        return  # somebody's own factory, which checks its options itself
    known = [*own, *(option for option in COMMON_OPTIONS if passed_on and option not in own)]
    for option in options:
        if option not in known:
            raise AlgorithmError(unknown_name(f"option of algorithm {name},", option, known))
    for option, value in options.items():
        _check_number(option, value, own.get(option) or inspect.signature(policy_gradient).parameters[option])
    required = [key for key, value in own.items() if value.default is value.empty and key not in options]
    if required:
        raise AlgorithmError(f"algorithm {name} needs the option {required[0]}: set algorithm.options.{required[0]}")


def _check_number(option: str, value: object, parameter: inspect.Parameter) -> None:
    """Raise AlgorithmError unless a value is a number where the default is one, and a whole one where that is."""
    if parameter.annotation == "float | None" and value is None:
        return
    wanted = isinstance(parameter.default, int | float) or parameter.annotation == "float | None"
    whole = isinstance(parameter.default, int)
    if isinstance(parameter.default, bool) or not wanted:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise AlgorithmError(f"algorithm.options.{option} must be a {'whole number' if whole else 'number'}, but is {value!r}")
