"""Reinforcement learning for discrete autoregressive image generation, after X-Omni (arXiv 2507.22058).

Importing the package registers the Gymnasium environments and loads nothing heavy.
"""

from xomni_rl.torchvision_operators import declare_on_import

declare_on_import()  # before anything below may import torchvision

from xomni_rl import envs as envs  # noqa: E402

__version__ = "0.1.0"
