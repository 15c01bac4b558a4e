"""What every advantage shares: rewards combined into one number, less a KL; statistics and ranks within groups."""

from __future__ import annotations

import numpy as np

from xomni_rl.policies.shapes import check_shapes


def combine_rewards(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted average of the components that apply to each rollout.

    R_i = Σ_k w_k r_ik / Σ_k |w_k|,  both sums over the k with r_ik not NaN and w_k ≠ 0

    Args:
        rewards: [N, K] float, unitless; NaN = not applicable.
        weights: [K] float; negative = a penalty, 0 = logged only.
    Returns: [N] float32; NaN where no weighted component applies.
    Raises: ValueError if shapes or dtypes differ, or a weight is not finite.
    Source: ours. The divisor takes |w| so that a penalty keeps its sign.
    """
    check_shapes(rewards=(rewards, "N K", "float"), weights=(weights, "K", "number"))
    if not np.isfinite(weights).all():
        raise ValueError(f"weights must be finite, but are {np.asarray(weights).tolist()}")
    used = np.asarray(weights) != 0
    values = rewards[:, used].astype(np.float64)
    applies = ~np.isnan(values)
    signed = np.where(applies, np.asarray(weights, dtype=np.float64)[used], 0.0)
    total = np.abs(signed).sum(axis=1)
    weighted = (signed * np.where(applies, values, 0.0)).sum(axis=1)
    return np.where(total > 0, weighted / np.where(total > 0, total, 1.0), np.nan).astype(np.float32)


def rewards_with_kl(rewards: np.ndarray, weights: np.ndarray, kl: np.ndarray, kl_coef: float) -> np.ndarray:
    """Rewards less the cost of having moved from the reference policy, to be given to an advantage function.

    r'_ik = r_ik - sign(w_k) · kl_coef · KL_i  for w_k ≠ 0, so that combine_rewards(r')_i = R_i - kl_coef · KL_i

    Args:
        rewards: [N, K] float; NaN stays NaN, and a component of weight 0 stays as it is.
        weights: [K] float.
        kl: [N] float, nats; KL of each whole rollout, from `xomni_rl.policies.losses.sequence_kl`.
        kl_coef: reward per nat, ≥ 0.
    Returns: [N, K] float32, a new array.
    Raises: ValueError if shapes or dtypes differ or kl_coef is negative.
    Source: arXiv:2009.01325, section 3.4 (there per token; here per rollout, because a rollout has one reward).
    """
    check_shapes(rewards=(rewards, "N K", "float"), weights=(weights, "K", "number"), kl=(kl, "N", "float"))
    check_at_least("kl_coef", kl_coef, 0.0)
    return (rewards - np.sign(weights) * (kl_coef * kl)[:, None]).astype(np.float32)


def scored_rewards(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What nearly every advantage and filter begins with.

    Args:
        rewards: [N, K] float; weights: [K]; group: [N] int; as in the package's docstring.
    Returns: combined reward [N] float64, NaN where there is none; bool [N], whether there is one; int [N], the position of
        each rollout's group among the ascending group ids.
    Raises: ValueError if shapes or dtypes differ, or a weight is not finite.
    """
    check_shapes(rewards=(rewards, "N K", "float"), weights=(weights, "K", "number"), group=(group, "N", "int"))
    reward = combine_rewards(rewards, weights).astype(np.float64)
    _, index = np.unique(group, return_inverse=True)
    return reward, ~np.isnan(reward), index


def group_count(index: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """How many counted values each group has. index [N], counted [N] -> [groups] int."""
    return np.bincount(index[counted], minlength=int(index.max(initial=-1)) + 1)


def group_mean(values: np.ndarray, index: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean of the counted values of each group; NaN for a group with none. values [N], index [N] -> [groups]."""
    count = group_count(index, counted)
    total = np.bincount(index[counted], weights=values[counted], minlength=len(count))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def group_std(centred: np.ndarray, index: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Standard deviation (n - 1) of each group from centred values; 0 for fewer than two. [N], [N] -> [groups]."""
    count = group_count(index, counted)
    squares = np.bincount(index[counted], weights=centred[counted] ** 2, minlength=len(count))
    return np.sqrt(squares / np.maximum(count - 1, 1))


def group_varies(values: np.ndarray, index: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Whether the counted values of each group differ; False for fewer than two. values [N], index [N] -> [groups] bool."""
    size = int(index.max(initial=-1)) + 1
    highest, lowest = np.full(size, -np.inf), np.full(size, np.inf)
    np.maximum.at(highest, index[counted], values[counted])
    np.minimum.at(lowest, index[counted], values[counted])
    return highest > lowest


def group_ranks(values: np.ndarray, index: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Rank of each counted value within its group, 0 = largest; of equal ones the earlier is the better. -1 if not counted.

    values [N], index [N], counted [N] -> [N] int.
    """
    rows = np.flatnonzero(counted)
    rows = rows[np.lexsort((-values[rows], index[rows]))]  # stable, so equal values stay in their order
    ranks = np.full(len(values), -1)
    ranks[rows] = np.arange(len(rows)) - np.searchsorted(index[rows], index[rows])
    return ranks


def divided(centred: np.ndarray, std: np.ndarray | float, eps: float) -> np.ndarray:
    """centred / (std + eps), and centred (which is 0) where std is 0."""
    return centred / np.where(np.asarray(std) > 0, std + eps, 1.0)


def standardised(values: np.ndarray, counted: np.ndarray, eps: float) -> np.ndarray:
    """(values - mean) / (std + eps) over all counted values, std with n - 1; 0 if they are all equal.

    Args:
        values: any shape, float64.
        counted: the same shape, bool.
        eps: ≥ 0.
    Returns: the same shape; what is not counted is shifted and scaled alike, so NaN stays NaN.
    """
    chosen = values[counted]
    if len(chosen) < 2 or chosen.min() == chosen.max():
        return values - (chosen[0] if len(chosen) else 0.0)
    return divided(values - chosen.mean(), chosen.std(ddof=1), eps)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError naming the choices unless `value` is one of them."""
    if value not in choices:
        known = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {known}, but is {value!r}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError unless `value` is a number ≥ least; a whole one if least is."""
    kinds = int | np.integer if isinstance(least, int) else int | float | np.integer | np.floating
    if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
        what = "a whole number of " if isinstance(least, int) else ""
        raise ValueError(f"{name} must be {what}{least:g} or more, but is {value!r}")


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless `value` is a number in [0, 1]."""
    check_at_least(name, value, 0.0)
    if value > 1:
        raise ValueError(f"{name} must be at most 1, but is {value!r}")
