"""Instruction following: the mean of a judge's answers, asked one by one; what fails, what does not apply, who judges."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.responses import Response
from safetensors.torch import load_file, save_file

from tests.rewards.judge_server import MODEL, JudgeServer, status
from tests.rewards.tiny_vlm import pictures, reference
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardUnavailableError
from xomni_rl.rewards.health import hashes_of
from xomni_rl.rewards.models import loaded_models
from xomni_rl.rewards.vlm import JUDGE_PROMPTS
from xomni_rl.rewards.vlm_alignment import VlmAlignment

PROMPTS = [
    Prompt("sign", 'a blue sign that says "K7AX"', checks=({"kind": "background", "colour": "blue"},)),
    Prompt("dogs", "two brown dogs", checks=({"class": "dog", "count": 2, "color": "brown"},)),
    Prompt("street", "a quiet street"),
]
ASKED = [
    [
        'Can the text "K7AX" be read in this image, complete and correctly spelled? Answer with Yes or No only.',
        "Is the background of this image blue? Answer with Yes or No only.",
    ],
    [
        "Count what is shown in this image of the following: dog. Is the number exactly 2? Answer with Yes or No only.",
        "Look at the following in this image: dog. Is its colour brown? Answer with Yes or No only.",
    ],
    [],
]
"""The questions about the facts of each prompt, as the judge gets them."""


def whole(prompt: Prompt) -> str:
    return (
        "Does this image show everything that the following description asks for? "
        f"Description: {prompt.text} Answer with Yes or No only."
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("judge")
    VlmAlignment.write_tiny(made)
    return made


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[JudgeServer]:
    with JudgeServer(folder) as server:
        yield server


@pytest.fixture
def server(running: JudgeServer) -> JudgeServer:
    running.reset()
    return running


def local(folder: Path, **options: Any) -> VlmAlignment:
    return VlmAlignment(**{"weights": str(folder), "device": "cpu", **options})


def served(server: JudgeServer, **options: Any) -> VlmAlignment:
    return VlmAlignment(vlm={"backend": "server", "url": server.url, "model": MODEL, "timeout": 20, "retries": 0}, **options)


def chances(folder: Path, kind: str) -> list[list[float]]:
    """P(yes) of each sample's questions, one question at a time and straight through transformers."""
    texts = {"facts": ASKED, "prompt": [[whole(prompt)] for prompt in PROMPTS]}[kind]
    judge = reference(folder)
    return [[judge.yes_probability(image, text) for text in asked] for image, asked in zip(pictures(), texts, strict=False)]


