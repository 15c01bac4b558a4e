"""`xomni-rl serve`: rewards over HTTP, in one process or on Ray Serve."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xomni_rl.config import ConfigError, reward_config
from xomni_rl.registry import unknown_name

if TYPE_CHECKING:
    from xomni_rl.rewards.wire import Limits

ENGINES = ("local", "ray")
TOKEN_VARIABLE = "XOMNI_RL_SERVE_TOKEN"


@dataclass(frozen=True)
class Choices:
    """What `KEY=VALUE` arguments say: the reward, its overrides, the engine, and Ray's settings by component."""

    reward: str = "ocr"
    overrides: tuple[str, ...] = ()
    engine: str = "local"
    ray: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def serve(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="reward=…, reward.components.…, engine=ray, ray.…", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")] = 8200,
    token: Annotated[
        str | None,
        typer.Option(envvar=TOKEN_VARIABLE, help="Bearer token that clients must send.", show_default=False),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Images of one call of a reward.")] = 64,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long an idle reward waits for more than one request.")] = 2.0,
    max_images: Annotated[int, typer.Option(min=1, help="Of one request.")] = 512,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of one image.")] = 16 * 2**20,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Of one request, in MiB.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Images taken and not answered; beyond: 503.")] = 4096,
) -> None:
    """Serve rewards over HTTP: POST /score, GET /rewards, GET /health; the API's page is at /docs.

    Gates, normalisation and weights stay with the client, which asks for a component by its name.

    Examples:

    • xomni-rl serve reward=ocr

    • xomni-rl serve reward=embedded reward.components.ocr.options.metric=exact --port 9000

    • XOMNI_RL_SERVE_TOKEN=… xomni-rl serve reward=ocr --host 0.0.0.0

    • xomni-rl serve reward=hpsv2 engine=ray ray.hpsv2.replicas=4 ray.hpsv2.gpus=1
    """
    choices = parse_arguments(arguments or [])
    _check_access(host, token)
    config = reward_config(choices.reward, choices.overrides)
    from xomni_rl.rewards.wire import Limits

    limits = Limits(
        images=max_images, pixels=max_pixels, body_bytes=max_body_mb * 2**20, waiting_images=max(max_waiting, max_images)
    )
    if choices.engine == "ray":
        from xomni_rl.rewards.ray_server import RayOptions, serve_until_stopped

        options = {name: RayOptions.parse(name, dict(values)) for name, values in choices.ray.items()}
        serve_until_stopped(config, options, limits, host, port, token, max_batch, max_wait_ms / 1000, say=typer.echo)
    else:
        _serve_here(config, limits, host, port, token, max_batch, max_wait_ms / 1000)


def parse_arguments(arguments: Sequence[str]) -> Choices:
    """The `KEY=VALUE` arguments, sorted. Raises: ConfigError for one of another form."""
    reward, engine, overrides = "ocr", "local", []
    ray: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "reward" and equals:
            reward = value
        elif key == "engine" and equals:
            engine = value
        elif key == "ray" and equals:
            _merge(ray, _read_ray_file(Path(value)))
        elif key.startswith("ray.") and key.count(".") >= 2 and equals:
            _, component, setting = key.split(".", 2)
            _merge(ray, {component: {setting: _yaml(argument, value)}})
        elif key.lstrip("+~").startswith("reward."):
            overrides.append(argument)
        else:
            raise ConfigError(
                f"{argument!r} is no argument of serve; write reward=…, reward.components.…=…, engine=ray or ray.NAME.KEY=VALUE"
            )
    if engine not in ENGINES:
        raise ConfigError(unknown_name("engine", engine, ENGINES))
    if ray and engine != "ray":
        raise ConfigError("settings of Ray were given without engine=ray")
    return Choices(reward, tuple(overrides), engine, ray)


def _merge(settings: dict[str, dict[str, Any]], more: Mapping[str, Mapping[str, Any]]) -> None:
    for component, values in more.items():
        settings.setdefault(component, {}).update(values)


def _read_ray_file(path: Path) -> dict[str, dict[str, Any]]:
    found = _yaml(str(path), path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(isinstance(values, dict) for values in found.values()):
        raise ConfigError(f"{path} must map names of components to their settings (replicas, gpus, runtime_env, …)")
    return found


def _yaml(where: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not YAML") from error


def _check_access(host: str, token: str | None) -> None:
    """Raises: ConfigError if others could reach a server that asks for no token."""
    if token is not None and (not token.strip() or not token.isascii() or not token.isprintable()):
        raise ConfigError(
            f"the token must be printable ASCII and not empty; make one with `openssl rand -hex 16` ({TOKEN_VARIABLE})"
        )
    if token is None and not _is_loopback(host):
        raise ConfigError(f"{host} can be reached from elsewhere: give --token, or better {TOKEN_VARIABLE} in the environment")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _serve_here(
    config: Mapping[str, Any], limits: Limits, host: str, port: int, token: str | None, max_batch: int, max_wait_s: float
) -> None:
    from xomni_rl.rewards.composite import build_composite
    from xomni_rl.rewards.server import address, bound_socket, create_app, http_server
    from xomni_rl.rewards.service import Service, local_scorers

    reward = build_composite(config)
    with bound_socket(host, port) as listening:
        service = Service(local_scorers(reward, max_batch, max_wait_s), limits)
        server = http_server(create_app(service, token))
        typer.echo(f"serving {', '.join(service.scorers)} at {address(listening)} (API: {address(listening)}/docs)")
        server.run(sockets=[listening])
