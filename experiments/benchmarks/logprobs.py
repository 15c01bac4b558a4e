"""Time and peak memory of scoring image tokens over the image vocabulary alone against the full one, at the 7B vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.sampler import image_token_logprobs

VOCAB, MULTIMODAL, IMAGE = 152064, 16448, 16384
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_mm_adap_layers": 0,
    "num_mm_head_layers": 0,
    "max_position_embeddings": 512,
}
BATCH, PROMPT, TOKENS = 16, 8, 48


def measure(which: str, repeats: int) -> dict[str, float]:
    """Forward and backward of one way of scoring, in this process.

    Args:
        which: "image" or "full".
        repeats: counted passes after one that isn't.
    Returns: median `seconds`, and `mib`, the process's peak resident memory above what it held before.
    """
    import resource
    import time

    torch.manual_seed(0)
    config = XOmniConfig(**SIZES, vocab_size=VOCAB, mm_vocab_size=MULTIMODAL, image_vocab_size=IMAGE)
    model = XOmniForCausalLM(config)
    prompt = torch.randint(VOCAB, (BATCH, PROMPT))
    mask = torch.ones_like(prompt)
    tokens = torch.randint(IMAGE, (BATCH, TOKENS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        if which == "image":
            logprobs = image_token_logprobs(model, prompt, mask, tokens)
        else:
            logprobs = full_vocabulary_logprobs(model, prompt, tokens)
        logprobs.mean().backward()
        model.zero_grad()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": float(np.median(times[1:])), "mib": (peak - before) / 1024}


def full_vocabulary_logprobs(model: XOmniForCausalLM, prompt: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[N, T] log-probabilities over text and image ids alike, as a trainer without our head computes them."""
    ids = torch.cat([prompt, tokens + VOCAB], 1)
    hidden = model.model(ids).last_hidden_state[:, prompt.shape[1] - 1 : -1]
    logits = torch.cat([model.lm_head(hidden), model.mm_head(hidden)], -1)
    return logits.log_softmax(-1).gather(-1, (tokens + VOCAB)[..., None])[..., 0]


def run(repeats: int = 5) -> dict[str, float]:
    """Each way in a process of its own, so that peak memory is its own; one after the other, twice in turn.

    Returns: `ratio` of the times, `memory_ratio`, and what they are made of.
    """
    figures: dict[str, list[dict[str, float]]] = {"image": [], "full": []}
    for _ in range(2):
        for which, measured in figures.items():
            code = f"import json; from {__name__} import measure; print(json.dumps(measure({which!r}, {repeats})))"
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            measured.append(json.loads(out.stdout.splitlines()[-1]))
    best = {w: {k: min(f[k] for f in measured) for k in ("seconds", "mib")} for w, measured in figures.items()}
    result = {
        "ratio": best["full"]["seconds"] / best["image"]["seconds"],
        "memory_ratio": best["full"]["mib"] / best["image"]["mib"],
        "seconds": best["image"]["seconds"],
        "peer_seconds": best["full"]["seconds"],
        "mib": best["image"]["mib"],
        "peer_mib": best["full"]["mib"],
    }
    table = Table(title=f"scoring {BATCH}×{TOKENS} image tokens, forward and backward, hidden size {SIZES['hidden_size']}")
    for column in ("vocabulary", "seconds", "peak memory, MiB"):
        table.add_column(column, justify="right")
    for name, which in (("image only, 16,384", "image"), ("text + image, 168,512", "full")):
        table.add_row(name, f"{best[which]['seconds']:.3f}", f"{best[which]['mib']:.0f}")
    Console().print(table)
    return result
