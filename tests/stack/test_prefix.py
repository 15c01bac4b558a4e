"""A prompt's keys and values, noted once and read by all that follow."""

import torch

from xomni_rl.stack.prefix import PromptPass, layers_recomputed
from xomni_rl.stack.stack import Stack


def pair(rows: int, length: int, value: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((rows, 1, length, 2), value), torch.full((rows, 1, length, 2), -value)


def test_rows_of_a_group_follow_their_own_prompt() -> None:
    prompts = PromptPass()
    keys, values = pair(2, 3, 1.0)
    keys[1], values[1] = 2.0, -2.0
    prompts.update(keys, values, 0)
    cache = prompts.followed_by(2)
    assert cache.get_seq_length() == 3
    both = cache.update(*pair(4, 1, 5.0), 0)
    assert both[0][:, 0, :, 0].tolist() == [[1, 1, 1, 5], [1, 1, 1, 5], [2, 2, 2, 5], [2, 2, 2, 5]]
    assert torch.equal(both[1], -both[0])


def test_second_pass_of_a_layer_changes_nothing() -> None:
    prompts = PromptPass()
    first = prompts.update(*pair(1, 3, 1.0), 0)
    again = prompts.update(*pair(1, 3, 1.0), 0)
    assert torch.equal(first[0], again[0])
    cache = prompts.followed_by(1)
    for _ in range(2):
        assert cache.update(*pair(1, 2, 5.0), 0)[0].shape == (1, 1, 5, 2)
    assert cache.get_seq_length() == 3


def test_layers_are_as_they_were_afterwards() -> None:
    layers = Stack.tiny_random(seed=0).model.model.layers
    layers[0].forward = layers[0].forward  # as something that wraps a layer leaves it
    own = [vars(layer).get("forward") for layer in layers]
    with layers_recomputed(layers):
        assert all("forward" in vars(layer) for layer in layers)
    assert [vars(layer).get("forward") for layer in layers] == own
    assert own[0] is not None
    assert own[1] is None
