"""Trains stable-baselines3's PPO on the environment as it is: a third-party agent that knows nothing of this project.

    python -m xomni_rl.experiments.sb3_ppo --steps 512

The agent is a small network on the observation's numbers, not the stack's own model, so within so few steps it learns
to draw little that can be read. What it shows is that an ordinary agent runs unchanged. Needs the extra `sb3`. The
rewards of scored prefixes give it something to learn from before an episode ends.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
from rich.console import Console
from rich.table import Table

import xomni_rl

ROLLOUT = 128
"""Tokens PPO gathers before an update."""


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        steps: image tokens placed.
        episodes: images finished.
        mean_return: mean score of the images finished last (up to 100).
        first_mean_return: the same of the first images (up to 100).
    """

    steps: int
    episodes: int
    mean_return: float
    first_mean_return: float


def train(steps: int = 512, seed: int = 0, **options: Any) -> Summary:
    """Runs PPO for `steps` tokens, rounded up to whole rollouts of 128.

    Args:
        steps: at least 128, so that there is an update.
        seed: of the agent and the environment.
        options: of the environment, such as `stack`, `prompts`, `reward`, `size`.
    Raises: ValueError for too few steps; ModuleNotFoundError without the extra `sb3`.
    """
    if steps < ROLLOUT:
        raise ValueError(f"steps must be at least {ROLLOUT}, one rollout, got {steps}")
    from stable_baselines3 import PPO
    from stable_baselines3.common.monitor import Monitor

    env = Monitor(gymnasium.make(xomni_rl.envs.ENV_ID, **options))
    agent = PPO("MultiInputPolicy", env, n_steps=ROLLOUT, batch_size=64, n_epochs=2, seed=seed, device="cpu", verbose=0)
    agent.learn(total_timesteps=steps)
    returns = env.get_episode_rewards()
    env.close()
    if not returns:
        raise ValueError(f"no episode ended within {steps} steps; give more")
    return Summary(agent.num_timesteps, len(returns), _mean(returns[-100:]), _mean(returns[:100]))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="stable-baselines3's PPO on xomni_rl/TextToImage-v0")
    parser.add_argument("--steps", type=int, default=512, help="image tokens to place (default 512)")
    parser.add_argument("--seed", type=int, default=0, help="seed of agent and environment (default 0)")
    parser.add_argument("--stack", default="embedded", help='"embedded" or a folder (default embedded)')
    arguments = parser.parse_args()
    summary = train(arguments.steps, arguments.seed, stack=arguments.stack, reward_at=(12, 24, 36))
    table = Table("stable-baselines3 PPO", "")
    for name, value in asdict(summary).items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    Console().print(table)


if __name__ == "__main__":
    main()
