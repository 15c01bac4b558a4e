"""`reward=embedded` and `reward=paper` as they are composed for a run, scoring: who is asked what, and what counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xomni_rl.config import reward_config
from xomni_rl.prompt_sets.signs import render_sign, sign_prompt
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.rewards.hpsv2 import HpsV2Reward
from xomni_rl.rewards.reader_got import write_tiny_got
from xomni_rl.rewards.unified_reward import UnifiedReward
from xomni_rl.rewards.vlm_alignment import VlmAlignment


def z(values: list[float]) -> list[float]:
    """(x − mean) / (deviation with N − 1 + 1e-4), GDPO's normalisation within a group."""
    return list((np.array(values) - np.mean(values)) / (np.std(values, ddof=1) + 1e-4))


def test_embedded_mix_reads_follows_and_only_logs_the_second_reader() -> None:
    reward = build_composite(reward_config("embedded"))
    assert dict(zip(reward.names, reward.weights.tolist(), strict=True)) == {
        "ocr": 1.0, "clip": 0.25, "rules": 0.25, "ocr_heldout": 0.0,
    }  # fmt: skip
    prompt = sign_prompt("K7AX", "blue", 'a {colour} sign that says "{text}"', "s")
    right, text, colour, both = (
        render_sign(*sign) for sign in (("K7AX", "blue"), ("MW8B", "blue"), ("K7AX", "red"), ("MW8B", "red"))
    )
    result = reward([right, text, colour, both], [prompt] * 4, group=np.zeros(4, np.int64))
    read = [1, 0, 1, 0]  # "MW8B" has no letter of "K7AX" in its place
    np.testing.assert_allclose(result.components[:, 0], read, atol=1e-6)
    np.testing.assert_allclose(result.components[:, 3], read, atol=1e-6)
    np.testing.assert_allclose(result.components[:, 2], [1, 1, 0, 0], atol=1e-6)
    clip = result.components[:, 1]
    assert clip.argmax() == 0
    assert clip.argmin() == 3
    # What is trained on: each component within its group; the average leaves the second reader out.
    np.testing.assert_allclose(result.normalised[:, 0], z(read), atol=1e-4)
    np.testing.assert_allclose(result.normalised[:, 2], z([1, 1, 0, 0]), atol=1e-4)
    np.testing.assert_allclose(
        result.scores, (result.components[:, 0] + 0.25 * clip + 0.25 * result.components[:, 2]) / 1.5, atol=1e-6
    )


def paper(folder: Path) -> CompositeReward:
    """The paper's mix on tiny random models of the same architectures."""
    config: dict[str, Any] = reward_config("paper")
    models = {"hpsv2": HpsV2Reward, "unified_reward": UnifiedReward, "vlm_alignment": VlmAlignment}
    for name, entry in models.items():
        (folder / name).mkdir()
        config["components"][name]["options"] |= entry.write_tiny(folder / name)
    config["components"]["ocr_got"]["options"]["engine_options"] = write_tiny_got(folder / "got")
    return build_composite(config)


def test_papers_mix_sends_text_to_the_readers_and_the_rest_to_the_judge_of_alignment(tmp_path: Path) -> None:
    reward = paper(tmp_path)
    assert dict(zip(reward.names, reward.weights.tolist(), strict=True)) == {
        "hpsv2": 1.0, "unified_reward": 1.0, "vlm_alignment": 1.0, "ocr": 0.5, "ocr_got": 0.5,
    }  # fmt: skip
    prompts = [Prompt("text", 'a blue sign that says "K7AX"')] * 2 + [Prompt("scene", "a quiet street")] * 2
    images = [render_sign("K7AX", "blue"), render_sign("MW8B", "red"), render_sign("", "green"), render_sign("", "purple")]
    result = reward(images, prompts, group=np.array([0, 0, 1, 1]))
    asked = ~np.isnan(result.components)
    np.testing.assert_array_equal(asked, [[True, True, False, True, True]] * 2 + [[True, True, True, False, False]] * 2)
    np.testing.assert_allclose(result.components[:2, 3], [1, 0], atol=1e-6)
    assert 'does not fit "texts"' in result.details[2]["ocr"]["reason"]
    liked = result.components[:, 0].tolist()
    np.testing.assert_allclose(result.normalised[:, 0], z(liked[:2]) + z(liked[2:]), atol=1e-4)
    np.testing.assert_array_equal(np.isnan(result.normalised), ~asked)


def test_papers_mix_without_weights_names_what_to_download_for_each_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from xomni_rl.rewards.health import check_before_training

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RewardUnavailableError) as caught:
        check_before_training(build_composite(reward_config("paper")))
    for part in ("HPS_v2_compressed.pt", "UnifiedReward-qwen-7b", "Qwen2.5-VL-7B-Instruct", "GOT-OCR-2.0-hf"):
        assert part in str(caught.value)
    assert str(caught.value).count("licence: ") == 4
