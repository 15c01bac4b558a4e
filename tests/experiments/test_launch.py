"""What starts training elsewhere: accelerate reads its files, the launchers compose, sweeps run on submitit and on Ray."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import xomni_rl.experiments.launch
from xomni_rl.commands.train import run_application
from xomni_rl.config import CONFIG_MODULE, explained, register_resolvers
from xomni_rl.experiments.launch.ray_launcher import quoted
from xomni_rl.stack.stack import Stack

LAUNCH = Path(xomni_rl.experiments.launch.__file__).parent
CONF = LAUNCH.parent / "conf" / "hydra" / "launcher"
CARD = ["Question", "Run", "Expect", "Hardware", "Override"]
MY_REWARD = """
import os

import numpy as np


def redness(images, prompts):
    if os.environ.get("XOMNI_TEST") == "1":
        os._exit(7)
    if os.environ.get("XOMNI_TEST") == "2":
        raise ValueError("too dark")
    return np.array([image[..., 0].mean() / 255 for image in images], dtype=np.float32)
"""
SMALL = [
    "trainer=quick",
    "trainer.steps=1",
    "trainer.evaluate_every=null",
    "trainer.trackers=[]",
    "trainer.evaluation.reward=null",
    "prompts.heldout_count=0",
    "~reward.components.ocr",
    "+reward.components.red={reward: 'mine:redness', weight: 1.0, options: {}}",
    "model.path=tiny",
    "run=sweep",
    "hydra.sweep.subdir=${hydra.job.num}",
]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a tiny stack and a reward of somebody's own in it."""
    Stack.tiny_random(seed=0).save_pretrained(tmp_path / "tiny")
    (tmp_path / "mine.py").write_text(MY_REWARD)
    return tmp_path


def sweep(launcher: str, *overrides: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--config-dir", "conf"] if (cwd / "conf").exists() else []
    command = [sys.executable, "-m", "xomni_rl", "train", "-m", *options, f"hydra/launcher={launcher}", *SMALL, *overrides]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, text=True, capture_output=True, check=False)


