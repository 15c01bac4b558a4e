"""Reinforcement learning for discrete autoregressive image generation, after X-Omni (arXiv 2507.22058).

Importing the package registers the Gymnasium environments and loads nothing heavy.
"""

from xomni_rl import envs as envs

__version__ = "0.1.0"
