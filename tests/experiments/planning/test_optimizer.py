"""Masters, moments and temporaries against what the optimizer really holds, and by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from xomni_rl.experiments.planning.check import Case
from xomni_rl.experiments.planning.job import Job
from xomni_rl.experiments.planning.memory import memory
from xomni_rl.experiments.planning.optimizer import masters, moments, stepped_bytes, stepping
from xomni_rl.policies.master_weights import MASTER
from xomni_rl.policies.optimizers import make_optimizer
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.stack.autoregressive import XOmniForCausalLM
from xomni_rl.stack.sampler import score_image_tokens

MakeJob = Callable[..., Job]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planned_masters_and_moments_are_what_the_optimizer_holds(dtype: str) -> None:
    case = Case("small", layers=2, hidden=64, intermediate=128, dtype=dtype)
    job = case.job(3)
    model = XOmniForCausalLM(case.config()).to(getattr(torch, dtype))
    ids = torch.tensor([[1, 2, case.text + case.images + 2]])
    score_image_tokens(model, ids, torch.ones_like(ids), torch.zeros(1, 4, dtype=torch.int64))[0].sum().backward()
    optimizer = make_optimizer(model.parameters(), TrainerSettings())
    optimizer.step()
    held = [state for state in optimizer.state.values() if state]  # the text head gets none
    assert sum(state[kind].nbytes for state in held for kind in ("exp_avg", "exp_avg_sq")) == moments(job)
    assert sum(state[MASTER].nbytes for state in held if MASTER in state) == masters(job)
    assert bool(masters(job)) == (dtype == "bfloat16")


def test_weights_of_two_bytes_have_masters_and_moments_of_four(make_job: MakeJob) -> None:
    job = make_job(width=2)
    parts = memory(job)
    assert parts.resident["weights"] == 2 * job.model.parameters
    assert parts.resident["float32 masters"] == 4 * job.trained
    assert parts.resident["AdamW moments"] == 8 * job.trained
    # One tensor after the other: float32 of the largest one's gradient, and the root of its second moment.
    largest = 528 * 64  # the embeddings of image ids
    assert job.model.largest == largest
    assert parts.phases["optimizer"] == {"gradients": 2 * job.trained, "optimizer's temporaries": (4 + 4) * largest}
    assert "float32 masters" not in memory(make_job()).resident


def test_temporaries_beside_masters_are_fewer_for_moments_of_eight_bits_and_more_on_the_cpu(make_job: MakeJob) -> None:
    job = make_job(width=2)
    assert stepping(replace(job, eight_bit=True)) == 4 * job.model.largest  # the gradient's float32 alone
    assert stepping(replace(job, on_cpu=True)) == (4 + 4 + 4) * job.model.largest  # root and quotient
    assert stepping(make_job(on_cpu=True)) == (4 + 4) * job.model.largest  # no copy of a gradient that is float32


def test_masters_of_adapters_alone_are_kept_where_they_alone_are_trained(make_job: MakeJob) -> None:
    job = make_job(width=2, adapters=1000, rank=4, adapted=("q_proj",))
    assert (masters(job), moments(job)) == (4 * 1000, 8 * 1000)


@pytest.mark.parametrize(("launch", "bytes_each"), [("single", 4), ("ddp", 4), ("fsdp2", 0), ("deepspeed_zero3", 0)])
def test_divided_weights_have_no_masters_besides(make_job: MakeJob, launch: str, bytes_each: int) -> None:
    job = make_job(launch=launch, gpus=1 if launch == "single" else 2, width=2, mixed=True)
    assert masters(job) == bytes_each * job.trained


def test_moments_of_eight_bits_take_a_byte_and_a_scale_for_each_block(make_job: MakeJob) -> None:
    job = make_job(eight_bit=True)
    assert moments(job) == 2 * job.trained * 260 // 256


def test_optimizer_moves_seven_numbers_for_each_that_is_trained_and_more_with_masters(make_job: MakeJob) -> None:
    job = make_job()
    assert stepped_bytes(job) == 7 * 4 * job.trained
    # Besides: 2 bytes of gradient read, 4 written in float32, 2 of weight written.
    assert stepped_bytes(replace(job, width=2)) == (28 + 8) * job.trained
    divided = replace(job, width=2, mixed=True, launch="fsdp2", gpus=2)
    assert stepped_bytes(divided) == 28 * job.trained // 2
