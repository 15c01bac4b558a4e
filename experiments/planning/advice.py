"""What to change in a job that does not fit, in order of what it costs in quality; each change is planned again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from xomni_rl.experiments.planning.job import Job, with_lora
from xomni_rl.experiments.planning.memory import memory

LORA_RANK = 16


Options = Iterator[tuple[str, Job]]
Candidate = Callable[[Job], Options]


@dataclass(frozen=True)
class Change:
    """A change of a job.

    Attributes:
        override: what to write on the command line, or what to do.
        saves: bytes at the peak of one GPU, on top of the changes before it.
        peak: bytes at that peak after it.
    """

    override: str
    saves: int
    peak: int


def advice(job: Job) -> tuple[list[Change], Job]:
    """Changes in order, until the job fits or nothing frees anything; and the job with all of them.

    The first change of `CANDIDATES` that lowers the peak is taken, and then again, because another part may be the largest now.
    Of a list that fits, whatever it fits without is left out, what is learned of first.
    """
    chosen: list[Candidate] = []
    changed = job
    while not fits(changed):
        peak = memory(changed).peak
        useful = next((c for c in CANDIDATES if any(memory(new).peak < peak for _, new in c(changed))), None)
        if useful is None:
            break
        chosen.append(useful)
        changed = applied(job, chosen)[1]
    if fits(changed):
        for candidate in reversed(CANDIDATES):
            for at in [i for i, each in enumerate(chosen) if each is candidate][::-1]:
                fewer = chosen[:at] + chosen[at + 1 :]
                if fits(applied(job, fewer)[1]):
                    chosen = fewer
    return applied(job, chosen)


def applied(job: Job, chosen: list[Candidate]) -> tuple[list[Change], Job]:
    """The changes one after the other, each planned again; one that does not apply any more is left out."""
    changes = []
    for candidate in chosen:
        for text, new in candidate(job):
            before, after = memory(job).peak, memory(new).peak
            changes.append(Change(text, before - after, after))
            job = new
    return changes, job


def fits(job: Job) -> bool:
    """Whether a GPU has room for the fullest phase."""
    return memory(job).peak <= job.gpu.usable


def divide(job: Job) -> Options:
    """Optimizer and gradients divided: the same figures, more traffic. Weights of 16 bits are divided as float32 ones alone."""
    if job.launch in ("single", "ddp") and job.gpus > 1:
        text = "launch=fsdp2" if job.mixed or job.width == 4 else "launch=fsdp2 trainer.mixed_precision=bf16"
        yield text, replace(job, launch="fsdp2", mixed=job.mixed or job.width < 4)


def accumulate(job: Job) -> Options:
    """More and smaller backward passes: the same gradient, a little slower."""
    most = math.ceil(job.prompts / job.minibatches)
    if job.accumulation < most and job.micro_groups > 1:
        fitting = next(n for n in range(job.accumulation + 1, most + 1) if _micro(job, n) < job.micro_groups)
        yield f"trainer.accumulation={fitting}", replace(job, accumulation=fitting)


def recompute(job: Job) -> Options:
    """The layers' inputs alone are kept: the same gradient, about a third slower."""
    if not job.checkpointing:
        yield "model.gradient_checkpointing=true", replace(job, checkpointing=True)