def launcher_config(launcher: str, *overrides: str) -> dict[str, Any]:
    """What Hydra makes the launcher of."""
    register_resolvers()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        config = compose("config", [f"hydra/launcher={launcher}", *overrides], return_hydra_config=True)
    found = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def sent_lines(text: str) -> dict[str, str]:
    """Options of the #SBATCH lines of a submission file."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))


# accelerate's files


def launch_arguments(file: str) -> Namespace:
    """What `accelerate launch --config_file FILE --num_processes 2 -m xomni_rl train seed=1` makes of its words."""
    words = ["--config_file", str(LAUNCH / file), "--num_processes", "2", "-m", "xomni_rl", "train", "seed=1"]
    checked, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert isinstance(checked, Namespace)
    return checked


@pytest.mark.parametrize(
    ("file", "kind"), [("ddp.yaml", "MULTI_GPU"), ("fsdp2.yaml", "FSDP"), ("deepspeed_zero3.yaml", "DEEPSPEED")]
)
def test_file_of_accelerate_is_read_by_its_own_classes_and_launcher(file: str, kind: str) -> None:
    config = load_config_from_file(str(LAUNCH / file))  # raises for a key accelerate does not know
    assert config.distributed_type.value == kind
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (8, 1, "no")
    launched = launch_arguments(file)
    assert (launched.num_processes, launched.training_script, launched.training_script_args) == (
        2,
        "xomni_rl",
        ["train", "seed=1"],
    )
    assert (launched.multi_gpu, launched.use_fsdp, launched.use_deepspeed) == (
        kind == "MULTI_GPU",
        kind == "FSDP",
        kind == "DEEPSPEED",
    )


def test_fsdp2_file_becomes_the_plugin_that_divides_the_stacks_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in prepare_multi_gpu_env(launch_arguments("fsdp2.yaml")).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, False)
    plugin.set_auto_wrap_policy(Stack.tiny_random(seed=0).model)  # raises if there is no layer of that class
    assert plugin.transformer_cls_names_to_wrap == ["Qwen2DecoderLayer"]


def test_zero3_file_asks_for_stage_three() -> None:
    launched = launch_arguments("deepspeed_zero3.yaml")
    assert (launched.zero_stage, launched.zero3_init_flag, launched.offload_optimizer_device) == (3, False, "none")


@pytest.mark.parametrize("path", sorted([*LAUNCH.glob("*.yaml"), *CONF.glob("*.yaml")]), ids=lambda path: path.stem)
def test_every_file_begins_with_its_card(path: Path) -> None:
    head = [line.removeprefix("# ").partition(":")[0] for line in path.read_text().splitlines() if line.startswith("# ")]
    assert head[:5] == CARD


# launchers of sweeps


def test_slurm_composes_with_sensible_resources_and_overrides() -> None:
    config = launcher_config("slurm", "hydra.launcher.partition=gpu", "hydra.launcher.mem_gb=128")
    assert config["_target_"].endswith("SlurmLauncher")
    assert (config["timeout_min"], config["cpus_per_task"], config["gpus_per_node"], config["nodes"]) == (240, 8, 1, 1)
    assert (config["partition"], config["mem_gb"], config["max_num_timeout"]) == ("gpu", 128, 5)


def test_ray_composes_with_its_resources_and_overrides() -> None:
    config = launcher_config("ray", "hydra.launcher.gpus=0.5", "hydra.launcher.address=ray://head:10001")
    assert config == {
        "_target_": "hydra_plugins.xomni_rl.RayLauncher",
        "cpus": 1,
        "gpus": 0.5,
        "address": "ray://head:10001",
        "runtime_env": {},
    }


def test_missing_plugin_and_unknown_launcher_are_sentences() -> None:
    missing = explained(ValueError("In 'hydra/launcher/slurm': Could not find 'hydra/launcher/submitit_slurm'\n"))
    assert str(missing) == "hydra/launcher=slurm needs Hydra's plug-in for Slurm: pip install 'xomni-rl[slurm]'"
    options = "Available options in 'hydra/launcher':\n\tray\n\tslurm\nConfig search path"
    unknown = explained(ValueError(f"Could not find 'hydra/launcher/slrum'\n{options}"))
    assert 'unknown choice of group hydra/launcher, "slrum"; nearest: slurm; known: ray, slurm' in str(unknown)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_quoted_value_is_read_back_by_hydra(text: str) -> None:
    assert OverridesParser.create().parse_override(f"run={quoted(text)}").value() == text


# Slurm


@pytest.mark.slow
def test_torchrun_line_of_the_page_gives_the_run_of_one_process(workplace: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    line = re.search(r"`(torchrun .*?)`", page)
    assert line is not None
    program, *arguments = shlex.split(line[1])
    assert program == "torchrun"
    small = [override for override in SMALL if not override.startswith(("run=", "hydra."))]
    commands = {
        "runs/two": [sys.executable, "-m", "torch.distributed.run", *arguments, *small],
        "runs/one": [sys.executable, "-m", "xomni_rl", "train", "run=runs/one", *small],
    }
    figures = []
    for run, command in commands.items():
        done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        row = json.loads((workplace / run / "metrics.jsonl").read_text().splitlines()[-1])
        figures.append({name: value for name, value in row.items() if name not in ("time", "memory")})
    assert figures[0].keys() == figures[1].keys()
    for name, value in figures[1].items():
        assert figures[0][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert json.loads((workplace / "runs/two" / "manifest.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_sweep_is_written_for_slurm_as_one_array_with_the_resources_asked_for(workplace: Path) -> None:
    # submitit looks for srun before it writes anything; there is no sbatch, so nothing can be sent.
    (workplace / "bin").mkdir()
    (workplace / "bin" / "srun").symlink_to("/bin/false")
    search_path = f"{workplace / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ran = sweep("slurm", "seed=0,1,2", "hydra.launcher.partition=gpu", cwd=workplace, PATH=search_path)
    assert ran.returncode == 1
    assert "error: sbatch: No such file or directory" in ran.stderr.splitlines()
    [file] = (workplace / "sweep" / ".submitit").glob(".submission_file_*.sh")
    asked = sent_lines(file.read_text())
    assert asked.items() >= {"partition": "gpu", "time": "240", "cpus-per-task": "8", "mem": "64GB"}.items()
    assert asked.items() >= {"gpus-per-node": "1", "nodes": "1", "ntasks-per-node": "1", "job-name": "xomni-rl"}.items()
    assert asked["array"] == "0-2%3"  # three jobs, no more than three of the 16 allowed at a time
    assert asked["signal"].endswith("@120")
    assert f"{sys.executable} -u -m submitit.core._submit" in file.read_text()


def test_without_slurm_the_sweep_says_so(workplace: Path) -> None:
    ran = sweep("slurm", "seed=0,1", cwd=workplace, PATH=str(workplace))
    assert ran.returncode == 1
    assert ran.stderr == "error: there is no Slurm here (no srun): start this where Slurm's commands are\n"


@pytest.mark.slow
def test_submitit_runs_the_jobs_in_processes_and_a_failing_one_spares_the_others(workplace: Path) -> None:
    ran = sweep("submitit_local", "algorithm.options.clip_low=2,0.2", cwd=workplace)
    assert ran.returncode == 1
    assert "error: job 0: algorithm.options.clip_low must be in [0, 1], but is 2" in ran.stderr.splitlines()
    assert [path.parent.name for path in (workplace / "sweep").glob("*/summary.json")] == ["1"]


def test_job_that_slurm_queues_again_goes_on_with_its_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run_application(["-m", *SMALL])
    with pytest.raises(typer.Exit):  # the folder already holds a run
        run_application(["-m", *SMALL])
    # What a job finds that ran out of time after its first step and was queued again.
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run_application(["-m", *SMALL, "trainer.steps=2"])
    lines = (workplace / "sweep" / "0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


# Ray


def processes_with(mark: str) -> list[str]:
    """Command lines of the processes that inherited this environment variable."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue
    return found


