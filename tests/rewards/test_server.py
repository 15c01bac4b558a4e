"""The reward server, asked over real HTTP on the loopback interface."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from xomni_rl.commands.serve import Choices, parse_arguments, serve
from xomni_rl.config import ConfigError
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import FunctionReward, RewardError, RewardResult, RewardUnavailableError
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.rewards.server import BackgroundServer, address, bound_socket
from xomni_rl.rewards.service import Service, local_scorers
from xomni_rl.rewards.wire import Limits, encode_image

RED = np.zeros((4, 6, 3), np.uint8)
RED[..., 0] = 51  # 51 / 255 = 0.2
BLACK = np.zeros((4, 6, 3), np.uint8)
TIMEOUT = 20
SMALL = Limits(body_bytes=200_000, images=8, pixels=1000, request_pixels=4000, waiting_images=64)


def redness(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    means = np.array([image[..., 0].mean() / 255 for image in images])
    return RewardResult(means, [{"asked": prompt.texts, "nan": np.nan} for prompt in prompts], {"square": means**2})


def picky(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    """Breaks on a batch with a black image; does not apply to prompts that ask for no text."""
    if any(not image.any() for image in images):
        raise ZeroDivisionError("black")
    return [0.5 if prompt.texts else np.nan for prompt in prompts]


def partial(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Cannot read black images."""
    failures = {index: "too dark" for index, image in enumerate(images) if not image.any()}
    result = RewardResult(np.array([0.0 if image.any() else np.nan for image in images]), [{} for _ in images])
    if failures:
        raise RewardError("partial", failures, result)
    return result


