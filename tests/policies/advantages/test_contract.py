"""What every advantage function promises, whatever its formula."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies import advantages as room
from xomni_rl.policies.advantages import combine_rewards

NAN = np.nan
WEIGHTS = np.array([1.0, -0.5, 0.0])
"""A component, a penalty, and one that is only logged."""


def remax(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    return room.remax_advantages(rewards, weights, group, greedy=np.full_like(rewards, 0.25))


def opo(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    return room.opo_advantages(rewards, weights, group, lengths=5 + np.abs(group))


def gae(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    return room.gae_advantages(rewards, weights, group, np.full((len(group), 4), 0.5, np.float32))


GROUPED = {
    "group": room.group_advantages,
    "group_unscaled": partial(room.group_advantages, scale="none"),
    "group_batch": partial(room.group_advantages, scale="batch"),
    "rloo": room.rloo_advantages,
    "opo": opo,
    "pass_at_k": partial(room.pass_at_k_advantages, k=1),
    "reinforce_pp_baseline": partial(room.reinforce_pp_advantages, baseline="group"),
    "preference": room.preference_advantages,
    "best_indicator": room.best_indicator_advantages,
}
"""Those that compare a rollout with its group alone."""
WHOLE_BATCH = {
    "batch": room.batch_advantages,
    "batch_unscaled": partial(room.batch_advantages, scale="none"),
    "reinforce_pp": room.reinforce_pp_advantages,
    "gdpo": room.gdpo_advantages,
    "remax": remax,
    "gae": gae,
}
ALL = GROUPED | WHOLE_BATCH
CHOICES = ("preference", "best_indicator")

cell = st.one_of(st.integers(-64, 64).map(lambda value: value / 64), st.just(NAN))
batches = st.lists(st.tuples(cell, cell, cell, st.integers(0, 3)), min_size=1, max_size=16)


def arrays(batch: list[tuple[float, ...]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row[:3] for row in batch], np.float32), np.array([int(row[3]) for row in batch])


def test_every_function_of_the_room_is_examined():
    public = {name.removesuffix("_advantages") for name in dir(room) if name.endswith("_advantages")}
    assert public == {"group", "rloo", "opo", "pass_at_k", "batch", "reinforce_pp", "gdpo", "remax", "gae"} | set(CHOICES)


@settings(deadline=None, max_examples=40)
@given(batches)
@pytest.mark.parametrize("name", ALL)
def test_advantages_are_float32_and_nan_exactly_where_there_is_no_reward(name, batch):
    rewards, group = arrays(batch)
    before = rewards.copy(), group.copy()
    got = ALL[name](rewards, WEIGHTS, group)
    assert got.dtype == np.float32
    assert len(got) == len(batch)
    missing = np.isnan(combine_rewards(rewards, WEIGHTS))
    np.testing.assert_array_equal(np.isnan(got), missing if got.ndim == 1 else np.broadcast_to(missing[:, None], got.shape))
    np.testing.assert_array_equal(rewards, before[0])
    np.testing.assert_array_equal(group, before[1])


@settings(deadline=None, max_examples=40)
@given(batches, st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", [name for name in ALL if name not in CHOICES])
def test_permutation_of_rollouts_moves_advantages_along(name, batch, random):
    rewards, group = arrays(batch)
    order = list(range(len(batch)))
    random.shuffle(order)
    got = ALL[name](rewards[order], WEIGHTS, group[order])
    np.testing.assert_allclose(got, ALL[name](rewards, WEIGHTS, group)[order], atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(9)))
@pytest.mark.parametrize("name", CHOICES)
def test_permutation_moves_choices_along_where_no_rewards_are_equal(name, order):
    rewards, group = np.linspace(0, 1, 27, dtype=np.float32).reshape(9, 3) ** 2, np.arange(9) % 3
    got = ALL[name](rewards[order], WEIGHTS, group[order])
    np.testing.assert_array_equal(got, ALL[name](rewards, WEIGHTS, group)[order])


@settings(deadline=None, max_examples=40)
@given(batches)
@pytest.mark.parametrize("name", ALL)
def test_group_ids_and_logged_components_do_not_matter(name, batch):
    rewards, group = arrays(batch)
    other = rewards.copy()
    other[:, 2] = np.arange(len(batch))
    relabelled = np.array([3, 41, -8, 1000])[group] if name != "opo" else group  # its lengths are made of the ids
    np.testing.assert_array_equal(ALL[name](other, WEIGHTS, relabelled), ALL[name](rewards, WEIGHTS, group))


@pytest.mark.parametrize("name", GROUPED)
def test_group_of_one_has_no_advantage_among_others(name):
    rewards, group = np.array([[0.9, 0, 0], [0.1, 0, 0], [0.8, 0, 0], [0.7, NAN, 0]], np.float32), np.array([4, 0, 0, 0])
    assert ALL[name](rewards, WEIGHTS, group)[0] == 0


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("remax", "gae")])
def test_equal_rewards_teach_nothing(name, size):
    rewards = np.tile(np.array([0.1, 0.7, NAN], np.float32), (3 * size, 1))
    np.testing.assert_array_equal(ALL[name](rewards, WEIGHTS, np.arange(3 * size) % 3), np.zeros(3 * size))


@pytest.mark.parametrize("name", ALL)
def test_no_rollouts_give_no_advantages(name):
    assert ALL[name](np.zeros((0, 3), np.float32), WEIGHTS, np.zeros(0, int)).shape in ((0,), (0, 4))


@pytest.mark.parametrize("name", ALL)
def test_wrong_shapes_raise_with_both_shapes(name):
    with pytest.raises(ValueError, match=r"weights .*\(2,\).*rewards .*\(4, 3\)"):
        ALL[name](np.zeros((4, 3), np.float32), np.ones(2), np.zeros(4, int))
    with pytest.raises(ValueError, match="group must hold int values"):
        ALL[name](np.zeros((4, 3), np.float32), WEIGHTS, np.zeros(4, np.float32))


@settings(deadline=None, max_examples=40)
@given(batches)
@pytest.mark.parametrize("name", ["group", "group_unscaled", "group_batch", "rloo", "pass_at_k", "reinforce_pp_baseline"])
def test_advantages_of_every_group_sum_to_zero(name, batch):
    rewards, group = arrays(batch)
    got = ALL[name](rewards, WEIGHTS, group)
    for each in np.unique(group):
        assert abs(np.nansum(got[group == each])) < 1e-4


@settings(deadline=None, max_examples=40)
@given(batches, st.integers(-8, 8))
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("pass_at_k", "remax", "gae", "gdpo")])
def test_shift_of_the_reward_changes_nothing(name, batch, shift):
    # one component, so that the shift is the reward's; by whole numbers, so that rounding makes no equal rewards unequal
    rewards, group = arrays(batch)
    one, weight = rewards[:, :1], np.ones(1)
    np.testing.assert_allclose(ALL[name](one + np.float32(shift), weight, group), ALL[name](one, weight, group), atol=1e-4)
