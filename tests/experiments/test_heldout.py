from pathlib import Path

import pandas as pd
import pytest

from xomni_rl.config import ConfigError, compose
from xomni_rl.experiments.heldout import main, stack_at
from xomni_rl.experiments.run import load_split, plain_config
from xomni_rl.policies.evaluation import evaluate
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.rewards.composite import build_composite
from xomni_rl.stack.sampler import SamplingConfig

OVERRIDES = ["prompts.heldout_count=4", "reward=ocr"]


def test_table_has_the_figures_of_the_evaluation_at_each_scale(tmp_path: Path) -> None:
    main(["start=embedded", "twice=embedded", "twice=embedded"], tmp_path, cfg=[1.0, 2.0], override=OVERRIDES)
    table = pd.read_csv(tmp_path / "heldout.csv").set_index(["name", "cfg_scale", "metric"])
    config = plain_config(compose(OVERRIDES))
    settings = TrainerSettings.from_config(config).evaluation
    for scale in (1.0, 2.0):
        sampling = SamplingConfig(cfg_scale=scale)
        policy = StackPolicy(stack_at("embedded", config["model"]), sampling)
        reward = build_composite(settings.reward or config["reward"])
        expected = evaluate(
            policy,
            load_split(config, "heldout", 0),
            reward,
            TrainerSettings.from_config(
                plain_config(compose([*OVERRIDES, f"trainer.evaluation.sampling.cfg_scale={scale}"]))
            ).evaluation,
        )
        for name, seeds in (("start", 1), ("twice", 2)):
            row = table.loc[(name, scale, "ocr_char")]
            assert row["mean"] == pytest.approx(expected.figures["ocr_char"], abs=1e-5)
            assert (row["seeds"], row["prompts"]) == (seeds, 4)
            assert row["low"] <= row["mean"] <= row["high"]
    assert (tmp_path / "heldout.md").read_text().count("| start |") == 2


def test_argument_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"embedded" is not NAME=PLACE'):
        main(["embedded"], tmp_path)
