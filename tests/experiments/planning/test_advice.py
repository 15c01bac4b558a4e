"""Changes are planned again, in order, and none of them is in vain."""

from collections.abc import Callable
from dataclasses import replace

from xomni_rl.experiments.planning.advice import advice, applied, fits, recompute, serve_rewards
from xomni_rl.experiments.planning.gpus import GIB, GPUS
from xomni_rl.experiments.planning.job import Job
from xomni_rl.experiments.planning.memory import memory
from xomni_rl.experiments.planning.rewards import RewardSize

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


def test_ddp_is_told_to_divide_first(make_job: MakeJob) -> None:
    changes, _ = advice(with_room(make_job(launch="ddp", gpus=8), 1))
    assert changes[0].override == "launch=fsdp2"
