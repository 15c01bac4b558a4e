"""Best of N at inference: of N images of a prompt, the one the reward likes best is kept. The ceiling of what a reward buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import comb

from xomni_rl.envs.rollout import rollout
from xomni_rl.images import as_image_array
from xomni_rl.policies.shapes import check_shapes
from xomni_rl.prompts import Prompt
from xomni_rl.stack.sampler import SamplingConfig
from xomni_rl.stack.stack import Stack


@dataclass(frozen=True)
class BestImages:
    """The best image of each prompt, and what all N scored.

    Attributes:
        images: uint8 [P, H, W, 3]; of several sizes, object [P] of uint8 [H, W, 3].
        best: int64 [P], which of the N it is; the first of equal ones.
        scores: float32 [P, N], of the reward; NaN where it does not apply.
    """

    images: np.ndarray
    best: np.ndarray
    scores: np.ndarray


def best_images(
    stack: Stack,
    prompts: Sequence[Prompt],
    reward: Any,
    n: int,
    *,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    size: tuple[int, int] | None = None,
) -> BestImages:
    """Draws N images for each of P prompts and keeps the best of each.

    Where the reward applies to none of a prompt's images, or failed on all of them, the first is kept.

    Args: as in `xomni_rl.envs.rollout.rollout`; `reward` is a composite and n the group size.
    Raises: what `rollout` raises.
    """
    batch = rollout(stack, prompts, reward, group_size=n, seed=seed, sampling=sampling, size=size)
    scores = batch.rewards.scores.reshape(len(prompts), n)
    best = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    chosen = batch.images[np.arange(len(prompts)) * n + best]
    return BestImages(as_image_array(list(chosen)), best, scores)


def expected_best(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What the best of k images is worth on average, for every k up to N, exactly: the mean over all k-subsets of the N.

    B_k = mean over prompts of Σ_r C(N - 1 - r, k - 1) / C(N, k) · value of the image of rank r by score (0 = best)

    Args:
        scores: [P, N] float, by which the best is chosen; equal ones rank by position.
        values: [P, N] float, what is reported: the scores themselves, or another reward's.
    Returns: [N] float64; entry k - 1 is B_k.
    Raises: ValueError if shapes or dtypes differ, or a number is not finite.
    Source: the unbiased estimator of pass@k, arXiv:2107.03374, eq. 1, for values instead of passes.
    """
    size = check_shapes(scores=(scores, "P N", "float"), values=(values, "P N", "float"))
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise ValueError("scores and values must be finite: leave prompts out that the reward does not apply to")
    count = size["N"]
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(values.astype(np.float64), order, axis=1).mean(axis=0)
    ks, ranks = np.arange(1, count + 1)[:, None], np.arange(count)[None]
    return (comb(count - 1 - ranks, ks - 1) / comb(count, ks)) @ ranked
