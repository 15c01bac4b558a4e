"""The single environment: Gymnasium's checker, termination, payment, info, pictures, bad input."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.utils.env_match import check_environments_match
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xomni_rl.envs.task import EMPTY, GREY
from xomni_rl.envs.text_to_image import TextToImageEnv
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError
from xomni_rl.rewards.composite import build_composite

T = 8  # 16 × 32 px at 8 px per token


def composite(function: str, **config: Any) -> Any:
    return build_composite({"components": {"red": {"reward": f"picture_rewards:{function}", "weight": 1.0}}, **config})


def play(env: gymnasium.Env, actions: list[int]) -> tuple[list[float], dict[str, Any]]:
    """Rewards of an episode and its last info; the last action must end it and no other may."""
    rewards = []
    for i, action in enumerate(actions):
        _, reward, terminated, truncated, info = env.step(action)
        assert (terminated, truncated) == (i == len(actions) - 1, False)
        rewards.append(reward)
    return rewards, info


def test_made_environment_passes_gymnasiums_checker_without_a_warning(options: dict[str, Any]) -> None:
    env = gymnasium.make("xomni_rl/TextToImage-v0", render_mode="rgb_array", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_scored_prefixes_pass_gymnasiums_checker(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("xomni_rl/TextToImage-v0", reward_at=(1, 2, 3), **options).unwrapped)


def test_two_environments_with_one_seed_go_through_the_same_episodes(options: dict[str, Any]) -> None:
    envs = [TextToImageEnv(render_mode="rgb_array", **options) for _ in range(2)]
    check_environments_match(*envs, num_steps=2 * T + 3, seed=5)


def test_seed_fixes_the_prompts_and_another_seed_changes_them(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**options)

    def ids(seed: int) -> list[str]:
        return [env.reset(seed=seed if i == 0 else None)[1]["prompt_id"] for i in range(12)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert set(ids(1) + ids(2)) == {"p0", "p1", "p2", "p3", "p4"}


def test_observation_tells_prompt_tokens_and_step(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**options)
    first, info = env.reset(options={"prompt": 2})
    assert info == {"prompt": "a red sign", "prompt_id": "p2"}
    ids, mask = env.stack.encode_prompts(["a red sign"], (16, 32))
    np.testing.assert_array_equal(first["prompt"][first["prompt"] != EMPTY], ids[0][mask[0].bool()].numpy())
    assert first["prompt"][0] == EMPTY  # "a red sign" is not the longest prompt, and padding is on the left
    assert first["prompt"][-1] != EMPTY
    np.testing.assert_array_equal(first["tokens"], np.full(T, EMPTY))
    env.step(7)
    second, *_ = env.step(9)
    np.testing.assert_array_equal(second["tokens"], [7, 9, *[EMPTY] * (T - 2)])
    assert (first["step"], second["step"]) == (0, 2)
    assert env.observation_space.contains(second)


def test_last_token_terminates_and_pays_the_score_of_its_picture(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**options)
    env.reset(seed=0, options={"prompt": 0})
    actions = [3, 1, 4, 1, 5, 9, 2, 6]
    rewards, info = play(env, actions)
    picture = env.stack.decode(np_to_torch(actions), (16, 32))[0]
    np.testing.assert_array_equal(info["image"], picture)
    redness = picture[..., 0].mean() / 255
    assert rewards[:-1] == [0.0] * (T - 1)
    assert rewards[-1] == pytest.approx(redness, abs=1e-6)
    assert info["rewards"] == {"red": pytest.approx(redness, abs=1e-6)}
    assert info["metrics"] == {"red_square": pytest.approx(redness**2, abs=1e-6)}
    assert info["read"] == f"{redness:.1f}"
    assert (info["applicable"], info["failed"], info["prompt_id"]) == (True, False, "p0")


def np_to_torch(actions: list[int]) -> Any:
    import torch

    return torch.tensor([actions])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reward_at=st.sets(st.integers(1, T)), actions=st.lists(st.integers(0, 511), min_size=T, max_size=T))
def test_rewards_of_scored_prefixes_add_up_to_the_final_score(
    options: dict[str, Any], reward_at: set[int], actions: list[int]
) -> None:
    env = TextToImageEnv(reward_at=sorted(reward_at), **options)
    env.reset(seed=0)
    rewards, info = play(env, actions)
    assert sum(rewards) == pytest.approx(info["score"], abs=1e-9)
    paid_at = {i + 1 for i, reward in enumerate(rewards) if reward != 0}
    assert paid_at <= reward_at | {T}


def test_scored_prefix_is_the_rendered_picture(options: dict[str, Any]) -> None:
    env = TextToImageEnv(reward_at=(3,), render_mode="rgb_array", **options)
    env.reset(seed=0)
    env.step(3)
    env.step(1)
    _, reward, _, _, info = env.step(4)
    picture = env.render()
    np.testing.assert_array_equal(info["image"], picture)
    assert reward == pytest.approx(picture[..., 0].mean() / 255, abs=1e-6)


def test_render_is_grey_where_nothing_is_placed(options: dict[str, Any]) -> None:
    env = TextToImageEnv(render_mode="rgb_array", **options)
    env.reset(seed=0)
    assert (env.render() == GREY).all()
    for action in (3, 1, 4, 1, 5):  # the first row of four cells and one cell of the second row
        env.step(action)
    picture = env.render()
    assert picture.shape == (16, 32, 3)
    assert (picture[8:, 8:] == GREY).all()
    assert not (picture[:8] == GREY).all()
    assert not (picture[8:, :8] == GREY).all()


def test_inapplicable_reward_pays_nothing_and_says_so(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**{**options, "reward": composite("redness_of_red"), "reward_at": (2, 5)})
    env.reset(options={"prompt": 4})  # "blue"
    rewards, info = play(env, list(range(T)))
    assert rewards == [0.0] * T
    assert info["applicable"] is False
    assert np.isnan(info["score"])
    assert np.isnan(info["rewards"]["red"])


def test_failed_reward_raises_when_told_to_stop(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**{**options, "reward": composite("failing_on_blue")})
    env.reset(options={"prompt": "a blue sign"})
    for action in range(T - 1):
        env.step(action)
    with pytest.raises(RewardError, match="blue is beyond it"):
        env.step(0)


def test_failed_reward_is_marked_when_told_to_drop(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**{**options, "reward": composite("failing_on_blue", on_failure="drop")})
    env.reset(options={"prompt": "a blue sign"})
    rewards, info = play(env, list(range(T)))
    assert (rewards[-1], info["failed"], info["applicable"]) == (0.0, True, False)


def test_outside_limit_truncates_and_is_not_scored(options: dict[str, Any]) -> None:
    env = gymnasium.make("xomni_rl/TextToImage-v0", max_episode_steps=3, **options)
    env.reset(seed=0)
    steps = [env.step(action) for action in (1, 2, 3)]
    assert not any(terminated for _, _, terminated, _, _ in steps)
    assert [truncated for _, _, _, truncated, _ in steps] == [False, False, True]
    assert [reward for _, reward, *_ in steps] == [0.0] * 3


def test_step_after_the_end_asks_for_a_reset(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**options)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    play(env, list(range(T)))
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ResetNeeded):
        env.policy_logprobs()


@pytest.mark.parametrize("action", [-1, 512])
def test_token_out_of_range_is_refused_and_changes_nothing(options: dict[str, Any], action: int) -> None:
    env = TextToImageEnv(**options)
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=rf"action {action} is no image token; tokens are 0 to 511"):
        env.step(action)
    assert env.step(5)[0]["step"] == 1


@pytest.mark.parametrize("action", [1.5, "a", None, True])
def test_action_that_is_no_whole_number_is_refused_and_changes_nothing(options: dict[str, Any], action: Any) -> None:
    env = TextToImageEnv(**options)
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=rf"an action must be a whole number.*not {action!r}"):
        env.step(action)
    assert env.step(5)[0]["step"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reward_at": (9,)}, "reward_at holds 9; an episode has 1 to 8 tokens"),
        ({"size": (20, 32)}, "multiple"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": {"set": "signs", "splt": "train"}}, 'unknown key of prompts "splt"; nearest: split'),
        ({"prompts": "sings"}, "nearest: signs"),
        ({"reward": "orc"}, "nearest: ocr"),
        ({"prompts": "missing.txt"}, "there are no prompts at missing.txt; give a .jsonl or .txt file"),
        ({"sampling": {"temperature": 0.0}}, "temperature"),
        ({"sampling": {"temp": 1}}, 'unknown key of sampling "temp"; nearest: temperature'),
        ({"render_mode": "humans"}, "rgb_array"),
        ({"max_prompt_tokens": 2}, "the longest prompt has"),
    ],
)
def test_wrong_option_is_answered_in_one_sentence(options: dict[str, Any], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, KeyError)) as caught:
        TextToImageEnv(**{**options, **wrong})
    assert message in str(caught.value)


def test_prompt_longer_than_the_observation_is_refused_unless_room_is_asked_for(options: dict[str, Any]) -> None:
    long = Prompt(id="long", text="a sign that says " + "very " * 20 + "much")
    with pytest.raises(ValueError, match="larger max_prompt_tokens"):
        TextToImageEnv(**options).reset(options={"prompt": long})
    roomy = TextToImageEnv(max_prompt_tokens=200, **options)
    observation, info = roomy.reset(options={"prompt": long})
    assert info["prompt_id"] == "long"
    assert observation["prompt"].shape == (200,)


def test_prompts_of_several_sizes_need_a_size(options: dict[str, Any]) -> None:
    mixed = [Prompt(id="a", text="a", size=(16, 32)), Prompt(id="b", text="b", size=(32, 32))]
    with pytest.raises(ValueError, match=r"16×32, 32×32 px\); pass size="):
        TextToImageEnv(**{**options, "prompts": mixed, "size": None})
    assert TextToImageEnv(**{**options, "prompts": mixed[1:], "size": None}).task.size == (32, 32)


def test_prompts_come_from_sets_files_and_lists(options: dict[str, Any], tmp_path: Any) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("first\nsecond\n")
    rest = {key: value for key, value in options.items() if key != "prompts"}
    assert [p.text for p in TextToImageEnv(prompts=str(file), **rest).task.prompts] == ["first", "second"]
    assert [p.text for p in TextToImageEnv(prompts=["one"], **rest).task.prompts] == ["one"]
    signs = TextToImageEnv(prompts={"set": "signs", "split": "heldout", "count": 3}, **rest).task.prompts
    assert len(signs) == 3
    assert all("heldout" in prompt.id for prompt in signs)


def test_observations_and_infos_are_fresh_objects(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**options)
    observation, _ = env.reset(seed=0)
    observation["tokens"][:] = 99
    observation["prompt"][:] = 99
    assert data_equivalence(env.step(1)[0]["tokens"], np.array([1, *[EMPTY] * (T - 1)]))


def test_policy_logprobs_are_a_distribution_that_moves_with_the_tokens(options: dict[str, Any]) -> None:
    env = TextToImageEnv(**options)
    env.reset(seed=0)
    first = env.policy_logprobs()
    assert first.shape == (512,)
    assert np.exp(first).sum() == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_array_equal(env.policy_logprobs(), first)  # asking again changes nothing
    env.step(3)
    assert np.abs(env.policy_logprobs() - first).max() > 1e-4
