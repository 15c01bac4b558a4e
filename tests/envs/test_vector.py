"""The batched environment: the same as single ones side by side; autoreset modes, infos, one scoring call."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import VectorizeMode
from gymnasium.error import InvalidAction
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from picture_rewards import same_pictures

from xomni_rl.envs.text_to_image import TextToImageEnv
from xomni_rl.envs.vector import TextToImageVectorEnv
from xomni_rl.rewards.composite import build_composite

T, N = 8, 3
MODES = list(AutoresetMode)


def random_actions(seed: int, steps: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(512, size=(steps, N))


def test_made_vector_environment_declares_what_gymnasium_asks_for(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # make_vec warns when the autoreset mode is not declared
        env = gymnasium.make_vec("xomni_rl/TextToImage-v0", num_envs=N, **options)
    assert isinstance(env, TextToImageVectorEnv)
    assert env.num_envs == N
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    assert env.observation_space == gymnasium.vector.utils.batch_space(env.single_observation_space, N)
    env.action_space.seed(0)
    observations, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observations)
    assert (rewards.shape, rewards.dtype) == ((N,), np.float64)
    assert (terminated.dtype, truncated.dtype) == (np.bool_, np.bool_)
    env.close()
    assert env.closed


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("reward_at", [(), (3, 6)])
def test_slots_do_what_single_environments_do(options: dict[str, Any], mode: AutoresetMode, reward_at: tuple[int, ...]) -> None:
    """Gymnasium's own SyncVectorEnv over single environments is the reference, over more than two episodes."""
    batched = TextToImageVectorEnv(N, autoreset_mode=mode, reward_at=reward_at, **options)
    single = [lambda: TextToImageEnv(reward_at=reward_at, **options)] * N
    reference = SyncVectorEnv(single, autoreset_mode=mode)
    assert data_equivalence(batched.reset(seed=4)[0], reference.reset(seed=4)[0])
    for actions in random_actions(0, 2 * T + 4):
        ours, theirs = batched.step(actions), reference.step(actions)
        assert data_equivalence(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-4)
        assert data_equivalence(ours[2:4], theirs[2:4])
        assert ours[4].keys() == theirs[4].keys()
        for key in {"prompt_id", "_prompt_id", "final_obs", "_final_obs"} & theirs[4].keys():
            assert data_equivalence(ours[4][key], theirs[4][key])
        if "image" in theirs[4]:
            assert same_pictures(ours[4]["image"], theirs[4]["image"])
        if "final_info" in theirs[4]:
            scores = ours[4]["final_info"]["score"], theirs[4]["final_info"]["score"]
            np.testing.assert_allclose(*scores, atol=1e-4)


def test_vectorized_by_gymnasium_works_too(options: dict[str, Any]) -> None:
    env = gymnasium.make_vec("xomni_rl/TextToImage-v0", num_envs=2, vectorization_mode=VectorizeMode.SYNC, **options)
    observations, _ = env.reset(seed=0)
    assert observations["tokens"].shape == (2, T)


def test_next_step_mode_begins_an_episode_without_looking_at_the_action(options: dict[str, Any]) -> None:
    env = TextToImageVectorEnv(N, **options)
    env.reset(seed=0)
    for actions in random_actions(1, T):
        observations, rewards, terminated, _, infos = env.step(actions)
    assert terminated.all()
    assert (observations["step"] == T).all()
    assert (rewards > 0).all()
    assert infos["image"].shape == (N, 16, 32, 3)
    observations, rewards, terminated, truncated, infos = env.step(np.full(N, -7))
    assert (observations["step"] == 0).all()
    assert not np.stack([rewards, terminated, truncated]).any()
    assert set(infos) == {"prompt", "_prompt", "prompt_id", "_prompt_id"}


def test_disabled_mode_resets_only_the_masked_slots(options: dict[str, Any]) -> None:
    env = TextToImageVectorEnv(N, autoreset_mode="Disabled", **options)
    env.reset(seed=0)
    env.step(np.array([1, 2, 3]))
    before = env.prompts
    observations, infos = env.reset(options={"reset_mask": np.array([False, True, False]), "prompts": [None, 4, None]})
    np.testing.assert_array_equal(observations["step"], [1, 0, 1])
    np.testing.assert_array_equal(infos["_prompt_id"], [False, True, False])
    assert [prompt.id for prompt in env.prompts] == [before[0].id, "p4", before[2].id]


