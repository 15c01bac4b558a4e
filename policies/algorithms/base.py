"""What a policy algorithm is, and the registry that finds one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xomni_rl.registry import Registry, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from xomni_rl.policies.losses import KLEstimator

Advantage = Callable[["np.ndarray", "np.ndarray", "np.ndarray"], "np.ndarray"]
Filter = Callable[["np.ndarray", "np.ndarray", "np.ndarray"], "np.ndarray"]
Loss = Callable[["Tensor", "Tensor", "Tensor", "Tensor", "Tensor | None"], "tuple[Tensor, dict[str, Tensor]]"]
KLPlace = Literal["loss", "reward"]


class AlgorithmError(ValueError):
    """Options that do not make an algorithm; the message is one sentence for the person who wrote them."""


@dataclass(frozen=True)
class Algorithm:
    """A policy algorithm: four plain functions' worth of choices, with no model and no state inside.

    Attributes:
        name: what logs and tables call it.
        advantage: (rewards [N, K], weights [K], group [N]) -> [N] float32; NaN for a rollout without a reward.
        loss: (logprobs, old_logprobs, advantages, mask, reference or None) -> (loss [], metrics).
        filter: (rewards [N, K], weights [K], group [N]) -> [N] bool; True = takes part in the update. It is given the
            rewards as scored, before any KL is taken from them.
        needs_reference: whether the frozen reference's log-probabilities must be computed for every batch.
        kl_in_reward: coefficient of the KL taken from the reward (`rewards_with_kl`); 0 = none.
        kl_estimator: estimator for that KL, which `sequence_kl` is to be given.
    """

    name: str
    advantage: Advantage
    loss: Loss
    filter: Filter
    needs_reference: bool = False
    kl_in_reward: float = 0.0
    kl_estimator: KLEstimator = "k1"


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
    except AlgorithmError:
        raise
    except ValueError as error:
        raise AlgorithmError(f"algorithm {name}: {error}") from error
    if not isinstance(algorithm, Algorithm):
        raise AlgorithmError(f'"{name}" must return an Algorithm, but returned {type(algorithm).__name__}')
    return algorithm


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
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise AlgorithmError(unknown_name(f"option of algorithm {name},", option, parameters))
    required = [key for key, value in parameters.items() if value.default is value.empty and key not in options]
    if required:
        raise AlgorithmError(f"algorithm {name} needs the option {required[0]}: set algorithm.options.{required[0]}")
