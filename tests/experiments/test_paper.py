"""The paper's setting as one YAML: it composes, and goes all the way with every component in its tiny configuration."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState
from rich.console import Console

from tests.stack.published_folder import write_checkpoint, write_flux
from xomni_rl.config import compose
from xomni_rl.experiments.run import plain_config, run_training
from xomni_rl.rewards.hpsv2 import HpsV2Reward
from xomni_rl.rewards.reader_got import write_tiny_got
from xomni_rl.rewards.unified_reward import UnifiedReward
from xomni_rl.rewards.vlm_alignment import VlmAlignment


def paper_overrides(folder: Path) -> list[str]:
    """The experiment with its files: prompts of two kinds beside the generated ones."""
    for name in ("aesthetic", "natural"):
        lines = [{"id": str(number), "text": f"{name} picture {number} of a street"} for number in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [f"prompts.options.sources.{name}.options.path={folder / name}.jsonl" for name in ("aesthetic", "natural")]
    return ["experiment=xomni_paper", f"model.path={folder / 'xomni'}", f"model.options.flux={folder / 'flux'}", *sources]


def test_experiment_has_the_published_setting(tmp_path: Path) -> None:
    config = plain_config(compose(paper_overrides(tmp_path)))
    trainer = config["trainer"]
    assert trainer["prompts_per_step"] * trainer["group_size"] == 512
    assert (trainer["group_size"], trainer["learning_rate"], trainer["steps"]) == (16, 1e-6, 200)
    assert trainer["sampling"]["cfg_scale"] == trainer["evaluation"]["sampling"]["cfg_scale"] == 1.0
    weights = {name: part["weight"] for name, part in config["reward"]["components"].items()}
    assert weights == {"hpsv2": 1.0, "unified_reward": 1.0, "vlm_alignment": 1.0, "ocr": 0.5, "ocr_got": 0.5}
    assert list(config["prompts"]["options"]["sources"]) == ["text", "aesthetic", "natural"]


@pytest.fixture
def other_precision() -> Iterator[None]:
    """A process keeps accelerate's precision, and other tests have another one than the paper's."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.slow
@pytest.mark.usefixtures("other_precision")
def test_dry_run_with_every_component_in_its_tiny_configuration(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "xomni")
    write_flux(tmp_path / "flux")
    small = ["trainer.steps=1", "trainer.prompts_per_step=3", "trainer.group_size=2", "trainer.accumulation=1"]
    small += ["trainer.evaluate_every=null", "trainer.trackers=[]", "prompts.train_count=24", "prompts.heldout_count=0"]
    config: dict[str, Any] = plain_config(compose([*paper_overrides(tmp_path), *small, f"run={tmp_path / 'run'}"]))
    parts = config["reward"]["components"]
    for name, kind in {"hpsv2": HpsV2Reward, "unified_reward": UnifiedReward, "vlm_alignment": VlmAlignment}.items():
        (tmp_path / name).mkdir()
        parts[name]["options"] |= kind.write_tiny(tmp_path / name)
    parts["ocr_got"]["options"]["engine_options"] = write_tiny_got(tmp_path / "got")
    summary = run_training(config, console=Console(file=io.StringIO()))
    assert (summary.status, summary.steps) == ("finished", 1)
    table = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet").to_pandas()
    assert len(table) == 6
    asked = {name: int(table[f"reward_{name}"].notna().sum()) for name in parts}
    assert asked["hpsv2"] == asked["unified_reward"] == 6
    assert 0 < asked["ocr"] < 6
    assert asked["ocr"] == asked["ocr_got"] == 6 - asked["vlm_alignment"]  # a prompt wants text, or it does not
