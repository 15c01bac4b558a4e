"""SigLIP encoders: timm's own VisionTransformer is the independent implementation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from xomni_rl.stack.siglip import heads_of, new_vision, renamed, vision_config
from xomni_rl.torchvision_operators import declare_on_import

declare_on_import()
timm_vit = pytest.importorskip("timm.models.vision_transformer")

HEADS = 4


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    """A tiny SigLIP2 in timm: 3 layers, 48 wide, 16 px patches, trained at 96 px (6 × 6 positions)."""
    torch.manual_seed(0)
    model = timm_vit.VisionTransformer(
        img_size=96,
        patch_size=16,
        embed_dim=48,
        depth=3,
        num_heads=HEADS,
        class_token=False,
        global_pool="map",
        num_classes=0,
        act_layer="gelu_tanh",
        dynamic_img_size=True,
    ).eval()
    nn.init.normal_(model.pos_embed, std=0.5)  # positions that a wrong resizing would show in
    return model


def ours(state: dict[str, Tensor]) -> nn.Module:
    own = renamed(state)
    vision = new_vision(vision_config(own, HEADS)).eval()
    vision.load_state_dict(own)
    return vision


@pytest.mark.parametrize("size", [(96, 96), (64, 160), (48, 48), (160, 96)])
def test_features_equal_timms_at_any_size(peer: nn.Module, size: tuple[int, int]) -> None:
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = peer.forward_features(pixels)
        found = ours(peer.state_dict())(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert found.shape == (2, size[0] * size[1] // 256, 48)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rename", [lambda name: f"visual.trunk.{name}", lambda name: f"vit.{name}"])
def test_prefixes_of_other_collections_are_taken_off(peer: nn.Module, rename: Callable[[str], str]) -> None:
    state = peer.state_dict()
    assert renamed({rename(name): value for name, value in state.items()}).keys() == renamed(state).keys()


def test_transformers_names_are_taken_as_they_are(peer: nn.Module) -> None:
    vision = ours(peer.state_dict())
    again = renamed({f"vision_model.{name}": value for name, value in vision.state_dict().items()})
    assert all(torch.equal(again[name], value) for name, value in vision.state_dict().items())


def test_pooling_head_is_left_out(peer: nn.Module) -> None:
    assert any(name.startswith("attn_pool") for name in peer.state_dict())
    assert not any("pool" in name for name in renamed(peer.state_dict()))


def test_configuration_is_read_off_the_tensors(peer: nn.Module) -> None:
    config = vision_config(renamed(peer.state_dict()), HEADS)
    sizes = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.patch_size, config.image_size)
    assert sizes == (48, 192, 3, 16, 96)  # MLPs are four times as wide; 6 positions of 16 px


def test_full_size_encoder_has_every_tensor_of_timms_and_none_is_left_over() -> None:
    with torch.device("meta"):
        published = timm_vit.vit_giantopt_patch16_siglip_384(num_classes=0).state_dict()
        own = renamed(published)
        config = vision_config(own, heads_of("siglip2_giant_patch16_384"))
        expected = {name: tuple(value.shape) for name, value in new_vision(config).state_dict().items()}
    assert {name: tuple(value.shape) for name, value in own.items()} == expected
    assert (config.hidden_size, config.num_hidden_layers, config.image_size) == (1536, 40, 384)


def test_tensor_of_another_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.rel_pos\.weight belongs to no SigLIP"):
        renamed({"blocks.0.attn.rel_pos.weight": torch.zeros(1)})


def test_unknown_size_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r'"siglip_tiny" is of no known size.*num_heads'):
        heads_of("siglip_tiny")
