"""`xomni-rl train` in real processes: Hydra's manners, the run folder, resume, sweeps."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from typer.testing import CliRunner

from xomni_rl.cli import app
from xomni_rl.config import compose
from xomni_rl.stack.stack import Stack

MY_REWARD = '''"""A reward of somebody's own, in the folder they work in."""
import numpy as np


def redness(images, prompts):
    """Mean of the red channel."""
    return np.array([image[..., 0].mean() / 255 for image in images], dtype=np.float32)
'''
SMALL = [
    "trainer=quick",
    "trainer.steps=1",
    "trainer.evaluate_every=null",
    "trainer.trackers=[]",
    "trainer.evaluation.reward=null",
    "prompts.heldout_count=0",
    "~reward.components.ocr",
    "+reward.components.red={reward: 'mine:redness', weight: 1.0, options: {}}",
]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xomni_rl", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, text=True, capture_output=True, check=False)


def assert_one_sentence(stderr: str, pattern: str) -> None:
    assert "Traceback" not in stderr
    [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert re.search(pattern, line), line


@pytest.fixture(scope="module")
def stack_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stacks") / "tiny"
    Stack.tiny_random(seed=0).save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cfg_job_prints_the_composed_configuration_and_leaves_nothing(workplace: Path):
    ran = run("train", "--cfg", "job", "algorithm=dr_grpo", "seed=3", cwd=workplace)
    assert ran.returncode == 0, ran.stderr
    assert yaml.safe_load(ran.stdout) == OmegaConf.to_container(compose(["algorithm=dr_grpo", "seed=3"]))
    assert list(workplace.iterdir()) == []


def test_train_help_is_hydras_with_groups_and_examples(workplace: Path):
    ran = run("train", "--help", cwd=workplace)
    assert ran.returncode == 0
    assert re.search("algorithm: batch, best_of_n, .* dr_grpo, .* grpo, .* sapo", ran.stdout)
    assert "xomni-rl train -m seed=0,1,2 algorithm=grpo,dr_grpo" in ran.stdout


def test_typo_in_a_real_process_is_one_sentence(workplace: Path):
    ran = run("train", "trainer.stpes=3", cwd=workplace)
    assert ran.returncode == 1
    assert_one_sentence(ran.stderr, "nearest: trainer.steps")
    assert len(ran.stderr.splitlines()) == 1


def test_config_dir_adds_choices_of_ones_own(workplace: Path):
    (workplace / "conf" / "algorithm").mkdir(parents=True)
    (workplace / "conf" / "algorithm" / "mine.yaml").write_text("name: grpo\noptions: {clip_low: 0.3}\n")
    ran = run("train", "--config-dir", "conf", "algorithm=mine", "--cfg", "job", cwd=workplace)
    assert ran.returncode == 0, ran.stderr
    assert yaml.safe_load(ran.stdout)["algorithm"] == {"name": "grpo", "options": {"clip_low": 0.3}}


@pytest.fixture
def train(workplace: Path, stack_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Trains for a step on a tiny stack, with a reward that lies in the working directory."""
    (workplace / "mine.py").write_text(MY_REWARD)
    return lambda *arguments: run("train", *SMALL, f"model.path={stack_folder}", *arguments, cwd=workplace)


@pytest.mark.slow
def test_train_writes_the_run_folder_alone_and_resume_goes_on_with_overrides(
    workplace: Path, train: Callable[..., subprocess.CompletedProcess[str]]
):
    ran = train("run=here")
    assert ran.returncode == 0, ran.stderr
    assert "report: here/report.html" in ran.stdout
    assert {path.name for path in workplace.iterdir()} <= {"mine.py", "__pycache__", "here"}
    resumed = run("train", "resume=here", "trainer.steps=2", cwd=workplace)
    assert resumed.returncode == 0, resumed.stderr
    steps = [json.loads(line)["step"] for line in (workplace / "here" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    config = yaml.safe_load((workplace / "here" / "config.yaml").read_text())
    assert config["trainer"]["steps"] == 2
    assert config["trainer"]["name"] == "quick", "what was not overridden is the run's own"
    shown = CliRunner().invoke(app, ["generate", "a sign", "--stack", "here", "--out", "drawn"])
    assert shown.exit_code == 0, shown.stderr


@pytest.mark.slow
def test_sweep_gives_each_job_a_run_folder_and_a_failing_job_spares_the_others(
    workplace: Path, train: Callable[..., subprocess.CompletedProcess[str]]
):
    ran = train("run=sweep", "algorithm.options.clip_low=2,0.2", "seed=4", "-m")
    assert ran.returncode == 1
    assert_one_sentence(ran.stderr, r"job 0: algorithm.options.clip_low must be in \[0, 1\], but is 2")
    assert {path.name for path in workplace.iterdir()} <= {"mine.py", "__pycache__", "sweep"}
    finished = [path.parent for path in (workplace / "sweep").glob("*/summary.json")]
    assert [path.name.partition("_")[0] for path in finished] == ["1"]
    config = yaml.safe_load((finished[0] / "config.yaml").read_text())
    assert (config["seed"], config["algorithm"]["options"]["clip_low"]) == (4, 0.2)
