"""Points of the UnifiedReward judge: read off its answers and nothing guessed; the same from a server."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.responses import JSONResponse, Response

from tests.rewards.judge_server import MODEL, JudgeServer, status
from tests.rewards.tiny_vlm import pictures, reference
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardUnavailableError
from xomni_rl.rewards.health import hashes_of
from xomni_rl.rewards.unified_reward import ASPECTS, UnifiedReward, read_points
from xomni_rl.rewards.vlm import JUDGE_PROMPTS
from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

PROMPTS = [Prompt(str(index), text) for index, text in enumerate(["a blue sign", "noise {prompt}", "a tall tower"])]
GOOD = "Alignment Score (1-5): 4\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("judge")
    UnifiedReward.write_tiny(made)
    return made


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[JudgeServer]:
    with JudgeServer(folder) as server:
        yield server


@pytest.fixture
def server(running: JudgeServer) -> JudgeServer:
    running.reset()
    return running


def local(folder: Path, **options: Any) -> UnifiedReward:
    return UnifiedReward(**{"weights": str(folder), "device": "cpu", **options})


def served(server: JudgeServer, **options: Any) -> UnifiedReward:
    judge = {"backend": "server", "url": server.url, "model": MODEL, "timeout": 20, "retries": 0, "concurrency": 1}
    return UnifiedReward(vlm=judge, **options)


def answers(folder: Path) -> list[str]:
    """The model's greedy answers to the shipped prompt, token by token and one image at a time."""
    question = (JUDGE_PROMPTS / "unified_reward.txt").read_text().strip()
    asked = [question.replace("{prompt}", prompt.text) for prompt in PROMPTS]
    return [reference(folder).answer(image, text) for image, text in zip(pictures(), asked, strict=False)]


def points(folder: Path) -> np.ndarray:
    """Alignment, coherence and style of each answer, by another expression than the reward's: float [N, 3]."""
    return np.array([[float(number) for number in re.findall(r": (\d)$", answer, re.MULTILINE)] for answer in answers(folder)])


