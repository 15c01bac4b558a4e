"""The plan against what training really takes: peak resident memory of our own step in a fresh process on the CPU.

What is measured is the rollout, the reference's pass and the update of the native trainer's `Learner` at its second step, when
everything that stays is there. Baseline is the process after a whole step of a tiny stack, so that libraries are loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xomni_rl.experiments.benchmarks._full_vocabulary import with_full_vocabulary
from xomni_rl.experiments.benchmarks._gate import forget_peak, peak_mib
from xomni_rl.experiments.planning.gpus import GPUS
from xomni_rl.experiments.planning.job import Job, tokens_of, with_lora
from xomni_rl.experiments.planning.memory import Phase, memory
from xomni_rl.experiments.planning.sizes import ModelSizes, part_sizes
from xomni_rl.policies.algorithms.base import build_algorithm
from xomni_rl.policies.beginning import make_accelerator
from xomni_rl.policies.lora import add_adapters
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.records import RunFolder
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.policies.update import Learner
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import build_composite
from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.stack import Stack

MEASURED: dict[str, tuple[Phase, ...]] = {
    "rollout": ("sampling", "decoding", "rewards"),
    "reference": ("reference",),
    "update": ("backward", "optimizer"),
}
"""What is measured → the phases of the plan that happen in it."""
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc gives freed memory back, so that the peak is what was held and not what the allocator keeps for later."""


@dataclass(frozen=True)
class Case:
    """A small configuration to measure.

    Attributes:
        name: what it is about.
        text, images: vocabularies; `images` a multiple of the embedded stack's 512.
        layers, hidden, intermediate, heads, kv_heads: of `XOmniConfig`.
        prompts, group, accumulation: of a step.
        size: (height, width) px of an image, 8 px a token.
        reference, checkpointing, entropy: whether there is one.
        at_a_time: images that a backward pass holds anything of; 0 = all.
        eight_bit: whether AdamW's moments are.
        rank: of low-rank adapters; 0 = none.
        dtype: of the weights.
    """

    name: str
    text: int = 384
    images: int = 512
    layers: int = 6
    hidden: int = 512
    intermediate: int = 1408
    heads: int = 8
    kv_heads: int = 2
    prompts: int = 2
    group: int = 8
    accumulation: int = 1
    size: tuple[int, int] = (64, 128)
    reference: bool = False
    checkpointing: bool = False
    at_a_time: int = 0
    eight_bit: bool = False
    entropy: bool = False
    rank: int = 0
    dtype: str = "float32"

    def config(self) -> XOmniConfig:
        """Of its autoregressive model."""
        return XOmniConfig(
            vocab_size=self.text,
            mm_vocab_size=self.images + 16,
            image_vocab_size=self.images,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            num_mm_adap_layers=1,
            num_mm_head_layers=1,
            max_position_embeddings=1024,
        )

    def job(self, prompt_tokens: int) -> Job:
        """What is planned for it."""
        parts = replace(part_sizes("embedded"), tokenizer=0, transformer=0, codec=0)  # loaded before anything is measured
        job = Job(
            model=ModelSizes.of(self.config()),
            parts=parts,
            rewards=(),
            gpu=GPUS["A100-80GB"],
            gpus=1,
            launch="single",
            width=2 if self.dtype == "bfloat16" else 4,
            mixed=False,
            prompts=self.prompts,
            group=self.group,
            epochs=1,
            minibatches=1,
            accumulation=self.accumulation,
            tokens=tokens_of(self.size, parts.pixels),
            prompt_tokens=prompt_tokens,
            checkpointing=self.checkpointing,
            at_a_time=self.at_a_time,
            eight_bit=self.eight_bit,
            reference=self.reference,
            entropy=self.entropy,
            on_cpu=True,
        )
        return with_lora(job, self.rank) if self.rank else job


CASES = (
    Case("layers", layers=8, hidden=512, size=(64, 96)),
    Case("vocabulary", layers=2, hidden=256, intermediate=512, text=32768, images=16384, prompts=3, size=(32, 96)),
    Case("batch", layers=4, hidden=256, intermediate=704, prompts=4, size=(64, 96)),
    Case("reference", layers=4, hidden=768, intermediate=2048, reference=True, group=4, accumulation=2, checkpointing=True),
    Case("adapters", layers=4, rank=8, images=4096, entropy=True, size=(64, 96)),
    Case("bfloat16", layers=8, dtype="bfloat16"),
    Case("by layer", layers=12, prompts=2, size=(96, 128), checkpointing=True),
    Case("by layer and rows", layers=12, hidden=256, intermediate=1024, size=(96, 128), checkpointing=True, at_a_time=4),
)


