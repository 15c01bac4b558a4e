"""The TRL engine beside the native one: the same gradient, weights, figures and files; what it refuses; a kill and after."""

import copy
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from xomni_rl.config import compose
from xomni_rl.experiments.report.page import build_report
from xomni_rl.experiments.run import build_parts, load_split, plain_config, trained_stack
from xomni_rl.policies.algorithms.base import algorithms, build_algorithm
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.records import read_rows
from xomni_rl.policies.settings import SettingsError, TrainerSettings
from xomni_rl.policies.trainer import TrainingError, TrainSummary, train
from xomni_rl.policies.trl_engine import algorithm_options, batch_options
from xomni_rl.rewards.composite import build_composite
from xomni_rl.stack.stack import Stack

Change = Callable[..., dict[str, Any]]
ENGINES = ("native", "trl")
MEASURED = {"time": None, "memory": None}


@pytest.fixture
def run(stack: Stack) -> Callable[..., TrainSummary]:
    """run(config): trains the tiny stack from its starting weights."""
    weights = {name: value.clone() for name, value in stack.model.state_dict().items()}

    def start(config: dict[str, Any], policy: StackPolicy | None = None) -> TrainSummary:
        stack.model.load_state_dict(weights)
        AcceleratorState._reset_state()  # it is shared by a process, and tests differ in mixed precision
        return train(
            config,
            policy=policy or StackPolicy(stack, TrainerSettings.from_config(config).sampling),
            reward=build_composite(config["reward"]),
            train_prompts=load_split(config, "train", 0),
            heldout_prompts=load_split(config, "heldout", 0),
            console=Console(file=io.StringIO()),
        )

    return start


@pytest.fixture
def both(run: Callable[..., TrainSummary], stack: Stack, changed: Change, tmp_path: Path) -> Callable[..., Any]:
    """both(**changes): what each engine made of the same configuration: folders, metrics, weights."""

    def start(**changes: Any) -> dict[str, tuple[Path, list[dict[str, Any]], dict[str, Tensor]]]:
        made = {}
        for engine in ENGINES:
            config = changed(run=str(tmp_path / engine), trainer__engine=engine, **changes)
            folder = run(config).folder
            weights = {name: value.clone() for name, value in stack.model.state_dict().items()}
            made[engine] = folder, read_rows(folder / "metrics.jsonl"), weights
        return made

    return start


def with_reward(function: str, **more: Any) -> dict[str, Any]:
    return {"components": {"red": {"reward": f"{Path(__file__).parent / 'cheap_rewards.py'}:{function}"}}, **more}


def assert_same_figures(native: list[dict[str, Any]], trl: list[dict[str, Any]]) -> None:
    """Rows of metrics.jsonl: the same names, and numbers to the rounding of advantages in float32, where TRL makes them."""
    assert len(native) == len(trl)
    for ours, theirs in zip(native, trl, strict=True):
        assert ours.keys() == theirs.keys()
        for name in set(ours) - {"time", "memory", "ratio_max_deviation", "logprob_max_delta"}:  # these are rounding themselves
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-4), name


# one full first step


@pytest.fixture(scope="module")
def embedded() -> dict[str, Any]:
    """The embedded stack with real OCR, as a run is given them."""
    overrides = ["run=unused", "prompts.heldout_count=0", "trainer.steps=1", "trainer.prompts_per_step=2"]
    config = plain_config(compose([*overrides, "trainer.trackers=[]", "trainer.evaluate_every=null"]))
    parts = build_parts(config)
    start = {name: value.clone() for name, value in parts["policy"].model.state_dict().items()}
    return {"config": config, "start": start, "stack": parts["policy"].stack, "reward": parts["reward"]}