def fewer_rows(job: Job) -> Options:
    """Fewer images of a group at a time: the same gradient, about a quarter slower."""
    fewer = [job.group // 2**halvings for halvings in range(job.group.bit_length())]
    fewer = [rows for rows in fewer if rows < (job.at_a_time or job.group + 1)]
    if fewer:
        rows = next((rows for rows in fewer if fits(replace(job, at_a_time=rows))), fewer[-1])
        yield f"model.rows_at_a_time={rows}", replace(job, at_a_time=rows)


def one_pass(job: Job) -> Options:
    """One backward pass instead of several, where passes keep whole gradients: activations stay those of a piece."""
    if job.accumulation > 1 and job.at_a_time:
        yield "trainer.accumulation=1", replace(job, accumulation=1)


def offload_reference(job: Job) -> Options:
    """Reference in the machine's memory but for its pass: the same figures, slower."""
    if job.reference and not job.adapters and not job.reference_offloaded:
        yield "model.reference_offload=true", replace(job, reference_offloaded=True)


def eight_bits(job: Job) -> Options:
    """Moments of 8 bits: nearly the same steps; not where weights are divided."""
    if not job.eight_bit and not job.divided and not job.adapters:
        yield "trainer.optimizer=adamw_8bit", replace(job, eight_bit=True)


def serve_rewards(job: Job) -> Options:
    """The largest reward on a server of its own: the same scores."""
    here = [reward for reward in job.rewards if reward.bytes]
    if here:
        largest = max(here, key=lambda reward: reward.bytes)
        rest = tuple(reward for reward in job.rewards if reward is not largest)
        yield f"serve the reward {largest.name} elsewhere (docs/rewards/served.md)", replace(job, rewards=rest)


def decode_singly(job: Job) -> Options:
    """Images decoded one at a time: the same images."""
    if job.parts.batch != 1 and job.parts.encoders:
        yield "model.options.decoder.batch=1", replace(job, parts=replace(job.parts, batch=1))


def offload_decoder(job: Job) -> Options:
    """Decoder in the machine's memory between its uses: the same images, slower."""
    if not job.decoder_offloaded and job.parts.encoders:
        yield "model.options.decoder.offload=true", replace(job, decoder_offloaded=True)


def evaluate_fewer(job: Job) -> Options:
    """Held-out images sampled as few at a time as a step's: the same figures, more slowly."""
    if job.evaluated > job.rows:
        yield f"trainer.evaluation.batch_size={job.rows * job.gpus}", replace(job, evaluated=job.rows)


def fewer_prompts(job: Job) -> Options:
    """A GPU's share halved as often as it takes to fit, or once where nothing fits: an update learns from fewer images.

    `trainer.accumulation` is no way around it: it divides the backward pass, and a step's images are sampled at once before it.
    """
    share = math.ceil(job.prompts / job.gpus)
    fewer = [_with_prompts(job, (share >> halvings) * job.gpus) for halvings in range(1, share.bit_length())]
    if fewer:
        new = next((each for each in fewer if fits(each)), fewer[0])
        evaluation = f" trainer.evaluation.batch_size={new.rows * new.gpus}" if new.evaluated < job.evaluated else ""
        yield f"trainer.prompts_per_step={new.prompts}{evaluation} (a smaller batch per update)", new


def adapt(job: Job) -> Options:
    """Low-rank adapters: something else is learned."""
    if not job.adapters:
        yield f"model.lora={{rank: {LORA_RANK}, alpha: {2 * LORA_RANK}}}", with_lora(job, LORA_RANK)


def smaller_groups(job: Job) -> Options:
    """Half the images of a prompt, twice the prompts: advantages compare fewer images."""
    if job.group % 2 == 0 and job.group > 2:
        text = f"trainer.group_size={job.group // 2} trainer.prompts_per_step={job.prompts * 2}"
        yield text, replace(job, group=job.group // 2, prompts=job.prompts * 2)


def smaller_images(job: Job) -> Options:
    """Images of half the sides while training: details are not seen."""
    side = round(math.sqrt(job.tokens)) * job.parts.pixels
    if job.tokens % 4 == 0 and side // 2 >= LEAST_SIDE:
        yield f"images of a quarter of the pixels ({job.tokens // 4} tokens)", replace(job, tokens=job.tokens // 4)


LEAST_SIDE = 288
CANDIDATES: tuple[Candidate, ...] = (
    *(
        divide,
        recompute,
        accumulate,
        offload_reference,
        serve_rewards,
        decode_singly,
        offload_decoder,
        fewer_rows,
        one_pass,
        evaluate_fewer,
        eight_bits,
        smaller_groups,
        fewer_prompts,
        adapt,
        smaller_images,
    ),
)
"""In order: first what changes nothing that is learned, then what does."""


def _with_prompts(job: Job, prompts: int) -> Job:
    """The job with so many prompts a step; a held-out evaluation samples no more at a time than that makes."""
    new = replace(job, prompts=prompts)
    return replace(new, evaluated=min(job.evaluated, new.rows))


def _micro(job: Job, accumulation: int) -> int:
    return replace(job, accumulation=accumulation).micro_groups
