"""Where the components of a reward work, and how large they are."""

import pytest

from xomni_rl.config import reward_config
from xomni_rl.experiments.planning.rewards import PARAMETERS, RewardSize, reward_size, reward_sizes
from xomni_rl.rewards.base import rewards


def test_paper_reward_has_two_judges_in_float32() -> None:
    sizes = {reward.name: reward for reward in reward_sizes(reward_config("paper"))}
    assert sizes["unified_reward"].bytes == sizes["vlm_alignment"].bytes == 4 * 8_290_000_000
    assert sizes["hpsv2"].bytes == 4 * 986_000_000
    assert (sizes["ocr"].bytes, sizes["ocr"].where) == (0, "CPU")
    assert sizes["ocr_got"].bytes == 4 * 600_000_000


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        ({"reward": "hpsv2", "options": {"dtype": "bfloat16"}}, RewardSize("x", 2 * 986_000_000, dtype="bfloat16")),
        ({"reward": "hpsv2", "options": {"device": "cpu"}}, RewardSize("x", 0, where="CPU")),
        ({"reward": "pickscore", "options": {"offload": True}}, RewardSize("x", 4 * 986_000_000, offloaded=True)),
        (
            {"reward": "vlm_alignment", "options": {"vlm": {"backend": "server", "url": "u"}}},
            RewardSize("x", 0, where="server"),
        ),
        ({"reward": "remote", "options": {"url": "u"}}, RewardSize("x", 0, where="server")),
        ({"reward": "ocr", "options": {"engine": "vlm", "engine_options": {"url": "u"}}}, RewardSize("x", 0, where="server")),
        ({"reward": "contrast"}, RewardSize("x", 0, where="CPU")),
        ({"reward": "clip", "options": {"model": "ViT-B-32"}}, RewardSize("x", 604_000_000)),
        ({"reward": "my_module:brightness"}, RewardSize("x", 0, where="unknown")),
    ],
)
def test_options_say_where_a_reward_works(component: dict, expected: RewardSize) -> None:
    assert reward_size("x", component) == expected


def test_component_without_a_reward_is_named_after_it() -> None:
    assert reward_size("hpsv2", {}).bytes == 4 * 986_000_000


def test_rewards_of_the_evaluation_alone_are_counted_too() -> None:
    training, evaluation = reward_config("ocr"), reward_config("paper")
    names = [reward.name for reward in reward_sizes(training, evaluation)]
    assert names[0] == "ocr"
    assert "evaluation/hpsv2" in names
    assert len(reward_sizes(training, dict(training))) == 1


def test_every_registered_reward_has_a_size_or_needs_no_gpu() -> None:
    for name, _, _ in rewards.describe():
        assert reward_size(name, {}).where != "unknown", name
    assert set(PARAMETERS) <= {name for name, _, _ in rewards.describe()}
