"""Image tokens per second of our sampler against transformers' `generate`, same weights, batch and sampling settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from xomni_rl.prompt_sets.signs import signs
from xomni_rl.stack import embedded
from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.sampler import sample_image_tokens
from xomni_rl.stack.stack import Stack

BATCH = 64
GROUP = 8
FULL_VOCABULARY = {"vocab_size": 152064, "mm_vocab_size": 16448, "image_vocab_size": 16384}


class ImageOnlyPeer(XOmniForCausalLM):
    """The model as `generate` sees it when it, too, may compute the image head alone: ids are image tokens' own."""

    def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:
        if input_ids.shape[1] == 1:
            input_ids = input_ids + self.config.vocab_size
        return super().forward(input_ids, *args, **{**kwargs, "modality": "image"})


class FullVocabularyPeer(XOmniForCausalLM):
    """The model as it comes: both heads at every position, image logits placed at [V, V + image_vocab), −inf elsewhere."""

    def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:
        keep = kwargs.pop("logits_to_keep", 0)
        out = self.model(input_ids, *args, **{k: v for k, v in kwargs.items() if k not in ("return_dict", "modality")})
        hidden = out.last_hidden_state[:, -keep:] if keep else out.last_hidden_state
        text, image = self.lm_head(hidden), self.mm_head(hidden)
        logits = hidden.new_full((*hidden.shape[:2], self.config.vocab_size + self.config.mm_vocab_size), -torch.inf)
        after_image = (input_ids[:, -hidden.shape[1] :] >= self.config.vocab_size)[..., None]
        first, last = self.config.vocab_size, self.config.vocab_size + self.config.image_vocab_size
        logits[..., :first] = torch.where(after_image, -torch.inf, text)
        logits[..., first:last] = torch.where(after_image, image[..., : last - first], -torch.inf)
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)


def run(repeats: int = 5) -> dict[str, float]:
    """Measures both sizes; see the issue's table for what is demanded.

    Returns: `ratio` (embedded size) and `ratio_full_vocabulary`, tokens per second of both, the fraction of the bound.
    """
    stack = Stack.from_pretrained("embedded")
    prompts = signs("heldout", BATCH // GROUP)
    ids, mask = stack.encode_prompts([p.text for p in prompts])
    small = compare(stack.model, ImageOnlyPeer, ids, mask, 48, repeats)
    torch.manual_seed(0)
    body = XOmniConfig(**{**embedded.AUTOREGRESSIVE, **FULL_VOCABULARY})
    full_model = XOmniForCausalLM(body).eval()
    full_ids = torch.where(ids >= embedded.VOCAB_SIZE, ids - embedded.VOCAB_SIZE - 512 + 152064 + 16384, ids)
    large = compare(full_model, FullVocabularyPeer, full_ids, mask, 48, max(2, repeats // 2))
    bound = bound_seconds(stack.model, ids.shape[1], 48)
    result = {
        "ratio": small["ratio"],
        "ratio_full_vocabulary": large["ratio"],
        "tokens_per_second": BATCH * 48 / small["ours"],
        "peer_tokens_per_second": BATCH * 48 / small["peer"],
        "tokens_per_second_full_vocabulary": BATCH * 48 / large["ours"],
        "peer_tokens_per_second_full_vocabulary": BATCH * 48 / large["peer"],
        "fraction_of_bound": bound / small["ours"],
    }
    _print(result, small, large)
    return result


def compare(model: XOmniForCausalLM, peer_class: type, ids: Tensor, mask: Tensor, steps: int, repeats: int) -> dict[str, float]:
    """Medians over interleaved repeats. Returns seconds `ours`, `peer`, and the median of the pairwise `ratio`."""
    peer = peer_class(model.config).eval()
    peer.load_state_dict(model.state_dict())
    rows, row_mask = ids.repeat_interleave(GROUP, 0), mask.repeat_interleave(GROUP, 0)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def ours() -> None:
        sample_image_tokens(model, ids, mask, steps, group_size=GROUP)

    def theirs() -> None:
        peer.generate(rows, attention_mask=row_mask, max_new_tokens=steps, min_new_tokens=steps, pad_token_id=0, **settings)

    ours()
    theirs()
    times = np.array([[_seconds(ours), _seconds(theirs)] for _ in range(repeats)])
    return {
        "ours": float(np.median(times[:, 0])),
        "peer": float(np.median(times[:, 1])),
        "ratio": float(np.median(times[:, 1] / times[:, 0])),
    }


@torch.no_grad()
def bound_seconds(model: XOmniForCausalLM, prompt_length: int, steps: int) -> float:
    """The least time the arithmetic and the memory traffic of sampling can take on this machine.

    Matrix products at the rate this machine reaches on them at this batch, plus one read of the key-value cache a step at the
    bandwidth it reaches on a large copy.
    """
    config = model.config
    weights = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.dim() == 2)
    weights += config.image_vocab_size * config.hidden_size
    x, w = torch.randn(BATCH, config.hidden_size), torch.randn(4 * config.hidden_size, config.hidden_size)
    flops_per_second = 2 * x.numel() * len(w) / _best(lambda: torch.nn.functional.linear(x, w), 200)
    block = torch.randn(16 * 2**20)
    bytes_per_second = 2 * block.numel() * 4 / _best(lambda: block.clone(), 5)
    head_dim = config.hidden_size // config.num_attention_heads
    read = sum(prompt_length + t for t in range(steps)) * BATCH * config.num_hidden_layers
    read *= 2 * config.num_key_value_heads * head_dim * 4
    return steps * 2 * BATCH * weights / flops_per_second + read / bytes_per_second


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _best(call: Callable[[], Any], repeats: int) -> float:
    return min(_seconds(call) for _ in range(repeats))


def _print(result: dict[str, float], small: dict[str, float], large: dict[str, float]) -> None:
    table = Table(title=f"sampling, batch {BATCH} in groups of {GROUP}, 48 image tokens")
    for column in ("size", "ours, s", "generate, s", "ratio"):
        table.add_column(column, justify="right")
    table.add_row("embedded, image logits only", f"{small['ours']:.3f}", f"{small['peer']:.3f}", f"{small['ratio']:.2f}")
    table.add_row("V = 168,512, as it comes", f"{large['ours']:.3f}", f"{large['peer']:.3f}", f"{large['ratio']:.2f}")
    Console().print(table)
    Console().print(f"fraction of the arithmetic-and-memory bound reached: {result['fraction_of_bound']:.2f}")
