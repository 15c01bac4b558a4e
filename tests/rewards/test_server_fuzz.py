"""The reward server under requests that schemathesis makes up from its own OpenAPI description, good and bad."""

import base64
import json
import random
from collections import Counter
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from xomni_rl.rewards.base import FunctionReward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.rewards.server import BackgroundServer
from xomni_rl.rewards.service import Service, local_scorers
from xomni_rl.rewards.wire import Limits, encode_image

EXAMPLES = 100
"""Per operation."""
PICTURE = encode_image(np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8))


def brightness(images: list[np.ndarray], prompts: list[object]) -> list[float]:
    return [image.mean() / 255 for image in images]


def make_server() -> BackgroundServer:
    reward = CompositeReward([Component("brightness", FunctionReward("brightness", brightness, {}))])
    return BackgroundServer(Service(local_scorers(reward), Limits(body_bytes=100_000, images=8, pixels=10_000)))


@pytest.fixture(scope="module")
def server() -> Iterator[BackgroundServer]:
    with make_server() as running:
        yield running


def assert_lives(url: str) -> None:
    item = {"history": [{"text": "x", "image_b64": encode_image(np.full((4, 4, 3), 51, np.uint8))}]}
    answer = httpx.post(f"{url}/score", json={"requests": [item]}, timeout=20, trust_env=False)
    assert answer.json()["results"] == [{"brightness": {"score": pytest.approx(0.2, abs=1e-6)}}]  # 51 / 255


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        ("GET /health", GenerationMode.POSITIVE),
        ("GET /rewards", GenerationMode.POSITIVE),
        ("GET /rewards/{name}/self_check", GenerationMode.POSITIVE),
        pytest.param("POST /score", GenerationMode.POSITIVE, marks=pytest.mark.slow),
        pytest.param("POST /score", GenerationMode.NEGATIVE, marks=pytest.mark.slow),
    ],
)
def test_every_operation_answers_as_it_is_described(server: BackgroundServer, operation: str, mode: GenerationMode) -> None:
    """With bodies and parameters as described (positive), and with ones that are wrong in some way (negative)."""
    method, path = operation.split()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    statuses = Counter[int]()

    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(timeout=20)
        case.validate_response(answer, checks=checks)
        statuses[answer.status_code] += 1

    ask()
    assert sum(statuses.values()) >= 1
    if operation == "POST /score":
        assert statuses[200] + statuses[400] > 0 if mode is GenerationMode.POSITIVE else statuses[422] > 0


@given(st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_damaged_good_request_never_breaks_the_server(server: BackgroundServer, randomly: random.Random, changes: int) -> None:
    """Bytes of a request that would be scored are changed, cut out and doubled, in the JSON and inside the picture."""
    picture = damaged(base64.b64decode(PICTURE), randomly, randomly.choice([0, changes]))
    item = {"history": [{"text": "x", "image_b64": base64.b64encode(picture).decode()}], "metadata": {"texts": ["A"]}}
    body = damaged(json.dumps({"requests": [item]}).encode(), randomly, randomly.choice([0, changes]))
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/score", content=body, headers=headers, timeout=20, trust_env=False)
    assert answer.status_code in (200, 400, 413, 422), answer.text
    if answer.status_code == 200:
        for result in answer.json()["results"]:
            assert 0 <= result["brightness"]["score"] <= 1


def damaged(whole: bytes, randomly: random.Random, changes: int) -> bytes:
    made = bytearray(whole)
    for _ in range(changes):
        place = randomly.randrange(len(made))
        kind = randomly.randrange(3)
        if kind == 0:
            made[place] = randomly.randrange(256)
        elif kind == 1:
            del made[place : place + randomly.randrange(20)]
        else:
            made[place:place] = made[place : place + randomly.randrange(20)]
    return bytes(made)


def test_server_lives_after_all_of_it(server: BackgroundServer) -> None:
    assert_lives(server.url)
