"""Rewards over HTTP: POST /score, GET /rewards, GET /health, an OpenAPI page at /docs; the form is that of `wire.py`.

What comes over the wire is JSON and pictures, never pickles; whatever is too large, damaged or not allowed is answered with
a 4xx and one sentence.
"""

import asyncio
import hmac
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from xomni_rl.rewards.batching import ClosedError
from xomni_rl.rewards.composite import build_composite
from xomni_rl.rewards.service import OverloadedError, Service, local_scorers
from xomni_rl.rewards.wire import (
    Health,
    Limits,
    Problem,
    RewardList,
    ScoreRequest,
    ScoreResponse,
    SelfCheck,
    TooLargeError,
    WireError,
)

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
RETRY_AFTER_S = 1
BACKLOG = 2048
CLOSE = {"Connection": "close"}
"""Goes with an answer to a body that has not been read to its end, so that the rest need not be."""
GRACE_S = 30
"""How long a server that is told to stop goes on answering what it has taken."""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "an image that cannot be read, an unknown reward, facts of the wrong type"},
    401: {"model": Problem, "description": "no bearer token, or a wrong one"},
    413: {"model": Problem, "description": "more bytes, images or pixels than are taken"},
    422: {"model": Problem, "description": "a body of another form"},
    503: {"model": Problem, "description": "too much is waiting; try again after the seconds of Retry-After"},
    504: {"model": Problem, "description": "not scored in time"},
}


def create_app(service: Service, token: str | None = None) -> "FastAPI":
    """The HTTP application.

    Args:
        service: the rewards and their limits.
        token: bearer token that every request but GET /health must carry; None = none.
    """
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for scorer in service.scorers.values():
            await scorer.close()

    app = FastAPI(title="xomni-rl rewards", description=__doc__.partition("\n\n")[2], lifespan=lifespan)
    app.add_middleware(Guard, token=token, body_bytes=service.limits.body_bytes)

    @app.exception_handler(RequestValidationError)
    async def say_what_is_wrong(request: Request, error: RequestValidationError) -> Response:
        # Not the default answer: it sends the input back, all of a large body and half surrogate pairs included.
        found = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()[:3]]
        if request.method == "POST" and "json" not in request.headers.get("content-type", ""):  # curl's own is another one
            found = ["the body must come with the header Content-Type: application/json"]
        return JSONResponse({"detail": sendable("; ".join(found))}, 422)

    @app.get("/health")
    async def health() -> Health:
        """Is it there, and what waits? Needs no token."""
        return await service.health()

    @app.get("/rewards", responses={401: PROBLEMS[401]})
    async def list_rewards() -> RewardList:
        """The served rewards, what they say of themselves, and the limits."""
        return RewardList(rewards=list(service.scorers), cards=await service.cards(), limits=service.limits)

    @app.get("/rewards/{name}/self_check", responses={401: PROBLEMS[401], 404: {"model": Problem}, 422: PROBLEMS[422]})
    async def self_check(name: str) -> SelfCheck:
        """A picture that must score well under this reward, and a worthless one."""
        try:
            return await service.self_check(name)
        except KeyError as error:
            raise HTTPException(404, "there is no such reward here; see GET /rewards") from error
        except NotImplementedError as error:
            raise HTTPException(404, sendable(str(error))) from error

    @app.post("/score", responses=PROBLEMS, response_model=ScoreResponse)
    async def score(body: ScoreRequest, request: Request) -> Response:
        """Scores images against prompts: one answer per entry of `requests`."""
        try:
            answer = await _unless_gone(service.score(body), request.receive)
        except TooLargeError as error:
            raise HTTPException(413, sendable(str(error))) from error
        except WireError as error:
            raise HTTPException(400, sendable(str(error))) from error
        except (OverloadedError, ClosedError) as error:
            raise HTTPException(503, str(error), {"Retry-After": str(RETRY_AFTER_S)}) from error
        except TimeoutError as error:
            raise HTTPException(504, f"not scored within {service.limits.seconds:g} s") from error
        return Response(json.dumps(answer, allow_nan=False), media_type="application/json")

    return app


async def _unless_gone(work: Awaitable[dict[str, Any]], receive: Receive) -> dict[str, Any]:
    """The result of `work`, which is cancelled as soon as the client has gone: nobody would read it."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(disconnected())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClosedError("the client has gone")
        return tasks[0].result()  # type: ignore[return-value]
    finally:
        for task in tasks:
            task.cancel()


def sendable(sentence: str) -> str:
    """The sentence without what UTF-8 cannot hold: half surrogate pairs, which JSON can bring in."""
    return sentence.encode("utf-8", "replace").decode()


class Guard:
    """ASGI middleware: who may ask (a bearer token; /health is open), and how long the body may be.

    Args:
        app: the application.
        token: None = anybody.
        body_bytes: limit.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], token: str | None, body_bytes: int) -> None:
        self.app = app
        self.expected = None if token is None else f"Bearer {token}".encode()
        self.body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from starlette.responses import JSONResponse

        headers = dict(scope["headers"])
        if not self._may_ask(scope["path"], headers.get(b"authorization", b"")):
            answer = JSONResponse({"detail": "this server asks for a bearer token"}, 401, {"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self.body_bytes:
            await JSONResponse({"detail": self._sentence()}, 413, CLOSE)(scope, receive, send)
            return
        await self.app(scope, self._counted(receive), send)

    def _may_ask(self, path: str, given: bytes) -> bool:
        return self.expected is None or path == "/health" or hmac.compare_digest(given, self.expected)

    def _counted(self, receive: Receive) -> Receive:
        from starlette.exceptions import HTTPException

        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.body_bytes:
                raise HTTPException(413, self._sentence(), CLOSE)
            return message

        return counted

    def _sentence(self) -> str:
        return f"the body is longer than the limit of {self.body_bytes} bytes"


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 = any free one. Raises: OSError with the address if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)  # from now on clients wait for the server instead of being turned away
    except OSError as error:
        made.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return made


def address(listening: socket.socket) -> str:
    """http://HOST:PORT of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def http_server(app: "FastAPI") -> "uvicorn.Server":
    """uvicorn around the application: quiet, and patient with what it has taken when it is told to stop."""
    import uvicorn

    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S, backlog=BACKLOG))


class BackgroundServer:
    """A server in a thread of this process, on a free port of the loopback interface, until `close`.

    Args:
        service: what it serves.
        token: bearer token; None = none.
        port: 0 = any free one.
    """

    def __init__(self, service: Service, token: str | None = None, port: int = 0) -> None:
        listening = bound_socket("127.0.0.1", port)
        self.url = address(listening)
        self.server = http_server(create_app(service, token))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Answers what it has taken, then stops."""
        self.server.should_exit = True
        self.thread.join()

    def __enter__(self) -> "BackgroundServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def demonstration_url() -> str:
    """Where this process serves the reward `ocr` to itself, for dry runs of the reward `remote`."""
    reward = build_composite({"components": {"ocr": {"reward": "ocr", "options": {"layout": "line"}}}})
    return BackgroundServer(Service(local_scorers(reward), Limits())).url
