"""Which rollouts take part in an update: plain functions (rewards, weights, group) -> bool [N], True = takes part.

A rollout without a reward (nothing applied to it, or its scoring failed) never takes part. Within a group rollouts are ranked
by combined reward; of equal ones the earlier counts as the better. Conventions as in `xomni_rl.policies.advantages`.

A filter says nothing about advantages: those compare a rollout with all of its group. `advantages_over_kept` makes an advantage
function that compares it with the kept ones alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xomni_rl.policies.advantages import best_indicator_advantages, preference_advantages
from xomni_rl.policies.advantages.common import check_at_least, group_count, group_ranks, group_varies, scored_rewards


def keep_all(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Every rollout that has a reward.

    Args:
        rewards: [N, K] float; NaN = not applicable or failed.
        weights: [K] float; 0 = logged only.
        group: [N] int.
    Returns: [N] bool; True = takes part in the update.
    Raises: ValueError if shapes or dtypes differ.
    """
    return scored_rewards(rewards, weights, group)[1]


def drop_zero_variance(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Every rollout of a group whose rewards differ; groups that teach nothing are left out.

    Their advantages are 0, so dropping them changes no gradient's direction; it does raise the weight of the rest
    under a mean, and saves their part of the update.

    Args:
        rewards: [N, K] float; NaN = not applicable or failed.
        weights: [K] float; 0 = logged only.
        group: [N] int.
    Returns: [N] bool; True = takes part in the update. All False if no group's rewards differ.
    Raises: ValueError if shapes or dtypes differ.
    Source: arXiv:2503.14476, section 3.2. Departs from it: dropped groups are not sampled again; for that see
        `needs_resampling`.
    """
    reward, scored, index = scored_rewards(rewards, weights, group)
    return scored & group_varies(reward, index, scored)[index]


def best_worst(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, keep: int = 2) -> np.ndarray:
    """The `keep` best and the `keep` worst rollouts of each group; a group with fewer than twice as many is kept whole.

    Args:
        rewards: [N, K] float; NaN = not applicable or failed.
        weights: [K] float; 0 = logged only.
        group: [N] int.
        keep: how many from either end, ≥ 1.
    Returns: [N] bool; True = takes part in the update.
    Raises: ValueError if shapes or dtypes differ or keep is below 1.
    Source: arXiv:2505.07818, which trains on the top and bottom of more samples than it updates on, with advantages from all of
        them. Departs from it: the choice is made in each group.
    """
    check_at_least("keep", keep, 1)
    reward, scored, index = scored_rewards(rewards, weights, group)
    ranks, count = group_ranks(reward, index, scored), group_count(index, scored)[index]
    return scored & ((ranks < keep) | (ranks >= count - keep))


def max_variance(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, keep: int = 4) -> np.ndarray:
    """The `keep` rollouts of each group whose rewards differ most: of all subsets of that size, one of the largest variance.

    It always consists of the i best and the keep - i worst for some i, so keep + 1 subsets are compared. Of subsets with equal
    variance, the one with the most best ones is taken. A group of at most `keep` scored rollouts is kept whole.

    Args:
        rewards: [N, K] float; NaN = not applicable or failed.
        weights: [K] float; 0 = logged only.
        group: [N] int.
        keep: size of the subset (m in the paper), ≥ 2.
    Returns: [N] bool; True = takes part in the update.
    Raises: ValueError if shapes or dtypes differ or keep is below 2.
    Source: arXiv:2504.13818, Lemma 3.1 and Algorithm 2 (PODS), where advantages compare the kept rollouts with one another:
        `advantages_over_kept`. Departs from it: a group whose rewards are all equal keeps as many, its advantages being 0.
    """
    check_at_least("keep", keep, 2)
    reward, scored, index = scored_rewards(rewards, weights, group)
    chosen = np.zeros(len(reward), dtype=bool)
    for each in np.unique(index[scored]):
        rows = np.flatnonzero(scored & (index == each))
        best_first = rows[np.argsort(-reward[rows], kind="stable")]
        best = _most_spread(reward[best_first], keep)
        chosen[best_first[:best]] = True
        chosen[best_first[len(rows) - min(keep, len(rows)) + best :]] = True
    return chosen


def _most_spread(descending: np.ndarray, keep: int) -> int:
    """How many of the best are in the subset of `keep` rewards with the largest variance, the others being the worst."""
    count = len(descending)
    if count <= keep:
        return count
    centred = descending - descending.mean()
    sums, squares = (np.concatenate([[0.0], np.cumsum(values)]) for values in (centred, centred**2))
    best = np.arange(keep, -1, -1)  # from most to fewest, so that argmax takes the most of equal ones
    from_worst = count - keep + best

    def total(prefix: np.ndarray) -> np.ndarray:
        return prefix[best] + prefix[count] - prefix[from_worst]

    variance = total(squares) / keep - (total(sums) / keep) ** 2
    return int(best[np.argmax(variance >= variance.max() * (1 - 1e-9))])  # equal but for rounding counts as equal


def best_of_group(
    rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, min_reward: float | None = None
) -> np.ndarray:
    """The best rollout of each group, if it is good enough: rejection sampling.

    Args: as in `best_indicator_advantages`, whose 1 is kept here.
    Returns: [N] bool; True = takes part in the update.
    Raises: ValueError as there.
    Source: arXiv:2304.06767.
    """
    return best_indicator_advantages(rewards, weights, group, min_reward=min_reward) == 1


def best_and_worst(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Exactly the best and the worst rollout of each group whose rewards differ: pairs for a preference loss.

    Args, Raises: as in `preference_advantages`, whose +1 and -1 are kept here.
    Returns: [N] bool; True = takes part in the update.
    """
    return np.abs(preference_advantages(rewards, weights, group)) == 1


def needs_resampling(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Which groups teach nothing, so that dynamic sampling would put other prompts in their place.

    Args:
        rewards: [N, K] float; NaN = not applicable or failed.
        weights: [K] float; 0 = logged only.
        group: [N] int.
    Returns: [groups] bool, by ascending group id; True = all its rewards are equal, or fewer than two rollouts have one.
    Raises: ValueError if shapes or dtypes differ.
    Source: arXiv:2503.14476, section 3.2: there a group is replaced if all its rollouts are right, or all wrong.
    """
    reward, scored, index = scored_rewards(rewards, weights, group)
    return ~group_varies(reward, index, scored)


def zero_variance_share(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> float | None:
    """Share of the groups with a reward whose rewards are all equal: groups that teach nothing.

    Returns: a number in [0, 1], or None if no rollout has a reward (there is no share to speak of).
    Raises: ValueError if shapes or dtypes differ.
    """
    reward, scored, index = scored_rewards(rewards, weights, group)
    if not scored.any():
        return None
    return float(1.0 - group_varies(reward, index, scored)[np.unique(index[scored])].mean())


def advantages_over_kept(
    advantage: Callable[..., np.ndarray], filter: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> Callable[..., np.ndarray]:
    """An advantage function that knows nothing of the rollouts that a filter leaves out.

    Args:
        advantage: (rewards, weights, group, **extras) -> [N] or [N, T].
        filter: (rewards, weights, group) -> [N] bool.
    Returns: the same as `advantage`, from the kept rollouts alone; NaN for the others. Where a KL is in the reward, the filter
        here sees the reward less the KL.
    """

    def kept_advantages(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, **extras: Any) -> np.ndarray:
        kept = filter(rewards, weights, group)
        return advantage(np.where(kept[:, None], rewards, np.nan), weights, group, **extras)

    return kept_advantages


FILTERS: dict[str, Callable[..., np.ndarray]] = {
    "keep_all": keep_all,
    "drop_zero_variance": drop_zero_variance,
    "best_worst": best_worst,
    "max_variance": max_variance,
    "best_of_group": best_of_group,
    "best_and_worst": best_and_worst,
}
"""Filters by the name that a configuration gives; further keywords are their options."""
