"""Changes are planned again, in order, and none of them is in vain."""

from collections.abc import Callable
from dataclasses import replace

from xomni_rl.experiments.planning.advice import (
    advice,
    applied,
    divide,
    eight_bits,
    evaluate_fewer,
    fewer_prompts,
    fewer_rows,
    fits,
    recompute,
    serve_rewards,
)
from xomni_rl.experiments.planning.gpus import GIB, GPUS
from xomni_rl.experiments.planning.job import Job
from xomni_rl.experiments.planning.memory import memory
from xomni_rl.experiments.planning.rewards import RewardSize
from xomni_rl.experiments.planning.words import planned

MakeJob = Callable[..., Job]


def with_room(job: Job, size: int) -> Job:
    """The job on a GPU that has room for so many bytes."""
    return replace(job, gpu=replace(GPUS["A100-80GB"], memory=size / 0.985 / GIB))


def test_job_that_fits_is_left_alone(make_job: MakeJob) -> None:
    job = make_job()
    assert fits(job)
    assert advice(job) == ([], job)


def test_what_changes_nothing_that_is_learned_comes_first(make_job: MakeJob) -> None:
    job = make_job(rewards=(RewardSize("judge", GIB),), width=2)
    needed = memory(replace(job, checkpointing=True)).peak
    changes, changed = advice(with_room(job, needed + 1))
    assert [change.override for change in changes] == ["model.gradient_checkpointing=true"]
    assert changed.checkpointing
    assert fits(changed)


def test_saving_is_the_difference_of_two_plans(make_job: MakeJob) -> None:
    job = make_job(rewards=(RewardSize("judge", 1000), RewardSize("clip", 10)))
    changes, changed = applied(job, [recompute, serve_rewards, serve_rewards])
    assert [change.override.split()[-2] for change in changes[1:]] == ["elsewhere", "elsewhere"]
    assert "judge" in changes[1].override  # the largest first
    assert [change.saves for change in changes[1:]] == [1000, 10]
    assert changes[0].saves == memory(job).peak - memory(replace(job, checkpointing=True)).peak
    assert changes[-1].peak == memory(changed).peak


def test_job_that_never_fits_gets_everything_that_helps(make_job: MakeJob) -> None:
    changes, changed = advice(with_room(make_job(), 1))
    assert not fits(changed)
    assert changes[-1].peak == memory(changed).peak < memory(make_job()).peak
    assert all(change.saves > 0 for change in changes)


def test_change_that_another_one_makes_needless_is_left_out(make_job: MakeJob) -> None:
    job = make_job(rewards=(RewardSize("judge", 100 * GIB), RewardSize("clip", 1)))
    changes, _ = advice(with_room(job, memory(replace(job, rewards=())).peak + 10))
    assert [change.override for change in changes] == ["serve the reward judge elsewhere (docs/rewards/served.md)"]


def test_as_many_rows_at_a_time_are_advised_as_fit(make_job: MakeJob) -> None:
    job = make_job(group=16, evaluated=0)
    job = replace(job, model=replace(job.model, intermediate=4096))  # whose activations are most of it
    peaks = {rows: memory(replace(job, at_a_time=rows)).peak for rows in (16, 8, 4, 2)}
    assert sorted(peaks.values(), reverse=True) == list(peaks.values())
    assert peaks[8] > peaks[4]
    room = with_room(job, peaks[4] + 1)
    assert [change.override for change in applied(room, [fewer_rows])[0]] == ["model.rows_at_a_time=4"]
    assert fits(applied(room, [fewer_rows])[1])
    assert applied(replace(room, at_a_time=1), [fewer_rows])[0] == []


def test_moments_of_eight_bits_are_not_advised_where_weights_are_divided(make_job: MakeJob) -> None:
    assert [text for text, _ in eight_bits(make_job())] == ["trainer.optimizer=adamw_8bit"]
    assert list(eight_bits(make_job(launch="fsdp2", gpus=2))) == []


def test_ddp_is_told_to_divide_first(make_job: MakeJob) -> None:
    changes, _ = advice(with_room(make_job(launch="ddp", gpus=8), 1))
    assert changes[0].override == "launch=fsdp2"
    low = applied(make_job(launch="ddp", gpus=8, width=2), [divide])  # training refuses to divide weights of 16 bits
    assert (low[0][0].override, low[1].mixed) == ("launch=fsdp2 trainer.mixed_precision=bf16", True)


def test_as_many_prompts_a_step_are_advised_as_fit(make_job: MakeJob) -> None:
    job = make_job(prompts=16)
    room = with_room(job, memory(replace(job, prompts=4)).peak + 1)
    [change], changed = applied(room, [fewer_prompts])
    assert change.override == "trainer.prompts_per_step=4 (a smaller batch per update)"  # 16 and 8 are too many
    assert fits(changed)
    assert applied(make_job(prompts=1), [fewer_prompts])[0] == []


def test_prompts_are_halved_once_where_no_number_of_them_fits(make_job: MakeJob) -> None:
    assert applied(with_room(make_job(prompts=16), 1), [fewer_prompts, fewer_prompts])[1].prompts == 16 // 4


def test_every_gpu_keeps_a_prompt(make_job: MakeJob) -> None:
    # 6 prompts on 4 GPUs: two for the fullest, then one for each of the 4.
    [change], changed = applied(with_room(make_job(prompts=6, gpus=4, launch="ddp"), 1), [fewer_prompts])
    assert change.override.startswith("trainer.prompts_per_step=4 ")
    assert list(fewer_prompts(changed)) == []


def test_evaluation_samples_no_more_at_a_time_than_fewer_prompts_make(make_job: MakeJob) -> None:
    # 8 prompts × 8 images are as many as the evaluation's 64; halved, the evaluation would be the larger one.
    [change], changed = applied(with_room(make_job(prompts=8, evaluated=64), 1), [fewer_prompts])
    assert change.override.startswith("trainer.prompts_per_step=4 trainer.evaluation.batch_size=32 ")
    assert changed.evaluated == changed.rows == 32


def test_evaluation_larger_than_a_step_is_made_as_large(make_job: MakeJob) -> None:
    job = make_job(prompts=4, evaluated=48, gpus=2, launch="ddp")  # 48 images on each of two GPUs; 2 × 8 in a step
    assert [change.override for change in applied(job, [evaluate_fewer])[0]] == ["trainer.evaluation.batch_size=32"]
    assert applied(make_job(evaluated=16), [evaluate_fewer])[0] == []


def test_published_model_on_one_large_gpu_gets_fewer_prompts_and_keeps_its_images() -> None:
    changes, changed = advice(planned(["model=xomni_7b", "trainer=paper", "gpus=1xH200"]))
    # 9.05 G trained: masters 33.7 GiB; moments 67.4 GiB, or 17.1 of 8 bits. Each prompt's 16 images have 5.8 GiB of cache.
    assert [change.override for change in changes] == [
        "trainer.optimizer=adamw_8bit",
        "trainer.prompts_per_step=8 (a smaller batch per update)",
    ]
    assert fits(changed)
    assert (changed.tokens, changed.adapters) == (72 * 72, 0)
