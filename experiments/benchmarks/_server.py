"""Images per second of the OCR reward served on loopback against the same reward called in this process.

Served, the images travel as base64 PNG in JSON to another process and the scores come back; the cores are the same.
"""

import asyncio
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from xomni_rl.prompt_sets.signs import render_sign, signs
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, build_reward
from xomni_rl.rewards.wire import encode_image, item_of

OPTIONS = {"layout": "line"}


def measure(batch: int = 64, repeats: int = 25, concurrent: int = 200, rounds: int = 5, seed: int = 0) -> dict[str, Any]:
    """Scores the same signs both ways, in turns, then sends the server many requests at a time.

    Args:
        batch: signs of one call.
        repeats: counted pairs of calls after one that isn't.
        concurrent: clients, each with one sign per request, which send the next as soon as they have an answer.
        rounds: requests of each client.
        seed: which signs.
    Returns: `ratio` of images per second, served / in process (median over the pairs), `ratios` of the pairs,
        `images_per_second`, `local_images_per_second`; of the concurrent requests `median_s`, `p99_s`, `p99_over_median`,
        `requests`, `lost` (no answer, or another score than in this process) and `concurrent_images_per_second`;
        `memory_mb` of the server and `local_memory_mb` of this process, each at its largest.
    Raises: RuntimeError if the scores of both ways differ.
    """
    prompts = signs("heldout", batch, seed)
    rng = np.random.default_rng(seed)
    images = [render_sign(prompt.texts[0], prompt.checks[0]["colour"], rng) for prompt in prompts]
    local = build_reward("ocr", **OPTIONS)
    with served() as url:
        pairs = _pairs(local, build_reward("remote", url=url), images, prompts, repeats)
        local_scores = local(images, prompts).scores
        bodies = [_body(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        start = time.perf_counter()
        answers = asyncio.run(_ask_at_once(url, bodies, concurrent, rounds))
        seconds = time.perf_counter() - start
    latencies = np.array([latency for latency, _, _ in answers])
    lost = int(sum(score is None or abs(score - local_scores[index]) > 1e-5 for _, index, score in answers))
    ratios = pairs[:, 0] / pairs[:, 1]
    return {
        "ratio": float(np.median(ratios)),
        "ratios": [round(float(ratio), 3) for ratio in ratios],
        "images_per_second": batch / float(np.median(pairs[:, 1])),
        "local_images_per_second": batch / float(np.median(pairs[:, 0])),
        "median_s": float(np.median(latencies)),
        "p99_s": float(np.quantile(latencies, 0.99)),
        "p99_over_median": float(np.quantile(latencies, 0.99) / np.median(latencies)),
        "requests": len(answers),
        "lost": lost,
        "concurrent_images_per_second": len(answers) / seconds,
        "memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "local_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@contextmanager
def served() -> Iterator[str]:
    """The address of `xomni-rl serve` with the OCR reward, in a process of its own."""
    options = [f"reward.components.ocr.options.{key}={value}" for key, value in OPTIONS.items()]
    command = [sys.executable, "-u", "-m", "xomni_rl", "serve", "reward=ocr", *options, "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving "):
            raise RuntimeError(f"{' '.join(command[2:])} did not start")
        yield line.split()[3]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _pairs(local: Reward, remote: Reward, images: list[np.ndarray], prompts: list[Prompt], repeats: int) -> np.ndarray:
    """Seconds of one call in this process and of one served, float [repeats, 2]; the order alternates."""
    pairs = np.zeros((repeats + 1, 2))
    scores = {}
    for repeat in range(repeats + 1):
        ways = [(0, local), (1, remote)]
        for column, reward in ways if repeat % 2 else reversed(ways):
            start = time.perf_counter()
            scores[column] = reward(images, prompts).scores
            pairs[repeat, column] = time.perf_counter() - start
    if not np.allclose(scores[0], scores[1], rtol=0, atol=1e-5, equal_nan=True):
        raise RuntimeError("served scores differ from those of this process")
    return pairs[1:]


def _body(image: np.ndarray, prompt: Prompt) -> bytes:
    return json.dumps({"requests": [item_of(encode_image(image), prompt, ["ocr"])]}).encode()


async def _ask_at_once(url: str, bodies: list[bytes], concurrent: int, rounds: int) -> list[tuple[float, int, float | None]]:
    """(seconds, which body, score or None) of every request.

    Written on bare sockets: a client library with 200 connections takes more of the two cores' time than the server does.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    answers: list[tuple[float, int, float | None]] = []

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for turn in range(rounds):
            index = (number + turn) % len(bodies)
            start = time.perf_counter()
            try:
                writer.write(_head(bodies[index]) + bodies[index])
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
                score = json.loads(body)["results"][0]["ocr"]["score"]
            except (OSError, EOFError, ValueError, LookupError):
                score = None
            answers.append((time.perf_counter() - start, index, score))
        writer.close()

    await asyncio.gather(*(client(number) for number in range(concurrent)))
    return answers


def _head(body: bytes) -> bytes:
    lines = ["POST /score HTTP/1.1", "Host: loopback", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode()
