"""Reinforcement learning for discrete autoregressive image generation, after X-Omni (arXiv 2507.22058)."""

__version__ = "0.1.0"