@pytest.mark.slow
def test_ray_runs_the_jobs_and_names_those_that_failed_or_died(workplace: Path) -> None:
    pytest.importorskip("ray")
    (workplace / "conf" / "algorithm").mkdir(parents=True)
    (workplace / "conf" / "algorithm" / "mine.yaml").write_text("name: grpo\noptions: {clip_low: 0.3}\n")
    mark = str(uuid.uuid4())
    # Workers of niceness 15 would starve while other tests run.
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "XOMNI_TEST_MARK": mark}
    ran = sweep("ray", "algorithm=mine", "seed=0,1,2", "+hydra.job.env_set.XOMNI_TEST=${seed}", cwd=workplace, **environment)
    assert ran.returncode == 1
    [line] = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert "2 of 3 jobs failed: job 1: its process died" in line
    assert re.search("job 2: .*too dark", line)
    assert {"job 0: finished", "job 1: failed", "job 2: failed"} <= set(ran.stdout.splitlines())
    [summary] = (workplace / "sweep").glob("*/summary.json")
    config = yaml.safe_load((summary.parent / "config.yaml").read_text())
    assert (summary.parent.name, config["run"], config["algorithm"]["options"]) == ("0", "sweep/0", {"clip_low": 0.3})
    deadline = time.monotonic() + 20
    while left := processes_with(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_ray_that_cannot_be_reached_is_a_sentence(workplace: Path) -> None:
    pytest.importorskip("ray")
    ran = sweep("ray", "seed=0,1", "hydra.launcher.address=127.0.0.1:9", cwd=workplace)
    assert ran.returncode == 1
    assert ran.stderr == "error: Ray cannot be reached at 127.0.0.1:9: Connection refused\n"
