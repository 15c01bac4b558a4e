"""A real OpenAI-compatible server on loopback: it runs a tiny model and can be told to misbehave."""

import asyncio
import base64
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from tests.rewards.tiny_vlm import reference

MODEL = "tiny"
Fault = Callable[[int, Mapping[str, Any]], Awaitable[Response | None]]
"""async (number of the request, from 1; its body) -> what to answer instead; None = the model's answer."""


async def no_fault(_number: int, _body: Mapping[str, Any]) -> Response | None:
    return None


def status(code: int, message: str = "broken", **headers: str) -> Response:
    return JSONResponse({"error": {"message": message}}, code, headers={k.replace("_", "-"): v for k, v in headers.items()})


class JudgeServer:
    """Serves the model folder while the `with` block runs.

    `bodies`, `headers`, `images`: of the requests so far; `busiest`: most requests under way at once.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.reference = reference(folder)
        self.port = port or free_port()
        self.reset()
        self._model = threading.Lock()
        app = FastAPI()
        app.get("/v1/models")(self.models)
        app.post("/v1/chat/completions")(self.complete)
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def busiest(self) -> int:
        return self.under_way["most"]

    def reset(self) -> None:
        self.fault: Fault = no_fault
        self.key: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.images: list[np.ndarray] = []
        self.under_way = Counter[str]()  # a new one: what still hangs from an earlier test leaves this one alone

    def __enter__(self) -> "JudgeServer":
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)

    async def models(self, request: Request) -> Response:
        return self.refusal(request) or JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        under_way = self.under_way
        under_way["now"] += 1
        under_way["most"] = max(under_way["most"], under_way["now"])
        try:
            early = self.refusal(request) or await self.fault(len(self.bodies), body)
            return early or await asyncio.to_thread(self.completion, body)
        finally:
            under_way["now"] -= 1

    def refusal(self, request: Request) -> Response | None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return status(401, f"Incorrect API key provided: {request.headers.get('Authorization')}")
        return None

    def completion(self, body: Mapping[str, Any]) -> Response:
        """What the model answers, with its log-probabilities if they are asked for."""
        if body["model"] != MODEL:
            return status(404, f"The model `{body['model']}` does not exist.")
        picture, words = body["messages"][0]["content"]
        kind, _, data = picture["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/png"
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        self.images.append(image)
        with self._model:
            answer = self.reference.answer(image, words["text"], body["max_tokens"])
            logprobs = self.reference.logits(image, words["text"]).double().log_softmax(-1)
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        if body.get("logprobs"):
            best = logprobs.topk(min(body["top_logprobs"], len(logprobs)))
            decode = self.reference.processor.tokenizer.decode
            top = [{"token": decode([int(i)]), "logprob": float(v)} for v, i in zip(*best, strict=True)]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return JSONResponse({"object": "chat.completion", "model": MODEL, "choices": [choice]})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
