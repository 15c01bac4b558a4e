"""AdamW's moments in one byte each, or in torch's own way."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from xomni_rl.policies.optimizers import as_it_was, as_tensor, make_optimizer
from xomni_rl.policies.settings import SettingsError, TrainerSettings

SETTINGS = TrainerSettings(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1)
EIGHT = replace(SETTINGS, optimizer="adamw_8bit")


def trained(settings: TrainerSettings, steps: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A layer of 128 · 64 weights after some steps towards nothing."""
    torch.manual_seed(0)
    layer = nn.Linear(128, 64)
    optimizer = make_optimizer(layer.parameters(), settings)
    inputs = torch.randn(32, 128)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(inputs).square().mean().backward()
        optimizer.step()
    return layer, optimizer


def test_moments_of_eight_bits_take_a_byte_each_and_nearly_the_same_steps() -> None:
    (layer, optimizer), (plain, _) = trained(EIGHT, 20), trained(SETTINGS, 20)
    state = optimizer.state[layer.weight]
    assert [state[name].dtype for name in ("state1", "state2")] == [torch.uint8] * 2
    assert sum(state[name].nbytes for name in ("state1", "state2")) == 2 * 128 * 64
    assert state["absmax1"].numel() == 128 * 64 / 256  # blocks of 256
    assert optimizer.state[layer.bias]["state1"].dtype == torch.float32  # 64 elements, below 4096
    # 20 steps of at most 1e-2 each move a weight by up to 0.2; rounding moments to 8 bits changes that by a few per cent
    assert (layer.weight - plain.weight).abs().mean() < 0.1 * (plain.weight - trained(SETTINGS, 0)[0].weight).abs().mean()


def test_weight_decay_is_the_settings() -> None:
    for settings in (SETTINGS, EIGHT):
        assert trained(settings, 0)[1].param_groups[0]["weight_decay"] == 0.1


def test_count_of_steps_goes_through_a_file_as_what_it_was() -> None:
    assert as_it_was(as_tensor(7)) == 7
    assert type(as_it_was(as_tensor(7))) is int
    assert as_it_was(as_tensor(torch.tensor(7.0))) == torch.tensor(7.0)  # torch's AdamW counts in float32
    assert as_it_was(as_tensor(torch.zeros(3, dtype=torch.int64))).shape == (3,)


def test_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(SettingsError, match=r"adamw_8bit needs bitsandbytes.*xomni-rl\[quantisation\].*optimizer=adamw"):
        make_optimizer([nn.Parameter(torch.zeros(1))], EIGHT)


def test_unknown_optimizer_is_refused() -> None:
    with pytest.raises(SettingsError, match='must be "adamw" or "adamw_8bit", not \'sgd\''):
        TrainerSettings(optimizer="sgd")  # type: ignore[arg-type]
