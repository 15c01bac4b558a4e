"""The reward server on Ray Serve: the same HTTP application, and every reward in replicas of its own.

A replica builds its reward itself, from the configuration, in its own process and, if it has a `runtime_env`, with its own
packages. So rewards whose packages clash can be served together, and this process need not have any of them installed.
(Ray passes objects between its own processes in its own way; what comes over HTTP is JSON and pictures here too.)
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.composite import build_composite
from xomni_rl.rewards.server import bound_socket, create_app
from xomni_rl.rewards.service import LocalScorer, OverloadedError, Sample, Scorer, Service
from xomni_rl.rewards.wire import Limits, Outcome, RewardCard

if TYPE_CHECKING:
    from fastapi import FastAPI

APPLICATION = "xomni-rl-rewards"
INGRESS = "xomni-rl-http"
_COUNTS = ("replicas", "min_replicas", "max_replicas", "target_requests")


@dataclass(frozen=True)
class RayOptions:
    """How one reward runs on Ray.

    Args:
        replicas: processes of this reward, if their number is fixed.
        min_replicas, max_replicas: bounds of their number, if Ray adapts it to the load; both or none.
        target_requests: requests under way per replica that Ray aims at when it adapts the number.
        cpus, gpus: of one replica; fractions share a device.
        runtime_env: Ray's: {"pip": […]}, {"env_vars": {…}}, …; the replicas then have packages of their own.
    Raises: ValueError for numbers that make no sense, or both a fixed and an adapted number.
    """

    replicas: int = 1
    min_replicas: int | None = None
    max_replicas: int | None = None
    target_requests: int = 4
    cpus: float = 1.0
    gpus: float = 0.0
    runtime_env: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        if not isinstance(self.runtime_env, Mapping):
            raise ValueError(f"runtime_env must be a mapping such as {{pip: [transformers==4.57]}}, got {self.runtime_env!r}")
        if (self.min_replicas is None) != (self.max_replicas is None):
            raise ValueError("min_replicas and max_replicas go together")
        if self.min_replicas is not None and self.max_replicas is not None:
            if self.replicas != 1:
                raise ValueError("give either replicas, or min_replicas and max_replicas")
            if self.min_replicas > self.max_replicas:
                raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")

    @classmethod
    def parse(cls, component: str, values: Mapping[str, Any]) -> "RayOptions":
        """From a configuration. Raises: ValueError naming the component and the key."""
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(unknown_name(f"setting ray.{component}", str(key), known))
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"ray.{component}: {error}") from error

    def deployment(self) -> dict[str, Any]:
        """Arguments of Ray Serve's `deployment`."""
        actor = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.runtime_env:
            actor["runtime_env"] = dict(self.runtime_env)  # type: ignore[assignment]
        if self.min_replicas is None:
            return {"ray_actor_options": actor, "num_replicas": self.replicas}
        scaling = {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_requests,
        }
        return {"ray_actor_options": actor, "autoscaling_config": scaling}


class Replica:
    """One process of a served reward.

    Args:
        name: of the component.
        entry: its configuration {reward, options, weight, …}.
        max_batch, max_wait_s: of its `Batcher`.
    Raises: RewardUnavailableError if it cannot be loaded.
    """

    def __init__(self, name: str, entry: Mapping[str, Any], max_batch: int, max_wait_s: float) -> None:
        [component] = build_composite({"components": {name: {**entry, "weight": 1.0}}}).parts
        component.reward.load()
        self.weight = float(entry.get("weight", 1.0))
        self.scorer = LocalScorer(component, max_batch, max_wait_s)

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        return await self.scorer.score(samples)

    async def card(self) -> RewardCard:
        return (await self.scorer.card()).model_copy(update={"weight": self.weight})

    async def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        return await self.scorer.self_check()