def test_score_is_the_mean_of_all_answers_and_metrics_those_of_their_kinds(folder: Path) -> None:
    result = local(folder)(pictures()[:3], PROMPTS)
    facts, prompt = chances(folder, "facts"), chances(folder, "prompt")
    expected = [np.mean(f + p) for f, p in zip(facts, prompt, strict=True)]
    np.testing.assert_allclose(result.scores, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.metrics["prompt"], np.ravel(prompt), rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.metrics["facts"], [np.mean(facts[0]), np.mean(facts[1]), np.nan], rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.01
    answers = result.details[0]["questions"]
    assert [answer["kind"] for answer in answers] == ["text", "background", "prompt"]
    assert [answer["question"] for answer in answers] == [*ASKED[0], whole(PROMPTS[0])]
    np.testing.assert_allclose([answer["yes"] for answer in answers], facts[0] + prompt[0], rtol=0, atol=1e-5)


def test_prompt_alone_asks_one_question(folder: Path) -> None:
    result = local(folder, questions="prompt")(pictures()[:3], PROMPTS)
    np.testing.assert_allclose(result.scores, np.ravel(chances(folder, "prompt")), rtol=0, atol=1e-5)
    assert np.isnan(result.metrics["facts"]).all()


def test_facts_do_not_apply_to_a_prompt_that_states_none(folder: Path) -> None:
    result = local(folder, questions="facts")(pictures()[:3], PROMPTS)
    expected = [np.mean(asked) if asked else np.nan for asked in chances(folder, "facts")]
    np.testing.assert_allclose(result.scores, expected, rtol=0, atol=1e-5)
    assert "states no facts" in result.details[2]["reason"]


def test_all_questions_of_a_batch_go_through_the_model_together(folder: Path) -> None:
    reward = local(folder)
    reward.load()
    [judge] = [model for key, model in loaded_models().items() if str(folder) in str(key)]
    seen: list[int] = []
    hook = judge.module.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    reward(pictures()[:3], PROMPTS)
    local(folder, batch_size=5)(pictures()[:3], PROMPTS)
    hook.remove()
    assert seen == [7, 5, 2]  # 3 + 3 + 1 questions; then at most five at a time


def test_check_that_nothing_is_asked_about_is_in_the_details(folder: Path) -> None:
    mood = {"kind": "mood", "value": "sad"}
    result = local(folder)(pictures()[:1], [Prompt("p", "a sad dog", checks=(mood,))])
    assert result.details[0]["skipped"] == [mood]


def test_malformed_check_fails_its_sample_and_keeps_the_others(folder: Path) -> None:
    bad = Prompt("bad", "dogs", checks=({"class": "dog", "count": "many"},))
    with pytest.raises(RewardError, match=r"sample 1: check 0: count must be a whole number") as caught:
        local(folder)(pictures()[:3], [PROMPTS[0], bad, PROMPTS[2]])
    assert caught.value.partial is not None
    expected = [np.mean(chances(folder, "facts")[0] + chances(folder, "prompt")[0]), np.nan, chances(folder, "prompt")[2][0]]
    np.testing.assert_allclose(caught.value.partial.scores, expected, rtol=0, atol=1e-5)
    assert "count must be" in caught.value.partial.details[1]["reason"]


def test_one_question_without_an_answer_fails_its_sample_alone(folder: Path) -> None:
    long = Prompt("long", "very " * 500, texts=("OPEN",))  # its text can be asked about, the whole of it not
    with pytest.raises(RewardError, match=r'sample 1: question "Does this image .*tokens, the model can take 2048') as caught:
        local(folder)(pictures()[:2], [PROMPTS[2], long])
    assert list(caught.value.failures) == [1]
    assert caught.value.partial is not None
    assert np.isnan(caught.value.partial.scores[1])
    assert np.isnan(caught.value.partial.metrics["facts"][1])


def test_nan_out_of_the_model_is_a_failure_of_every_sample(folder: Path, tmp_path: Path) -> None:
    VlmAlignment.write_tiny(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match="not finite") as caught:
        local(tmp_path)(pictures()[:3], PROMPTS)
    assert list(caught.value.failures) == [0, 1, 2]


def test_served_judge_scores_as_the_local_one(server: JudgeServer, folder: Path) -> None:
    result, here = served(server)(pictures()[:3], PROMPTS), local(folder)(pictures()[:3], PROMPTS)
    np.testing.assert_allclose(result.scores, here.scores, rtol=0, atol=1e-5)
    assert len(server.bodies) == 7


def test_half_of_the_served_questions_failing_fails_the_samples_they_belong_to(server: JudgeServer, folder: Path) -> None:
    async def no_dogs(_number: int, body: Mapping[str, Any]) -> Response | None:
        return status(400, "no dogs here") if ": dog" in body["messages"][0]["content"][1]["text"] else None

    server.fault = no_dogs
    with pytest.raises(RewardError, match='HTTP 400: "no dogs here"') as caught:
        served(server)(pictures()[:3], PROMPTS)
    assert list(caught.value.failures) == [1]
    assert caught.value.partial is not None
    here = local(folder)(pictures()[:3], PROMPTS).scores
    np.testing.assert_allclose(caught.value.partial.scores, [here[0], np.nan, here[2]], rtol=0, atol=1e-5)


def test_own_questions_are_asked_and_hashed(folder: Path, tmp_path: Path) -> None:
    shipped = (JUDGE_PROMPTS / "vlm_alignment.txt").read_text()
    file = tmp_path / "mine.txt"
    file.write_text(shipped.replace("Does this image show everything", "Is this all"))
    reward = local(folder, questions="prompt", judge_prompt=str(file))
    found = reward(pictures()[:1], PROMPTS[2:])
    question = whole(PROMPTS[2]).replace("Does this image show everything", "Is this all")
    assert found.scores[0] == pytest.approx(reference(folder).yes_probability(pictures()[0], question), abs=1e-5)
    assert str(file) in hashes_of(reward)
    assert str(JUDGE_PROMPTS / "vlm_alignment.txt") in hashes_of(local(folder))
    half = tmp_path / "half.txt"
    half.write_text("prompt: {prompt}")
    with pytest.raises(RewardUnavailableError, match=r'"vlm_alignment": .*half\.txt lacks the question "text"'):
        local(folder, judge_prompt=str(half)).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"questions": "fact"}, 'unknown questions "fact"; nearest: facts'),
        ({"vlm": "server"}, "vlm must be like"),
        ({"vlm": {"backend": "servr"}}, 'unknown vlm backend "servr"; nearest: server'),
        ({"vlm": {"backend": "server", "url": "http://x/v1", "model": "m"}, "weights": "w"}, "weights is for a local judge"),
        ({"vlm": {"wieghts": "w"}}, 'unknown vlm option "wieghts"; nearest: weights'),
        ({"vlm": {"option": "w"}}, 'unknown vlm option "option"'),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"dtype": "float23"}, "nearest: float32"),
    ],
)
def test_bad_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VlmAlignment(**options)
