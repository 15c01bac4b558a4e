"""Algorithms by name: what they pick, what they refuse, and adding one from outside in one file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from xomni_rl.policies.advantages import group_advantages
from xomni_rl.policies.algorithms.base import Algorithm, AlgorithmError, algorithms, build_algorithm
from xomni_rl.policies.filters import drop_zero_variance, keep_all
from xomni_rl.policies.losses import clipped_policy_loss
from xomni_rl.registry import UnknownNameError

REWARDS, GROUP = np.array([[1.0], [3.0], [0.0], [1.0]], np.float32), np.array([0, 0, 1, 1])
WEIGHTS = np.ones(1, np.float32)

OUTSIDE = '''"""An algorithm of somebody's own: the reward itself, less a constant, is the advantage."""
from xomni_rl.policies.advantages import combine_rewards
from xomni_rl.policies.algorithms.base import Algorithm
from xomni_rl.policies.filters import keep_all
from xomni_rl.policies.losses import clipped_policy_loss


def constant_baseline(*, baseline: float = 0.5) -> Algorithm:
    """REINFORCE with a constant baseline."""
    return Algorithm(
        "constant_baseline", lambda rewards, weights, group: combine_rewards(rewards, weights) - baseline,
        clipped_policy_loss, keep_all,
    )


def not_an_algorithm():
    return 3
'''


def loss_inputs() -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 3, generator=draw)
    logprobs = old + 0.5 * torch.randn(4, 3, generator=draw)
    mask = torch.tensor([[True, True, True]] * 3 + [[True, False, False]])
    return logprobs, old, torch.tensor([1.0, -1.0, 0.5, -0.5]), mask, old - 0.3


@pytest.mark.parametrize("name", algorithms.names())
def test_every_algorithm_keeps_the_contract(name):
    algorithm = build_algorithm(name)
    assert algorithm.name == name
    advantage = algorithm.advantage(REWARDS, WEIGHTS, GROUP)
    assert advantage.shape == (4,)
    assert advantage.dtype == np.float32
    keep = algorithm.filter(REWARDS, WEIGHTS, GROUP)
    assert keep.shape == (4,)
    assert keep.dtype == np.bool_
    logprobs, old, advantages, mask, reference = loss_inputs()
    loss, metrics = algorithm.loss(logprobs, old, advantages, mask, reference)
    assert loss.dim() == 0
    assert {"approx_kl", "clip_fraction", "ratio_max_deviation", "kl_reference"} <= set(metrics)


def test_grpo_is_scaled_advantages_and_a_token_mean():
    algorithm = build_algorithm("grpo", {"clip_low": 0.1, "clip_high": 0.3})
    np.testing.assert_array_equal(
        algorithm.advantage(REWARDS, WEIGHTS, GROUP), group_advantages(REWARDS, WEIGHTS, GROUP, scale="std")
    )
    expected, _ = clipped_policy_loss(*loss_inputs(), clip_low=0.1, clip_high=0.3, aggregation="token_mean")
    assert algorithm.loss(*loss_inputs())[0] == expected
    assert algorithm.filter is keep_all
    assert not algorithm.needs_reference


def test_dr_grpo_is_unscaled_advantages_and_a_constant_divisor():
    algorithm = build_algorithm("dr_grpo")
    # group 0: 1, 3 → -1, 1;  group 1: 0, 1 → -0.5, 0.5
    np.testing.assert_allclose(algorithm.advantage(REWARDS, WEIGHTS, GROUP), [-1, 1, -0.5, 0.5], atol=1e-7)
    expected, _ = clipped_policy_loss(*loss_inputs(), aggregation="constant_length")
    assert algorithm.loss(*loss_inputs())[0] == expected


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
def test_kl_goes_where_it_is_asked_to(name):
    nowhere = build_algorithm(name)
    in_loss = build_algorithm(name, {"kl_coef": 0.2, "kl_in": "loss"})
    in_reward = build_algorithm(name, {"kl_coef": 0.2, "kl_in": "reward", "kl_estimator": "k1"})
    assert [each.needs_reference for each in (nowhere, in_loss, in_reward)] == [False, True, True]
    assert [each.kl_in_reward for each in (nowhere, in_loss, in_reward)] == [0.0, 0.0, 0.2]
    plain = nowhere.loss(*loss_inputs())[0]
    assert in_loss.loss(*loss_inputs())[0] > plain
    assert in_reward.loss(*loss_inputs())[0] == plain
    assert in_reward.kl_estimator == "k1"


def test_filter_option_is_used():
    assert build_algorithm("grpo", {"filter": "drop_zero_variance"}).filter is drop_zero_variance


def test_unknown_algorithm_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match='unknown algorithm "grop"; nearest: grpo'):
        build_algorithm("grop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_hgh": 0.2}, 'unknown option of algorithm grpo, "clip_hgh"; nearest: clip_high'),
        ({"scale": "sdt"}, 'unknown value of algorithm.options.scale, "sdt"; nearest: std'),
        ({"kl_in": "rewrad"}, 'unknown value of algorithm.options.kl_in, "rewrad"; nearest: reward'),
        ({"filter": "none"}, 'unknown value of algorithm.options.filter, "none"'),
        ({"clip_low": "a bit"}, "algorithm.options.clip_low must be a number of 0 or more, but is 'a bit'"),
        ({"clip_low": 1.5}, r"algorithm.options.clip_low must be at most 1, but is 1.5"),
        ({"kl_coef": float("nan")}, "algorithm.options.kl_coef must be a number of 0 or more, but is nan"),
    ],
)
def test_bad_option_is_one_sentence_with_key_and_value(options, message):
    with pytest.raises(AlgorithmError, match=message):
        build_algorithm("grpo", options)


def test_option_that_dr_grpo_fixes_is_refused():
    with pytest.raises(AlgorithmError, match='unknown option of algorithm dr_grpo, "scale"'):
        build_algorithm("dr_grpo", {"scale": "std"})


def test_algorithm_from_a_file_outside_the_package_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "somebodys_algorithms.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    for reference in ("somebodys_algorithms:constant_baseline", "somebodys_algorithms.py:constant_baseline"):
        algorithm = build_algorithm(reference, {"baseline": 0.25})
        assert isinstance(algorithm, Algorithm)
        # 1 - 0.25, 3 - 0.25, 0 - 0.25, 1 - 0.25
        np.testing.assert_allclose(algorithm.advantage(REWARDS, WEIGHTS, GROUP), [0.75, 2.75, -0.25, 0.75])
    with pytest.raises(AlgorithmError, match="must return an Algorithm, but returned int"):
        build_algorithm("somebodys_algorithms.py:not_an_algorithm")


def test_listing_algorithms_needs_no_torch():
    code = (
        "import sys; from xomni_rl.policies.algorithms.base import algorithms as a; a.describe(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
