"""A critic for PPO: what a rollout's reward will be, judged at each token by what the policy has in mind there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xomni_rl.policies.distributed import Team
from xomni_rl.policies.shapes import check_shapes
from xomni_rl.policies.training_state import load_optimizer, optimizer_state


class Critic(nn.Module):
    """A value head on the policy's features, with an optimizer of its own.

    V = Linear(GELU(Linear(LayerNorm(features)))), its last layer begun at 0, so that values are 0 before training.

    Args:
        width: D of the features.
        learning_rate: AdamW's; heads learn quicker than what they stand on.
        epochs: full passes over each rollout.
        seed: of the weights.
    Source: arXiv:1707.06347, section 5. Departs from it: the features carry no gradient, so the critic costs one pass without
        gradients and cannot disturb the policy; the value loss is not clipped.
    """

    def __init__(self, width: int, learning_rate: float = 1e-3, epochs: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            last = nn.Linear(width, 1)
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.epochs = epochs
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=0.0)

    def forward(self, features: Tensor) -> Tensor:
        """Values [N, T] of features [N, T, D]."""
        values: Tensor = self.head(features)[..., 0]
        return values

    @torch.no_grad()
    def values(self, features: Tensor) -> Tensor:
        """Values float32 [N, T] of features [N, T, D], without gradients."""
        found: Tensor = self(features).float()
        return found

    def fit(
        self, features: Tensor, returns: Tensor, keep: Tensor, team: Team | None = None, mask: Tensor | None = None
    ) -> dict[str, float]:
        """Learns to predict the returns of the kept rollouts.

        Args:
            features: [N, T, D] float; of several processes, each has rows of its own.
            returns: [N, T] float; NaN allowed where `keep` is False.
            keep: [N] bool, at least one True in some process.
            team: the processes that learn together.
            mask: [N, T] bool, True = a token, where rollouts have different lengths.
        Returns: value_loss (mean squared error before learning) and, if the returns differ, explained_variance (before
            learning; 1 = perfect, 0 = no better than their mean).
        Raises: ValueError if shapes or dtypes differ.
        """
        check_shapes(features=(features, "N T D", "float"), returns=(returns, "N T", "float"), keep=(keep, "N", "bool"))
        team = team or Team()
        counted = keep if mask is None else keep[:, None] & mask
        features, returns = features[counted], returns[counted]
        everyones = team.rows(returns, returns.device)
        first: dict[str, float] = {}
        for _ in range(self.epochs):
            self.optimizer.zero_grad(set_to_none=True)
            loss = (self(features) - returns).square().sum() / everyones.numel()
            if not first:
                first = {"value_loss": sum(team.gathered(float(loss.detach())))}
                spread = float(everyones.var(unbiased=False))
                if spread > 0:
                    first["explained_variance"] = 1.0 - first["value_loss"] / spread
            loss.backward()
            team.add_up([parameter.grad for parameter in self.parameters() if parameter.grad is not None])
            self.optimizer.step()
        return first

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer moments by name, for a checkpoint."""
        moments, _ = optimizer_state(self, self.optimizer)
        weights = {f"weights/{name}": value.detach() for name, value in self.named_parameters()}
        return weights | {f"optimizer/{name}": value for name, value in moments.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave. Raises: KeyError, ValueError or RuntimeError if it does not fit."""
        settings: dict[str, Any] = optimizer_state(self, self.optimizer)[1]
        moments = {name.removeprefix("optimizer/"): value for name, value in tensors.items() if name.startswith("optimizer/")}
        load_optimizer(self, self.optimizer, moments, settings)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(tensors[f"weights/{name}"])