class RayScorer:
    """A reward in Ray's replicas, as the HTTP application sees it.

    Args:
        handle: Ray Serve's handle of the deployment.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        from ray.serve.exceptions import BackPressureError

        try:
            found: list[Outcome] = await self.handle.score.remote(list(samples))
        except BackPressureError as error:
            raise OverloadedError("too many requests are waiting for this reward; try again later") from error
        return found

    async def card(self) -> RewardCard:
        found: RewardCard = await self.handle.card.remote()
        return found

    async def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        found: tuple[np.ndarray, np.ndarray, Prompt] = await self.handle.self_check.remote()
        return found

    async def states(self) -> list[str]:
        from ray import serve

        replicas = serve.status().applications[APPLICATION].deployments[self.handle.deployment_name].replica_states
        return [str(state).lower() for state, count in replicas.items() for _ in range(count)]

    async def close(self) -> None:
        """Ray stops its replicas itself."""


def start(
    config: Mapping[str, Any],
    options: Mapping[str, RayOptions],
    limits: Limits,
    host: str = "127.0.0.1",
    port: int = 8200,
    token: str | None = None,
    max_batch: int = 64,
    max_wait_s: float = 0.002,
) -> None:
    """Starts the rewards and the HTTP application on the Ray cluster of this process (`ray.init` starts or joins one).

    Args:
        config: of a composite; its components are served.
        options: component → how it runs; the others run in one replica.
        limits, token, max_batch, max_wait_s: as of the server without Ray.
        host, port: where Ray listens for HTTP.
    Raises: ValueError for a component that is not there; RewardUnavailableError if a replica cannot start.
    """
    from ray import serve

    components = config["components"]
    check_components(config, options)
    serve.start(http_options={"host": host, "port": port})
    replica = serve.deployment(Replica)
    bound = {}
    for name, entry in components.items():
        chosen = options.get(name, RayOptions()).deployment()
        made = replica.options(name=name, max_ongoing_requests=max(1024, max_batch), **chosen)
        bound[name] = made.bind(name, dict(entry), max_batch, max_wait_s)
    ingress = serve.deployment(serve.ingress(_application(tuple(bound), limits, token))())
    ingress = ingress.options(name=INGRESS, max_ongoing_requests=limits.waiting_images, ray_actor_options={"num_cpus": 0})
    try:
        serve.run(ingress.bind(bound), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        deployments = serve.status().applications[APPLICATION].deployments
        reasons = [f"{name}: {_reason(found.message)}" for name, found in deployments.items() if "Error" in found.message]
        raise RewardUnavailableError(f"the rewards did not start on Ray: {'; '.join(reasons) or error}") from error


def stop() -> None:
    """Stops what `start` started, and the Ray processes of this session."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def check_components(config: Mapping[str, Any], options: Mapping[str, RayOptions]) -> None:
    """Raises ValueError for settings of a component that is not there."""
    for name in options:
        if name not in config["components"]:
            raise ValueError(unknown_name("component in ray", name, config["components"]))


def serve_until_stopped(
    config: Mapping[str, Any],
    options: Mapping[str, RayOptions],
    limits: Limits,
    host: str,
    port: int,
    *others: Any,
    say: Callable[[str], None],
) -> None:
    """`start` with these arguments, then waits for SIGINT or SIGTERM and stops.

    Joins the cluster of RAY_ADDRESS, or starts one on this machine. What is wrong is found out before, which takes moments.

    Args:
        config, options, limits, host, others: of `start`.
        port: of `start`; 0 = any free one.
        say: prints a line.
    Raises: OSError with the address if this machine's port is taken; otherwise as `start`.
    """
    check_components(config, options)
    try:
        import ray
        import ray.serve
    except ImportError as error:
        raise RewardUnavailableError("engine=ray needs Ray Serve: pip install 'xomni-rl[ray]'") from error
    if not os.environ.get("RAY_ADDRESS"):
        with bound_socket(host, port) as probe:
            port = probe.getsockname()[1]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves a reward beside anything else on the machine
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    stopped = threading.Event()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        start(config, options, limits, host, port, *others)
        say(f"serving {', '.join(config['components'])} on Ray at http://{host}:{port} (API: http://{host}:{port}/docs)")
        stopped.wait()
    finally:
        stop()


def _application(names: Sequence[str], limits: Limits, token: str | None) -> Callable[[], "FastAPI"]:
    """A function that makes the HTTP application in the process where Ray runs it."""

    def build() -> "FastAPI":
        from ray import serve

        scorers: dict[str, Scorer] = {name: RayScorer(serve.get_deployment_handle(name, APPLICATION)) for name in names}
        return create_app(Service(scorers, limits), token)

    return build


def _reason(message: str) -> str:
    """What a person can use of the traceback that Ray gives: its last line that names an exception."""
    return [line.strip() for line in message.splitlines() if "Error" in line][-1]
