"""Weights of 16 bits that are trained: the optimizer steps on float32 copies of them, its masters (arXiv:1710.03740, 3.1).

A bfloat16 number has 8 bits: steps of less than 2⁻⁹ of a weight are rounded away, nearly all at a learning rate of 1e-6.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MASTER = "master"
"""What a parameter's float32 copy is called among its optimizer's state, and so in a checkpoint."""


def is_low(parameter: Tensor) -> bool:
    """Whether a number of this kind is too short to take small steps."""
    return parameter.dtype in (torch.bfloat16, torch.float16)


class MasterWeights(Optimizer):
    """An optimizer over parameters of which some have 16 bits: it steps on their masters, and they are these, rounded.

    One parameter after the other goes through an optimizer of a single one, so that beside the masters and the moments, which
    are float32 too, no more than one tensor's gradient is there in float32.

    Args:
        parameters: what is trained; all in one group.
        make: the optimizer of some parameters.
    Attributes:
        inner: the optimizer that each parameter goes through; it keeps nothing of it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], make: Callable[[list[nn.Parameter]], Optimizer]) -> None:
        self._slot = nn.Parameter(torch.empty(0))
        self.inner = make([self._slot])
        super().__init__(parameters, {key: value for key, value in self.inner.param_groups[0].items() if key != "params"})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Steps on every parameter with a gradient. Raises: ValueError for a closure, which would be called per parameter."""
        if closure is not None:
            raise ValueError("masters are stepped on one by one, without a closure")
        for group in self.param_groups:
            self.inner.param_groups[0].update({key: value for key, value in group.items() if key != "params"})
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_on(parameter)

    def _step_on(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        state = dict(self.state[parameter])
        master = state.pop(MASTER, None)
        if master is None:
            master = parameter.detach().float()  # a float32 parameter is its own master
        self._slot.data, self._slot.grad = master, parameter.grad.float()
        self.inner.state[self._slot] = state
        self.inner.step()
        stepped = self.inner.state.pop(self._slot)
        self._slot.data, self._slot.grad = torch.empty(0), None
        if is_low(parameter):
            parameter.copy_(master)
            stepped = stepped | {MASTER: master}
        self.state[parameter] = stepped

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As any optimizer, but state stays float32 where torch would give it the parameter's kind of number."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.state = defaultdict(dict)
        for index, state in state_dict["state"].items():
            device = parameters[index].device
            self.state[parameters[index]] = {
                kind: value.to(device) if isinstance(value, Tensor) and kind != "step" else value
                for kind, value in state.items()
            }
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
