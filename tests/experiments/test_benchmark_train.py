"""The benchmark of a training step: its parts are those of the run's own account of time."""

import pytest

from xomni_rl.experiments.benchmarks.train import PARTS, run

TINY = ("model.path=tiny_random", "trainer.prompts_per_step=2", "trainer.group_size=2", "prompts.train_count=8")


def test_share_outside_the_model_is_what_its_parts_say(capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(steps=3, overrides=(*TINY, "trainer.checkpoint_every=10"))
    assert figures["steps"] == 3
    assert figures["checkpoint_every"] == 10
    share = figures["checkpoint_seconds"] / 10
    outside = figures["seconds"]["other"] + share
    assert figures["ratio"] == pytest.approx(outside / (figures["seconds"]["total"] + share))
    assert 0 < figures["ratio"] < 1
    # two prompts with two images each
    assert figures["images_per_second"] == pytest.approx(4 / figures["seconds"]["total"])
    printed = capsys.readouterr().out
    assert all(part in printed for part in (*PARTS, "checkpoint's share", "total"))
