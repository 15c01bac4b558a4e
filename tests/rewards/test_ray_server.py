"""The reward server on a real Ray instance on this machine."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardUnavailableError, build_reward
from xomni_rl.rewards.ray_server import RayOptions

PORT = 8371
TOKEN = "s3cret"
REWARDS = """
import os


def brightness(images, prompts):
    return [image.mean() / 255 for image in images]


def environment(images, prompts):
    if any(not image.any() for image in images):
        raise ValueError("black")
    return [float(os.environ.get("XOMNI_TEST_NUMBER", "-1")) for _ in images]
"""
SERVE = """
import sys, threading
import ray
from xomni_rl.rewards import ray_server
from xomni_rl.rewards.wire import Limits

port, file = int(sys.argv[1]), sys.argv[2]
components = {
    name: {"reward": f"{file}:{name}", "weight": 0.5} for name in ("brightness", "environment")
}
options = {
    "brightness": ray_server.RayOptions(replicas=2, cpus=0.25),
    "environment": ray_server.RayOptions(
        min_replicas=1, max_replicas=2, cpus=0.25, runtime_env={"env_vars": {"XOMNI_TEST_NUMBER": "42"}}
    ),
}
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
try:
    try:
        ray_server.start({"components": components}, {"brighntess": ray_server.RayOptions()}, Limits(), port=port)
    except ValueError as error:
        print(error, flush=True)
    far = {"reward": "remote", "options": {"url": "http://127.0.0.1:9"}}
    try:
        ray_server.start({"components": {"far": far}}, {}, Limits(), port=port)
    except ray_server.RewardUnavailableError as error:
        print(error, flush=True)
    ray_server.start({"components": components}, options, Limits(images=8), port=port, token=sys.argv[3])
    print("ready", flush=True)
    sys.stdin.readline()
finally:
    ray_server.stop()
print("stopped", flush=True)
"""


# settings


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"replicsa": 2}, r'unknown setting ray\.ocr "replicsa"; nearest: replicas'),
        ({"replicas": 0}, r"ray\.ocr: replicas must be a whole number of at least 1, got 0"),
        ({"gpus": -1}, "gpus must be a number of at least 0"),
        ({"min_replicas": 2}, "min_replicas and max_replicas go together"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas 3 is more than max_replicas 2"),
        ({"min_replicas": 1, "max_replicas": 2, "replicas": 2}, "give either replicas"),
        ({"runtime_env": "x"}, "runtime_env must be a mapping"),
    ],
)
def test_wrong_setting_is_named(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RayOptions.parse("ocr", values)


def test_settings_become_ray_serves() -> None:
    assert RayOptions.parse("ocr", {"replicas": 3, "gpus": 0.5}).deployment() == {
        "ray_actor_options": {"num_cpus": 1.0, "num_gpus": 0.5},
        "num_replicas": 3,
    }
    runtime = {"pip": ["transformers==4.57"]}
    scaled = RayOptions(min_replicas=1, max_replicas=4, target_requests=8, runtime_env=runtime).deployment()
    assert scaled["ray_actor_options"]["runtime_env"] == runtime
    assert scaled["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}
    assert "num_replicas" not in scaled


# served


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two rewards on a Ray instance of two CPUs, in a process of its own; afterwards nothing of it is left."""
    pytest.importorskip("ray.serve")
    folder = tmp_path_factory.mktemp("ray")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "serve.py").write_text(SERVE)
    # Workers of niceness 15 would starve while other tests run.
    mark = f"XOMNI_TEST_MARK={uuid.uuid4()}"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "XOMNI_TEST_MARK": mark[16:]}
    command = [sys.executable, str(folder / "serve.py"), str(PORT), str(folder / "rewards.py"), TOKEN]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert 'unknown component in ray "brighntess"; nearest: brightness' in process.stdout.readline()
        assert "far: " in (line := process.stdout.readline()), line
        assert "http://127.0.0.1:9: cannot be reached" in line
        assert process.stdout.readline() == "ready\n"
        assert len(processes_with(mark)) > 5  # the driver, Ray's own and the replicas
        yield f"http://127.0.0.1:{PORT}"
        output, _ = process.communicate("\n", timeout=60)
        assert output.endswith("stopped\n")
        assert process.returncode == 0
        deadline = time.monotonic() + 20
        while left := processes_with(mark):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()


def processes_with(mark: str) -> list[str]:
    """Command lines of the processes that inherited this environment variable."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue
    return found


@pytest.mark.slow
def test_the_same_application_answers_on_ray(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XOMNI_TEST_TOKEN", TOKEN)
    images = [np.full((8, 8, 3), grey, np.uint8) for grey in (51, 102, 153)] * 4
    prompts = [Prompt(str(index), "x") for index in range(12)]
    bright = build_reward("remote", url=url, component="brightness", token_env="XOMNI_TEST_TOKEN", batch_size=5)
    np.testing.assert_allclose(bright(images, prompts).scores, [0.2, 0.4, 0.6] * 4, atol=1e-6)  # of 255
    with pytest.raises(RewardUnavailableError, match="refuses the token"):
        build_reward("remote", url=url, component="brightness").load()


@pytest.mark.slow
def test_reward_with_a_runtime_env_runs_in_it_and_fails_by_sample(url: str) -> None:
    from xomni_rl.rewards.wire import encode_image

    items = [{"history": [{"text": "x", "image_b64": encode_image(np.full((8, 8, 3), grey, np.uint8))}]} for grey in (0, 255)]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.post(f"{url}/score", json={"requests": items}, headers=headers, timeout=30, trust_env=False).json()
    assert answer["results"] == [{"brightness": {"score": 0.0}}, {"brightness": {"score": 1.0}, "environment": {"score": 42.0}}]
    assert answer["errors"] == [{"environment": "ValueError: black"}, {}]
    too_many = httpx.post(f"{url}/score", json={"requests": items * 5}, headers=headers, timeout=30, trust_env=False)
    assert too_many.status_code == 413
    listed = httpx.get(f"{url}/rewards", headers=headers, timeout=30, trust_env=False).json()
    assert {name: card["weight"] for name, card in listed["cards"].items()} == {"brightness": 0.5, "environment": 0.5}


@pytest.mark.slow
def test_health_counts_the_replicas(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        states = httpx.get(f"{url}/health", timeout=30, trust_env=False).json()["rewards"]
        if states["brightness"] == ["running"] * 2 and states["environment"] == ["running"]:
            return
        assert time.monotonic() < deadline, states
        time.sleep(0.2)
