"""What `import xomni_rl` does for Gymnasium."""

import gymnasium
import pytest

import xomni_rl
import xomni_rl.envs


def test_import_registers_both_environments() -> None:
    spec = gymnasium.spec("xomni_rl/TextToImage-v0")
    assert spec.entry_point == "xomni_rl.envs.text_to_image:TextToImageEnv"
    assert spec.vector_entry_point == "xomni_rl.envs.vector:TextToImageVectorEnv"
    assert spec.max_episode_steps is None  # an episode ends by itself; a limit is the user's


def test_classes_are_reached_from_the_package() -> None:
    assert xomni_rl.envs.TextToImageEnv.__name__ == "TextToImageEnv"
    assert xomni_rl.envs.TextToImageVectorEnv.__name__ == "TextToImageVectorEnv"
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = xomni_rl.envs.Nothing
