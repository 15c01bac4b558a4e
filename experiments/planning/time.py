"""Seconds of a training step, estimated from FLOPs, bytes and what the GPU's maker states. Nothing here was measured on a GPU.

A part takes as long as the slower of its arithmetic and its memory traffic, at the share of the stated speed that eager PyTorch
is assumed to reach. Rewards are not in it: `xomni-rl doctor reward=NAME` measures what one takes.
"""

from __future__ import annotations

import math

from xomni_rl.experiments.planning.job import Job
from xomni_rl.experiments.planning.memory import computed_in, kv_cache
from xomni_rl.experiments.planning.optimizer import stepped_bytes, trained_width

ARITHMETIC = 0.4
"""Share of the stated FLOP/s that matrix products of training and decoding reach; an assumption."""
BANDWIDTH = 0.7
"""Share of the stated bytes/s, of memory and of links; an assumption."""
LAUNCH = 5e-6
"""Seconds to start a kernel from Python; an assumption."""
KERNELS_PER_LAYER = 19
"""That `IncrementalSampler._layer` starts."""
KERNELS_PER_TOKEN = 25
"""Besides, that drawing a token starts."""


def step_seconds(job: Job) -> dict[str, float]:
    """Part of a training step → seconds, of the slowest process, without rewards, held-out evaluation and checkpoints."""
    parts = {
        "sampling": sampling_seconds(job),
        "decoding": decoding_seconds(job),
        "reference": scoring_flops(job, job.rows) / _speed(job, 4 if job.width == 4 else 2) if job.reference else 0.0,
        "update": job.epochs * update_flops(job) / _speed(job, computed_in(job)),
        "gathering weights": gathering_seconds(job),
        "optimizer": _steps(job) * _traffic(job, stepped_bytes(job)),
    }
    return {name: seconds for name, seconds in parts.items() if seconds}


def sampling_seconds(job: Job) -> float:
    """Joining the weights, the prompts, then T tokens one after the other.

    A token reads every weight of the body and the image head, b bytes each, and the keys and values of its rows (half of the
    tokens are there on average); it multiplies 2 · (body + V·h) + 4 · layers · H · d · (L + T/2) for a row. Starting
    its kernels takes the same time whatever the batch is.
    """
    model, b = job.model, job.width
    rows = job.rows * (2 if job.guided else 1)
    middle = job.prompt_tokens + job.tokens // 2
    used = model.body + model.images * model.hidden
    moved = b * used + kv_cache(model, b, rows, middle)
    flops = rows * (2 * used + 4 * model.layers * model.heads * model.head_dim * middle)
    started = LAUNCH * (KERNELS_PER_LAYER * model.layers + KERNELS_PER_TOKEN)
    token = max(_traffic(job, moved), flops / _speed(job, b)) + started
    prompts = 2 * model.body * math.ceil(rows / job.group) * job.prompt_tokens / _speed(job, b)
    return _traffic(job, 3 * b * model.joined) + prompts + job.tokens * token


def decoding_seconds(job: Job) -> float:
    """N images · Euler steps · (2 · transformer · positions + 4 · blocks · width · positions²) FLOP; no guidance, no VAE."""
    parts = job.parts
    positions = job.tokens + parts.text
    image = parts.steps * (2 * parts.transformer * positions + 4 * parts.blocks * parts.width * positions**2)
    return job.rows * image / _speed(job, job.width)


def scoring_flops(job: Job, rows: int) -> float:
    """A forward pass over rows: 2 · (body + V·h) for each token, and attention on S keys, half of them masked."""
    model = job.model
    tokens = rows * job.tokens * (2 if job.guided else 1)
    keys = job.prompt_tokens + job.tokens / 2
    attention = 4 * model.layers * model.heads * model.head_dim * keys
    return tokens * (2 * (model.body + model.images * model.hidden) + attention)


def update_flops(job: Job) -> float:
    """All backward passes of one epoch: forward, twice that backward (once where only adapters are trained), forward again
    where layers are computed again, and once more where pieces are. Processes whose share is smaller go through as many groups
    as the others."""
    rows = job.minibatches * job.passes * job.micro_groups * job.group
    times = 1 + (1 if job.adapters else 2) + (1 if job.checkpointing else 0) + (1 if job.at_a_time else 0)
    return times * scoring_flops(job, rows)


def gathering_seconds(job: Job) -> float:
    """Divided weights travel m · all · (n − 1)/n bytes for every forward and backward of every piece or pass, and once an
    update in full into the model that samples; counted as if nothing went on meanwhile."""
    if not job.divided:
        return 0.0
    share = (job.gpus - 1) / job.gpus
    passes = job.epochs * job.minibatches * job.passes * job.pieces * (3 if job.at_a_time else 2)
    moved = passes * computed_in(job) * job.model.parameters + trained_width(job) * job.trained
    return share * moved / (BANDWIDTH * job.gpu.link)


def _steps(job: Job) -> int:
    return job.epochs * job.minibatches


def _speed(job: Job, width: int) -> float:
    return ARITHMETIC * (job.gpu.tensor if width == 2 else job.gpu.plain)


def _traffic(job: Job, moved: float) -> float:
    return moved / (BANDWIDTH * job.gpu.bandwidth)
