"""The training loop: roll out → score → advantages → update → log → checkpoint, readable from top to bottom.

Everything random is keyed by (seed, step), everything else is in the checkpoint: a run that is killed and goes on gives, on
a CPU, the same metrics bit for bit as one that never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from rich.console import Console

from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.alarms import raised_alarms, worth_showing
from xomni_rl.policies.batches import check_prompts, save_batch
from xomni_rl.policies.beginning import check_same_run, make_accelerator, start_trackers, take_back
from xomni_rl.policies.checkpoint import CheckpointError, CheckpointStore, run_and_checkpoint
from xomni_rl.policies.collect import Collector, suitable_algorithm
from xomni_rl.policies.curriculum import PassRates
from xomni_rl.policies.distributed import PeerError, Team
from xomni_rl.policies.evaluation import evaluate
from xomni_rl.policies.memory import peak_memory
from xomni_rl.policies.policy import ImagePolicy
from xomni_rl.policies.progress import Display
from xomni_rl.policies.records import (
    RunFolderError,
    TableWriter,
    build_manifest,
    finite,
    write_config,
    write_json,
    write_table,
)
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.policies.shared_rollouts import SharedRollouts
from xomni_rl.policies.training_state import Progress, TrainSummary, read_state, write_state
from xomni_rl.policies.update import Experience, Learner, NonFiniteError
from xomni_rl.prompts import Prompt


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it happened and where to look."""


def train(
    config: Mapping[str, Any],
    *,
    policy: ImagePolicy,
    reward: Any,
    train_prompts: Sequence[Prompt],
    heldout_prompts: Sequence[Prompt] = (),
    evaluation_reward: Any = None,
    reward_checks: Sequence[Mapping[str, Any]] = (),
    console: Console | None = None,
) -> TrainSummary:
    """Trains a policy and writes the run folder; `xomni_rl.experiments.run.run_training` builds the parts from a config.

    Args:
        config: resolved configuration, plain values; `seed`, `algorithm`, `trainer`, `run` and `resume` are read here, the
            rest is recorded. `run` must name a folder, or `resume` a run folder or one of its checkpoints.
        policy: what is trained, in place.
        reward: composite reward of the rollouts, seen as numbers only; its weights may be scheduled.
        train_prompts: prompts trained on, with different ids.
        heldout_prompts: prompts evaluated on; none = no evaluation.
        evaluation_reward: composite reward of the evaluation; None = `reward` with its full weights.
        reward_checks: what the check of the rewards found, for `reward_checks.json`; their `warnings` are shown.
        console: where progress is shown; None = standard error.
    Returns: the summary, also in `summary.json`.
    Raises: SettingsError, AlgorithmError, RunFolderError, CheckpointError for what a person must put right; TrainingError
        for a loss or gradient that is not finite (the batch is saved); RewardError as the reward raises it.
    """
    kind: type[Trainer] = Trainer
    if TrainerSettings.from_config(config).engine == "trl":
        from xomni_rl.policies import trl_engine  # heavy, and an extra

        kind = trl_engine.TRLTrainer
    trainer = kind(config, policy, reward, train_prompts, heldout_prompts, evaluation_reward or reward, console)
    trainer.reward_checks = reward_checks
    return trainer.run()