def gone(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    raise RewardUnavailableError("the weights have gone; put them back")


def composite(*functions: Callable[..., Any]) -> CompositeReward:
    parts = [Component(function.__name__, FunctionReward(function.__name__, function, {})) for function in functions]
    return CompositeReward(parts)


class Slow:
    """Waits for `go` at every call, and counts."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.called = threading.Event()
        self.scored = 0

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        self.called.set()
        assert self.go.wait(TIMEOUT)
        self.scored += len(images)
        return [0.25] * len(images)


def slow_server(slow: Slow, max_batch: int = 4, **limits: Any) -> BackgroundServer:
    reward = CompositeReward([Component("slow", FunctionReward("slow", slow, {}))])
    return BackgroundServer(Service(local_scorers(reward, max_batch), Limits(**limits)))


def item(image: np.ndarray = RED, **values: Any) -> dict[str, Any]:
    return {"history": [{"text": "a sign", "image_b64": encode_image(image)}], **values}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with BackgroundServer(Service(local_scorers(composite(redness, picky, partial, gone)), SMALL)) as server:
        yield server.url


def post(url: str, *items: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/score", json={"requests": list(items)}, timeout=TIMEOUT, trust_env=False, **options)


def get(url: str, **options: Any) -> httpx.Response:
    return httpx.get(url, timeout=TIMEOUT, trust_env=False, **options)


def assert_lives(url: str) -> None:
    answer = post(url, item(required_rewards=["redness"]))
    assert answer.status_code == 200
    assert answer.json()["results"][0]["redness"]["score"] == pytest.approx(0.2, abs=1e-6)


# what it answers


def test_scores_come_by_request_and_reward_with_their_details(url: str) -> None:
    answer = post(
        url,
        item(required_rewards=["redness", "picky"], metadata={"texts": ["A"]}, request_id="r1"),
        item(BLACK, required_rewards=["redness"]),
    ).json()
    assert answer["results"][0] == {
        "redness": {"score": pytest.approx(0.2, abs=1e-6), "square": pytest.approx(0.04, abs=1e-6)},  # (51 / 255)²
        "picky": {"score": 0.5},
    }
    assert answer["results"][1] == {"redness": {"score": 0.0, "square": 0.0}}
    assert next(iter(answer["results"][0]["redness"])) == "score"  # UniRL's client takes the first
    assert answer["errors"] == [{}, {}]
    assert answer["not_applicable"] == [[], []]
    assert answer["details"][0]["redness"] == {"asked": ["A"], "nan": None}
    assert answer["versions"] == {"redness": "unversioned", "picky": "unversioned"}
    assert answer["identities"][0]["request_id"] == "r1"
    assert answer["identities"][1]["scorer_version"] == "unversioned"


def test_what_does_not_apply_is_told_apart_from_what_failed(url: str) -> None:
    answer = post(url, item(required_rewards=["picky"]), item(BLACK, required_rewards=["picky"])).json()
    assert answer["results"] == [{}, {}]
    assert answer["not_applicable"] == [["picky"], []]
    assert answer["errors"] == [{}, {"picky": "ZeroDivisionError: black"}]


def test_failure_of_one_reward_leaves_the_others(url: str) -> None:
    answer = post(url, item(BLACK)).json()  # required_rewards left out: all
    assert list(answer["results"][0]) == ["redness"]
    assert answer["errors"][0] == {
        "picky": "ZeroDivisionError: black",
        "partial": "too dark",
        "gone": "the weights have gone; put them back",
    }


def test_request_that_fails_does_not_fail_those_it_was_batched_with(url: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        images = [BLACK if number % 4 == 0 else RED for number in range(16)]
        answers = list(pool.map(lambda image: post(url, item(image, required_rewards=["partial", "picky"])).json(), images))
    for number, answer in enumerate(answers):
        assert set(answer["errors"][0]) == ({"picky", "partial"} if number % 4 == 0 else set())


def test_requests_may_want_different_rewards(url: str) -> None:
    answer = post(url, item(required_rewards=["partial"]), item(required_rewards=["redness"]), item(required_rewards=[])).json()
    assert [list(result) for result in answer["results"]] == [["partial"], ["redness"], []]


def test_no_requests_give_no_results(url: str) -> None:
    answer = post(url).json()
    assert (answer["results"], answer["errors"], answer["versions"]) == ([], [], {})


def test_rewards_say_what_they_are() -> None:
    config = {"components": {"reader": {"reward": "ocr", "weight": 0.5, "options": {"layout": "line"}}}}
    with BackgroundServer(Service(local_scorers(build_composite(config)), Limits(images=8))) as server:
        listed = get(f"{server.url}/rewards").json()
        pair = get(f"{server.url}/rewards/reader/self_check").json()
        answer = post(server.url, pair["good"], pair["worthless"]).json()
    assert listed["rewards"] == ["reader"]
    card = listed["cards"]["reader"]
    assert (card["reward"], card["range"], card["higher_is_better"], card["weight"]) == ("ocr", [0.0, 1.0], True, 0.5)
    assert card["needs"] == ["texts", "text"]
    assert "ms" in card["cost"]
    assert listed["limits"]["images"] == 8
    assert [result["reader"]["score"] for result in answer["results"]] == [1.0, 0.0]


def test_unbounded_range_is_null(url: str) -> None:
    assert get(f"{url}/rewards").json()["cards"]["redness"]["range"] == [None, None]


def test_self_check_of_no_such_reward_or_without_pictures_is_404(url: str) -> None:
    assert get(f"{url}/rewards/nobody/self_check").status_code == 404
    answer = get(f"{url}/rewards/redness/self_check")
    assert answer.status_code == 404
    assert "self_check" in answer.json()["detail"]


def test_health_names_the_rewards_as_unirls_client_wants_them(url: str) -> None:
    health = get(f"{url}/health").json()
    assert health["status"] == "ok"
    assert health["rewards"] == {name: ["ready"] for name in ("redness", "picky", "partial", "gone")}


def test_openapi_describes_the_form(url: str) -> None:
    schema = get(f"{url}/openapi.json").json()
    assert set(schema["paths"]) == {"/health", "/rewards", "/rewards/{name}/self_check", "/score"}
    assert set(schema["paths"]["/score"]["post"]["responses"]) >= {"200", "400", "401", "413", "422", "503"}
    assert get(f"{url}/docs").status_code == 200


# what it refuses


PNG = base64.b64decode(encode_image(np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)))


@pytest.mark.parametrize(
    ("items", "status", "detail"),
    [
        ([item(required_rewards=["redniss"])], 400, "nearest: redness"),
        ([item(), {"history": [{"text": "x", "image_b64": "!!!!"}]}], 400, r"requests\[1\].*is not base64"),
        ([{"history": [{"text": "x", "image_b64": base64.b64encode(PNG).decode()[:-2]}]}], 400, "is not base64"),
        ([{"history": [{"text": "x", "image_b64": base64.b64encode(PNG[:300]).decode()}]}], 400, "the image is damaged"),
        ([{"history": [{"text": "x"}]}], 400, "the last turn must carry an image"),
        ([item(metadata={"texts": 5})], 400, r"requests\[0\]: texts must be a list"),
        ([{"history": [{"text": " ", "image_b64": encode_image(RED)}]}], 400, "text must not be empty"),
        ([{"history": []}], 422, "history"),
        ([{"history": [{"text": 5}]}], 422, "text"),
        (["x"], 422, "requests"),
        ([item(required_rewards="redness")], 422, "required_rewards"),
        ([item()] * 9, 413, "9 images are more than the limit of 8"),
        ([item(np.zeros((40, 40, 3), np.uint8))], 413, "40×40 px is more than the limit of 1000 px"),
        ([item(np.zeros((30, 30, 3), np.uint8))] * 5, 413, "more than the limit of 4000 px per request"),
        ([item(metadata={"long": "x" * 300_000})], 413, "longer than the limit of 200000 bytes"),
    ],
)
def test_wrong_input_gets_4xx_with_one_sentence_and_the_server_lives(
    url: str, items: list[Any], status: int, detail: str
) -> None:
    answer = post(url, *items)
    assert answer.status_code == status, answer.text
    assert re.search(detail, answer.json()["detail"]), answer.text
    assert len(answer.text) < 1000  # nothing large is sent back
    assert_lives(url)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"requests": 3}',
        b"\xff\xfe",
        b'{"requests": [{"history": [{"text": "\\ud800", "image_b64": "AA=="}]}]}',
        b'{"requests": [{"history": [{"text": "x"}], "required_rewards": ["\\ud800"]}]}',
        b'{"requests": ' + b"[" * 50_000,
        b'{"requests": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"requests": [{"history": [{"text": "x"}], "metadata": {"a": ' + b"9" * 5000 + b"}}]}",
    ],
)
def test_garbage_gets_4xx_and_the_server_lives(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{url}/score", content=body, headers=headers, timeout=TIMEOUT, trust_env=False)
    assert 400 <= answer.status_code < 500, answer.text
    assert_lives(url)


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_good_body_under_another_type_is_told_what_to_send(url: str, kind: str | None) -> None:
    body = json.dumps({"requests": [item()]}).encode()
    headers = {} if kind is None else {"Content-Type": kind}
    answer = httpx.post(f"{url}/score", content=body, headers=headers, timeout=TIMEOUT, trust_env=False)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "the body must come with the header Content-Type: application/json"


def test_pickle_is_not_json(url: str) -> None:
    body = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x01:\x94\x85\x94R\x94."
    for kind in ("application/json", "application/octet-stream", "application/x-pickle"):
        answer = httpx.post(f"{url}/score", content=body, headers={"Content-Type": kind}, timeout=TIMEOUT, trust_env=False)
        assert 400 <= answer.status_code < 500


def test_body_of_unknown_length_is_counted_as_it_comes(url: str) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        yield b'{"requests": ["'
        for _ in range(2000):
            sent += 10_000
            yield b"x" * 10_000

    try:
        answer = httpx.post(
            f"{url}/score", content=parts(), headers={"Content-Type": "application/json"}, timeout=TIMEOUT, trust_env=False
        )
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # the server may close the connection before the client has read the answer
    assert sent < 20_000_000  # it did not take all of it
    assert_lives(url)


def test_token_is_needed_for_everything_but_health() -> None:
    with BackgroundServer(Service(local_scorers(composite(redness)), SMALL), token="s3cret") as server:
        right = {"Authorization": "Bearer s3cret"}
        assert get(f"{server.url}/health").status_code == 200
        assert get(f"{server.url}/rewards", headers=right).status_code == 200
        assert post(server.url, item(), headers=right).status_code == 200
        for wrong in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}, {"Authorization": b"Bearer \xff"}):
            for path in ("/rewards", "/openapi.json", "/docs", "/nowhere"):
                assert get(f"{server.url}{path}", headers=wrong).status_code == 401
            answer = post(server.url, item(), headers=wrong)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert post(server.url, item(), headers=right).status_code == 200


# load


def test_too_much_waiting_is_503_with_retry_after_and_passes() -> None:
    slow = Slow()
    with slow_server(slow, waiting_images=4) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, server.url, *[item()] * 3)
        assert slow.called.wait(TIMEOUT)
        refused = post(server.url, item(), item())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "3 images are waiting already" in refused.json()["detail"]
        assert get(f"{server.url}/health").json()["waiting_images"] == 3
        slow.go.set()
        assert first.result(TIMEOUT).status_code == 200
        assert post(server.url, item(), item()).status_code == 200


def test_requests_that_wait_are_scored_together() -> None:
    sizes: list[int] = []
    slow = Slow()

    def recorded(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        sizes.append(len(images))
        return slow(images, prompts)

    reward = CompositeReward([Component("recorded", FunctionReward("recorded", recorded, {}))])
    with BackgroundServer(Service(local_scorers(reward, max_batch=16), Limits())) as server, ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(post, server.url, item())]
        assert slow.called.wait(TIMEOUT)
        asked += [pool.submit(post, server.url, item(), item()) for _ in range(8)]
        deadline = time.monotonic() + TIMEOUT
        while get(f"{server.url}/health").json()["waiting_images"] < 17:
            assert time.monotonic() < deadline
        slow.go.set()
        assert all(each.result(TIMEOUT).status_code == 200 for each in asked)
    assert sizes == [1, 16]


def test_pixels_waiting_are_bounded_too() -> None:
    slow = Slow()
    with slow_server(slow, waiting_pixels=40) as server, ThreadPoolExecutor(2) as pool:  # one picture has 24 px
        first = pool.submit(post, server.url, item())
        assert slow.called.wait(TIMEOUT)
        assert post(server.url, item()).status_code == 503
        slow.go.set()
        assert first.result(TIMEOUT).status_code == 200


def test_client_that_goes_away_costs_no_scoring() -> None:
    slow = Slow()
    with slow_server(slow, max_batch=2) as server:
        body = json.dumps({"requests": [item()] * 6}).encode()
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
            connection.sendall(head.encode() + body)
            assert slow.called.wait(TIMEOUT)
        deadline = time.monotonic() + TIMEOUT
        while get(f"{server.url}/health").json()["waiting_images"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        slow.go.set()
        assert post(server.url, item()).status_code == 200
    assert slow.scored == 3  # the two under way and the one of the next request; four were dropped


def test_reward_that_takes_too_long_is_504() -> None:
    slow = Slow()
    with slow_server(slow, seconds=0.3) as server:
        answer = post(server.url, item())
        assert (answer.status_code, answer.json()["detail"]) == (504, "not scored within 0.3 s")
        slow.go.set()
        deadline = time.monotonic() + TIMEOUT
        while post(server.url, item()).status_code != 200:  # on a busy machine 0.3 s may be too short for an idle server too
            assert time.monotonic() < deadline


def test_200_concurrent_requests_are_all_answered_each_with_its_own_score() -> None:
    colours = list(range(200))
    images = [np.full((8, 8, 3), colour, np.uint8) for colour in colours]

    async def ask(url: str) -> list[float]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
            answers = await asyncio.gather(*(client.post(f"{url}/score", json={"requests": [item(image)]}) for image in images))
        return [answer.json()["results"][0]["redness"]["score"] for answer in answers]

    with BackgroundServer(Service(local_scorers(composite(redness)), Limits())) as server:
        scores = asyncio.run(ask(server.url))
    np.testing.assert_allclose(scores, np.array(colours) / 255, atol=1e-6)


def test_closing_server_answers_what_it_has_taken() -> None:
    slow = Slow()
    server = slow_server(slow)
    with ThreadPoolExecutor(2) as pool:
        taken = pool.submit(post, server.url, item())
        assert slow.called.wait(TIMEOUT)
        closing = pool.submit(server.close)
        time.sleep(0.2)
        assert not closing.done()
        slow.go.set()
        assert taken.result(TIMEOUT).json()["results"] == [{"slow": {"score": 0.25}}]
        closing.result(TIMEOUT)
    with pytest.raises(httpx.ConnectError):
        post(server.url, item())


def test_rewards_that_are_one_object_take_turns() -> None:
    inside = 0
    most = 0

    def crowded(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        inside -= 1
        return [0.0] * len(images)

    parts = [Component(name, FunctionReward(name, crowded, {})) for name in ("one", "other")]
    with BackgroundServer(Service(local_scorers(CompositeReward(parts)), SMALL)) as server:
        assert post(server.url, item()).json()["errors"] == [{}]
    assert most == 1


def test_reward_that_cannot_be_loaded_keeps_the_server_from_starting() -> None:
    reward = build_composite({"components": {"far": {"reward": "remote", "options": {"url": "http://127.0.0.1:9"}}}})
    with pytest.raises(RewardUnavailableError, match=r"127\.0\.0\.1:9"):
        local_scorers(reward)


# the command line


def test_arguments_are_sorted() -> None:
    made = parse_arguments(["reward=paper", "reward.components.ocr.weight=0.5", "engine=ray", "ray.ocr.runtime_env={pip: [x]}"])
    assert made == Choices("paper", ("reward.components.ocr.weight=0.5",), "ray", {"ocr": {"runtime_env": {"pip": ["x"]}}})
    assert parse_arguments([]) == Choices("ocr")


def test_ray_settings_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ray.yaml"
    file.write_text("ocr: {replicas: 2, gpus: 1}\n")
    assert parse_arguments(["engine=ray", f"ray={file}", "ray.ocr.replicas=3"]).ray == {"ocr": {"replicas": 3, "gpus": 1}}
    file.write_text("[1]")
    with pytest.raises(ConfigError, match="must map names of components"):
        parse_arguments(["engine=ray", f"ray={file}"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["rewards=ocr"], "is no argument of serve"),
        (["ocr"], "is no argument of serve"),
        (["ray.ocr=2", "engine=ray"], "is no argument of serve"),
        (["engine=rya"], "nearest: ray"),
        (["ray.ocr.replicas=2"], "without engine=ray"),
        (["engine=ray", "ray.ocr.replicas={"], "is not YAML"),
    ],
)
def test_wrong_argument_is_named(arguments: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_arguments(arguments)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_open_address_without_a_token_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="give --token"):
        serve([], host=host, token=None)


@pytest.mark.parametrize("token", ["", " ", "two\nlines", "schlüssel"])
def test_token_that_cannot_be_sent_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        serve([], host="127.0.0.1", token=token)


def test_port_that_is_taken_is_named() -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            bound_socket("127.0.0.1", port)
        assert address(taken) == f"http://127.0.0.1:{port}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "variables"), [(["--host=127.0.0.2", "--token=t0ken"], {}), ([], {"XOMNI_RL_SERVE_TOKEN": "t0ken"})]
)
def test_command_serves_until_it_is_told_to_stop(flags: list[str], variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "xomni_rl", "serve", "reward=ocr", "reward.components.ocr.options.layout=line", "--port=0"]
    environment = {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        host = "127.0.0.2" if flags else "127.0.0.1"  # both are this machine's own
        assert line.startswith(f"serving ocr at http://{host}:"), line or process.communicate()[1]
        url = line.split()[3]
        headers = {"Authorization": "Bearer t0ken"}
        assert post(url, item()).status_code == 401
        pair = get(f"{url}/rewards/ocr/self_check", headers=headers).json()
        answer = post(url, pair["good"], headers=headers).json()
        assert answer["results"] == [{"ocr": {"score": 1.0, "exact": 1.0, "char": 1.0}}]
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)
        assert process.returncode in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
