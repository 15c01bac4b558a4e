"""The experiment of longer texts goes all the way: prompts of several sizes, word recall, and what is only logged."""

from pathlib import Path

from rich.console import Console

from xomni_rl.config import compose
from xomni_rl.experiments.run import run_training
from xomni_rl.prompt_sets.long_signs import SIZES, long_signs


def test_experiment_trains_on_several_sizes_and_logs_readers_colour_and_lines(tmp_path: Path) -> None:
    small = ["trainer.steps=1", "trainer.prompts_per_step=2", "trainer.group_size=2", "prompts.heldout_count=3"]
    small += ["model.path=tiny_random", "prompts.train_count=2", f"run={tmp_path / 'run'}"]
    assert len({p.size for p in long_signs("train", 2)} | {p.size for p in long_signs("heldout", 3)}) > 1
    config = compose(["experiment=long_text", *small])
    summary = run_training(config, overrides=small, console=Console(quiet=True))
    assert summary.steps == 1
    after = summary.heldout["after"]
    assert {"ocr", "ocr_exact", "ocr_char", "ocr_heldout", "colour", "lines"} <= set(after)
    assert all(0 <= after[name] <= 1 for name in ("ocr", "ocr_heldout", "colour", "lines"))


def test_training_prompts_have_every_size() -> None:
    assert {p.size for p in long_signs("train", 64)} == set(SIZES.values())