def measured(case: Case) -> dict[str, float]:
    """MiB above the baseline at the peak of each part of a case's second step, in this process; and the prompts' ids."""
    reward = build_composite({"components": {"contrast": {"reward": "contrast"}}})
    with tempfile.TemporaryDirectory() as folder:
        two_steps(Case("warm", layers=2, hidden=64, intermediate=128), reward, Path(folder), lambda: None)
        stack = with_full_vocabulary(
            Stack.tiny_random(), vocab_size=case.text, mm_vocab_size=case.images + 16, image_vocab_size=case.images
        )
        parts = stack.text_tokenizer, stack.image_tokenizer, stack.decoder
        del stack
        forget_peak()
        baseline = peak_mib()
        return two_steps(case, reward, Path(folder), lambda: baseline, parts)


def two_steps(
    case: Case, reward: Any, folder: Path, baseline: Callable[[], float | None], parts: tuple[Any, ...] | None = None
) -> dict[str, float]:
    """Two training steps of a case; the figures are those of the second."""
    stack = _stack(case, parts)
    if case.rank:
        add_adapters(stack.model, rank=case.rank)
    options = {"kl_coef": 0.1 if case.reference else 0.0, "entropy_coef": 0.01 if case.entropy else 0.0}
    settings = TrainerSettings(
        prompts_per_step=case.prompts,
        group_size=case.group,
        accumulation=case.accumulation,
        optimizer="adamw_8bit" if case.eight_bit else "adamw",
        trackers=(),
    )
    policy = StackPolicy(stack, gradient_checkpointing=case.checkpointing, rows_at_a_time=case.at_a_time or None)
    accelerator = make_accelerator(settings, RunFolder(folder), torch.device("cpu"))
    learner = Learner(policy, build_algorithm("grpo", options), settings, accelerator)
    prompts = [Prompt(id=str(i), text=f"a red sign that says {i}", size=case.size) for i in range(case.prompts)]
    figures: dict[str, float] = {}
    for step in (1, 2):
        forget_peak()
        batch = policy.rollout(prompts, reward, group_size=case.group, seed=step)
        figures["rollout"] = peak_mib()
        forget_peak()
        experience = learner.experience(batch)
        figures["reference"] = peak_mib()
        forget_peak()
        learner.update(experience, np.random.default_rng(step))
        figures["update"] = peak_mib()
    above = {part: peak - (baseline() or 0.0) for part, peak in figures.items()}
    return above | {"prompt_tokens": float(batch.input_ids.shape[1])}


def _stack(case: Case, parts: tuple[Any, ...] | None) -> Stack:
    """A stack with random weights of a case's sizes."""
    if parts is None:
        tiny = Stack.tiny_random()
        parts = tiny.text_tokenizer, tiny.image_tokenizer, tiny.decoder
    torch.manual_seed(0)
    model = XOmniForCausalLM(case.config()).to(torch.bfloat16 if case.dtype == "bfloat16" else torch.float32)
    tokenizer, image_tokenizer, decoder = parts
    return Stack(model, tokenizer, image_tokenizer, decoder, case.name, case.size)


def compare(case: Case) -> dict[str, Any]:
    """Planned and measured MiB of each part of a step, and of its peak, in a fresh process.

    Returns: part → {"planned", "measured", "ratio"}, "peak" among them.
    """
    code = f"import json; from {__name__} import *; print(json.dumps(measured(Case(**{asdict(case)!r}))))"
    environment = {**os.environ, **RETURN_AT_ONCE, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if ran.returncode:
        raise RuntimeError(f"measuring {case.name} failed: {ran.stderr[-2000:]}")
    found = json.loads(ran.stdout.splitlines()[-1])
    plan = memory(case.job(int(found["prompt_tokens"])))
    shown = {part: [phase for phase in phases if phase in plan.phases] for part, phases in MEASURED.items()}
    planned = {part: max(plan.total(phase) for phase in phases) / 2**20 for part, phases in shown.items() if phases}
    rows = {part: {"planned": mib, "measured": found[part], "ratio": mib / found[part]} for part, mib in planned.items()}
    peak = {kind: max(row[kind] for row in rows.values()) for kind in ("planned", "measured")}
    return rows | {"peak": {**peak, "ratio": peak["planned"] / peak["measured"]}}
