"""Gymnasium environments in which an action is an image token. Importing this package registers them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from xomni_rl.envs.text_to_image import TextToImageEnv as TextToImageEnv
    from xomni_rl.envs.vector import TextToImageVectorEnv as TextToImageVectorEnv

ENV_ID = "xomni_rl/TextToImage-v0"
_MODULE_OF = {"TextToImageEnv": "text_to_image", "TextToImageVectorEnv": "vector"}

if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        id=ENV_ID,
        entry_point="xomni_rl.envs.text_to_image:TextToImageEnv",
        vector_entry_point="xomni_rl.envs.vector:TextToImageVectorEnv",
    )


def __getattr__(name: str) -> Any:
    """The environment classes, imported on first use: `import xomni_rl` must not load torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
