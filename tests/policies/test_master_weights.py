"""Weights of 16 bits take steps that they could not hold themselves, as float32 ones would."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from xomni_rl.policies.master_weights import MASTER, MasterWeights
from xomni_rl.policies.optimizers import make_optimizer
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.policies.training_state import load_optimizer, optimizer_state

SETTINGS = TrainerSettings(learning_rate=1e-3, warmup_steps=0, weight_decay=0.0)
OPTIMIZERS = ("adamw", "adamw_8bit")


def layer(dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    """128 · 64 weights and 64 biases that bfloat16 holds exactly, whatever the kind of number."""
    torch.manual_seed(0)
    return nn.Linear(128, 64).to(torch.bfloat16).to(dtype)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    """Steps with gradients that bfloat16 holds exactly, by the step's number."""
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(torch.bfloat16).to(parameter.dtype)
        optimizer.step()


def test_steps_too_small_for_a_weight_add_up() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = make_optimizer([weight], SETTINGS)
    seen = []
    for _ in range(4):
        weight.grad = torch.ones_like(weight)
        optimizer.step()  # Adam's step with a constant gradient is the learning rate, 0.001
        seen.append(weight.item())
    # Below 1 bfloat16 numbers are 2⁻⁸ apart, and half way to the next one is 0.998047: 0.999 is nearest to 1; 0.998, 0.997
    # and 0.996 are nearest to 0.99609375. Without a master every step would end at 1.
    assert seen == [1.0, 0.99609375, 0.99609375, 0.99609375]
    assert optimizer.state[weight][MASTER].item() == pytest.approx(0.996, abs=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masters_are_what_float32_weights_would_be(name: str) -> None:
    settings = replace(SETTINGS, optimizer=name, weight_decay=0.1)  # type: ignore[arg-type]
    low, whole = layer(), layer(torch.float32)
    optimizer, plain = make_optimizer(low.parameters(), settings), make_optimizer(whole.parameters(), settings)
    assert isinstance(optimizer, MasterWeights)
    assert not isinstance(plain, MasterWeights)
    step(low, optimizer, 5)
    step(whole, plain, 5)
    for parameter, expected in zip(low.parameters(), whole.parameters(), strict=True):
        assert torch.equal(optimizer.state[parameter][MASTER], expected)
        assert torch.equal(parameter, expected.bfloat16())
    kept = {kind: value.dtype for kind, value in optimizer.state[low.weight].items() if isinstance(value, torch.Tensor)}
    assert torch.bfloat16 not in kept.values()


def test_float32_weight_beside_one_of_16_bits_is_stepped_on_itself() -> None:
    model = nn.ModuleList([layer(), layer(torch.float32)])
    alone = layer(torch.float32)
    optimizer, plain = make_optimizer(model.parameters(), SETTINGS), make_optimizer(alone.parameters(), SETTINGS)
    for each in (alone.weight, alone.bias, model[1].weight, model[1].bias):
        each.grad = torch.ones_like(each)
    optimizer.step()  # the others have no gradient, and stay
    plain.step()
    assert torch.equal(model[1].weight, alone.weight)
    assert MASTER not in optimizer.state[model[1].weight]
    assert torch.equal(model[0].weight, layer().weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restored_masters_go_on_as_if_never_stopped(name: str) -> None:
    settings = replace(SETTINGS, optimizer=name)  # type: ignore[arg-type]
    once, stopped = layer(), layer()
    optimizer = make_optimizer(once.parameters(), settings)
    step(once, optimizer, 6)
    first = make_optimizer(stopped.parameters(), settings)
    step(stopped, first, 3)
    tensors, kept = optimizer_state(stopped, first)
    assert kept["class"] == ("AdamW" if name == "adamw" else "AdamW8bit")  # float32 weights', so that either goes on
    second = make_optimizer(stopped.parameters(), settings)
    load_optimizer(stopped, second, {key: value.clone() for key, value in tensors.items()}, kept)
    step(stopped, second, 3, first=3)
    for mine, expected in zip(stopped.parameters(), once.parameters(), strict=True):
        assert torch.equal(second.state[mine][MASTER], optimizer.state[expected][MASTER])


def test_state_of_float32_weights_goes_on_over_masters_made_of_the_weights() -> None:
    whole, low = layer(torch.float32), layer()
    plain, optimizer = make_optimizer(whole.parameters(), SETTINGS), make_optimizer(low.parameters(), SETTINGS)
    step(whole, plain, 2)
    load_optimizer(low, optimizer, *optimizer_state(whole, plain))
    step(low, optimizer, 1)
    assert float(optimizer.state[low.weight]["step"]) == 3
    # Adam's third step is at most about the learning rate long, whatever the weights
    assert float((optimizer.state[low.weight][MASTER] - layer().weight.float()).detach().abs().max()) < 3 * 1e-3


def test_rate_and_decay_of_a_schedule_reach_the_masters() -> None:
    model = layer()
    optimizer = make_optimizer(model.parameters(), SETTINGS)
    optimizer.param_groups[0]["lr"] = 0.0
    step(model, optimizer, 1)
    assert torch.equal(model.weight, layer().weight)


def test_closure_is_refused() -> None:
    optimizer = make_optimizer(layer().parameters(), SETTINGS)
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step(lambda: 0.0)
