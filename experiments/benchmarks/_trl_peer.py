"""The peer of a training step: stock `trl.GRPOTrainer`, given what its user would write around this model.

That is a model whose one head spans all ids, a data set of prompts, and a reward function that decodes the image tokens and
reads the images one after another with RapidOCR's own call. Generation, log-probabilities, loss and optimizer are TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from trl import GRPOConfig, GRPOTrainer

from xomni_rl.experiments.benchmarks._gate import Gate
from xomni_rl.experiments.benchmarks._train_sides import trained_weights
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.text_metrics import METRICS
from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.stack import Stack

NEVER = -1e4
"""Logit added to ids that no image has: their probability is 0 in float32, and 0 · log 0 never comes up."""


class JoinedHead(nn.Module):
    """Text and image head as one matrix, with a constant bias that leaves image tokens alone: hidden → all ids."""

    bias: Tensor

    def __init__(self, config: XOmniConfig) -> None:
        super().__init__()
        size = config.vocab_size + config.mm_vocab_size
        self.weight = nn.Parameter(torch.zeros(size, config.hidden_size))
        bias = torch.full((size,), NEVER)
        bias[config.vocab_size : config.vocab_size + config.image_vocab_size] = 0
        self.register_buffer("bias", bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight, self.bias)


class JoinedHeadForCausalLM(XOmniForCausalLM):
    """The model as a trainer of language models wants it: logits over all ids, image tokens at their ids, nothing else likely.

    TRL takes the head's weight from `get_output_embeddings`, so it must be a single one.
    """

    def __init__(self, config: XOmniConfig) -> None:
        super().__init__(config)
        del self.mm_head
        self.lm_head = JoinedHead(config)  # type: ignore[assignment]

    @classmethod
    def of(cls, model: XOmniForCausalLM) -> JoinedHeadForCausalLM:
        """A copy of the model's weights under a joined head."""
        joined = cls(model.config)
        state = model.state_dict()
        state["lm_head.weight"] = torch.cat([state["lm_head.weight"], state.pop("mm_head.weight")])
        joined.load_state_dict(state | {"lm_head.bias": joined.lm_head.bias})
        return joined

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)


class SignReward:
    """TRL's reward function: images of the completions, read in a loop, against the prompts' texts.

    Args:
        stack: whose decoder is used.
    Attributes:
        calls: [images, tokens] of each call.
        prompts: the prompts' texts as TRL hands them over, one for each image, those of one call after those of another.
        first: tokens and rewards of the first call.
    """

    def __init__(self, stack: Stack) -> None:
        from rapidocr import RapidOCR

        self.stack = stack
        self.reader = RapidOCR(params={"Global.log_level": "critical"})
        self.calls: list[list[int]] = []
        self.prompts: list[str] = []
        self.first: dict[str, Any] = {}
        self.__name__ = "sign"

    def __call__(self, prompts: list[str], completion_ids: list[list[int]], target: list[str], **_: Any) -> list[float]:
        tokens = torch.tensor(completion_ids) - self.stack.model.config.vocab_size
        images = self.stack.decode(tokens)
        scores = [METRICS["edit"](self.read(image), text) for image, text in zip(images, target, strict=True)]
        if not self.calls:
            self.first = {"tokens": tokens.tolist(), "rewards": scores}
        self.calls.append(list(tokens.shape))
        self.prompts += [prompt.split("<SOM>")[0] for prompt in prompts]
        return scores

    def read(self, image: np.ndarray) -> str:
        """Text of an image that is one line."""
        found = self.reader(np.ascontiguousarray(image[..., ::-1]), use_det=False, use_cls=False, use_rec=True).txts
        return str(found[0]).strip() if found else ""


class _AtGate(TrainerCallback):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.gate.wait()


def train_with_trl(
    stack: Stack, prompts: Sequence[Sequence[Prompt]], settings: dict[str, Any], folder: Path, gate: Gate
) -> dict[str, Any]:
    """Trains a copy of the stack's model with TRL, a step for each batch of prompts.

    Args:
        stack: model, tokenizer and decoder.
        prompts: P prompts for each step.
        settings: group `trainer` of a resolved configuration; what is read of it means the same here.
        folder: where TRL may write; it keeps nothing there.
        gate: asked before each step.
    Returns: what was done, see `_same_job.check_same`.
    """
    height, width = stack.grid()
    rows = [
        {"prompt": f"{prompt.text}<SOM>{height} {width}<IMAGE>", "target": prompt.texts[0]}
        for batch in prompts
        for prompt in batch
    ]
    reward = SignReward(stack)
    trainer = GRPOTrainer(
        JoinedHeadForCausalLM.of(stack.model),
        reward,
        _arguments(settings, len(prompts), height * width, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=stack.text_tokenizer,
        callbacks=[_AtGate(gate)],
    )
    trainer.remove_callback(PrinterCallback)
    described = trained_weights(trainer.model)
    trainer.train()
    log = trainer.state.log_history[0]
    return described | {
        "calls": reward.calls,
        "prompts": reward.prompts[:: settings["group_size"]],
        "loss": trainer.loss_type,
        "updates": trainer.state.global_step,
        "first": reward.first | {name: log[name] for name in ("loss", "grad_norm", "entropy")},
    }


def _arguments(settings: dict[str, Any], steps: int, tokens: int, folder: Path) -> GRPOConfig:
    """Our trainer's settings in TRL's words: one update a rollout, float32, no activations recomputed, nothing saved."""
    images = settings["prompts_per_step"] * settings["group_size"]
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=images,
        gradient_accumulation_steps=1,
        num_generations=settings["group_size"],
        max_completion_length=tokens,
        temperature=1.0,
        loss_type="grpo",
        beta=0.0,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        shuffle_dataset=False,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        report_to=[],
    )
