"""Seconds from stated speeds, by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from xomni_rl.experiments.planning.gpus import Gpu
from xomni_rl.experiments.planning.job import Job
from xomni_rl.experiments.planning.time import (
    ARITHMETIC,
    BANDWIDTH,
    LAUNCH,
    gathering_seconds,
    sampling_seconds,
    scoring_flops,
    step_seconds,
    update_flops,
)

MakeJob = Callable[..., Job]
SLOW_MEMORY = Gpu("slow memory", 80, tensor=1e30, plain=1e30, bandwidth=1e6, link=1e6)
SLOW_ARITHMETIC = Gpu("slow arithmetic", 80, tensor=1e6, plain=1e6, bandwidth=1e30, link=1e30)


def test_scoring_multiplies_every_weight_twice_for_a_token(make_job: MakeJob) -> None:
    job = make_job()
    weights = job.model.body + 512 * 64
    # 128 tokens a row; attention: 4 · 2 layers · 64 wide · (20 + 64) keys for a token.
    assert scoring_flops(job, 3) == 3 * 128 * (2 * weights + 4 * 2 * 64 * 84)


def test_update_is_three_passes_and_a_fourth_if_activations_are_computed_again(make_job: MakeJob) -> None:
    forward = scoring_flops(make_job(), 16)
    assert update_flops(make_job()) == 3 * forward
    assert update_flops(make_job(checkpointing=True)) == 4 * forward
    assert update_flops(make_job(adapters=10)) == 2 * forward


def test_sampling_reads_all_weights_for_every_token_where_memory_is_slow(make_job: MakeJob) -> None:
    job = make_job(gpu=SLOW_MEMORY)
    weights = 4 * (job.model.body + 512 * 64)
    cache = 2 * 2 * 2 * 16 * 16 * (20 + 64) * 4  # of 16 rows when half of the tokens are there
    joining = 3 * 4 * job.model.joined
    started = 128 * LAUNCH * (19 * 2 + 25)
    assert sampling_seconds(job) == pytest.approx((128 * (weights + cache) + joining) / (BANDWIDTH * 1e6) + started)


def test_sampling_takes_as_long_as_its_arithmetic_where_that_is_slow(make_job: MakeJob) -> None:
    one, two = (sampling_seconds(make_job(gpu=SLOW_ARITHMETIC, prompts=prompts)) for prompts in (2, 4))
    assert two == pytest.approx(2 * one, rel=1e-3)


def test_undivided_weights_are_not_gathered(make_job: MakeJob) -> None:
    assert gathering_seconds(make_job(launch="ddp", gpus=2)) == 0


def test_divided_weights_travel_for_every_pass_and_once_into_the_sampler(make_job: MakeJob) -> None:
    job = make_job(launch="fsdp2", gpus=2, gpu=SLOW_MEMORY)
    moved = 2 * 4 * job.model.parameters + 4 * job.trained  # forward and backward
    assert gathering_seconds(job) == pytest.approx(moved / 2 / (BANDWIDTH * 1e6))


def test_more_gpus_share_sampling_decoding_and_update(make_job: MakeJob) -> None:
    one = step_seconds(make_job(prompts=8, gpu=SLOW_ARITHMETIC))
    four = step_seconds(make_job(prompts=8, gpu=SLOW_ARITHMETIC, gpus=4, launch="ddp"))
    assert four["update"] == pytest.approx(one["update"] / 4)
    assert four["sampling"] == pytest.approx(one["sampling"] / 4, rel=1e-3)


def test_mixed_precision_updates_at_the_speed_of_tensor_cores(make_job: MakeJob) -> None:
    job = make_job(gpu=replace(SLOW_ARITHMETIC, tensor=4e6))
    plain, mixed = (step_seconds(replace(job, mixed=mixed))["update"] for mixed in (False, True))
    assert plain == pytest.approx(4 * mixed)
    assert plain == pytest.approx(update_flops(job) / (ARITHMETIC * 1e6))
    assert "reference" not in step_seconds(job)
