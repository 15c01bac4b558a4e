"""The served judge against a real server on loopback: same answers as the model's, and every way a server can fail."""

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.rewards.judge_server import MODEL, JudgeServer, free_port, status
from tests.rewards.tiny_vlm import QUESTIONS, pictures, reference
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.vlm import Vlm, VlmError, build_vlm
from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

KEY = "sk-Tiny0123456789"
LONG = 20
"""Seconds that a fault lasts; nothing waits for its end."""
NOT_A_NUMBER = """
{"choices": [{"message": {}, "logprobs": {"content": [{"top_logprobs": [{"token": "Yes", "logprob": NaN}]}]}}]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm(tmp_path_factory.mktemp("yes-no"))


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[JudgeServer]:
    with JudgeServer(folder) as server:
        yield server


@pytest.fixture
def server(running: JudgeServer) -> JudgeServer:
    running.reset()
    return running


def judge(server: JudgeServer, **options: Any) -> Vlm:
    return build_vlm("test", {"backend": "server", "url": server.url, "model": MODEL, "timeout": 20, **options})


def choice(**parts: Any) -> Response:
    """A completion with one choice."""
    return JSONResponse({"choices": [{"message": {"role": "assistant", "content": "Yes"}, **parts}]})


def expected(folder: Path) -> list[float]:
    return [reference(folder).yes_probability(*pair) for pair in zip(pictures(), QUESTIONS, strict=True)]


@pytest.mark.parametrize("top", [20, 400])
def test_p_yes_from_log_probabilities_equals_the_models(server: JudgeServer, folder: Path, top: int) -> None:
    # All six spellings are among the 20 likeliest tokens, so that the rest of the vocabulary adds nothing.
    found = judge(server, top_logprobs=top).yes_probability(pictures(), QUESTIONS)
    np.testing.assert_allclose(found, expected(folder), rtol=0, atol=1e-5)
    assert server.bodies[0]["max_tokens"] == 1
    assert server.bodies[0]["temperature"] == 0


def test_served_and_local_judge_agree(server: JudgeServer, folder: Path) -> None:
    local = build_vlm("test", {"weights": str(folder), "device": "cpu"}).yes_probability(pictures(), QUESTIONS)
    np.testing.assert_allclose(judge(server).yes_probability(pictures(), QUESTIONS), local, rtol=0, atol=1e-5)


def test_spelling_that_is_not_listed_counts_as_nothing(server: JudgeServer, folder: Path) -> None:
    (best,) = judge(server, top_logprobs=1).yes_probability(pictures()[:1], QUESTIONS[:1])
    likeliest = reference(folder).logits(pictures()[0], QUESTIONS[0]).argmax()
    assert best == float("yes" in reference(folder).processor.tokenizer.decode([int(likeliest)]).lower())


def test_image_arrives_pixel_by_pixel(server: JudgeServer) -> None:
    judge(server).yes_probability(pictures()[1:2], QUESTIONS[:1])
    np.testing.assert_array_equal(server.images[0], pictures()[1])


def test_text_mode_reads_yes_or_no_from_the_answer(server: JudgeServer, folder: Path) -> None:
    answers = [reference(folder).answer(*pair) for pair in zip(pictures(), QUESTIONS, strict=True)]
    found = judge(server, answer="text").yes_probability(pictures(), QUESTIONS)
    assert found.tolist() == [float(answer.lower() == "yes") for answer in answers]
    assert "logprobs" not in server.bodies[0]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Yes", 1),
        ("yes, it does.", 1),
        ("**No**", 0),
        (' "No".', 0),
        ("NO", 0),
        ("Nothing", None),
        ("I think yes", None),
        ("", None),
    ],
)
def test_text_answers(server: JudgeServer, answer: str, score: float | None) -> None:
    async def say(_number: int, _body: Mapping[str, Any]) -> Response:
        return choice(message={"role": "assistant", "content": answer})

    server.fault = say
    if score is None:
        with pytest.raises(VlmError, match=f'neither Yes nor No but "{answer}"'):
            judge(server, answer="text").yes_probability(pictures()[:1], QUESTIONS[:1])
    else:
        assert judge(server, answer="text").yes_probability(pictures()[:1], QUESTIONS[:1]).tolist() == [score]


def test_generation_equals_the_models_greedy_answer(server: JudgeServer, folder: Path) -> None:
    expected = [reference(folder).answer(*pair) for pair in zip(pictures(), QUESTIONS, strict=True)]
    assert judge(server).generate(pictures(), QUESTIONS, max_new_tokens=8) == expected
    assert server.bodies[0]["max_tokens"] == 8


def test_server_without_log_probabilities_is_noticed(server: JudgeServer) -> None:
    async def silent(_number: int, _body: Mapping[str, Any]) -> Response:
        return choice()

    server.fault = silent
    with pytest.raises(RewardUnavailableError, match=r'"test": .* sends no log-probabilities; .*vLLM.*answer: text'):
        judge(server).yes_probability(pictures(), QUESTIONS)


def test_first_token_that_is_neither_yes_nor_no_fails_with_what_it_was(server: JudgeServer) -> None:
    top = [{"token": token, "logprob": -1.0} for token in ("The", " image", "No.", "x")]

    async def chatty(number: int, _body: Mapping[str, Any]) -> Response | None:
        return choice(logprobs={"content": [{"top_logprobs": top}]}) if number == 1 else None

    server.fault = chatty
    with pytest.raises(
        VlmError, match=r'neither Yes nor No is among its 4 likeliest first tokens \("the", "image", "no.", …'
    ) as caught:
        judge(server, concurrency=1).yes_probability(pictures()[:2], QUESTIONS[:2])
    assert list(caught.value.failures) == [0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Response("<html>Bad gateway</html>"), 'is not JSON but "<html>Bad gateway</html>"'),
        (Response("[" * 200_000), "is not JSON"),
        (JSONResponse({"choices": []}), "is no chat completion"),
        (JSONResponse(["yes"]), "is no chat completion"),
        (JSONResponse({"choices": [{"message": "Yes"}]}), "is no chat completion"),
        (choice(finish_reason="content_filter"), "content filter held the answer back"),
        (choice(logprobs={"content": []}), "the completion is empty"),
        (choice(logprobs={"tokens": ["Yes"]}), "log-probabilities cannot be read"),
        (choice(logprobs={"content": [{"top_logprobs": [{"token": "Yes", "logprob": "high"}]}]}), "cannot be read"),
        (Response(NOT_A_NUMBER), "the log-probabilities hold NaN"),
    ],
)  # fmt: skip
def test_garbage_fails_that_question_alone_and_is_not_asked_for_again(
    server: JudgeServer, folder: Path, answer: Response, message: str
) -> None:
    async def garbage(number: int, _body: Mapping[str, Any]) -> Response | None:
        return answer if number == 2 else None

    server.fault = garbage
    with pytest.raises(VlmError, match=message) as caught:
        judge(server, concurrency=1).yes_probability(pictures(), QUESTIONS)
    assert list(caught.value.failures) == [1]
    assert len(server.bodies) == 4
    assert caught.value.partial is not None
    np.testing.assert_allclose(np.delete(caught.value.partial, 1), np.delete(expected(folder), 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_passing_failure_is_asked_again(server: JudgeServer, folder: Path, code: int) -> None:
    async def once(number: int, _body: Mapping[str, Any]) -> Response | None:
        return status(code) if number == 1 else None

    server.fault = once
    found = judge(server, concurrency=1).yes_probability(pictures()[:2], QUESTIONS[:2])
    np.testing.assert_allclose(found, expected(folder)[:2], rtol=0, atol=1e-5)
    assert len(server.bodies) == 3


def test_retry_after_is_waited_for(server: JudgeServer) -> None:
    async def busy(number: int, _body: Mapping[str, Any]) -> Response | None:
        return status(429, Retry_After="1") if number == 1 else None

    server.fault = busy
    start = time.monotonic()
    judge(server).yes_probability(pictures()[:1], QUESTIONS[:1])
    assert time.monotonic() - start > 1  # without it, the first pause is 0.4 s at most


def test_retry_after_beyond_the_deadline_fails_at_once(server: JudgeServer) -> None:
    async def busy(_number: int, _body: Mapping[str, Any]) -> Response:
        return status(429, "come back tomorrow", Retry_After="86400")

    server.fault = busy
    start = time.monotonic()
    with pytest.raises(VlmError, match='HTTP 429: "come back tomorrow"'):
        judge(server).yes_probability(pictures()[:1], QUESTIONS[:1])
    assert time.monotonic() - start < 5
    assert len(server.bodies) == 1


def test_retries_are_bounded(server: JudgeServer) -> None:
    async def broken(_number: int, _body: Mapping[str, Any]) -> Response:
        return status(500, "CUDA out of memory")

    server.fault = broken
    with pytest.raises(VlmError, match='HTTP 500: "CUDA out of memory"'):
        judge(server, retries=2).yes_probability(pictures()[:1], QUESTIONS[:1])
    assert len(server.bodies) == 3


@pytest.mark.parametrize("code", [400, 413, 422])
def test_other_4xx_is_never_asked_again_and_fails_one_question(server: JudgeServer, code: int) -> None:
    async def refuse(number: int, _body: Mapping[str, Any]) -> Response | None:
        return status(code, "the prompt is too long") if number == 1 else None

    server.fault = refuse
    with pytest.raises(VlmError, match=f'HTTP {code}: "the prompt is too long"') as caught:
        judge(server, concurrency=1).yes_probability(pictures()[:2], QUESTIONS[:2])
    assert list(caught.value.failures) == [0]
    assert len(server.bodies) == 2


def test_unknown_model_is_unavailable(server: JudgeServer) -> None:
    with pytest.raises(
        RewardUnavailableError, match=r'HTTP 404: "The model `tyni` does not exist."; check the option model \("tyni"\)'
    ):
        judge(server, model="tyni").yes_probability(pictures(), QUESTIONS)


def test_half_of_the_questions_failing_leaves_the_other_half(server: JudgeServer, folder: Path) -> None:
    async def half(_number: int, body: Mapping[str, Any]) -> Response | None:
        return status(400) if body["messages"][0]["content"][1]["text"] == QUESTIONS[0] else None

    server.fault = half
    with pytest.raises(VlmError) as caught:
        judge(server).yes_probability(pictures(), QUESTIONS)
    assert list(caught.value.failures) == [0, 3]
    assert caught.value.partial is not None
    np.testing.assert_allclose(caught.value.partial[[1, 2]], np.array(expected(folder))[[1, 2]], rtol=0, atol=1e-5)
    assert np.isnan(caught.value.partial[[0, 3]]).all()


def test_failed_generation_keeps_the_other_answers(server: JudgeServer, folder: Path) -> None:
    async def second(number: int, _body: Mapping[str, Any]) -> Response | None:
        return choice(message={"role": "assistant", "content": None}) if number == 2 else None

    server.fault = second
    with pytest.raises(VlmError, match="holds no text") as caught:
        judge(server, concurrency=1).generate(pictures()[:2], QUESTIONS[:2])
    assert caught.value.partial == [reference(folder).answer(pictures()[0], QUESTIONS[0]), ""]


def test_slow_answer_ends_at_the_deadline(server: JudgeServer) -> None:
    async def sleep(_number: int, _body: Mapping[str, Any]) -> None:
        await asyncio.sleep(LONG)

    server.fault = sleep
    start = time.monotonic()
    with pytest.raises(VlmError, match=r"no answer within 0\.3 s"):
        judge(server, timeout=0.3).yes_probability(pictures()[:1], QUESTIONS[:1])
    assert time.monotonic() - start < LONG / 2


def test_answer_that_drips_for_ever_ends_at_the_deadline(server: JudgeServer) -> None:
    async def drops() -> Any:
        for _ in range(10 * LONG):
            yield b" "
            await asyncio.sleep(0.1)

    async def drip(_number: int, _body: Mapping[str, Any]) -> Response:
        return StreamingResponse(drops())

    server.fault = drip
    start = time.monotonic()
    with pytest.raises(VlmError, match=r"no answer within 0\.5 s"):
        judge(server, timeout=0.5).yes_probability(pictures()[:1], QUESTIONS[:1])
    assert time.monotonic() - start < LONG / 2


def test_dead_server_costs_one_deadline_and_not_one_per_question(server: JudgeServer) -> None:
    async def hang(_number: int, _body: Mapping[str, Any]) -> None:
        await asyncio.sleep(LONG)

    server.fault = hang
    with pytest.raises(VlmError, match="64 question") as caught:
        judge(server, timeout=0.5, concurrency=4).yes_probability(pictures()[:1] * 64, QUESTIONS[:1] * 64)
    # Four at a time: when the first four are given up, at most four more are under way.
    assert sum("not asked" in reason for reason in caught.value.failures.values()) >= 56
    assert len(server.bodies) <= 8


def test_no_more_questions_than_allowed_are_under_way(server: JudgeServer) -> None:
    async def linger(_number: int, _body: Mapping[str, Any]) -> Response:
        await asyncio.sleep(0.05)
        top = [{"token": "Yes", "logprob": -0.1}]
        return choice(logprobs={"content": [{"top_logprobs": top}]})

    server.fault = linger
    judge(server, concurrency=3).yes_probability(pictures()[:1] * 12, QUESTIONS[:1] * 12)
    assert server.busiest == 3


def test_no_server_is_said_at_load_and_fails_questions(folder: Path) -> None:
    nobody = judge(JudgeServer(folder), retries=1)  # not started
    with pytest.raises(
        RewardUnavailableError, match=r'"test": no judge answers at http://127\.0\.0\.1.*start the server there'
    ):
        nobody.load()
    with pytest.raises(VlmError, match=r"no answer .*ConnectError"):
        nobody.yes_probability(pictures()[:1], QUESTIONS[:1])


def test_judge_works_again_after_its_server_came_back(folder: Path) -> None:
    port = free_port()
    with JudgeServer(folder, port) as first:
        made = judge(first, retries=0)
        made.load()
        made.yes_probability(pictures()[:1], QUESTIONS[:1])
    with pytest.raises(VlmError):
        made.yes_probability(pictures()[:1], QUESTIONS[:1])
    with JudgeServer(folder, port):
        found = made.yes_probability(pictures()[:1], QUESTIONS[:1])
    np.testing.assert_allclose(found, expected(folder)[:1], rtol=0, atol=1e-5)


def test_key_comes_from_the_environment_and_shows_nowhere(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.key = KEY
    monkeypatch.setenv("JUDGE_KEY", KEY)
    made = judge(server, api_key_env="JUDGE_KEY")
    made.load()
    made.yes_probability(pictures()[:1], QUESTIONS[:1])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(made)
    assert KEY.encode() not in pickle.dumps(made)
    assert KEY not in caplog.text


def test_refused_key_is_unavailable_and_not_repeated(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "another"
    monkeypatch.setenv("JUDGE_KEY", KEY)
    made = judge(server, api_key_env="JUDGE_KEY")
    for call in (made.load, lambda: made.yes_probability(pictures(), QUESTIONS)):
        with pytest.raises(RewardUnavailableError, match=r"HTTP 401.*environment variable JUDGE_KEY") as caught:
            call()
        assert KEY not in str(caught.value)  # the server's message holds it


def test_missing_key_is_unavailable(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(RewardUnavailableError, match="environment variable JUDGE_KEY holds no key"):
        judge(server, api_key_env="JUDGE_KEY").load()
    assert server.bodies == []


def test_key_that_the_judge_repeats_in_garbage_shows_nowhere(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def echo(_number: int, _body: Mapping[str, Any]) -> Response:
        return JSONResponse({"headers": {"authorization": f"Bearer {KEY}"}})

    server.key, server.fault = KEY, echo
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(VlmError, match=r"is no chat completion but .*Bearer \*\*\*") as caught:
        judge(server, api_key_env="JUDGE_KEY").generate(pictures()[:1], QUESTIONS[:1])
    assert KEY not in str(caught.value)


def test_judge_is_copied_and_pickled_after_use(server: JudgeServer) -> None:
    made = judge(server)
    expected = made.yes_probability(pictures()[:1], QUESTIONS[:1])
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        np.testing.assert_array_equal(twin.yes_probability(pictures()[:1], QUESTIONS[:1]), expected)


def test_no_questions_ask_nobody(server: JudgeServer) -> None:
    assert judge(server).yes_probability([], []).shape == (0,)
    assert judge(server).generate([], []) == []
    assert server.bodies == []


def test_further_keys_go_into_the_request(server: JudgeServer) -> None:
    judge(server, extra={"seed": 7}).yes_probability(pictures()[:1], QUESTIONS[:1])
    assert server.bodies[0]["seed"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url must read like"),
        ({"url": "http://me:secret@host/v1"}, "without a name or password"),
        ({"url": "http://host:99999/v1"}, "url must read like"),
        ({"model": ""}, "model must be the name"),
        ({"api_key_env": KEY}, "must be the name of an environment variable, not the key"),
        ({"answer": "txt"}, 'unknown answer "txt"; nearest: text'),
        ({"timeout": 0}, "timeout must be a positive number of seconds, got 0"),
        ({"concurrency": 0}, "concurrency must be a whole number of at least 1, got 0"),
        ({"retries": -1}, "retries must be a whole number of at least 0, got -1"),
        ({"weights": "x"}, 'unknown vlm option "weights"'),
    ],
)
def test_bad_option_raises_without_repeating_secrets(server: JudgeServer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        judge(server, **options)
    assert KEY not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_transformers_serve_answers_in_text_and_its_missing_log_probabilities_are_noticed(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="transformers serve needs the package openai")
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name("transformers_serve.py"))
    command = [sys.executable, program, "serve", str(folder), "--device=cpu", "--host=127.0.0.1", f"--port={port}"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, seconds=60)
            served = {"backend": "server", "url": f"http://127.0.0.1:{port}/v1", "model": str(folder), "timeout": 60}
            made = build_vlm("test", served)
            made.load()
            with pytest.raises(RewardUnavailableError, match="sends no log-probabilities"):
                made.yes_probability(pictures()[:1], QUESTIONS[:1])
            found = build_vlm("test", {**served, "answer": "text"}).yes_probability(pictures(), QUESTIONS)
            assert set(found) <= {0.0, 1.0}
        finally:
            process.terminate()
            process.wait(20)


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(url, trust_env=False, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.skip(f"transformers serve did not start within {seconds:g} s")