class Trainer:
    """One run: its parts, its progress, and the loop. Arguments as `train` has them."""

    def __init__(
        self,
        config: Mapping[str, Any],
        policy: ImagePolicy,
        reward: Any,
        train_prompts: Sequence[Prompt],
        heldout_prompts: Sequence[Prompt],
        evaluation_reward: Any,
        console: Console | None,
    ) -> None:
        self.settings = settings = TrainerSettings.from_config(config)
        self.policy, self.reward, self.evaluation_reward = policy, reward, evaluation_reward
        self.train_prompts, self.heldout_prompts = list(train_prompts), list(heldout_prompts)
        check_prompts(self.train_prompts, settings.prompts_per_step)
        self.folder, self.start = run_and_checkpoint(config)
        self.goes_on = bool(config.get("resume"))
        self.config = {**config, "run": str(self.folder.path), "resume": None}
        self.reward_checks: Sequence[Mapping[str, Any]] = ()
        device = next(policy.model.parameters()).device
        self.team = Team.current(device.type)
        self.rollouts = SharedRollouts(policy, self.team, device)
        self.store = CheckpointStore(self.folder.checkpoints, settings.keep_checkpoints)
        self.display = Display(console if self.team.leads else Console(quiet=True), settings.steps, settings.max_seconds)
        self.progress = Progress()
        self.algorithm = suitable_algorithm(config, settings, reward)
        self.collector = Collector(self.rollouts, reward, self.train_prompts, settings, self.algorithm)
        self._weights = policy.weight_hashes()

    def run(self) -> TrainSummary:
        """Begins or goes on, trains to the end, and writes the summary."""
        with self.team.watched(self.folder.path):
            self._begin()
        self.tables = TableWriter()
        try:
            with self.display, self.team.watched(self.folder.path):
                if self.evaluates and "before" not in self.progress.heldout:
                    self._evaluate_before()
                self._mark = time.perf_counter()
                if self.settings.alarms.may_roll_back and self.team.same(self.store.newest() is None):
                    self._checkpoint(best=False)
                self._train()
            self.tables.join()
        except (TrainingError, CheckpointError, RunFolderError, PeerError) as error:
            with suppress(RunFolderError):  # a full disk must not hide why training ended
                self._write_summary(f"stopped: {error}")
            raise
        finally:
            self.tables.close()
            self.accelerator.end_training()
            self.folder.release()
        return self._write_summary(self._why_stop() or "finished")

    @property
    def evaluates(self) -> bool:
        return self.settings.evaluate_every is not None and bool(self.heldout_prompts)

    def _train(self) -> None:
        """Steps until there is a reason to stop; another engine takes this over."""
        while self._why_stop() is None:
            self._train_step()

    def _train_step(self) -> None:
        step = self.progress.step + 1
        batch, metrics = self._rolled_out(step)
        began = time.perf_counter()
        experience = self.learner.experience(batch)
        try:
            metrics |= self._update(step, batch, experience)
        except TrainingError as error:
            if self.settings.alarms.nonfinite_action == "stop":
                raise
            if not self._roll_back(step, str(error)):
                raise TrainingError(self.progress.stopped) from error
            return
        self.learner.follow(step)
        times = batch.times | {"update": self._elapsed(began)}
        self._record(step, batch, experience, metrics, times)

    def _rolled_out(self, step: int) -> tuple[RolloutBatch, dict[str, float]]:
        """The scored rollouts of a step, and their figures."""
        seen = PassRates.from_json(self.progress.pass_rates)
        with self.accelerator.autocast():
            batch, metrics, seen = self.collector.collect(step, seen)
        self.progress.pass_rates = seen.to_json()
        return batch, metrics

    def _update(self, step: int, batch: RolloutBatch, experience: Experience) -> dict[str, float]:
        """Updates the weights, unless no rollout teaches anything. Raises: TrainingError if a number is not finite."""
        if not experience.teaches:
            self.progress.skipped += 1
            return {"skipped": 1.0}
        try:
            return {"skipped": 0.0} | self.learner.update(experience, np.random.default_rng([self.settings.seed, step]))
        except NonFiniteError as error:
            raise self._explained(step, batch, experience, error) from error

    def _explained(self, step: int, batch: RolloutBatch, experience: Experience, error: NonFiniteError) -> TrainingError:
        """What to tell of a number that is not finite, with its batch saved."""
        saved = "process 0 saves the batch"
        if self.team.leads:
            saved = save_batch(self.folder.path / "nonfinite" / f"step_{step:06d}", batch, experience, error)
        prompts = ", ".join(batch.prompts[group * batch.group_size].id for group in error.groups)
        remedy = "lower trainer.learning_rate, or go on from an older checkpoint with resume="
        return TrainingError(f"step {step}: {error} (prompts {prompts}); {saved}; {remedy}")

    def _record(
        self, step: int, batch: RolloutBatch, experience: Experience, metrics: dict[str, float], times: dict[str, float]
    ) -> None:
        """Table, alarms, held-out evaluation where due, metrics, checkpoint where due: in this order."""
        progress, settings = self.progress, self.settings
        progress.step, progress.prompts = step, progress.prompts + settings.prompts_per_step
        images = len(batch.images) if settings.save_images == "all" else 0
        if self.team.leads:
            table = self.folder.rollouts / f"step_{step:06d}.parquet"
            self.tables.put(table, batch, experience.advantages.cpu().numpy(), images)
        flags, diverged = self._raise_alarms(step, metrics)
        if diverged is not None and self._roll_back(step, diverged):
            return
        metrics |= flags
        self._out_of_time = self.team.same(self._over_time(sum(times.values())))
        last, best = self._why_stop() is not None, False
        if self.evaluates and (last or step % (settings.evaluate_every or 1) == 0):
            began = time.perf_counter()
            figures, best = self._evaluate(step)
            metrics |= figures
            times = times | {"heldout": self._elapsed(began)}
        self._log(step, metrics, times)
        every = settings.checkpoint_every
        if last or best or (every is not None and step % every == 0):
            self._checkpoint(best)

    def _log(self, step: int, metrics: Mapping[str, float], times: dict[str, float]) -> None:
        """One line of metrics.jsonl, the trackers, the display; closes the step's account of time."""
        total = self._elapsed(self._mark)
        self._mark += total  # what follows in this step is on the next one's account
        times = times | {"other": total - sum(times.values()), "total": total}
        self.progress.seconds |= {part: self.progress.seconds.get(part, 0.0) + seconds for part, seconds in times.items()}
        row, memory = finite(metrics), {"peak_gib": peak_memory()}
        costs = {f"{what}/{part}": value for what, of in (("time", times), ("memory", memory)) for part, value in of.items()}
        self._append(self.folder.metrics, {"step": step, **row, "time": times, "memory": memory})
        self.accelerator.log(row | costs, step=step)
        self.display.show(step, row | costs, self.progress.train_seconds, step)

    def _raise_alarms(self, step: int, metrics: Mapping[str, float]) -> tuple[dict[str, float], str | None]:
        """The metrics `alarm/…`, and why training is to go back to a checkpoint, if it is."""
        alarms, flags = raised_alarms(finite(metrics), self.settings.alarms, low=self.learner.low_precision)
        back = None
        for alarm in alarms:
            count = self.progress.alarms[alarm.name] = self.progress.alarms.get(alarm.name, 0) + 1
            row = {"step": step, "alarm": alarm.name, "value": alarm.value, "limit": alarm.limit}
            self._append(self.folder.alarms, row | {"message": alarm.message})
            if worth_showing(count):
                self.display.alarm(step, alarm, count)
            if alarm.action == "stop":
                self.progress.stopped = f"{alarm.name}: {alarm.message}"
            elif alarm.action == "rollback":
                back = f"{alarm.name}: {alarm.message}"
        return flags, back

    def _roll_back(self, step: int, reason: str) -> bool:
        """Goes back to the last checkpoint at half the learning rate, taking back what came after it.

        Returns: False, with training to end, if that was done `max_rollbacks` times already.
        """
        done, seconds = self.progress.rollbacks, self.progress.seconds
        checkpoint = self.store.newest()
        if checkpoint is None or done >= self.settings.alarms.max_rollbacks:
            self.progress.stopped = f"{reason} (rollbacks before: {done})"
            return False
        self.tables.join()
        self._restore(checkpoint)
        self.progress.rollbacks, self.progress.seconds = done + 1, seconds  # time is spent, whatever came of it
        self.progress.alarms["rollback"] = done + 1
        self.learner.halve_learning_rate(done + 1)
        if self.team.leads:
            self.folder.truncate(self.progress.step)
        message = f"went back from step {step} to step {self.progress.step} at half the learning rate: {reason}"
        self._append(self.folder.alarms, {"step": self.progress.step, "alarm": "rollback", "message": message})
        self.display.warn(message)
        self._checkpoint(best=False)  # a run that is killed now must go on at half the rate too
        return True

    def _restore(self, checkpoint: Path) -> None:
        """Everything as it was when the checkpoint was written."""
        learner = self.learner
        state = (self.policy.model, learner.saved_optimizer, learner.scheduler, self.accelerator.scaler)
        self.progress = read_state(checkpoint, *state, learner.load_extra_tensors)
        if learner.divided is not None:
            learner.divided.push()
        learner.halve_learning_rate(self.progress.rollbacks)

    def _evaluate(self, step: int) -> tuple[dict[str, float], bool]:
        """Held-out figures under `heldout/` with the table written, and whether they are the best so far."""
        settings = self.settings.evaluation
        if not self.team.leads:
            settings = replace(settings, grid_prompts=0)
        with self.accelerator.autocast():
            found = evaluate(self.rollouts, self.heldout_prompts, self.evaluation_reward, settings)
        if self.team.leads:
            write_table(self.folder.heldout / f"step_{step:06d}.parquet", found.table)
        figures = {**found.figures, "step": float(step)}
        self.progress.heldout["before" if step == 0 else "after"] = figures
        record = self.progress.best_score
        best = step > 0 and found.score > (-np.inf if record is None else record)
        if best:
            self.progress.best_score = found.score
            self.progress.heldout["best"] = figures
        return {f"heldout/{name}": value for name, value in found.figures.items()}, best

    def _evaluate_before(self) -> None:
        began = time.perf_counter()
        figures, _ = self._evaluate(0)
        seconds = self._elapsed(began)
        row = finite(figures)
        self._append(self.folder.metrics, {"step": 0, **row, "time": {"heldout": seconds, "total": seconds}})
        self.accelerator.log(row, step=0)
        self.display.show(0, row, 0.0, 0)

    def _checkpoint(self, best: bool) -> None:
        """Writes a checkpoint after everything that belongs before it is on disk."""
        began = time.perf_counter()
        self.tables.join()
        if self.learner.divided is not None:
            self.learner.divided.collect()
        if self.team.leads:
            self.store.save(self.progress.step, self._write_state, best=best)
        seconds = self._elapsed(began)
        self._mark += seconds
        for part in ("checkpoint", "total"):
            self.progress.seconds[part] = self.progress.seconds.get(part, 0.0) + seconds

    def _write_state(self, folder: Path) -> None:
        learner, policy = self.learner, self.policy
        state = (policy.model, policy.description(), learner.saved_optimizer, learner.scheduler, self.accelerator.scaler)
        write_state(folder, self.progress, *state, learner.extra_tensors())

    def _append(self, file: Path, row: Mapping[str, Any]) -> None:
        if self.team.leads:
            self.folder.append(file, row)

    def _why_stop(self) -> str | None:
        """The status if training is to end before another step, else None."""
        if self.progress.stopped is not None:
            return f"stopped: {self.progress.stopped}"
        if self.progress.step >= self.settings.steps:
            return "finished"
        return "max_seconds" if self._out_of_time else None

    def _over_time(self, more: float) -> bool:
        limit = self.settings.max_seconds
        return limit is not None and self.progress.train_seconds + more >= limit

    def _begin(self) -> None:
        """Writes the records of a new run, or restores one that goes on; before that, nothing on disk is touched."""
        changes = check_same_run(self.folder, self._manifest()) if self.goes_on else {}
        set_seed(self.settings.seed)
        self.accelerator = make_accelerator(self.settings, self.folder, next(self.policy.model.parameters()).device)
        self.learner = Learner(self.policy, self.algorithm, self.settings, self.accelerator, self.team)
        if self.start is not None:
            self._restore(self.start)
        for name, (before, after) in changes.items():
            if name.startswith("trainer.alarms."):
                self.progress.stopped = None  # a limit that stopped it and was changed stops it no more
            self.display.warn(f"going on with {name} = {after!r} instead of {before!r}; noted in manifest.json")
        self.team.together(lambda: self._write_records(changes) if self.team.leads else None)
        for warning in (warning for check in self.reward_checks for warning in check["warnings"]):
            self.display.warn(warning)
        start_trackers(self.accelerator, self.config, self.progress.step if self.start is not None else None)
        # A run may go on from a step whose checkpoint used up the time: only an evaluated step can be the last one.
        evaluated = not self.evaluates or self.progress.heldout.get("after", {}).get("step") == self.progress.step
        self._out_of_time = evaluated and self._over_time(0.0)

    def _write_records(self, changes: Mapping[str, list[Any]]) -> None:
        """Makes the folder, or takes back what came after the checkpoint; configuration, manifest, checks of the rewards."""
        self.folder.create(again=self.goes_on)
        if self.goes_on:
            take_back(self.folder, self.store, self.progress, begun=self.start is not None, changes=changes)
        write_config(self.folder.config, self.config)
        if not self.folder.manifest.exists():
            processes = {"processes": self.team.size, "parallel": self.accelerator.distributed_type.value}
            write_json(self.folder.manifest, self._manifest() | processes)
        write_json(self.folder.path / "reward_checks.json", {str(check["name"]): dict(check) for check in self.reward_checks})

    def _manifest(self) -> dict[str, Any]:
        seeds = {"run": self.settings.seed, "evaluation": self.settings.evaluation.seed}
        prompts = {"train": self.train_prompts, "heldout": self.heldout_prompts}
        return build_manifest(self.config, seeds, self._weights, prompts)

    def _elapsed(self, began: float) -> float:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _write_summary(self, status: str) -> TrainSummary:
        progress = self.progress
        summary = TrainSummary(
            folder=self.folder.path,
            heldout=progress.heldout,
            train_seconds=progress.train_seconds,
            steps=progress.step,
            status=status,
            alarms=progress.alarms,
            skipped_steps=progress.skipped,
            seconds=progress.seconds,
        )
        if self.team.leads:
            write_json(self.folder.summary, {key: value for key, value in asdict(summary).items() if key != "folder"})
        return summary
