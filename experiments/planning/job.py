"""A training run as the numbers that memory and time depend on, read from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xomni_rl.experiments.planning.gpus import Gpu
from xomni_rl.experiments.planning.rewards import RewardSize, reward_sizes
from xomni_rl.experiments.planning.sizes import (
    ModelSizes,
    PartSizes,
    full_size_model,
    full_size_parts,
    model_config,
    part_sizes,
)
from xomni_rl.policies.algorithms.base import build_algorithm
from xomni_rl.policies.lora import TARGETS
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.registry import unknown_name

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element, by `model.dtype`."""
LAUNCHES = ("single", "ddp", "fsdp2", "deepspeed_zero3")
"""How processes share the training: one alone, or a file of experiments/launch."""


class PlanError(ValueError):
    """A run that cannot be planned; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Job:
    """What is trained, how, and on what.

    Attributes:
        model, parts, rewards: sizes.
        gpu, gpus: kind and number; every process has one.
        launch: see `LAUNCHES`.
        width: bytes of an element of the weights as loaded (`model.dtype`).
        mixed: whether the update computes in 2 bytes under autocast (`trainer.mixed_precision`).
        prompts, group: P prompts a step with G images each.
        epochs, minibatches, accumulation: of the trainer.
        tokens: T, image tokens of an image.
        prompt_tokens: L, ids of a prompt with its image prefix.
        evaluated: images that one process samples at a time in a held-out evaluation; 0 = there is none.
        guided, tempered, truncated: whether sampling has guidance, another temperature than 1, a truncation.
        checkpointing: only the layers' inputs are kept (`model.gradient_checkpointing`).
        compiled: sampling is (`model.compile`).
        at_a_time: images of a group that a backward pass keeps anything of at a time (`model.rows_at_a_time`); 0 = all.
        adapters: elements of low-rank adapters and of layers trained in full beside them; 0 = all weights are trained.
        rank: of the adapters.
        adapted: last names of the layers that have adapters.
        eight_bit: whether AdamW's moments are (`trainer.optimizer=adamw_8bit`).
        reference: whether a KL is measured to a reference.
        reference_follows: whether that is an average of the weights, kept in float32.
        reference_offloaded: it lies in the machine's memory except for its pass (`model.reference_offload`).
        critic, entropy: whether the algorithm wants them.
        decoder_offloaded: the decoder's parts lie in the machine's memory except while each works (its option `offload`).
        on_cpu: whether it runs on the CPU, whose optimizer works tensor by tensor.
    """

    model: ModelSizes
    parts: PartSizes
    rewards: tuple[RewardSize, ...]
    gpu: Gpu
    gpus: int
    launch: str
    width: int
    mixed: bool
    prompts: int
    group: int
    epochs: int
    minibatches: int
    accumulation: int
    tokens: int
    prompt_tokens: int
    evaluated: int = 0
    guided: bool = False
    tempered: bool = False
    truncated: bool = False
    compiled: bool = False
    checkpointing: bool = False
    at_a_time: int = 0
    adapters: int = 0
    rank: int = 0
    adapted: tuple[str, ...] = ()
    eight_bit: bool = False
    reference: bool = False
    reference_follows: bool = False
    reference_offloaded: bool = False
    critic: bool = False
    entropy: bool = False
    decoder_offloaded: bool = False
    on_cpu: bool = False

    @property
    def rows(self) -> int:
        """Images that one process samples in a step: its share of the prompts, all at once."""
        return math.ceil(self.prompts / self.gpus) * self.group

    @property
    def micro_groups(self) -> int:
        """Groups of one process in one backward pass: its share of the largest piece that `split` makes."""
        piece = math.ceil(math.ceil(self.prompts / self.minibatches) / self.accumulation)
        return math.ceil(piece / self.gpus)

    @property
    def pieces(self) -> int:
        """How many times a backward pass goes through the model: for a piece of a group each, or once for all."""
        return self.micro_groups * math.ceil(self.group / self.at_a_time) if self.at_a_time else 1

    @property
    def piece(self) -> tuple[int, int]:
        """Groups and images that are in memory together."""
        return (1, min(self.group, self.at_a_time)) if self.at_a_time else (self.micro_groups, self.micro_groups * self.group)

    @property
    def passes(self) -> int:
        """Backward passes of one process for an optimizer step."""
        return min(self.accumulation, math.ceil(self.prompts / self.minibatches))

    @property
    def trained(self) -> int:
        """Elements that an optimizer step changes."""
        return self.adapters or self.model.parameters - self.model.unreached

    @property
    def divided(self) -> bool:
        """Whether what is trained is a divided copy (see policies/divided.py)."""
        return self.launch in ("fsdp2", "deepspeed_zero3") and self.gpus > 1


def job_of(
    config: Mapping[str, Any],
    gpus: int,
    gpu: Gpu,
    *,
    launch: str | None = None,
    size: tuple[int, int] | None = None,
    prompt_tokens: int = 128,
) -> Job:
    """The job that a resolved configuration makes on so many GPUs.

    Args:
        config: as `xomni_rl.config.validate` gives it. `model.options.decoder` says how images are decoded; with
            `model.options.flux` the published sizes count where `model.path` does not exist.
        launch: see `LAUNCHES`; None = fsdp2 on several GPUs, else single.
        size: (height, width) px of an image; None = the stack's default.
        prompt_tokens: L.
    Raises: PlanError for a stack that is not there, a size that is no multiple of a token, an unknown launch, or weights to
        divide that training refuses.
    """
    launch = launch or ("fsdp2" if gpus > 1 else "single")
    if launch not in LAUNCHES:
        raise PlanError(unknown_name("launch", launch, LAUNCHES))
    if launch == "single" and gpus > 1:
        raise PlanError(f"launch=single uses one GPU, not {gpus}: write gpus=1x{gpu.name}, or launch=ddp or fsdp2")
    settings = TrainerSettings.from_config(config)
    if launch == "fsdp2" and gpus > 1 and config["model"]["dtype"] != "float32" and settings.mixed_precision == "no":
        raise PlanError(
            "weights of 16 bits cannot take small steps when they are divided: set trainer.mixed_precision=bf16, which divides "
            "float32 ones, or model.dtype=float32"
        )
    algorithm = build_algorithm(config["algorithm"]["name"], config["algorithm"]["options"])
    if config["model"].get("family", "xomni") != "xomni":
        raise PlanError(f"only X-Omni's family can be planned, not model.family={config['model']['family']}")
    options = config["model"].get("options") or {}
    decoder = options.get("decoder") or {}
    model, parts = _sizes(str(config["model"]["path"]), published="flux" in options)
    lora = config["model"]["lora"] or {}
    targets = tuple(lora.get("targets", TARGETS))
    rank = int(lora.get("rank", 8)) if lora else 0
    sampling = settings.sampling
    return Job(
        model=model,
        parts=replace(parts, batch=decoder.get("batch")),
        rewards=reward_sizes(config["reward"], settings.evaluation.reward),
        gpu=gpu,
        gpus=gpus,
        launch=launch,
        width=WIDTHS[config["model"]["dtype"]],
        mixed=settings.mixed_precision != "no",
        prompts=settings.prompts_per_step,
        group=settings.group_size,
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        accumulation=settings.accumulation,
        tokens=tokens_of(size or parts.default_size, parts.pixels),
        prompt_tokens=prompt_tokens,
        evaluated=math.ceil(settings.evaluation.batch_size / gpus) if settings.evaluate_every else 0,
        guided=sampling.guided,
        tempered=sampling.temperature != 1.0,
        truncated=sampling.truncated,
        checkpointing=bool(config["model"]["gradient_checkpointing"]),
        compiled=bool(config["model"].get("compile", False)),
        at_a_time=config["model"].get("rows_at_a_time") or 0,
        adapters=model.adapters(rank, targets, lora.get("full", ())) if lora else 0,
        rank=rank,
        adapted=targets if lora else (),
        eight_bit=settings.optimizer == "adamw_8bit",
        reference=algorithm.reference is not None,
        reference_follows=algorithm.reference is not None and algorithm.reference.kind == "ema",
        reference_offloaded=bool(config["model"].get("reference_offload", False)),
        critic="values" in algorithm.needs,
        entropy="entropy" in algorithm.needs,
        decoder_offloaded=bool(decoder.get("offload", False)),
    )


def tokens_of(size: tuple[int, int], pixels: int) -> int:
    """Image tokens of (height, width) px. Raises: PlanError unless both are multiples of a token's side."""
    height, width = size
    if height < pixels or width < pixels or height % pixels or width % pixels:
        raise PlanError(f"size {height}x{width} is no multiple of a token's {pixels} px")
    return (height // pixels) * (width // pixels)


def with_lora(job: Job, rank: int, targets: Sequence[str] = TARGETS) -> Job:
    """The job with low-rank adapters alone trained."""
    return replace(job, adapters=job.model.adapters(rank, targets), rank=rank, adapted=tuple(targets))


def _sizes(path: str, published: bool) -> tuple[ModelSizes, PartSizes]:
    config = model_config(path)
    if config is not None:
        return ModelSizes.of(config), part_sizes(path)
    if published:
        return full_size_model(), full_size_parts()
    what = "holds no stack and no checkpoint" if Path(path).exists() else "is not there"
    raise PlanError(f"model.path {path} {what}: give a stack's folder, or model=xomni_7b to plan by the published sizes")