def first_step(embedded: dict[str, Any], algorithm: str, engine: str, folder: Path) -> tuple[dict[str, Tensor], ...]:
    """Gradients at the first optimizer step, after clipping, and weights after it, by parameter."""
    config = copy.deepcopy(embedded["config"]) | {"run": str(folder), "algorithm": {"name": algorithm, "options": {}}}
    config["trainer"]["engine"] = engine
    model = embedded["stack"].model
    model.load_state_dict(embedded["start"])
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        gradients.update({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})

    handle = register_optimizer_step_pre_hook(keep)
    try:
        train(
            config,
            policy=StackPolicy(embedded["stack"]),
            reward=embedded["reward"],
            train_prompts=load_split(config, "train", 0),
            console=Console(file=io.StringIO()),
        )
    finally:
        handle.remove()
    return gradients, {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo", "gspo", "gdpo", "cispo", "sapo"])
def test_first_step_of_both_engines_has_the_same_gradient_and_weights(
    embedded: dict[str, Any], algorithm: str, tmp_path: Path
) -> None:
    made = [first_step(embedded, algorithm, engine, tmp_path / engine) for engine in ENGINES]
    for native, trl in zip(*made, strict=True):
        assert native.keys() == trl.keys()
        for name, value in native.items():
            torch.testing.assert_close(trl[name], value, rtol=0, atol=1e-6)
    # After clipping the gradient's norm is 1, and AdamW's first step is the learning rate of 2e-5 in every direction.
    assert sum(float(value.square().sum()) for value in made[0][0].values()) > 1e-3


# whole runs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "algorithm__options": {"kl_coef": 0.05, "reference": "ema", "aggregation": "sequence_mean"},
            "trainer__max_grad_norm": None,
        },
        {"algorithm__options": {"entropy_coef": 0.01, "resample_rounds": 1}},
        {"trainer__epochs": 2, "trainer__minibatches": 2},
        {"algorithm__name": "dr_grpo", "trainer__prompts_per_step": 4, "trainer__minibatches": 2, "trainer__accumulation": 2},
        {"algorithm__options": {"filter": "drop_zero_variance"}, "reward": with_reward("failing_on_first", on_failure="drop")},
    ],
    ids=["plain", "kl", "entropy", "epochs", "accumulation", "dropped"],
)
def test_runs_of_both_engines_have_the_same_figures(both, changes: dict[str, Any]) -> None:
    made = both(trainer__learning_rate=1e-5, **changes)
    assert_same_figures(made["native"][1], made["trl"][1])


def test_rollouts_evaluations_and_random_states_of_both_engines_are_the_same(both) -> None:
    made = both(trainer__learning_rate=1e-9)  # weights that do not move, so that nothing differs by rounding
    folders = [made[engine][0] for engine in ENGINES]
    tables = [sorted(path.relative_to(folder) for path in folder.rglob("*.parquet")) for folder in folders]
    assert tables[0] == tables[1]
    for path in tables[0]:
        native, trl = (pq.read_table(folder / path).to_pylist() for folder in folders)
        for ours, theirs in zip(native, trl, strict=True):
            assert theirs.pop("advantage", 0.0) == pytest.approx(ours.pop("advantage", 0.0), abs=1e-4)
            assert repr(ours) == repr(theirs)  # NaN == NaN
    configs = [(folder / "checkpoints" / "step_000003" / "model" / "config.json").read_text() for folder in folders]
    assert configs[0] == configs[1]
    states = [load_file(folder / "checkpoints" / "step_000003" / "rng.safetensors") for folder in folders]
    assert torch.equal(states[0]["cpu"], states[1]["cpu"])


def test_bfloat16_autocast_takes_the_same_first_step(both) -> None:
    made = both(trainer__mixed_precision="bf16", trainer__steps=1)
    native, trl = made["native"][1][1], made["trl"][1][1]
    assert trl["grad_norm"] == pytest.approx(native["grad_norm"], rel=1e-3)  # bfloat16 has 8 bits: 4e-3 for one number
    assert trl["ratio_max_deviation"] == pytest.approx(native["ratio_max_deviation"], abs=1e-6)


def test_folder_is_what_report_generation_and_resume_read(run, changed: Change, stack: Stack) -> None:
    config = changed(trainer__engine="trl")
    summary = run(config)
    folder = summary.folder
    trained = {name: value.clone() for name, value in stack.model.state_dict().items()}
    assert summary.status == "finished"
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "manifest.json", "metrics.jsonl", "summary.json"}
    assert json.loads((folder / "manifest.json").read_text())["packages"]["torch"] == torch.__version__
    assert build_report(folder).stat().st_size > 0
    loaded = trained_stack(folder, "last").model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in trained.items())
    assert "forward" not in vars(stack.model)  # TRL's is taken back


