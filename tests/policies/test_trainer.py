"""The training loop on the tiny stack: what it computes, writes, refuses and survives."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from rich.console import Console
from safetensors.torch import load_file

from tests.policies.small_runs import rows, with_reward
from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.batches import check_prompts, prompts_of_step, stream_seed
from xomni_rl.policies.checkpoint import CheckpointError
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.records import RunFolderError, read_rows
from xomni_rl.policies.settings import SettingsError
from xomni_rl.policies.trainer import TrainingError
from xomni_rl.policies.update import learning_rate_share
from xomni_rl.prompts import Prompt
from xomni_rl.stack.stack import Stack

Change = Callable[..., dict[str, Any]]


def test_run_writes_everything_its_folder_promises(run, config: dict[str, Any]) -> None:
    summary = run(config)
    folder = Path(config["run"])
    assert summary.status == "finished"
    assert summary.steps == 3
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {f"rollouts/step_00000{step}.parquet" for step in (1, 2, 3)} <= made
    assert {f"heldout/step_00000{step}.parquet" for step in (0, 2, 3)} <= made
    assert {"metrics.jsonl", "summary.json", "manifest.json", "config.yaml"} <= made
    assert {"checkpoints/last", "checkpoints/best", "checkpoints/step_000003/model/model.safetensors"} <= made
    assert not [name for name in made if ".tmp" in name]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config
    written = json.loads((folder / "summary.json").read_text())
    assert written["heldout"] == summary.heldout
    assert written["heldout"].keys() == {"before", "after", "best"}
    assert written["train_seconds"] > 0


def test_metrics_of_a_step_are_complete_and_right(run, config: dict[str, Any]) -> None:
    run(config)
    first, *steps = rows(config)
    assert first.keys() == {"step", "heldout/red", "heldout/red_square", "time"}
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert ["heldout/red" in row for row in steps] == [False, True, True]  # every second step, and the last one
    needed = {"reward", "reward/red", "reward/red_square", "entropy", "approx_kl", "clip_fraction", "loss", "grad_norm"}
    needed |= {"ratio_max_deviation", "logprob_max_delta", "learning_rate", "zero_variance_share", "failed_share"}
    for row in steps:
        assert needed <= row.keys()
        assert "kl_reference" not in row  # nothing computes it while no KL is on
        table = pq.read_table(Path(config["run"]) / "rollouts" / f"step_00000{row['step']}.parquet")
        assert row["reward"] == pytest.approx(float(np.mean(table["reward_red"].to_numpy())), abs=1e-7)
        # tiny random weights are nearly uniform over 512 tokens: ln 512 = 6.24
        assert 4.0 < row["entropy"] < math.log(512)
    # warm-up over 2 optimizer steps: 1/2, 2/2, 2/2 of 3e-4
    assert [row["learning_rate"] for row in steps] == pytest.approx([1.5e-4, 3e-4, 3e-4])


def test_first_importance_ratio_is_one(run, changed: Change) -> None:
    config = changed(trainer__sampling={"temperature": 0.7, "top_p": 0.9, "cfg_scale": 1.5}, trainer__epochs=2)
    run(config)
    for row in rows(config)[1:]:
        assert 0 < row["logprob_max_delta"] < 1e-4
        assert 0 < row["ratio_max_deviation"] < 1e-4
        assert row["approx_kl"] > 1e-7  # of both passes: the second one is at other weights


def test_parts_of_a_steps_time_add_up(run, config: dict[str, Any]) -> None:
    summary = run(config)
    for row in rows(config)[1:]:
        parts = {name: seconds for name, seconds in row["time"].items() if name != "total"}
        assert parts.keys() - {"heldout"} == {"sample", "decode", "reward", "update", "other"}
        assert row["time"]["total"] == pytest.approx(sum(parts.values()))
        assert min(parts.values()) >= 0
    assert summary.train_seconds == pytest.approx(summary.seconds["total"] - summary.seconds["heldout"])


def test_peak_memory_is_recorded_and_never_falls(run, config: dict[str, Any]) -> None:
    run(config)
    peaks = [row["memory"]["peak_gib"] for row in rows(config)[1:]]
    assert peaks == sorted(peaks)
    assert 0.05 < peaks[0] < 64.0  # torch alone is more than 50 MiB


def test_accumulated_gradient_equals_that_of_the_whole_batch(run, changed: Change) -> None:
    figures = []
    for folder, accumulation in (("whole", 1), ("parts", 2)):
        made = changed(trainer__steps=1, trainer__accumulation=accumulation, trainer__evaluate_every=None)
        run(made | {"run": made["run"] + folder})
        figures.append(rows({"run": made["run"] + folder})[0])
    for name in ("loss", "grad_norm", "reward", "entropy"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-4, abs=1e-6), name


def test_minibatches_and_epochs_take_that_many_optimizer_steps(run, changed: Change) -> None:
    config = changed(trainer__steps=1, trainer__minibatches=2, trainer__epochs=3, trainer__warmup_steps=12)
    run(config)
    state = json.loads((Path(config["run"]) / "checkpoints/step_000001/state.json").read_text())
    assert state["scheduler"]["last_epoch"] == 6
    assert rows(config)[1]["learning_rate"] == pytest.approx(3e-4 * 6 / 12)  # of the sixth step


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_kl_to_the_start_is_zero_first_and_grows(run, changed: Change, kl_in: str) -> None:
    estimator = "k3" if kl_in == "loss" else "k1"
    options = {"kl_coef": 0.1, "kl_in": kl_in, "kl_estimator": estimator}
    config = changed(algorithm__options=options, trainer__learning_rate=2e-3, trainer__warmup_steps=0)
    run(config)
    kl = [row["kl_reference"] for row in rows(config)[1:]]
    assert abs(kl[0]) < 1e-5
    assert kl[2] > 1e-4


def test_reference_model_is_kept_only_for_a_kl(run, stack: Stack, config: dict[str, Any]) -> None:
    policy = StackPolicy(stack)
    run(config, policy)
    with pytest.raises(RuntimeError, match="no reference"):
        policy.reference_logprobs(None)  # type: ignore[arg-type]


def test_constant_reward_skips_the_update_counts_it_and_raises_alarms(run, config: dict[str, Any]) -> None:
    output = io.StringIO()
    config = with_reward(config, "constant")
    summary = run(config, console=Console(file=output, width=400))
    steps = rows(config)[1:]
    assert summary.skipped_steps == 3
    assert [row["skipped"] for row in steps] == [1.0] * 3
    assert all("loss" not in row and "grad_norm" not in row for row in steps)
    assert [row["zero_variance_share"] for row in steps] == [1.0] * 3
    assert summary.alarms == {"zero_variance": 3, "constant_reward": 3}
    alarms = read_rows(Path(config["run"]) / "alarms.jsonl")
    assert [(row["step"], row["alarm"]) for row in alarms[:2]] == [(1, "zero_variance"), (1, "constant_reward")]
    assert output.getvalue().count("constant_reward") == 2  # the first and the second of three
    heldout = summary.heldout
    assert heldout["before"]["red"] == heldout["after"]["red"]


@pytest.mark.parametrize("function", ["not_applicable", "failing"])
def test_reward_for_nothing_at_all_skips_every_update(run, config: dict[str, Any], function: str) -> None:
    config = with_reward(config, function, on_failure="drop")
    summary = run(config)
    assert summary.skipped_steps == 3
    for row in rows(config)[1:]:
        assert "reward" not in row
        assert row["failed_share"] == (1.0 if function == "failing" else 0.0)
        assert row.get("not_applicable/red") == (None if function == "failing" else 4)  # two prompts with two images each
    assert summary.alarms == ({"failed_scores": 3} if function == "failing" else {})
    assert summary.heldout["before"] == {"step": 0.0}


def test_failed_samples_are_left_out_of_the_update_and_counted(run, config: dict[str, Any]) -> None:
    config = with_reward(config, "failing_on_first", on_failure="drop")
    run(config)
    row = rows(config)[1]
    assert row["failed_share"] == 0.25  # one of two prompts with two images each
    assert row["skipped"] == 0.0
    table = pq.read_table(Path(config["run"]) / "rollouts/step_000001.parquet").to_pylist()
    assert [line["failed"] for line in table] == [True, False, False, False]
    assert math.isnan(table[0]["advantage"])
    assert table[1]["advantage"] == 0.0  # alone in its group


def test_failing_reward_stops_the_run_by_default(run, config: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=r'reward "red" failed on .* out of order'):
        run(with_reward(config, "failing"))


class Poisoned(StackPolicy):
    """A policy whose log-probabilities become NaN at the given call, or whose gradient does."""

    def __init__(self, stack: Stack, call: int, gradient_only: bool) -> None:
        super().__init__(stack)
        self.calls, self.call, self.gradient_only = 0, call, gradient_only

    def logprobs(self, batch: Any, *, with_entropy: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        logprobs, entropy = super().logprobs(batch, with_entropy=with_entropy)
        self.calls += 1
        if self.calls == self.call and self.gradient_only:
            logprobs.register_hook(lambda gradient: gradient * math.nan)
        elif self.calls == self.call:
            logprobs = logprobs * math.nan
        return logprobs, entropy


@pytest.mark.parametrize(("gradient_only", "what"), [(False, "loss is nan"), (True, "gradient's norm is nan")])
def test_number_that_is_not_finite_stops_with_the_batch_saved(
    run, stack: Stack, config: dict[str, Any], gradient_only: bool, what: str
) -> None:
    policy = Poisoned(stack, call=2, gradient_only=gradient_only)
    with pytest.raises(TrainingError, match=rf"step 2: the {what} \(prompts train\d, train\d\).*saved in"):
        run(config, policy)
    folder = Path(config["run"]) / "nonfinite" / "step_000002"
    saved, described = load_file(folder / "batch.safetensors"), json.loads((folder / "batch.json").read_text())
    assert saved["tokens"].shape == (4, 8)
    assert saved["images"].shape == (4, 16, 32, 3)
    assert what in described["error"]
    assert len(described["prompts"]) == 2
    assert all(torch.isfinite(parameter).all() for parameter in stack.model.parameters())
    assert json.loads((Path(config["run"]) / "summary.json").read_text())["status"].startswith("stopped: step 2")


def test_kl_beyond_its_limit_stops_training_and_evaluates(run, changed: Change) -> None:
    config = changed(
        algorithm__options={"kl_coef": 1e-6},
        trainer__alarms={"kl_limit": 1e-4, "kl_action": "stop"},
        trainer__learning_rate=1e-2,
        trainer__warmup_steps=0,
        trainer__steps=20,
    )
    summary = run(config)
    assert summary.status.startswith("stopped: kl_limit")
    assert summary.steps < 20
    assert summary.heldout["after"]["step"] == summary.steps
    assert (Path(config["run"]) / "checkpoints" / f"step_{summary.steps:06d}").is_dir()


def test_time_limit_stops_before_the_next_step_with_a_last_evaluation(run, changed: Change) -> None:
    summary = run(changed(trainer__max_seconds=1e-6, trainer__steps=50))
    assert (summary.status, summary.steps) == ("max_seconds", 1)
    assert summary.heldout["after"]["step"] == 1


def test_folder_that_holds_a_run_is_refused(run, config: dict[str, Any]) -> None:
    run(config)
    with pytest.raises(RunFolderError, match="already holds a run: go on with it by resume="):
        run(config)


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "metrics.jsonl",
        "alarms.jsonl",
        "summary.json",
        "checkpoints/step_1/a",
        "rollouts/mine.txt",
        "heldout/step_000001.parquet",
    ],
)
def test_folder_with_something_that_a_run_would_replace_is_refused_and_left_alone(
    run, config: dict[str, Any], name: str
) -> None:
    file = Path(config["run"]) / name
    file.parent.mkdir(parents=True)
    file.write_text("trainer: mine\n")
    with pytest.raises(RunFolderError, match=r"already, which a run would replace: choose another folder with run="):
        run(config)
    assert [path for path in Path(config["run"]).rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "trainer: mine\n"


def test_folder_with_other_files_and_what_an_early_kill_leaves_is_taken(run, config: dict[str, Any]) -> None:
    folder = Path(config["run"])
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "notes.txt").write_text("mine")
    assert run(config).steps == 3
    assert (folder / "notes.txt").read_text() == "mine"


class Blocked(StackPolicy):
    """A policy whose first rollout, when the run has begun, puts something in the way of its files."""

    def rollout(self, *arguments: Any, **named: Any) -> RolloutBatch:
        self.block()
        self.block = lambda: None
        return super().rollout(*arguments, **named)


def test_checkpoint_that_cannot_be_written_stops_with_a_clear_sentence(run, stack: Stack, config: dict[str, Any]) -> None:
    def block() -> None:
        checkpoints = Path(config["run"]) / "checkpoints"
        (checkpoints / "step_000001").write_text("in the way")  # a file where the checkpoint's folder belongs
        (checkpoints / ".step_000001.old").mkdir()
        (checkpoints / ".step_000001.tmp").write_text("in the way")

    policy = Blocked(stack)
    policy.block = block
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*go on with resume="):
        run(config, policy)
    assert json.loads((Path(config["run"]) / "summary.json").read_text())["status"].startswith("stopped: cannot write")


def test_bfloat16_autocast_keeps_sampler_and_trainer_together(run, changed: Change) -> None:
    config = changed(trainer__mixed_precision="bf16", trainer__evaluate_every=None, trainer__steps=1)
    run(config)
    # bfloat16 has 8 bits of mantissa: logits of size ~1 differ by about 2⁻⁸ between cached and whole-sequence matmuls
    assert rows(config)[0]["logprob_max_delta"] < 0.2
    assert rows(config)[0]["alarm/ratio_off_one"] == 0.0
    AcceleratorState._reset_state()


def test_tensorboard_gets_the_metrics(run, changed: Change) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = changed(trainer__trackers=["tensorboard"])
    run(config)
    events = EventAccumulator(str(Path(config["run"]) / "tensorboard" / "xomni-rl"))
    events.Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("heldout/red")] == [0, 2, 3]


def test_unknown_tracker_names_the_nearest_and_leaves_no_folder(run, changed: Change) -> None:
    config = changed(trainer__trackers=["tensorbord"])
    with pytest.raises(SettingsError, match="nearest: tensorboard"):
        run(config)
    assert not Path(config["run"]).exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainer__grup_size": 4}, "nearest: group_size"),
        ({"trainer__steps": 0}, "trainer.steps must be a whole number of 1 or more, not 0"),
        ({"trainer__sampling": {"temperature": 0.0}}, "temperature must be above 0"),
        ({"trainer__alarms": {"entropy_flor": 1}}, "nearest: entropy_floor"),
        ({"trainer__prompts_per_step": 7}, "there are 6 training prompts"),
    ],
)
def test_wrong_setting_is_named_before_anything_is_written(run, changed: Change, values, message: str) -> None:
    config = changed(**values)
    with pytest.raises(SettingsError, match=message):
        run(config)
    assert not Path(config["run"]).exists()


def test_output_is_quiet_where_ci_is_set(run, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setenv("CI", "true")
    run(config, console=Console(file=output))
    assert output.getvalue() == ""


def test_output_is_plain_lines_where_there_is_no_terminal(run, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.delenv("CI", raising=False)
    run(config, console=Console(file=output, width=200))
    lines = output.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 0/3", "step 1/3", "step 2/3", "step 3/3"]
    assert "reward 0." in lines[3]
    assert "heldout/red 0." in lines[3]
    assert lines[3].endswith("0 s left")


def test_terminal_shows_a_bar_with_figures_and_time_left(run, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.delenv("CI", raising=False)
    run(config, console=Console(file=output, width=200, force_terminal=True))
    shown = output.getvalue()
    assert "3/3" in shown
    assert "held-out" in shown
    assert "red 0." in shown
    assert "s left" in shown


def test_table_that_cannot_be_written_stops_with_a_clear_sentence(run, stack: Stack, changed: Change) -> None:
    config = changed(trainer__checkpoint_every=None, trainer__evaluate_every=None)
    folder = Path(config["run"]) / "rollouts"
    policy = Blocked(stack)
    policy.block = lambda: (folder / "step_000001.parquet").mkdir()
    with pytest.raises(RunFolderError, match=r"cannot write the table .*step_000001\.parquet.*make room"):
        run(config, policy)
    assert [path.name for path in folder.iterdir() if ".tmp" in path.name] == []


def test_every_prompt_comes_once_per_pass_in_another_order() -> None:
    prompts = [Prompt(str(i), "x") for i in range(6)]
    passes = [
        [prompt.id for step in steps for prompt in prompts_of_step(prompts, 2, step, seed=1)]
        for steps in ((1, 2, 3), (4, 5, 6))
    ]
    assert [sorted(ids) for ids in passes] == [list("012345")] * 2
    assert passes[0] != passes[1]


def test_step_at_the_end_of_a_pass_holds_no_prompt_twice() -> None:
    prompts = [Prompt(str(i), "x") for i in range(5)]
    for step in range(1, 20):
        assert len({prompt.id for prompt in prompts_of_step(prompts, 2, step, seed=0)}) == 2


def test_streams_differ_by_seed_and_step() -> None:
    seeds = {stream_seed(seed, step) for seed in range(10) for step in range(10)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_two_prompts_with_one_id_are_refused() -> None:
    with pytest.raises(SettingsError, match='two training prompts have the id "a"'):
        check_prompts([Prompt("a", "x"), Prompt("a", "y")], 1)


def test_ocr_reward_trains_too(run, changed: Change) -> None:
    ocr = {"components": {"ocr": {"reward": "ocr", "options": {"metric": "edit", "layout": "line"}}}}
    prompts = {"set": "signs", "options": {}, "train_count": 8, "heldout_count": 2}
    config = changed(reward=ocr, prompts=prompts, trainer__steps=1)
    summary = run(config)
    assert summary.heldout["after"].keys() == {"ocr", "ocr_exact", "ocr_char", "step"}
    table = pq.read_table(Path(config["run"]) / "rollouts/step_000001.parquet").to_pylist()
    assert all(isinstance(row["read"], str) for row in table)
    assert {"reward_ocr", "metric_ocr_exact", "metric_ocr_char"} <= table[0].keys()


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    # warm-up over 2 steps: 1/2, 2/2; the fall over 10 steps takes 0.09 a step and ends at 0.1
    expected = {0: 0.5, 1: 0.91, 5: 0.55, 10: 0.1, 99: 0.1}
    assert {done: learning_rate_share(done, 2, 10) for done in expected} == pytest.approx(expected)
    assert [learning_rate_share(done, 0, None) for done in (0, 50)] == [1.0, 1.0]
