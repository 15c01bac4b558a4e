"""Bytes on one GPU, by part and by phase of a training step: what our own code holds, not what a trainer could hold.

Symbols in the formulas: b = bytes of an element of the weights as loaded (`model.dtype`), m = bytes of what the update computes
in (2 under mixed precision, else b), c = bytes of the divided copy under FSDP2 (4 under mixed precision, as accelerate makes
what is trained float32 then; else b), n = GPUs, N = rows of a pass, T = image tokens, L = prompt ids, S = L + T − 1 keys,
V = image vocabulary, h = hidden size, i = intermediate size, H and K = query and key heads of d.

Where a formula says what autograd keeps, a test counts the tensors that autograd really keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xomni_rl.experiments.planning.job import Job
from xomni_rl.experiments.planning.optimizer import gradients, masters, moments, stepping, trained_width
from xomni_rl.experiments.planning.sizes import ModelSizes
from xomni_rl.stack.sampler import LOGITS_AT_A_TIME
from xomni_rl.stack.static import PROMPT_BLOCK

CONTEXT = 2**30
"""What CUDA and its libraries take of a GPU; an assumption."""
LIVE_IN_ZERO3 = 10**9
"""Elements that DeepSpeed gathers at most (its default `stage3_max_live_parameters`)."""

Phase = Literal["start", "sampling", "decoding", "rewards", "reference", "backward", "optimizer"]


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        resident: part → bytes that are there in every phase after the first step.
        phases: phase → part → bytes that are there besides. `start` is before the first step, with everything it holds.
    """

    resident: dict[str, int]
    phases: dict[Phase, dict[str, int]]

    def total(self, phase: Phase) -> int:
        """Bytes in a phase."""
        return sum(self.phases[phase].values()) + (0 if phase == "start" else sum(self.resident.values()))

    @property
    def fullest(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes in the fullest phase."""
        return self.total(self.fullest)


def memory(job: Job) -> Memory:
    """Resident parts and phases of a job."""
    resident = resident_parts(job)
    phases: dict[Phase, dict[str, int]] = {"start": starting(job)}
    phases["sampling"] = sampling(job)
    phases["decoding"] = {"decoding": decoding(job)}
    if job.decoder_offloaded:
        phases["decoding"]["decoder"] = job.width * max(job.parts.transformer, job.parts.encoders, job.parts.codec)
    phases["rewards"] = {"rewards": max((r.bytes for r in job.rewards if r.offloaded), default=0)}
    if job.reference or job.critic:
        visitor = reference_copy(job) if job.reference_offloaded else 0
        phases["reference"] = {"reference": visitor} | scoring_without_gradients(job)
    phases["backward"] = backward(job)
    phases["optimizer"] = {"gradients": gradients(job), "optimizer's temporaries": stepping(job)}
    return Memory({k: v for k, v in resident.items() if v}, {p: {k: v for k, v in x.items() if v} for p, x in phases.items()})


def resident_parts(job: Job) -> dict[str, int]:
    """What is there between any two steps.

    weights = b · (all + adapters): a whole copy on every GPU, which samples, is saved, and under `single` and `ddp` is trained.
    divided copy (policies/divided.py) = c · all / n under FSDP2, with adapters
    b · all / n + c · adapters / n; under ZeRO-3 (m + 4) · all / n, with float32 masters.
    float32 masters, AdamW moments: see `masters` and `moments` of optimizer.py.
    ddp buckets = b · trainable: torch's reducer copies gradients into buckets (`gradient_as_bucket_view` is off).
    reference = b · all (4 · all if it follows the policy): a copy on every GPU, never divided; none with adapters, whose base
    weights are the reference, nor if it lies in the machine's memory.
    sampler's cache = as in `sampling`, which a compiled sampler keeps for its next rollout.
    critic = 16 · (h² + 4h + 2): float32 weights, gradients, two moments of its two layers and norm.
    """
    model, b = job.model, job.width
    rewards = sum(reward.bytes for reward in job.rewards if not reward.offloaded)
    decoder = 0 if job.decoder_offloaded else b * (job.parts.transformer + job.parts.encoders + job.parts.codec)
    return {
        "weights": b * (model.parameters + job.adapters),
        "divided copy": divided_copy(job),
        "float32 masters": masters(job),
        "AdamW moments": moments(job),
        "ddp buckets": b * (job.adapters or model.parameters) if job.launch == "ddp" and job.gpus > 1 else 0,
        "reference": 0 if job.reference_offloaded else reference_copy(job),
        "critic": 16 * (model.hidden**2 + 4 * model.hidden + 2) if job.critic else 0,
        "sampler's cache": sampling_cache(job) if job.compiled else 0,
        "decoder": decoder,
        "image tokenizer": b * job.parts.tokenizer,
        "rewards": rewards,
        "CUDA": 0 if job.on_cpu else CONTEXT,
    }


def reference_copy(job: Job) -> int:
    """See `resident_parts`."""
    width = max(job.width, 4) if job.reference_follows else job.width
    return width * job.model.parameters if job.reference and not job.adapters else 0


def divided_copy(job: Job) -> int:
    """See `resident_parts`."""
    everything, b = job.model.parameters, job.width
    if not job.divided:
        return 0
    if job.launch == "deepspeed_zero3":
        return (computed_in(job) + 4) * (everything + job.adapters) // job.gpus
    if job.adapters:
        return (b * everything + trained_width(job) * job.adapters) // job.gpus
    return trained_width(job) * everything // job.gpus


def starting(job: Job) -> dict[str, int]:
    """Before the first step, where weights are divided: the copy is whole on every GPU while it is being divided.

    b · all for the model, c · all for the whole copy (accelerate makes it float32 first and keeps its state dict to the end),
    and the divided copy beside it.
    """
    resident = resident_parts(job)
    parts = {name: resident[name] for name in ("weights", "decoder", "image tokenizer", "rewards", "CUDA")}
    parts["reference"] = reference_copy(job)  # copied before it leaves
    if job.divided:
        whole = job.width if job.adapters else trained_width(job)
        parts["divided copy"] = divided_copy(job)
        parts["copy before it is divided"] = whole * job.model.parameters
    return parts


def sampling(job: Job) -> dict[str, int]:
    """While image tokens are drawn, by `xomni_rl/stack/incremental.py`.

    joined weights = b · (q, k, v and gate, up of every layer, and the image head), made anew for every rollout; with adapters
    also the output and down projections.
    KV cache = 2 · layers · b · K · d · N · (L + T), N all images of the process's share at once, twice with guidance. A group's
    prompt is computed once, but every row has its own copy of its keys and values.
    next tokens = N · V · (b + 28): logits, their float32, log-softmax, and float64 cumulative sums of the draw.
    A compiled sampler joins no weights, and its cache is there between any two steps: see `resident_parts`.
    While the weights are being joined there is no cache yet, but one more copy of a layer's gate and up, 2 · h · i · b.
    """
    model, b = job.model, job.width
    cache = sampling_cache(job)
    joined = b * (model.joined + (model.unjoined if job.adapters else 0))
    drawing = max(job.rows, job.evaluated) * model.images * (b * (3 if job.guided else 1) + 28)
    joining = 2 * model.hidden * model.intermediate * b
    if job.compiled:
        return {"next tokens": drawing, "autocast copies": autocast_copies(job)}
    if joining > cache + drawing:
        return {"joined weights": joined + joining, "autocast copies": autocast_copies(job)}
    return {"joined weights": joined, "KV cache": cache, "next tokens": drawing, "autocast copies": autocast_copies(job)}


def sampling_cache(job: Job) -> int:
    """See `sampling`; a compiled sampler pads prompts, and the whole, to multiples (`xomni_rl/stack/static.py`)."""
    rows = max(job.rows, job.evaluated) * (2 if job.guided else 1)
    slots = job.prompt_tokens + job.tokens
    if job.compiled:
        slots = -(-(-(-job.prompt_tokens // PROMPT_BLOCK) * PROMPT_BLOCK + job.tokens) // 8) * 8
    return kv_cache(job.model, job.width, rows, slots)


def decoding(job: Job) -> int:
    """Working memory of the decoder for the images it decodes at a time.

    Transformer: 14 · width · b for every latent and text position (a single-stream block at its widest: residual, norm, mlp
    before and after its activation, attention's output, their concatenation and the result). VAE: 3 tensors of twice its
    channels at full resolution. Counted from diffusers' code; the larger of the two, as they work one after the other.
    """
    parts = job.parts
    images = parts.batch or max(job.rows, job.evaluated)
    transformer = 14 * parts.width * (job.tokens + parts.text)
    vae = 3 * 2 * parts.vae_channels * job.tokens * parts.pixels**2
    return images * job.width * max(transformer, vae)


def scoring_without_gradients(job: Job) -> dict[str, int]:
    """A pass of the reference, or of a critic's features: the groups of a backward pass at once, or the rows of a piece.

    The prompts' keys and values of all layers, 2 · layers · b · K · d · P · L, and one layer at work: its own of all S, the
    same repeated to H heads, gate and up, what goes in and out: N · (S · (2K + 2H) · d + T · (4i + 8h)) · b. Or, after it, b, 4
    (where b < 4) and 4 bytes for each of `logits_at_a_time`. A critic's features are float32 N · T · h of the whole share.
    """
    model, b = job.model, job.width
    groups, images = job.piece if job.reference else (job.micro_groups, job.micro_groups * job.group)
    rows = images * (2 if job.guided else 1)
    keys = job.prompt_tokens + job.tokens - 1
    cache = kv_cache(model, b, groups * (2 if job.guided else 1), job.prompt_tokens)
    own = 2 * model.kv_heads * model.head_dim
    layer = (
        rows * b * (keys * (own + 2 * model.heads * model.head_dim) + job.tokens * (4 * model.intermediate + 8 * model.hidden))
    )
    logits = logits_at_a_time(job, images) * _logit_bytes(job, b)
    features = 4 * job.rows * job.tokens * model.hidden if job.critic else 0
    if job.reference and logits > cache + layer:
        return {"logits": logits, "features": features}
    return {"KV cache": cache, "activations": layer, "features": features}


def backward(job: Job) -> dict[str, int]:
    """The fullest moment of a backward pass, of four.

    1. The layers' forward is done, the prompts' keys and values still there. 2. The logits' gradient is computed:
    activations of all layers and `logits`. 3. Where layers are computed again, the last of them is. 4. The gradients are there,
    the prompts' activations alone are left, and the largest tensor's gradient is being added. Gradients of earlier passes and
    pieces of the same optimizer step are there from the start.
    """
    groups, rows = job.piece
    again = job.passes > 1 or job.pieces > 1
    activations, prompts = scorer_activations(job, groups, rows), prompt_activations(job, groups)
    layer = layer_at_work(job, rows) if job.checkpointing else 0
    work = autocast_copies(job) + gathered(job)
    cache = kv_cache(job.model, computed_in(job), groups * (2 if job.guided else 1), job.prompt_tokens)
    before, after = gradients_before(job, again), gradients_after(job)
    features = 4 * job.rows * job.tokens * job.model.hidden if job.critic else 0
    always = {"weights at work": work, "features": features}
    moments_of_pass = (
        {"gradients": before, "activations": activations, "KV cache": cache},
        {"gradients": before, "activations": activations, "logits": logits(job, rows)},
        {"gradients": before, "activations": activations, "a layer computed again": layer},
        {"gradients": after, "activations": prompts},
    )
    return max(moments_of_pass, key=lambda parts: sum(parts.values())) | always


def gradients_before(job: Job, again: bool) -> int:
    """Gradients of earlier passes or groups. Under FSDP2 those of passes before the last are whole (`no_sync`), m · trained;
    the last pass divides them."""
    if not again:
        return 0
    return max(undivided_gradients(job), gradients(job))


def gradients_after(job: Job) -> int:
    """All gradients and that of the largest tensor once more; divided, the root's (embeddings, heads) before and after their
    reduction instead."""
    model, m = job.model, computed_in(job)
    if not job.divided:
        return job.width * (job.trained + (0 if job.adapters else model.largest))
    reduced = 0 if job.adapters else m * (model.parameters - model.body)
    return max(undivided_gradients(job), gradients(job)) + 2 * reduced


def undivided_gradients(job: Job) -> int:
    """Those that a process keeps whole between the passes of one optimizer step."""
    whole = job.launch == "fsdp2" and job.divided and job.passes > 1
    return computed_in(job) * job.trained if whole else 0


def scorer_activations(job: Job, groups: int, images: int) -> int:
    """What autograd keeps of the scorer's forward up to the image head, for so many images of so many groups at once.

    The tokens' pass: N · (T − 1) queries on S keys; the prompts' pass: `prompt_activations`; after the last norm
    N · T · h · (4 + 2m), of which 4 if that norm and the head are frozen.
    """
    model, m = job.model, computed_in(job)
    rows = images * (2 if job.guided else 1)
    queries, keys = job.tokens - 1, job.prompt_tokens + job.tokens - 1
    layers = model.layers * _layer(job, rows, queries, keys) + _shared(job, rows, queries, keys)
    return layers + prompt_activations(job, groups) + rows * job.tokens * model.hidden * (4 + (0 if job.adapters else 2 * m))


def prompt_activations(job: Job, groups: int) -> int:
    """The same of the prompts, once per group: L queries on L keys."""
    prompts = groups * (2 if job.guided else 1)
    length = job.prompt_tokens
    noted = kv_cache(job.model, computed_in(job), prompts, length) if job.checkpointing else 0
    return job.model.layers * _layer(job, prompts, length, length) + _shared(job, prompts, length, length) + noted


def layer_at_work(job: Job, images: int) -> int:
    """A layer that is computed again, and its gradients: all that it would have kept, and of its widest moment, the MLP's, the
    gradients of the product, of the gate before and after its activation, and of what came in: N · T · (3i + 2h) · m."""
    model, rows, queries = job.model, images * (2 if job.guided else 1), job.tokens - 1
    gradients = rows * queries * (3 * model.intermediate + 2 * model.hidden) * computed_in(job)
    return layer_activations(job, rows, queries, job.prompt_tokens + queries) + gradients


def _layer(job: Job, rows: int, queries: int, keys: int) -> int:
    """What autograd keeps of one layer: everything, or its input alone."""
    if job.checkpointing:
        return rows * queries * job.model.hidden * computed_in(job)
    return layer_activations(job, rows, queries, keys)


def _shared(job: Job, rows: int, queries: int, keys: int) -> int:
    """What all layers take besides their input, and is kept once: the mask, a byte for each pair; rotary cosines and sines."""
    if not job.checkpointing:
        return 0
    return rows * queries * (keys + 2 * job.model.head_dim * computed_in(job))


def layer_activations(job: Job, rows: int, queries: int, keys: int) -> int:
    """What autograd keeps of one decoder layer of transformers' Qwen2 with scaled-dot-product attention and a mask.

    For every query: 4i·m (gate, its SiLU, up, their product); the two norms' inputs in float32, 8h, what they normalised, 2h·m
    (not if their weights are frozen), and what they give, 2h·m; queries and attention's output, 2Hd·m; log-sums, 4H, and the
    norms' factors, 8; with adapters rank · m for each of them. For every key: keys and values repeated to H heads, 2Hd·m (a
    single key head is not copied). For every pair of both: the mask in the dtype of the queries, m; one for all heads, but kept
    once per layer.
    """
    model, m = job.model, computed_in(job)
    wide = model.heads * model.head_dim
    norms = model.hidden * (8 + (2 if job.adapters else 4) * m) + 8
    query = 4 * model.intermediate * m + norms + 2 * wide * m + 4 * model.heads + job.rank * len(job.adapted) * m
    repeated = wide if model.kv_heads > 1 else model.head_dim
    return rows * (queries * query + keys * 2 * repeated * m + queries * keys * m)


def logits(job: Job, rows: int) -> int:
    """The widest moment around the image head: bytes for each of the logits in memory at a time.

    Those are N · T · V, or as many whole tokens' as `LOGITS_AT_A_TIME` allows; guidance holds two sets.

    12: float32 log-probabilities that log-softmax keeps, the gradient that `gather` makes, and the one that log-softmax gives.
    With an entropy 21: also probabilities, masked log-probabilities, the mask, and two gradients. With a truncation 26, in the
    forward pass. Guidance adds 4m. The forward pass, m + 4 + 4, is below that.
    """
    each = (26 if job.truncated else 21 if job.entropy else 12) + (4 * computed_in(job) if job.guided else 0)
    return logits_at_a_time(job, rows) * each


def logits_at_a_time(job: Job, rows: int) -> int:
    """How many logits scoring holds at a time, as `xomni_rl/stack/sampler.py` cuts them into pieces of whole tokens."""
    piece = max(1, LOGITS_AT_A_TIME // (job.model.images * (2 if job.guided else 1)))
    return min(rows * job.tokens, piece) * job.model.images


def kv_cache(model: ModelSizes, width: int, rows: int, positions: int) -> int:
    """Keys and values of all layers: 2 · layers · K · d · rows · positions elements."""
    return 2 * model.layers * model.kv_heads * model.head_dim * rows * positions * width


def gathered(job: Job) -> int:
    """Divided weights that are whole at a time: the root's (embeddings, heads) and two layers' under FSDP2, in m bytes each."""
    if not job.divided:
        return 0
    if job.launch == "deepspeed_zero3":
        return computed_in(job) * min(LIVE_IN_ZERO3, job.model.parameters)
    return computed_in(job) * (job.model.parameters - job.model.body + 2 * job.model.body // job.model.layers)


def autocast_copies(job: Job) -> int:
    """2-byte copies of float32 weights that autocast makes and keeps: of all linear layers that are used."""
    if not job.mixed or job.width < 4 or job.divided:
        return 0
    return 2 * (job.model.body + job.model.images * job.model.hidden)


def computed_in(job: Job) -> int:
    """m."""
    return 2 if job.mixed else job.width


def _logit_bytes(job: Job, width: int) -> int:
    return width + (4 if width < 4 or job.tempered else 0) + 4