def test_constant_reward_skips_every_update(both) -> None:
    made = both(reward=with_reward("constant"))
    assert_same_figures(made["native"][1], made["trl"][1])
    assert [row["skipped"] for row in made["trl"][1] if row["step"]] == [1.0, 1.0, 1.0]
    assert all(torch.equal(value, made["trl"][2][name]) for name, value in made["native"][2].items())


def test_several_scheduled_rewards_count_as_in_the_native_engine(both) -> None:
    red, other = (with_reward(name)["components"]["red"] for name in ("redness", "noisy_redness"))
    scheduled = red | {"schedule": {1: 0.0, 3: 1.0}}
    reward = {"components": {"red": scheduled, "noise": other | {"weight": -0.5}}, "normalisation": "group"}
    made = both(reward=reward, trainer__learning_rate=1e-5)
    assert_same_figures(made["native"][1], made["trl"][1])


class Poisoned(StackPolicy):
    """A policy whose log-probabilities become NaN at the second update, or whose gradient does."""

    def __init__(self, stack: Stack, gradient_only: bool) -> None:
        super().__init__(stack)
        self.calls, self.gradient_only = 0, gradient_only

    def logprobs(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        logprobs, entropy = super().logprobs(*arguments, **options)
        self.calls += 1
        if self.calls == 2 and self.gradient_only:
            logprobs.register_hook(lambda gradient: gradient * float("nan"))
        return logprobs * float("nan") if self.calls == 2 and not self.gradient_only else logprobs, entropy


@pytest.mark.parametrize(("gradient_only", "what"), [(False, "loss is nan"), (True, "gradient's norm is nan")])
def test_number_that_is_not_finite_stops_with_the_batch_saved(
    run, stack: Stack, changed: Change, gradient_only: bool, what: str
) -> None:
    config = changed(trainer__engine="trl")
    with pytest.raises(TrainingError, match=rf"step 2: the {what} \(prompts train\d, train\d\).*saved in"):
        run(config, Poisoned(stack, gradient_only))
    assert (Path(config["run"]) / "nonfinite" / "step_000002" / "batch.safetensors").exists()
    assert all(torch.isfinite(parameter).all() for parameter in stack.model.parameters())


def test_number_that_is_not_finite_goes_back_to_a_checkpoint_if_asked_to(run, stack: Stack, changed: Change) -> None:
    config = changed(trainer__engine="trl", trainer__alarms={"nonfinite_action": "rollback"})
    summary = run(config, Poisoned(stack, gradient_only=True))  # at step 2; its repetition is not poisoned
    assert (summary.status, summary.steps) == ("finished", 3)
    rows = read_rows(summary.folder / "metrics.jsonl")
    # half the rate from step 2 on; warm-up takes two steps: 3e-4 · 1/2, 3e-4 · 2/2 · 1/2, 3e-4 · 1/2
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx([1.5e-4, 1.5e-4, 1.5e-4])


def test_divergence_goes_back_to_a_checkpoint_until_it_is_too_often(run, changed: Change) -> None:
    limits = {"kl_limit": 1e-4, "kl_action": "rollback", "max_rollbacks": 2}
    more = {"trainer__learning_rate": 1e-1, "trainer__steps": 20, "algorithm__options": {"kl_coef": 1e-6}}
    summary = run(changed(trainer__engine="trl", trainer__alarms=limits, **more))
    assert summary.status.startswith("stopped: kl_limit")
    assert summary.alarms["rollback"] == 2
    assert summary.steps < 20


# going on

SCRIPT = """
import io, json, sys
from rich.console import Console
from xomni_rl.experiments.run import build_parts
from xomni_rl.policies.trainer import train
config = json.loads(sys.argv[1])
train(config, **build_parts(config), console=Console(file=io.StringIO()))
"""


def process(config: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(config)], env={**os.environ, "HF_HUB_OFFLINE": "1"})