def test_score_is_the_mean_of_the_points_on_a_scale_from_0_to_1(folder: Path) -> None:
    result = local(folder)(pictures()[:3], PROMPTS)
    expected = (points(folder) - 1) / 4
    np.testing.assert_allclose(result.scores, expected.mean(axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose([result.metrics[aspect] for aspect in ASPECTS], expected.T, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 0
    assert [detail["answer"] for detail in result.details] == answers(folder)
    assert result.details[0]["points"] == dict(zip(ASPECTS, points(folder)[0], strict=True))


@pytest.mark.parametrize("aspect", ASPECTS)
def test_one_aspect_can_be_the_score(folder: Path, aspect: str) -> None:
    result = local(folder, aspect=aspect, batch_size=2)(pictures()[:3], PROMPTS)
    expected = (points(folder)[:, ASPECTS.index(aspect)] - 1) / 4
    np.testing.assert_allclose(result.scores, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (GOOD, (4, 3.5, 2)),
        (GOOD.lower(), (4, 3.5, 2)),
        (GOOD.replace("2", "2/5."), (4, 3.5, 2)),
        ("**" + GOOD.replace("\n", "**\n**") + "**", (4, 3.5, 2)),
        ("Here are the scores:\n\n" + GOOD + "\nThe sign is blue.", (4, 3.5, 2)),
        (GOOD + "\n" + GOOD, (4, 3.5, 2)),
        (GOOD.replace("4", "1").replace("3.5", "5.0"), (1, 5, 2)),
    ],
)
def test_points_are_read_from_lines_of_the_published_form(answer: str, found: tuple[float, float, float]) -> None:
    assert read_points(answer) == dict(zip(ASPECTS, found, strict=True))


@pytest.mark.parametrize(
    ("answer", "aspect"),
    [
        ("", "Alignment"),
        ("4, 3.5, 2", "Alignment"),
        (GOOD.replace("4", "6"), "Alignment"),
        (GOOD.replace("4", "0"), "Alignment"),
        (GOOD.replace("4", "-4"), "Alignment"),
        (GOOD.replace("4", "four"), "Alignment"),
        (GOOD.replace("3.5", "3.5 or 4"), "Coherence"),
        (GOOD.partition("\nStyle")[0], "Style"),
        (GOOD + "\nStyle Score (1-5): 3", "Style"),  # two answers
        (GOOD.replace("Style Score (1-5)", "Style Score (1-10)"), "Style"),
    ],
)
def test_answer_without_clear_points_is_quoted_and_not_guessed(answer: str, aspect: str) -> None:
    with pytest.raises(ValueError, match=f'no clear "{aspect} Score'):
        read_points(answer)
    with pytest.raises(ValueError, match=r'x{200}…"$'):
        read_points("x" * 300)


def test_unreadable_answer_fails_its_sample_and_keeps_the_others(server: JudgeServer, folder: Path) -> None:
    async def second(number: int, _body: Mapping[str, Any]) -> Response | None:
        said = {"role": "assistant", "content": "It is a lovely picture."}
        return JSONResponse({"choices": [{"message": said}]}) if number == 2 else None

    server.fault = second
    with pytest.raises(RewardError, match=r'sample 1: the judge.s answer has no clear .*"It is a lovely picture\."') as caught:
        served(server)(pictures()[:3], PROMPTS)
    assert caught.value.partial is not None
    expected = ((points(folder) - 1) / 4).mean(axis=1)
    np.testing.assert_allclose(caught.value.partial.scores, [expected[0], np.nan, expected[2]], rtol=0, atol=1e-6)


def test_model_that_answers_something_else_fails_on_every_sample(tmp_path: Path) -> None:
    talker = write_tiny_vlm(tmp_path, (("one", "two"), (" cat", " dog")))
    with pytest.raises(RewardError) as caught:
        local(talker)(pictures()[:2], PROMPTS[:2])
    assert list(caught.value.failures) == [0, 1]
    assert re.search(r'in it: "(one|two) (cat|dog)"', caught.value.failures[0])


def test_served_judge_gives_the_points_of_the_local_one_and_sees_the_caption(server: JudgeServer, folder: Path) -> None:
    np.testing.assert_array_equal(served(server)(pictures()[:3], PROMPTS).scores, local(folder)(pictures()[:3], PROMPTS).scores)
    asked = server.bodies[1]["messages"][0]["content"][1]["text"]
    assert asked.endswith("Text Caption: [noise {prompt}]")
    assert server.bodies[0]["max_tokens"] == 128


def test_server_that_fails_is_a_failure_and_no_floor(server: JudgeServer) -> None:
    async def broken(_number: int, _body: Mapping[str, Any]) -> Response:
        return status(500, "out of memory")

    server.fault = broken
    with pytest.raises(RewardError, match='HTTP 500: "out of memory"') as caught:
        served(server)(pictures()[:2], PROMPTS[:2])
    assert caught.value.partial is not None
    assert np.isnan(caught.value.partial.scores).all()


def test_own_prompt_is_used_and_hashed_and_must_name_the_caption(folder: Path, server: JudgeServer, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Rate this: {prompt}\n")
    reward = served(server, judge_prompt=str(file), max_new_tokens=40)
    reward(pictures()[:1], PROMPTS[:1])
    assert server.bodies[0]["messages"][0]["content"][1]["text"] == "Rate this: a blue sign"
    assert server.bodies[0]["max_tokens"] == 40
    assert list(hashes_of(reward)) == [str(file)]
    assert str(JUDGE_PROMPTS / "unified_reward.txt") in hashes_of(local(folder))
    file.write_text("Rate this.")
    with pytest.raises(RewardUnavailableError, match=r"mine\.txt does not say where the caption goes; write {prompt} there"):
        reward.load()
    with pytest.raises(RewardUnavailableError, match=r"prompt cannot be read: .*none\.txt"):
        local(folder, judge_prompt=str(tmp_path / "none.txt")).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aspect": "styl"}, 'unknown aspect "styl"; nearest: style'),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"vlm": {"backend": "server", "url": "http://x/v1", "model": "m"}, "weights": "w"}, "weights is for a local judge"),
    ],
)
def test_bad_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnifiedReward(**options)
