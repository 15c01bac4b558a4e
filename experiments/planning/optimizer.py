"""What the optimizer holds, works with and moves; symbols as in memory.py.

Weights of 2 bytes that are trained undivided have float32 masters, which the optimizer steps on, one tensor after the other
(policies/master_weights.py). What is divided is float32 itself, or has DeepSpeed's masters in its copy.
"""

from __future__ import annotations

from xomni_rl.experiments.planning.job import Job


def has_masters(job: Job) -> bool:
    """Whether the optimizer steps on float32 masters of its own."""
    return job.width < 4 and not job.divided


def masters(job: Job) -> int:
    """4 · trained."""
    return 4 * job.trained if has_masters(job) else 0


def moments(job: Job) -> int:
    """AdamW's two: float32 of all that is trained, of 8 bits 2 · trained · (1 + 4/256), with one float32 for each block of 256.

    Divided, 2 · c · trained / n under FSDP2 and 8 · all / n under ZeRO-3.
    """
    if job.eight_bit:
        return 2 * job.trained * (256 + 4) // 256
    if not job.divided:
        return 8 * job.trained
    if job.launch == "deepspeed_zero3":
        return 8 * (job.adapters or job.model.parameters) // job.gpus
    return 2 * trained_width(job) * job.trained // job.gpus


def gradients(job: Job) -> int:
    """Gradients at an optimizer step: in their parameters' dtype, / n divided."""
    if not job.divided:
        return job.width * job.trained
    return trained_width(job) * job.trained // job.gpus


def stepping(job: Job) -> int:
    """The optimizer's temporaries.

    On a GPU torch's foreach path takes the root of all second moments at once: as much as one moment. On the CPU it goes tensor
    by tensor: the root and the quotient of the largest. With masters it is given one tensor at a time, whose gradient is there
    in float32 besides; moments of 8 bits are then stepped on in place.
    """
    largest = 0 if job.adapters else 4 * job.model.largest
    if has_masters(job):
        return largest * (1 if job.eight_bit else 3 if job.on_cpu else 2)
    return 2 * largest if job.on_cpu else moments(job) // 2


def stepped_bytes(job: Job) -> int:
    """What an optimizer step moves: gradient, weight and two moments are read, the last three written, 7 · c · trained / n.

    With masters all of these are float32, and besides the gradient is read and written as float32, and the weights are written:
    (7 · 4 + 4 + 2b) · trained.
    """
    if has_masters(job):
        return (7 * 4 + 4 + 2 * job.width) * job.trained
    return 7 * trained_width(job) * job.trained // (job.gpus if job.divided else 1)


def trained_width(job: Job) -> int:
    """c."""
    return 4 if job.divided and (job.mixed or job.launch == "deepspeed_zero3") else job.width