def test_policy_serves_slots_that_are_out_of_step(options: dict[str, Any]) -> None:
    """Slots 0 and 2 are two tokens ahead of slot 1; each must get what a single environment gives."""
    env = TextToImageVectorEnv(N, autoreset_mode="Disabled", **options)
    env.reset(options={"prompts": [0, 1, 2]})
    env.policy_logprobs()
    env.step(np.array([5, 6, 7]))
    env.policy_logprobs()
    env.step(np.array([8, 9, 10]))
    env.reset(options={"reset_mask": np.array([False, True, False]), "prompts": [None, 3, None]})
    env.step(np.array([11, 12, 13]))
    together = env.policy_logprobs()
    for slot, (prompt, tokens) in enumerate([(0, [5, 8, 11]), (3, [12]), (2, [7, 10, 13])]):
        single = TextToImageEnv(**options)
        single.reset(options={"prompt": prompt})
        for token in tokens:
            single.step(token)
        np.testing.assert_allclose(together[slot], single.policy_logprobs(), atol=1e-4)


def test_policy_of_a_finished_slot_is_uniform(options: dict[str, Any]) -> None:
    env = TextToImageVectorEnv(N, **options)
    env.reset(seed=0)
    for actions in random_actions(2, T):
        env.step(actions)
    np.testing.assert_allclose(env.policy_logprobs(), -np.log(512), atol=1e-6)


def test_all_finished_slots_are_scored_in_one_call(options: dict[str, Any], tmp_path: Any) -> None:
    sizes: list[int] = []

    class Counting(type(options["reward"])):  # type: ignore[misc]
        def __call__(self, images: Any, prompts: Any, group: Any = None) -> Any:
            sizes.append(len(images))
            return super().__call__(images, prompts, group)

    counting = Counting.__new__(Counting)
    counting.__dict__.update(options["reward"].__dict__)
    env = TextToImageVectorEnv(N, **{**options, "reward": counting})
    env.reset(seed=0)
    for actions in random_actions(3, T):
        env.step(actions)
    assert sizes == [N]


def test_limit_truncates_all_slots_without_a_score(options: dict[str, Any]) -> None:
    env = gymnasium.make_vec("xomni_rl/TextToImage-v0", num_envs=N, max_episode_steps=2, **options)
    env.reset(seed=0)
    assert not env.step(np.zeros(N, dtype=int))[3].any()
    _, rewards, terminated, truncated, _ = env.step(np.zeros(N, dtype=int))
    assert truncated.all()
    assert not np.stack([rewards, terminated]).any()
    assert (env.step(np.zeros(N, dtype=int))[0]["step"] == 0).all()


def test_infos_of_some_slots_are_masked_and_filled_with_nan(options: dict[str, Any]) -> None:
    reward = build_composite({"components": {"red": {"reward": "picture_rewards:redness_of_red", "weight": 1.0}}})
    env = TextToImageVectorEnv(N, **{**options, "reward": reward})
    env.reset(options={"prompts": [0, 4, 2]})  # "blue" has no redness
    for actions in random_actions(4, T):
        _, rewards, _, _, infos = env.step(actions)
    np.testing.assert_array_equal(infos["applicable"], [True, False, True])
    np.testing.assert_array_equal(np.isnan(infos["rewards"]["red"]), [False, True, False])
    np.testing.assert_array_equal(rewards == 0, [False, True, False])
    assert infos["_rewards"].all()


def test_render_gives_one_picture_per_slot(options: dict[str, Any]) -> None:
    env = TextToImageVectorEnv(N, render_mode="rgb_array", **options)
    env.reset(seed=0)
    env.step(np.array([1, 2, 3]))
    frames = env.render()
    assert [frame.shape for frame in frames] == [(16, 32, 3)] * N


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.step(np.zeros(2, dtype=int)), r"actions must have shape \[3\], got \[2\]"),
        (lambda env: env.reset(seed=[1, 2]), "seed must have one entry per slot, 3 in all"),
        (lambda env: env.reset(options={"prompts": ["a"]}), "one entry per slot"),
        (lambda env: env.reset(options={"prompts": [0, 1, 9]}), "prompt 9 does not exist; there are 5"),
        (lambda env: env.reset(options={"reset_mask": np.zeros(3, dtype=bool)}), "at least one of 3 slots"),
    ],
)
def test_wrong_call_is_answered_with_one_sentence(options: dict[str, Any], call: Any, message: str) -> None:
    env = TextToImageVectorEnv(N, **options)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        call(env)


def test_actions_that_are_no_whole_numbers_are_refused(options: dict[str, Any]) -> None:
    envs = TextToImageVectorEnv(2, **options)
    envs.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"an action must be a whole number.*not \[0, 1\.5\]"):
        envs.step([0, 1.5])  # type: ignore[arg-type]
    assert (envs.step(np.array([5, 5]))[0]["step"] == 1).all()