@pytest.mark.slow
def test_killed_run_goes_on_to_the_last_bit(changed: Change, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "reward": with_reward("noisy_redness"),  # from the global generators
        "algorithm__options": {"kl_coef": 0.01},
        "trainer__engine": "trl",
        "trainer__steps": 8,
        "trainer__checkpoint_every": 3,
        "trainer__minibatches": 2,
        "trainer__learning_rate": 3e-3,
    }
    whole = changed(run=str(tmp_path / "whole"), **settings)
    killed = changed(run=str(tmp_path / "killed"), **settings)
    running = [process(whole), process(killed)]
    while not any(row["step"] == 5 for row in read_rows(tmp_path / "killed" / "metrics.jsonl")):
        assert running[1].poll() is None
        time.sleep(0.005)
    running[1].send_signal(signal.SIGKILL)
    assert [each.wait(300) for each in running] == [0, -signal.SIGKILL]
    assert process(killed | {"resume": killed["run"]}).wait(300) == 0
    ours, theirs = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
    assert [row | MEASURED for row in ours] == [row | MEASURED for row in theirs]
    for file in ("model/model.safetensors", "optimizer.safetensors", "rng.safetensors"):
        one, other = (load_file(tmp_path / name / "checkpoints" / "step_000008" / file) for name in ("whole", "killed"))
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items()), file
    assert len(json.loads((tmp_path / "killed" / "manifest.json").read_text())["resumes"]) == 1


def test_run_of_one_engine_does_not_go_on_with_the_other(run, changed: Change) -> None:
    config = changed(trainer__engine="trl", trainer__steps=1)
    run(config)
    with pytest.raises(SettingsError, match=r"trainer\.engine cannot change"):
        run(config | {"resume": config["run"], "trainer": config["trainer"] | {"engine": "native"}})


# what TRL is told, and what it is not asked


def test_algorithm_becomes_the_options_of_trl() -> None:
    options = {"clip_low": 0.1, "clip_high": 0.3, "kl_coef": 0.02, "scale": "none", "aggregation": "sequence_mean"}
    assert algorithm_options(build_algorithm("grpo", options)) == {
        "scale_rewards": "none",
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "delta": None,
        "beta": 0.02,
        "entropy_coef": 0.0,
    }


def test_algorithms_are_taken_or_refused_as_the_page_of_engines_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    rows = page.split("| algorithm |")[1].split("\n\n")[0].splitlines()[2:]
    said = {name: "refused" not in row for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert said == {name: is_taken(name) for name in algorithms.names()}


def is_taken(name: str) -> bool:
    try:
        return bool(algorithm_options(build_algorithm(name)))
    except SettingsError:
        return False


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"kl_coef": 0.1, "kl_estimator": "k2"}, "kl_estimator=k2"),
        ({"kl_coef": 0.1, "kl_in": "reward", "kl_estimator": "k1"}, "kl_in=reward"),
        ({"correction": "truncated"}, "sampler logprobs"),
    ],
)
def test_option_that_trl_lacks_is_refused_with_the_engine_that_has_it(options: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingsError, match=rf"{part}.*trainer\.engine=native"):
        algorithm_options(build_algorithm("grpo", options))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"prompts_per_step": 6, "minibatches": 4}, "6 prompts in 4"),
        ({"mixed_precision": "fp16"}, "fp16"),
    ],
)
def test_size_that_trl_cannot_take_is_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingsError, match=rf"{part}.*trainer\.engine=native"):
        batch_options(TrainerSettings(**settings))


def test_refusal_leaves_no_folder(run, changed: Change) -> None:
    config = changed(trainer__engine="trl", algorithm__name="rloo")
    with pytest.raises(SettingsError, match=r"rloo's advantages.*trainer\.engine=native"):
        run(config)
    assert not Path(config["run"]).exists()


def test_several_processes_are_refused(run, changed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match=r"several processes.*trainer\.engine=native"):
        run(changed(trainer__engine="trl"))


def test_missing_trl_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "xomni_rl.policies.trl_engine")
    with pytest.raises(SettingsError, match=r"trainer\.engine=trl needs TRL .*pip install 'xomni-rl\[trl\]'"):
        importlib.import_module("xomni_rl.policies.trl_engine")
