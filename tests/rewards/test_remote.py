"""The reward `remote` against real servers on the loopback interface: in order, and with every fault we know."""

import copy
import json
import pickle
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rewards.reward_servers import Scripted, free_port, scores_of, serve
from xomni_rl.prompts import Prompt
from xomni_rl.rewards import remote_client
from xomni_rl.rewards.base import FunctionReward, Reward, RewardError, RewardResult, RewardUnavailableError, build_reward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.rewards.remote_answers import chunk_ends
from xomni_rl.rewards.server import BackgroundServer
from xomni_rl.rewards.service import Service, local_scorers
from xomni_rl.rewards.wire import Limits

TIMEOUT = 30
GREYS = [np.full((8, 8, 3), grey, np.uint8) for grey in (0, 51, 102, 153, 204, 255)]  # n / 5 of white
PROMPTS = [Prompt(str(index), "a grey square") for index in range(len(GREYS))]
SHARES = np.arange(6, dtype=np.float32) / 5


def brightness(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    means = np.array([image.mean() / 255 for image in images])
    return RewardResult(means, [{"asked": prompt.text} for prompt in prompts], {"square": means**2})


brightness.range = (0.0, 1.0)  # type: ignore[attr-defined]
brightness.version = "7"  # type: ignore[attr-defined]


def darkness(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    return [float(image.mean()) for image in images]


darkness.higher_is_better = False  # type: ignore[attr-defined]
darkness.range = (0.0, 255.0)  # type: ignore[attr-defined]


def half(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Fails on what is darker than half, does not apply to white."""
    means = np.array([image.mean() / 255 for image in images])
    dark = means < 0.5
    result = RewardResult(np.where(dark | (means == 1), np.nan, means), [{} for _ in images])
    if dark.any():
        raise RewardError("half", {int(index): "too dark" for index in np.flatnonzero(dark)}, result)
    return result


def remote(url: str, **options: Any) -> Reward:
    return build_reward("remote", url=url, **{"timeout": TIMEOUT} | options)


def failures_of(reward: Reward, images: Sequence[np.ndarray] = GREYS) -> RewardError:
    """The RewardError of scoring; its partial result is there, NaN where it failed."""
    with pytest.raises(RewardError) as caught:
        reward(images, PROMPTS[: len(images)])
    assert caught.value.partial is not None
    assert np.isnan(caught.value.partial.scores[list(caught.value.failures)]).all()
    return caught.value


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts of milliseconds."""
    monkeypatch.setattr(remote_client, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(brightness, darkness, half) as server:
        yield server.url


# in order


@pytest.mark.parametrize("image_format", ["png", "webp"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_scores_details_and_metrics_are_those_of_the_served_reward(url: str, image_format: str, batch_size: int) -> None:
    result = remote(url, component="brightness", image_format=image_format, batch_size=batch_size)(GREYS, PROMPTS)
    np.testing.assert_allclose(result.scores, SHARES, atol=1e-6)
    np.testing.assert_allclose(result.metrics["square"], SHARES**2, atol=1e-6)
    assert result.details == [{"asked": "a grey square"}] * 6


def test_attributes_are_those_of_the_served_reward(url: str) -> None:
    bright, dark = remote(url, component="brightness"), remote(url, component="darkness")
    assert (bright.version, bright.range, bright.higher_is_better, bright.floor) == ("7", (0.0, 1.0), True, 0.0)
    assert (dark.version, dark.range, dark.higher_is_better, dark.floor) == ("unversioned", (0.0, 255.0), False, 255.0)
    assert url in bright.cost


def test_images_of_mixed_sizes_keep_their_order(url: str) -> None:
    images = [np.full((8 + index, 30 - index, 3), 51 * (index % 6), np.uint8) for index in range(20)]
    prompts = [Prompt(str(index), "x") for index in range(20)]
    scores = remote(url, component="brightness", batch_size=3)(images, prompts).scores
    np.testing.assert_allclose(scores, np.array([index % 6 for index in range(20)]) / 5, atol=1e-6)


def test_prompt_arrives_whole() -> None:
    seen: list[Prompt] = []

    def look(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        seen.extend(prompts)
        return [0.0] * len(images)

    prompt = Prompt("id7", "说“你好”", ("你好",), ({"class": "dog", "count": 2},), "zh", (8, 8), {"source": {"name": "web"}})
    with serve(look) as server:
        remote(server.url)([GREYS[0]], [prompt])
    assert seen == [prompt]


def test_nan_of_what_does_not_apply_survives_and_is_no_failure(url: str) -> None:
    result = remote(url, component="half")(GREYS[3:], PROMPTS[3:])
    np.testing.assert_allclose(result.scores, [0.6, 0.8, np.nan], atol=1e-6)


def test_demonstration_serves_the_ocr_reward_and_its_pictures(tmp_path: Path) -> None:
    options = build_reward("remote", url="http://x").write_tiny(tmp_path)
    reward = build_reward("remote", **options)
    good, worthless, prompt = reward.self_check()
    result = reward([good, worthless, good[:, ::-1].copy()], [prompt] * 3)
    local = build_reward("ocr", layout="line")([good, worthless, good[:, ::-1].copy()], [prompt] * 3)
    assert result.scores[0] > result.scores[1] == reward.floor
    np.testing.assert_array_equal(result.scores, local.scores)
    assert result.details == local.details
    singles = [reward([image], [prompt]).scores[0] for image in (good, worthless)]
    np.testing.assert_array_equal(singles, result.scores[:2])


def test_copy_and_pickle_after_scoring_score_the_same(url: str) -> None:
    reward = remote(url, component="brightness")
    before = [image.copy() for image in GREYS]
    scores = reward(GREYS, PROMPTS).scores
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        np.testing.assert_array_equal(twin(GREYS, PROMPTS).scores, scores)
    np.testing.assert_array_equal(GREYS, before)


def test_nothing_to_score_contacts_nobody() -> None:
    reward = build_reward("remote", url="http://127.0.0.1:9")
    assert reward([], []).scores.shape == (0,)
    with pytest.raises(ValueError, match="got 0 images and 1 prompts"):
        reward([], PROMPTS[:1])


def test_threads_share_a_reward(url: str) -> None:
    reward = remote(url, component="brightness", batch_size=2)
    with ThreadPoolExecutor(8) as pool:
        for scores in pool.map(lambda _: reward(GREYS, PROMPTS).scores, range(24)):
            np.testing.assert_allclose(scores, SHARES, atol=1e-6)


def test_remote_reward_is_a_component_like_any_other(url: str) -> None:
    options = {"url": url, "component": "darkness"}
    reward = build_composite(
        {
            "components": {
                "dark": {"reward": "remote", "options": options},
                "bright": {"reward": "remote", "options": options},
            },
            "gates": {"dark": "bright > 100"},
        }
    )
    result = reward(GREYS, PROMPTS)
    np.testing.assert_allclose(result.components[:, 0], SHARES * 255, atol=1e-4)
    # lower is better, so it is negated; where the gate is closed (0, 51 ≤ 100) the floor counts
    np.testing.assert_allclose(result.normalised[:, 0], [-255, -255, -102, -153, -204, -255], atol=1e-4)


def test_only_reward_needs_no_name_and_one_of_several_does(url: str) -> None:
    with serve(brightness) as server:
        assert remote(server.url).version == "7"
    with pytest.raises(RewardUnavailableError, match="it serves brightness, darkness, half; say which as the option component"):
        remote(url).load()
    with pytest.raises(RewardUnavailableError, match="nearest: brightness"):
        remote(url, component="brihgtness").load()


def test_unirls_service_can_be_asked() -> None:
    """Its answers have names of rewards alone, figures under their own names, and null for a sample that failed."""

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        figures: list[Any] = [{"Alignment": 0.7, "Style": 0.1}, {"Alignment": None}, {}]
        results = [{"brightness": each} if each else {} for each in figures]
        return 200, {}, json.dumps({"results": results, "errors": [{}, {}, {"brightness": "TimeoutError()"}]}).encode()

    with Scripted(answer) as server:
        reward = remote(server.url)
        error = failures_of(reward, GREYS[:3])
        assert error.failures[1] == "the answer's score is None, which is no finite number"
        assert error.failures[2] == "TimeoutError()"
        assert error.partial is not None
        assert error.partial.scores[0] == pytest.approx(0.7)
        assert reward.range == (-np.inf, np.inf)
        styles = failures_of(remote(server.url, metric="Style"), GREYS[:3]).partial
        assert styles is not None
        assert styles.scores[0] == pytest.approx(0.1)
        with pytest.raises(NotImplementedError, match="got no pictures"):
            reward.self_check()
    [sent] = [request["requests"][0] for request in server.requests[:1]]
    assert set(sent) == {"history", "required_rewards", "metadata"}
    assert sent["required_rewards"] == ["brightness"]


def test_connections_are_kept_between_batches() -> None:
    with Scripted(lambda body: (200, {}, scores_of(body))) as server:
        reward = remote(server.url, concurrency=2, batch_size=3)
        for _ in range(5):
            np.testing.assert_array_equal(reward(GREYS, PROMPTS).scores, [0.5] * 6)
        assert len(server.requests) == 10
        assert server.connections == 2


def test_no_more_requests_than_allowed_are_under_way() -> None:
    together = threading.Barrier(3)

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        together.wait(TIMEOUT)  # three at a time, or nobody gets on
        return 200, {}, scores_of(body)

    with Scripted(answer) as server:
        remote(server.url, concurrency=3, batch_size=1)(GREYS, PROMPTS)
        assert (len(server.requests), server.busiest) == (6, 3)


# options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "needs the address of a server"),
        ({"url": "127.0.0.1:8200"}, "no address of a server"),
        ({"url": "ftp://x"}, "no address of a server"),
        ({"urls": "http://x"}, "must be a list, got 'http://x'"),
        ({"url": "http://x", "timeout": 0}, "timeout must be"),
        ({"url": "http://x", "timeout": float("inf")}, "timeout must be"),
        ({"url": "http://x", "retries": -1}, "retries must be"),
        ({"url": "http://x", "concurrency": 0}, "concurrency must be"),
        ({"url": "http://x", "batch_size": 0.5}, 'batch_size of reward "remote" must be a whole number, got 0.5'),
        ({"url": 8200}, 'url of reward "remote" must be text or null, got 8200'),
        ({"urls": [8200]}, "'8200' is no address of a server"),
        ({"url": "http://x", "image_format": "gif"}, "unknown image_format"),
        ({"url": "http://x", "componnet": "a"}, "nearest: component"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_reward("remote", **options)


def test_requests_are_cut_by_images_and_pixels() -> None:
    assert chunk_ends([1] * 7, 3, Limits()) == [3, 6, 7]
    assert chunk_ends([1] * 7, 30, Limits(images=4)) == [4, 7]
    assert chunk_ends([6, 5, 4, 99, 1], 30, Limits(request_pixels=10)) == [1, 3, 4, 5]
    assert chunk_ends([], 3, Limits()) == []


# faults


def test_server_down_at_the_start_is_named_with_the_remedy_at_once() -> None:
    port = free_port()
    start = time.monotonic()
    with pytest.raises(RewardUnavailableError, match=rf"http://127\.0\.0\.1:{port}: cannot be reached.*xomni-rl serve"):
        remote(f"http://127.0.0.1:{port}").load()
    assert time.monotonic() - start < 5


def test_server_that_says_nothing_at_the_start_is_told_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and nobody ever reads them
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RewardUnavailableError, match=rf"{url}: did not answer in time"):
            remote(url, timeout=0.5).load()


def test_server_that_comes_later_is_found_by_the_same_reward() -> None:
    port = free_port()
    reward = remote(f"http://127.0.0.1:{port}")
    with pytest.raises(RewardUnavailableError):
        reward(GREYS, PROMPTS)
    with serve(brightness, port=port):
        np.testing.assert_allclose(reward(GREYS, PROMPTS).scores, SHARES, atol=1e-6)


@pytest.mark.parametrize("listed", [b"<html>hello</html>", b"{}", b'{"rewards": 3}', b'{"rewards": []}'])
def test_something_else_at_the_address_is_told(listed: bytes) -> None:
    words = r"answers, but is no reward server|it serves nothing"
    with Scripted(lambda _: None, listed) as server, pytest.raises(RewardUnavailableError, match=words):
        remote(server.url).load()


@pytest.mark.usefixtures("hasty")
def test_server_that_goes_away_fails_the_samples_and_returns() -> None:
    server = serve(brightness)
    port = int(server.url.rpartition(":")[2])
    reward = remote(server.url, retries=2)
    reward.load()
    server.close()
    error = failures_of(reward)
    assert sorted(error.failures) == list(range(6))
    assert f":{port}: cannot be reached" in error.failures[0]
    assert "3 attempts" in error.failures[0]
    with serve(brightness, port=port):
        np.testing.assert_allclose(reward(GREYS, PROMPTS).scores, SHARES, atol=1e-6)


def test_server_that_returns_while_it_is_tried_again_costs_nothing() -> None:
    server = serve(brightness)
    port = int(server.url.rpartition(":")[2])
    reward = remote(server.url)
    reward.load()
    server.close()
    with ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(reward, GREYS, PROMPTS)
        time.sleep(0.3)
        with serve(brightness, port=port):
            np.testing.assert_allclose(scoring.result(TIMEOUT).scores, SHARES, atol=1e-6)


@pytest.mark.usefixtures("hasty")
def test_other_servers_take_over_from_one_that_is_gone() -> None:
    with serve(brightness) as stays:
        goes = serve(brightness)
        reward = build_reward("remote", urls=[goes.url, stays.url], batch_size=1, timeout=TIMEOUT)
        reward.load()
        goes.close()
        np.testing.assert_allclose(reward(GREYS, PROMPTS).scores, SHARES, atol=1e-6)
        again = build_reward("remote", urls=[goes.url, stays.url], batch_size=2, timeout=TIMEOUT)  # one is down at the start
        np.testing.assert_allclose(again(GREYS, PROMPTS).scores, SHARES, atol=1e-6)


def test_requests_are_spread_over_the_servers() -> None:
    with Scripted(lambda body: (200, {}, scores_of(body))) as one, Scripted(lambda body: (200, {}, scores_of(body))) as other:
        build_reward("remote", urls=[one.url, other.url], batch_size=1)(GREYS, PROMPTS)
        assert len(one.requests) == len(other.requests) == 3


def test_servers_that_do_not_agree_are_refused() -> None:
    def brightness_of_another_version(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        return brightness(images, prompts)

    parts = [Component("brightness", FunctionReward("brightness", brightness_of_another_version, {}))]
    with serve(brightness) as one, BackgroundServer(Service(local_scorers(CompositeReward(parts)), Limits())) as other:
        reward = build_reward("remote", urls=[one.url, other.url], component="brightness")
        with pytest.raises(RewardUnavailableError, match="do not agree on the version"):
            reward.load()


def test_server_that_comes_back_with_another_version_stops_the_run() -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps(json.loads(scores_of(body)) | {"versions": {"brightness": "2"}}).encode()

    words = 'version 2 of "brightness" and not with unversioned'
    with Scripted(answer) as server, pytest.raises(RewardUnavailableError, match=words):
        remote(server.url)(GREYS, PROMPTS)


@pytest.mark.parametrize(
    ("status", "attempts"), [(400, 1), (404, 1), (422, 1), (500, 1), (301, 1), (429, 4), (502, 4), (503, 4), (504, 4)]
)
@pytest.mark.usefixtures("hasty")
def test_only_what_may_pass_is_tried_again(status: int, attempts: int) -> None:
    with Scripted(lambda body: (status, {"Location": "/"}, b'{"detail": "no luck"}')) as server:
        error = failures_of(remote(server.url, retries=3))
        assert f"HTTP {status}: no luck" in error.failures[0]
        assert server.url in error.failures[0]
    assert len(server.requests) == attempts


@pytest.mark.usefixtures("hasty")
def test_trouble_that_passes_is_not_seen() -> None:
    troubles = [(503, {"Retry-After": "0"}, b"{}"), None, (502, {}, b"bad gateway")]
    state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        return troubles.pop() if troubles else (200, {}, scores_of(body))

    with Scripted(answer) as server:
        np.testing.assert_array_equal(remote(server.url, retries=3)(GREYS, PROMPTS).scores, [0.5] * 6)
    assert len(server.requests) == 4
    assert state == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]


def test_servers_wish_to_wait_is_respected() -> None:
    refusals = [(503, {"Retry-After": "1"}, b"{}")]
    start = time.monotonic()
    with Scripted(lambda body: refusals.pop() if refusals else (200, {}, scores_of(body))) as server:
        remote(server.url)(GREYS, PROMPTS)
    assert time.monotonic() - start > 1


def test_wish_to_wait_that_is_no_number_is_passed_over(hasty: None) -> None:
    refusals = [(503, {"Retry-After": "²"}, b"{}")]  # a digit to str.isdigit, no number to float
    with Scripted(lambda body: refusals.pop() if refusals else (200, {}, scores_of(body))) as server:
        assert remote(server.url)(GREYS, PROMPTS).scores.tolist() == [0.5] * 6


GOOD = {"brightness": {"brightness": 0.5}}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "garbage"),
        (b"<html>", "garbage"),
        (b"[]", "garbage"),
        (b"5", "garbage"),
        (b"{}", "garbage"),
        (b"\xff\xfe\x00", "garbage"),
        (b"[" * 100_000, "garbage"),
        (json.dumps({"results": 5}).encode(), "garbage"),
        (json.dumps({"results": [GOOD]}).encode(), "instead of one entry for each of 2 images"),
        (json.dumps({"results": [GOOD] * 3}).encode(), "instead of one entry for each of 2 images"),
        (json.dumps({"results": [GOOD, None]}).encode(), "instead of one entry for each of 2 images"),
        (json.dumps({"results": [GOOD] * 2, "errors": [{}]}).encode(), "instead of one entry for each of 2 images"),
        (json.dumps({"results": [GOOD] * 2, "details": 3}).encode(), "instead of one entry for each of 2 images"),
        (json.dumps({"results": [{}] * 2}).encode(), "neither a score"),
        (json.dumps({"results": [{"brightness": {}}] * 2}).encode(), "neither a score"),
        (json.dumps({"results": [{"brightness": 0.5}] * 2}).encode(), "neither a score"),
        *(
            (json.dumps({"results": [{"brightness": {"brightness": value}}] * 2}).encode(), "no finite number")
            for value in ("0.5", True, None, [0.5], float("nan"), float("inf"), 10**400)
        ),
        (b'{"results": [{"brightness": {"brightness": 1e999}}, {"brightness": {"brightness": -1e999}}]}', "no finite number"),
    ],
)
def test_garbage_is_a_failure_and_never_a_score(body: bytes, reason: str) -> None:
    with Scripted(lambda _: (200, {}, body)) as server:
        error = failures_of(remote(server.url), GREYS[:2])
        assert sorted(error.failures) == [0, 1]
        assert reason in error.failures[0]
    assert len(server.requests) == 1


def test_score_out_of_the_declared_range_is_a_failure() -> None:
    def boastful(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        return [0.5, 7.0]

    boastful.range = (0.0, 1.0)  # type: ignore[attr-defined]
    with serve(boastful) as server:
        error = failures_of(remote(server.url), GREYS[:2])
    assert "score 7 is not in [0, 1]" in error.failures[1]


def test_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_client, "MOST_ANSWER_BYTES", 100_000)
    with Scripted(lambda _: (200, {}, b" " * 10_000_000)) as server:
        assert "answers more than 100000 bytes" in failures_of(remote(server.url)).failures[0]


def test_half_of_the_samples_failing_keeps_the_other_half(url: str) -> None:
    error = failures_of(remote(url, component="half", batch_size=2))
    assert error.failures == dict.fromkeys((0, 1, 2), "too dark")
    assert error.partial is not None
    np.testing.assert_allclose(error.partial.scores, [np.nan] * 3 + [0.6, 0.8, np.nan], atol=1e-6)


def test_slow_server_meets_the_deadline_and_what_came_in_time_is_kept() -> None:
    over = threading.Event()

    def slow_on_white(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        if any(image.min() == 255 for image in images):
            over.wait(TIMEOUT)
        return [0.5] * len(images)

    with serve(slow_on_white) as server:
        reward = remote(server.url, timeout=2.0, batch_size=1, concurrency=1)  # one after another, white is the last
        reward.load()
        start = time.monotonic()
        error = failures_of(reward)
        assert time.monotonic() - start < TIMEOUT / 2
        over.set()
    assert list(error.failures) == [5]
    assert error.failures[5].startswith(f"not scored within 2 s by {server.url}")
    assert error.partial is not None
    assert error.partial.scores[:5].tolist() == [0.5] * 5


def test_server_that_sends_a_byte_now_and_then_meets_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def trickle() -> None:
            while not stop.is_set():
                connection, _ = listening.accept()
                asked = connection.recv(65536)
                if asked.startswith(b"GET"):
                    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{"rewards": ["brightness"]}')
                    asked = connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                try:
                    while not stop.wait(0.1):
                        connection.sendall(b"x")
                except OSError:
                    return

        threading.Thread(target=trickle, daemon=True).start()
        start = time.monotonic()
        error = failures_of(remote(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=1.0), GREYS[:1])
        stop.set()
    assert "not scored within 1 s" in error.failures[0]
    assert time.monotonic() - start < 5


def test_overloaded_server_is_asked_again_until_it_has_room() -> None:
    def unhurried(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        time.sleep(0.05)
        return brightness(images, prompts)

    with serve(unhurried, waiting_images=2) as server:
        reward = remote(server.url, batch_size=1, concurrency=6, retries=20)
        np.testing.assert_allclose(reward(GREYS, PROMPTS).scores, SHARES, atol=1e-6)


def test_limits_of_the_server_are_kept() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3)).astype(np.uint8)
    expected = noise.mean(axis=(1, 2, 3)) / 255
    for limits in ({"images": 2}, {"request_pixels": 3200}, {"body_bytes": 15_000}):  # a picture: 1600 px, about 6500 bytes
        with serve(brightness, **limits) as server:
            np.testing.assert_allclose(remote(server.url)(noise, PROMPTS).scores, expected, atol=1e-6)


def test_request_that_is_too_large_for_something_in_between_is_halved() -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if len(body["requests"]) > 2:
            return 413, {}, b"<html>nginx</html>"
        ids = [int(request["metadata"]["id"]) for request in body["requests"]]
        return 200, {}, json.dumps({"results": [{"brightness": {"brightness": number}} for number in ids]}).encode()

    with Scripted(answer) as server:
        assert remote(server.url)(GREYS, PROMPTS).scores.tolist() == [0, 1, 2, 3, 4, 5]
    assert [len(request["requests"]) for request in server.requests] == [6, 3, 1, 2, 3, 1, 2]


def test_prompt_that_is_no_json_is_named(url: str) -> None:
    prompts = [Prompt("p", "x", metadata={"score": float("nan")}), Prompt("q", "x", metadata={"a": object()})]
    for prompt in prompts:
        with pytest.raises(RewardError, match="cannot be sent as JSON"):
            remote(url, component="brightness")(GREYS[:1], [prompt])


def test_token_is_sent_and_its_lack_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(brightness, token="s3cret") as server:
        with pytest.raises(RewardUnavailableError, match=r"refuses the token.*give the option token_env"):
            remote(server.url).load()
        reward = remote(server.url, token_env="XOMNI_TEST_TOKEN")
        with pytest.raises(RewardUnavailableError, match=r"XOMNI_TEST_TOKEN holds no key; put the server's token"):
            reward.load()
        monkeypatch.setenv("XOMNI_TEST_TOKEN", "wrong")
        with pytest.raises(RewardUnavailableError, match="check the token in XOMNI_TEST_TOKEN"):
            reward.load()
        monkeypatch.setenv("XOMNI_TEST_TOKEN", "s3cret\n")  # as `$(cat file)` does not, but an env file does, leave it
        np.testing.assert_allclose(reward(GREYS, PROMPTS).scores, SHARES, atol=1e-6)


@pytest.mark.parametrize("token", ["schlüssel", "two\nlines", "\n"])
def test_token_that_no_header_can_hold_is_told_without_it(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("XOMNI_TEST_TOKEN", token)
    with Scripted(lambda body: (200, {}, scores_of(body))) as server:
        with pytest.raises(RewardUnavailableError, match="variable XOMNI_TEST_TOKEN holds no key") as caught:
            remote(server.url, token_env="XOMNI_TEST_TOKEN").load()
        assert server.connections == 0
    assert token not in str(caught.value)


def test_token_given_in_place_of_its_variable_is_refused_without_it() -> None:
    with pytest.raises(ValueError, match="token_env must be the name of an environment variable") as caught:
        remote("http://x", token_env="secret-abc")
    assert "secret" not in str(caught.value)


def repeated(token: str, count: int) -> dict[str, Any]:
    """An answer with the token wherever there is text."""
    figures = {"brightness": {"brightness": 0.5, token: 1.0}}
    return {
        "results": [figures] * count,
        "details": [{"brightness": {"headers": [f"Bearer {token}"], token: token}}] * count,
        "errors": [{}] * (count - 1) + [{"brightness": f"got Bearer {token}"}],
    }


def test_token_that_a_server_repeats_in_its_scores_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XOMNI_TEST_TOKEN", "secret-abc")
    with Scripted(lambda _: (200, {}, json.dumps(repeated("secret-abc", 2)).encode())) as server:
        error = failures_of(remote(server.url, token_env="XOMNI_TEST_TOKEN"), GREYS[:2])
    assert error.failures == {1: "got Bearer ***"}
    assert error.partial is not None
    assert error.partial.details[0] == {"headers": ["Bearer ***"], "***": "***"}
    assert list(error.partial.metrics) == ["***"]
    assert error.partial.scores[0] == 0.5


@pytest.mark.parametrize("body", [b'{"detail": "bad header Bearer secret-abc"}', b"." * 195 + b"secret-abc"])
def test_token_that_a_server_repeats_in_its_refusal_shows_nowhere(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    # The second body is cut after 200 characters: "secre" of the token would be left of it.
    monkeypatch.setenv("XOMNI_TEST_TOKEN", "secret-abc")
    with Scripted(lambda _: (400, {}, body)) as server:
        error = failures_of(remote(server.url, token_env="XOMNI_TEST_TOKEN"))
    assert "HTTP 400" in error.failures[0]
    assert "***" in error.failures[0]
    assert "secre" not in error.failures[0]


def test_token_that_a_server_repeats_in_what_it_serves_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XOMNI_TEST_TOKEN", "secret-abc")
    with (
        Scripted(lambda _: None, b'{"rewards": ["a", "Bearer secret-abc"]}') as server,
        pytest.raises(RewardUnavailableError, match=r"it serves Bearer \*\*\*, a; say which"),
    ):
        remote(server.url, token_env="XOMNI_TEST_TOKEN").load()


def test_failed_batch_is_not_scored_again_one_by_one() -> None:
    with Scripted(lambda _: (500, {}, b"{}")) as server:
        reward = build_composite(
            {"components": {"far": {"reward": "remote", "options": {"url": server.url}}}, "on_failure": "drop"}
        )
        result = reward(GREYS, PROMPTS)
    assert result.failed.all()
    assert len(server.requests) == 1
