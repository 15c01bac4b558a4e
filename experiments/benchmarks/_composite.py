"""Wall time of a composite of independent rewards against its slowest component, and against one after another.

The components are those of `reward=embedded` (two readers of one thread each, CLIP, the colour check) and a judge behind
HTTP that thinks for as long as the slowest of them: what a training step waits for when a reward is served elsewhere.
"""

import itertools
import json
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np

from xomni_rl.config import reward_config
from xomni_rl.prompt_sets.signs import render_sign, signs
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import FunctionReward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward, build_composite


def measure(count: int = 64, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Scores the same signs with each component alone, with all at a time and with all in turn, in turns.

    Args:
        count: signs.
        repeats: counted passes after one that isn't; figures are medians.
        seed: which signs.
    Returns: `ratio` (all at a time / the slowest alone), `sequential_ratio` (one after another / the slowest alone),
        `core_bound` (CPU seconds of all / cores / the slowest alone: no scheduling can do better than the larger of it and 1),
        `over_bound` (`ratio` / that larger one), `cpu_inflation` (CPU seconds of all at a time / in turn: what cores that
        share caches and units take from each other), `cores`, `seconds` and `cpu_seconds` by component, `memory_mb` (the
        largest so far in this process).
    Raises: RuntimeError if the scores of both ways differ.
    """
    prompts = signs("heldout", count, seed)
    parts = _cpu_components()
    alone, _ = _timed({part.name: _single(part) for part in parts}, prompts, repeats=2, seed=seed)
    with judge(max(alone.values())) as waiting:
        parts.append(waiting)
        ways = {part.name: _single(part) for part in parts}
        ways |= {"together": CompositeReward(parts), "in turn": CompositeReward(parts, concurrency=1)}
        seconds, cpu_seconds = _timed(ways, prompts, repeats, seed + 1)
        images = _draw(prompts, seed)
        scores = [ways[way](images, prompts).components for way in ("together", "in turn")]
    if not np.array_equal(scores[0], scores[1], equal_nan=True):
        raise RuntimeError("components scored at the same time differ from those scored one after another")
    return _figures(seconds, cpu_seconds, [part.name for part in parts])


@contextmanager
def judge(delay: float) -> Iterator[Component]:
    """A component that asks a server on loopback, which answers every batch after `delay` s."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(delay)
            body = json.dumps([0.5] * asked["images"]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing: the table is the output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"

    def ask(images: list[np.ndarray], prompts: list[Prompt]) -> list[float]:
        answered: list[float] = client.post(address, json={"images": len(images)}).raise_for_status().json()
        return answered

    try:
        with httpx.Client(timeout=60, trust_env=False) as client:
            yield Component("judge", FunctionReward("judge", ask, {}))
    finally:
        server.shutdown()
        server.server_close()


def _cpu_components() -> list[Component]:
    """Those of `reward=embedded`, each reader with one thread: otherwise one alone would take every core."""
    config = reward_config("embedded")
    for entry in config["components"].values():
        if entry["reward"] == "ocr":
            entry["options"] |= {"workers": 1}
    return list(build_composite(config | {"normalisation": "none"}).parts)


def _draw(prompts: list[Prompt], seed: int) -> np.ndarray:
    """uint8 [N, 32, 96, 3], signs as asked for, a little different for every seed."""
    rng = np.random.default_rng(seed)
    return np.stack([render_sign(prompt.texts[0], prompt.checks[0]["colour"], rng) for prompt in prompts])


def _single(part: Component) -> Callable[..., Any]:
    return lambda images, prompts: part.scored(list(images), prompts)


def _timed(
    ways: dict[str, Callable[..., Any]], prompts: list[Prompt], repeats: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Way → median wall seconds, and CPU seconds of all threads, over passes in turns; the first pass is not counted.

    No pictures come twice: a model that remembers the features of pictures must not be timed on its memory.
    """
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    seeds = itertools.count(1000 * seed)
    for _ in range(repeats + 1):
        for name, way in ways.items():
            images = _draw(prompts, next(seeds))
            began, began_cpu = time.perf_counter(), time.process_time()
            way(images, prompts)
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - began_cpu)
    return _medians(wall), _medians(cpu)


def _medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def _figures(seconds: dict[str, float], cpu_seconds: dict[str, float], names: list[str]) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slowest = max(seconds[name] for name in names)
    core_bound = sum(cpu_seconds[name] for name in names) / cores / slowest
    ratio = seconds["together"] / slowest
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "ratio": ratio,
        "sequential_ratio": seconds["in turn"] / slowest,
        "core_bound": core_bound,
        "cpu_inflation": cpu_seconds["together"] / cpu_seconds["in turn"],
        "over_bound": ratio / max(1.0, core_bound),
        "cores": cores,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "cpu_seconds": {name: round(cpu_seconds[name], 4) for name in names},
        "memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1),
    }
