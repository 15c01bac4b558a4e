"""The reward server on a real Ray instance on this machine."""

import json
import os
import signal
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
from typer.testing import CliRunner

from tests.rewards.reward_servers import free_port
from xomni_rl.cli import app
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardUnavailableError, build_reward
from xomni_rl.rewards.ray_server import RayOptions
from xomni_rl.rewards.server import bound_socket

TOKEN = "s3cret"
REWARDS = """
import os


def brightness(images, prompts):
    return [image.mean() / 255 for image in images]


def clashing_version(images, prompts):
    import clashing

    if any(not image.any() for image in images):
        raise ValueError("black")
    return [clashing.VERSION] * len(images)
"""
SERVE = """
import sys
import ray.serve
from xomni_rl.cli import app
from xomni_rl.rewards import ray_server
from xomni_rl.rewards.wire import Limits

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
far = {"reward": "remote", "options": {"url": "http://127.0.0.1:9"}}
try:
    ray_server.start({"components": {"far": far}}, {}, Limits(), port=int(sys.argv[1]))
except ray_server.RewardUnavailableError as error:
    print(error, flush=True)
ray.serve.shutdown()
app(["serve", *sys.argv[2:]])
"""
"""A reward that cannot start, and then the command, all on one Ray instance."""


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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["ray.orc.replicas=2"], 'unknown component in ray "orc"; nearest: ocr'),
        (["ray.ocr.replicas=0"], "ray.ocr: replicas must be a whole number of at least 1, got 0"),
        (["--port={taken}"], "127.0.0.1:{taken}: Address already in use"),
    ],
)
def test_what_is_wrong_is_found_out_before_ray_is_started(settings: list[str], sentence: str) -> None:
    pytest.importorskip("ray.serve")
    import ray

    with bound_socket("127.0.0.1", 0) as held:
        taken = held.getsockname()[1]
        given = [setting.format(taken=taken) for setting in settings]
        done = CliRunner().invoke(app, ["serve", "reward=ocr", "engine=ray", *given])
    assert done.exit_code == 1
    assert f"error: {sentence.format(taken=taken)}" in done.output
    assert not ray.is_initialized()


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
    """Three rewards on a Ray instance of two CPUs, in a process of its own; afterwards nothing of it is left."""
    pytest.importorskip("ray.serve")
    folder = tmp_path_factory.mktemp("ray")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "serve.py").write_text(SERVE)
    settings: dict[str, Any] = {"brightness": {"replicas": 2, "cpus": 0.25}}
    for version, name in ((1, "old"), (2, "new")):  # two packages of one name
        (folder / name).mkdir()
        (folder / name / "clashing.py").write_text(f"VERSION = {version}\n")
        settings[name] = {"cpus": 0.25, "runtime_env": {"env_vars": {"PYTHONPATH": path_with(folder / name)}}}
    settings["new"] |= {"min_replicas": 1, "max_replicas": 2}
    (folder / "ray.yaml").write_text(json.dumps(settings))
    arguments = ["reward=rewards.py:brightness", "reward.components.brightness.weight=0.5"]
    arguments += [f"+reward.components.{name}.reward={folder}/rewards.py:clashing_version" for name in ("old", "new")]
    arguments += ["engine=ray", "ray=ray.yaml", "--port=0", f"--token={TOKEN}", "--max-images=8"]
    # Workers of niceness 15 would starve while other tests run.
    mark = f"XOMNI_TEST_MARK={uuid.uuid4()}"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "XOMNI_TEST_MARK": mark[16:]}
    environment["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "serve.py", str(free_port()), *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "far: " in (line := process.stdout.readline()), line
        assert "http://127.0.0.1:9: cannot be reached" in line
        line = next((line for line in process.stdout if line.startswith("serving")), "")  # Ray says some things of its own
        assert line.startswith("serving brightness, old, new on Ray at http://127.0.0.1:"), line
        assert len(processes_with(mark)) > 5  # the driver, Ray's own and the replicas
        yield line.split()[7]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
        deadline = time.monotonic() + 20
        while left := processes_with(mark):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()


def path_with(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


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
def test_rewards_whose_packages_clash_are_served_together_and_fail_by_sample(url: str) -> None:
    from xomni_rl.rewards.wire import encode_image

    items = [{"history": [{"text": "x", "image_b64": encode_image(np.full((8, 8, 3), grey, np.uint8))}]} for grey in (0, 255)]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.post(f"{url}/score", json={"requests": items}, headers=headers, timeout=30, trust_env=False).json()
    white = {"brightness": {"score": 1.0}, "old": {"score": 1.0}, "new": {"score": 2.0}}
    assert answer["results"] == [{"brightness": {"score": 0.0}}, white]
    assert answer["errors"] == [{"old": "ValueError: black", "new": "ValueError: black"}, {}]
    too_many = httpx.post(f"{url}/score", json={"requests": items * 5}, headers=headers, timeout=30, trust_env=False)
    assert too_many.status_code == 413
    listed = httpx.get(f"{url}/rewards", headers=headers, timeout=30, trust_env=False).json()
    assert {name: card["weight"] for name, card in listed["cards"].items()} == {"brightness": 0.5, "old": 1.0, "new": 1.0}


@pytest.mark.slow
def test_health_counts_the_replicas(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        states = httpx.get(f"{url}/health", timeout=30, trust_env=False).json()["rewards"]
        if states["brightness"] == ["running"] * 2 and states["old"] == states["new"] == ["running"]:
            return
        assert time.monotonic() < deadline, states
        time.sleep(0.2)
