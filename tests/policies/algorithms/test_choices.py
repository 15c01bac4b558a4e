"""What each algorithm picks: its advantages, its bounds, its mean, checked by hand on a few numbers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xomni_rl.policies.algorithms.base import Algorithm, Reference, build_algorithm
from xomni_rl.policies.filters import best_and_worst, best_of_group, drop_zero_variance, keep_all

REWARDS, GROUP = np.array([[1.0], [3.0], [0.0], [1.0]], np.float32), np.array([0, 0, 1, 1])
ONE = np.ones(1, np.float32)
SAME_STEP = ["reinforce", "cispo", "gspo", "gspo_token", "gmpo", "sapo", "kl_cov", "dapo"]
"""Algorithms with GRPO's advantages that take GRPO's step while every ratio is 1."""


def advantages(name: str, rewards: np.ndarray = REWARDS, group: np.ndarray = GROUP, **options: Any) -> np.ndarray:
    return build_algorithm(name, options).advantage(rewards, np.ones(rewards.shape[1], np.float32), group)


def loss(algorithm: Algorithm, log_ratios: list[list[float]], given: list[float]) -> tuple[float, list[list[float]]]:
    """Loss of rollouts whose tokens have these log-ratios (old log-probabilities are -1), and its gradient."""
    old = torch.full((len(log_ratios), len(log_ratios[0])), -1.0, dtype=torch.float64)
    logprobs = (old + torch.tensor(log_ratios, dtype=torch.float64)).requires_grad_()
    mask = torch.ones_like(old, dtype=torch.bool)
    value, _ = algorithm.loss(logprobs, old, torch.tensor(given, dtype=torch.float64), mask)
    value.backward()
    return value.item(), logprobs.grad.tolist()  # type: ignore[union-attr]


def unclipped(name: str, ratio: float, advantage: float, **options: Any) -> bool:
    """Whether a single token of that ratio and advantage has a gradient."""
    return loss(build_algorithm(name, options), [[math.log(ratio)]], [advantage])[1] != [[0.0]]


# advantages


def test_grpo_divides_by_the_deviation_of_the_group() -> None:
    # group 0: 1, 3 → ∓1 / (√2 + 1e-4);  group 1: 0, 1 → ∓0.5 / (√0.5 + 1e-4)
    wide, narrow = 1 / (math.sqrt(2) + 1e-4), 0.5 / (math.sqrt(0.5) + 1e-4)
    np.testing.assert_allclose(advantages("grpo"), [-wide, wide, -narrow, narrow], atol=1e-6)


def test_grpo_divides_by_the_deviation_of_the_batch_if_asked() -> None:
    # mean 1.25; squares 0.0625 + 3.0625 + 1.5625 + 0.0625 = 4.75, over 3
    std = math.sqrt(4.75 / 3) + 1e-4
    np.testing.assert_allclose(advantages("grpo", scale="batch"), [-1 / std, 1 / std, -0.5 / std, 0.5 / std], atol=1e-6)


@pytest.mark.parametrize("name", ["dr_grpo", "opo"])
def test_dr_grpo_and_opo_take_the_mean_of_the_group_off_and_no_more(name: str) -> None:
    # group 0: 1, 3 → mean 2;  group 1: 0, 1 → mean 0.5.  OPO's lengths are equal, so its baseline is the same mean
    np.testing.assert_allclose(advantages(name), [-1, 1, -0.5, 0.5], atol=1e-7)


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    # 1 - 3, 3 - 1, 0 - 1, 1 - 0
    np.testing.assert_allclose(advantages("rloo"), [-2, 2, -1, 1], atol=1e-7)


@pytest.mark.parametrize("name", ["batch", "reinforce_pp"])
def test_batch_and_reinforce_pp_standardise_over_the_batch(name: str) -> None:
    std = math.sqrt(4.75 / 3) + 1e-4  # as above; mean 1.25
    np.testing.assert_allclose(advantages(name), np.array([-0.25, 1.75, -1.25, -0.25]) / std, atol=1e-6)


def test_reinforce_pp_with_its_baseline_takes_the_mean_of_the_group_off_first() -> None:
    # less the groups' means: -1, 1, -0.5, 0.5;  squares 2.5, over 3
    std = math.sqrt(2.5 / 3) + 1e-4
    np.testing.assert_allclose(advantages("reinforce_pp", baseline="group"), np.array([-1, 1, -0.5, 0.5]) / std, atol=1e-6)


def test_reinforce_pp_takes_its_kl_from_the_reward() -> None:
    algorithm = build_algorithm("reinforce_pp", {"kl_coef": 0.1})
    assert (algorithm.kl_in_reward, algorithm.kl_estimator, algorithm.reference) == (0.1, "k1", Reference("frozen"))


def test_remax_compares_with_the_greedy_image() -> None:
    algorithm = build_algorithm("remax")
    greedy = np.array([[2.0], [2.0], [0.75], [0.75]], np.float32)
    assert algorithm.needs == {"greedy"}
    # 1 - 2, 3 - 2, 0 - 0.75, 1 - 0.75
    np.testing.assert_allclose(algorithm.advantage(REWARDS, ONE, GROUP, greedy=greedy), [-1, 1, -0.75, 0.25], atol=1e-7)


def test_gdpo_normalises_components_before_it_adds_them() -> None:
    # Of two values, one is -1/√2 and the other 1/√2 deviations from the mean, however far apart they are (eps aside):
    # the first components say -, +, -, +, the second ones +, -, -, +; sums 0, 0, -√2, √2, whose deviation is √(4/3)
    rewards = np.array([[1.0, 90.0], [3.0, 50.0], [0.0, 10.0], [1.0, 80.0]], np.float32)
    half = math.sqrt(2) / math.sqrt(4 / 3)
    np.testing.assert_allclose(advantages("gdpo", rewards), [0, 0, -half, half], atol=1e-3)
    assert advantages("grpo", rewards)[0] > 0.5  # added first, the wider component alone decides


def test_pass_at_k_shares_out_the_chance_that_one_of_k_is_right() -> None:
    # one right of n = 4, k = 2: w = 3 wrong, 1 - ρ = C(3,2)/C(4,2) = 1/2, σ = 1/2; A_right = (1/2)/(1/2) = 1;
    # A_wrong = (1/2 - C(2,1)/C(3,1)) / (1/2) = (1/2 - 2/3)·2 = -1/3
    rewards = np.array([[1.0], [0.5], [0.2], [0.98]], np.float32)
    found = advantages("pass_at_k", rewards, np.zeros(4, int), k=2)
    np.testing.assert_allclose(found, [1, -1 / 3, -1 / 3, -1 / 3], atol=1e-6)
    assert build_algorithm("pass_at_k", {"k": 2}).least_group_size == 3
    # with a threshold of 0.5 three are right, w = 1 < k: any two hold a right one, nothing is to be learnt
    assert not advantages("pass_at_k", rewards, np.zeros(4, int), k=2, threshold=0.5).any()


def test_ppo_judges_tokens_by_a_critic() -> None:
    algorithm = build_algorithm("ppo", {"lam": 0.5})
    values = np.array([[0.0, 0.0], [1.0, 2.0]], np.float32)
    rewards, group = np.array([[1.0], [3.0]], np.float32), np.array([0, 1])
    # rollout 0: A_1 = 1 - 0, A_0 = (0 - 0) + 0.5·1;  rollout 1: A_1 = 3 - 2, A_0 = (2 - 1) + 0.5·1;  returns A + V
    raw = np.array([[0.5, 1.0], [1.5, 1.0]])
    np.testing.assert_allclose(algorithm.returns(rewards, ONE, group, values=values), raw + values, atol=1e-6)  # type: ignore[misc]
    # mean 1, squares 0.25 + 0 + 0.25 + 0, over 3
    white = (raw - 1) / math.sqrt(0.5 / 3)
    np.testing.assert_allclose(algorithm.advantage(rewards, ONE, group, values=values), white, atol=1e-5)
    assert algorithm.least_group_size == 1


def test_best_of_n_imitates_the_best_of_each_group_that_has_one() -> None:
    algorithm = build_algorithm("best_of_n")
    rewards, group = np.concatenate([REWARDS, [[0.5], [0.5]]]).astype(np.float32), np.array([0, 0, 1, 1, 2, 2])
    assert algorithm.filter is best_of_group
    assert algorithm.filter(rewards, ONE, group).tolist() == [False, True, False, True, False, False]
    assert algorithm.advantage(rewards, ONE, group).tolist() == [0, 1, 0, 1, 0, 0]
    demanding = build_algorithm("best_of_n", {"min_reward": 2.0})
    assert demanding.advantage(rewards, ONE, group).tolist() == [0, 1, 0, 0, 0, 0]
    assert demanding.filter(rewards, ONE, group).tolist() == [False, True, False, False, False, False]
    # the better it is already known, the smaller the loss: -logprob, and its gradient over two tokens
    assert loss(algorithm, [[0.5, 0.0]], [1.0]) == (pytest.approx((0.5 + 1.0) / 2), [[-0.5, -0.5]])


def test_dpo_prefers_the_best_over_the_worst() -> None:
    algorithm = build_algorithm("dpo", {"beta": 0.5})
    assert algorithm.filter is best_and_worst
    assert (algorithm.needs, algorithm.reference) == ({"group"}, Reference("frozen"))
    found = algorithm.advantage(np.array([[0.2], [0.9], [0.5]], np.float32), ONE, np.zeros(3, int))
    assert found.tolist() == [-1, 1, 0]
    logprobs, reference = torch.tensor([[-2.0], [-1.0]]), torch.tensor([[-1.0], [-2.0]])
    mask, group = torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    value, metrics = algorithm.loss(logprobs, logprobs, torch.tensor([-1.0, 1.0]), mask, reference, group=group)
    # Δ_best = 1, Δ_worst = -1: -log σ(0.5·2) = log(1 + e^-1)
    assert value.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert metrics["preference_margin"] == 1.0


# losses


def test_grpo_clips_the_ratio_on_both_sides_and_twice_if_asked() -> None:
    # ratio 1.5, A = 1 → -1.2;  ratio 0.5, A = -1 → 0.8;  ratio 4, A = -1 → 4, and with dual_clip 3 → 3;  mean over tokens
    ratios = [[math.log(1.5)], [math.log(0.5)], [math.log(4.0)]]
    assert loss(build_algorithm("grpo"), ratios, [1.0, -1.0, -1.0])[0] == pytest.approx((-1.2 + 0.8 + 4) / 3)
    dual = build_algorithm("grpo", {"dual_clip": 3.0})
    assert loss(dual, ratios, [1.0, -1.0, -1.0])[0] == pytest.approx((-1.2 + 0.8 + 3) / 3)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [(name, 0.8, 1.2) for name in ("grpo", "dr_grpo", "gdpo", "batch", "reinforce_pp", "pass_at_k", "ppo")]
    + [("dapo", 0.8, 1.28), ("gspo", 1 - 3e-4, 1 + 4e-4), ("gspo_token", 1 - 3e-4, 1 + 4e-4)]
    + [("gmpo", math.exp(-0.4), math.exp(0.4))],
)
def test_clip_begins_at_the_bounds_of_the_paper(name: str, low: float, high: float) -> None:
    assert unclipped(name, high * 0.9999, 1.0)
    assert not unclipped(name, high * 1.0001, 1.0)
    assert unclipped(name, low * 1.0001, -1.0)
    assert not unclipped(name, low * 0.9999, -1.0)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gdpo", "batch", "reinforce_pp", "pass_at_k", "ppo"])
def test_bounds_of_the_clip_are_options(name: str) -> None:
    assert unclipped(name, 1.4, 1.0, clip_high=0.5)
    assert not unclipped(name, 1.6, 1.0, clip_high=0.5)
    assert unclipped(name, 0.7, -1.0, clip_low=0.4)
    assert not unclipped(name, 0.5, -1.0, clip_low=0.4)


def test_dapo_replaces_dull_groups_and_leaves_out_those_that_stay() -> None:
    algorithm = build_algorithm("dapo")
    assert algorithm.resample_rounds == 2
    assert algorithm.filter is drop_zero_variance
    assert build_algorithm("dapo", {"resample_rounds": 0}).resample_rounds == 0
    assert (build_algorithm("grpo").resample_rounds, build_algorithm("grpo").filter) == (0, keep_all)


def test_dr_grpo_divides_by_all_tokens_counted_or_not() -> None:
    old = torch.full((2, 4), -1.0)
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    # at ratio 1 a token's loss is -A: (4·-1 + 1·2) / (2·4), where a mean over tokens would divide by 5
    value, _ = build_algorithm("dr_grpo").loss(old, old, torch.tensor([1.0, -2.0]), mask)
    assert value.item() == pytest.approx(-2 / 8)
    value, _ = build_algorithm("grpo").loss(old, old, torch.tensor([1.0, -2.0]), mask)
    assert value.item() == pytest.approx(-2 / 5)
    value, _ = build_algorithm("grpo", {"aggregation": "sequence_mean"}).loss(old, old, torch.tensor([1.0, -2.0]), mask)
    assert value.item() == pytest.approx((-1 + 2) / 2)


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    # ratio 10 weighs 1 + 4 = 5;  ratio 0.01 weighs 0.01, as there is no lower bound
    assert loss(build_algorithm("cispo"), [[math.log(10)]], [2.0])[1] == [[pytest.approx(-5 * 2.0)]]
    assert loss(build_algorithm("cispo"), [[math.log(0.01)]], [2.0])[1] == [[pytest.approx(-0.01 * 2.0)]]
    assert loss(build_algorithm("cispo", {"clip_low": 0.5}), [[math.log(0.01)]], [2.0])[1] == [[pytest.approx(-0.5 * 2.0)]]


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_gspo_clips_a_rollout_as_a_whole(name: str) -> None:
    # log-ratios 0.3 and -0.3: the rollout's ratio is 1, so nothing is clipped; 0.3 and -0.1: it is e^0.1, so all is
    value, gradient = loss(build_algorithm(name), [[0.3, -0.3]], [1.0])
    assert value == pytest.approx(-1.0)
    assert gradient == [[pytest.approx(-0.5), pytest.approx(-0.5)]]
    value, gradient = loss(build_algorithm(name), [[0.3, -0.1]], [1.0])
    assert value == pytest.approx(-1.0004)
    assert gradient == [[0.0, 0.0]]


def test_gmpo_takes_the_geometric_mean_of_clipped_ratios() -> None:
    # 0.6 stops at 0.4, 0.2 stays: -exp((0.4 + 0.2) / 2)
    assert loss(build_algorithm("gmpo"), [[0.6, 0.2]], [1.0])[0] == pytest.approx(-math.exp(0.3))
    assert loss(build_algorithm("gmpo", {"clip_high": 0.5}), [[0.6, 0.2]], [1.0])[0] == pytest.approx(-math.exp(0.35))


def test_sapo_has_a_temperature_for_each_sign() -> None:
    def gate(temperature: float) -> float:
        return 4 / temperature / (1 + math.exp(-temperature))  # σ(τ·(2 - 1)) at ratio 2

    assert loss(build_algorithm("sapo"), [[math.log(2)]], [1.0])[0] == pytest.approx(-gate(1.0))
    assert loss(build_algorithm("sapo"), [[math.log(2)]], [-1.0])[0] == pytest.approx(gate(1.05))
    warm = build_algorithm("sapo", {"temperature_positive": 2.0, "temperature_negative": 3.0})
    assert loss(warm, [[math.log(2)], [math.log(2)]], [1.0, -1.0])[0] == pytest.approx((gate(3.0) - gate(2.0)) / 2)


def test_kl_cov_holds_the_tokens_of_highest_covariance() -> None:
    # covariances with means 0: 0.2·1 and -0.2·-1, both 0.2; a share of 1 holds both at β = 2: -r·A + 2·0.2
    value, _ = loss(build_algorithm("kl_cov", {"fraction": 1.0, "coef": 2.0}), [[0.2], [-0.2]], [1.0, -1.0])
    assert value == pytest.approx((-math.exp(0.2) + math.exp(-0.2)) / 2 + 0.4)


def test_clip_cov_leaves_out_tokens_of_high_covariance() -> None:
    # covariances 0.2·1 and -0.2·-1 lie in [0.1, 5]: a share of 1 takes both out; with the default bounds neither is
    both_out = build_algorithm("clip_cov", {"fraction": 1.0, "covariance_low": 0.1})
    assert loss(both_out, [[0.2], [-0.2]], [1.0, -1.0]) == (0.0, [[0.0], [0.0]])
    plain = (-math.exp(0.2) + math.exp(-0.2)) / 2
    assert loss(build_algorithm("clip_cov", {"fraction": 1.0}), [[0.2], [-0.2]], [1.0, -1.0])[0] == pytest.approx(plain)


@pytest.mark.parametrize("name", ["reinforce", "rloo", "remax", "opo"])
def test_plain_policy_gradient_takes_no_notice_of_the_ratio(name: str) -> None:
    # -A·logprob with logprobs -1 + 0.7 and -1 - 2: (0.3·2 + 3·-1) / 2
    value, gradient = loss(build_algorithm(name), [[0.7], [-2.0]], [2.0, -1.0])
    assert value == pytest.approx((0.3 * 2 - 3) / 2)
    assert gradient == [[-1.0], [0.5]]


def test_rloo_clips_if_asked() -> None:
    assert not unclipped("rloo", 1.3, 1.0, surrogate="clipped")


def gradient_at_ratio_one(algorithm: Algorithm, given: np.ndarray) -> Tensor:
    old = -torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) - 0.1
    logprobs = old.clone().requires_grad_()
    algorithm.loss(logprobs, old, torch.from_numpy(given), torch.ones(4, 5, dtype=torch.bool))[0].backward()
    assert logprobs.grad is not None
    return logprobs.grad


@pytest.mark.parametrize("name", SAME_STEP)
def test_every_surrogate_takes_grpos_step_at_ratio_one(name: str) -> None:
    algorithm, grpo = build_algorithm(name), build_algorithm("grpo")
    np.testing.assert_array_equal(algorithm.advantage(REWARDS, ONE, GROUP), grpo.advantage(REWARDS, ONE, GROUP))
    given = grpo.advantage(REWARDS, ONE, GROUP)
    # -A / (N·T) for every token
    expected = torch.from_numpy(-given / 20)[:, None].expand(4, 5)
    torch.testing.assert_close(gradient_at_ratio_one(grpo, given), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(gradient_at_ratio_one(algorithm, given), expected, rtol=0, atol=1e-7)


def test_opo_takes_dr_grpos_step_at_equal_lengths() -> None:
    given = build_algorithm("dr_grpo").advantage(REWARDS, ONE, GROUP)
    torch.testing.assert_close(
        gradient_at_ratio_one(build_algorithm("opo"), given),
        gradient_at_ratio_one(build_algorithm("dr_grpo"), given),
        rtol=0,
        atol=1e-7,
    )


@pytest.mark.parametrize("name", ["reinforce", "cispo", "gspo", "gspo_token", "gmpo", "sapo", "clip_cov", "kl_cov"])
def test_scale_of_grpos_advantages_is_an_option_of_all_that_have_them(name: str) -> None:
    np.testing.assert_allclose(advantages(name, scale="none"), [-1, 1, -0.5, 0.5], atol=1e-7)
