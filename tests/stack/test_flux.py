"""FLUX.1's parts: diffusers' own pipeline is the independent implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from tests.stack.published_folder import FEATURES, LATENTS, tiny_transformer, write_decoder, write_flux
from xomni_rl.stack.flux import (
    FluxCodec,
    joined_tensors,
    load_flux_decoder,
    load_transformer,
    new_transformer,
    quantise,
)
from xomni_rl.stack.image_tokenizer import VQProjector
from xomni_rl.stack.tensor_files import read_tensors
from xomni_rl.torchvision_operators import declare_on_import

declare_on_import()
from diffusers import FluxPipeline  # noqa: E402 - needs the operators

GRID = (2, 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    write_decoder(root / "decoder")
    return root / "decoder", write_flux(root / "flux")


@pytest.fixture(scope="module")
def projector() -> VQProjector:
    torch.manual_seed(2)
    return VQProjector(FEATURES, 64, 24).eval()


def test_joined_layer_adds_the_injected_features_to_the_latents_embedding(folders: tuple[Path, Path]) -> None:
    state = read_tensors(folders[0])
    transformer = load_transformer(folders[0], FEATURES, torch.float32)
    latents, features = torch.randn(2, 6, LATENTS * 4), torch.randn(2, 6, FEATURES)
    plain = torch.nn.functional.linear(latents, state["x_embedder.weight"], state["x_embedder.bias"])
    expected = plain + torch.nn.functional.linear(features, state["siglip_embedder.weight"])
    found = transformer.x_embedder(torch.cat([latents, features], -1))
    assert torch.allclose(found, expected, atol=1e-5)


def test_codec_packs_latents_as_the_pipeline_does(folders: tuple[Path, Path]) -> None:
    vae = AutoencoderKL.from_pretrained(folders[1], subfolder="vae").eval()
    codec = FluxCodec(vae)
    assert (codec.pixels, codec.channels) == (16, 16)  # 8 px per latent, 2 × 2 of them, 4 channels each
    square = torch.randn(1, LATENTS, 4, 6)
    packed = FluxPipeline._pack_latents(square, 1, LATENTS, 4, 6)
    with torch.no_grad():
        scaled = square / vae.config.scaling_factor + vae.config.shift_factor
        assert torch.allclose(codec.decode(packed, GRID), vae.decode(scaled).sample, atol=1e-6)
        pixels = torch.rand(1, 3, 32, 48) * 2 - 1
        mode = vae.encode(pixels).latent_dist.mode()
        mode = (mode - vae.config.shift_factor) * vae.config.scaling_factor
        assert torch.allclose(codec.encode(pixels), FluxPipeline._pack_latents(mode, 1, LATENTS, 4, 6), atol=1e-6)


def test_decoding_without_features_equals_diffusers_pipeline(folders: tuple[Path, Path], projector: VQProjector) -> None:
    """With features of zero the decoder is FLUX.1 itself: same text condition, schedule, steps and VAE."""
    decoder = load_flux_decoder(folders[0], folders[1], projector, {"num_inference_steps": 3})
    transformer = tiny_transformer()
    transformer.load_state_dict({k: v for k, v in read_tensors(folders[0]).items() if "siglip" not in k})
    encoder = decoder.prompt_encoder
    pipeline = FluxPipeline(
        decoder.scheduler,
        decoder.codec.vae,
        *(encoder.clip, encoder.clip_tokenizer, encoder.t5, encoder.t5_tokenizer),
        transformer.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 6, LATENTS * 4, generator=torch.Generator().manual_seed(0))
    expected = pipeline(
        "a red sign", height=32, width=48, num_inference_steps=3, guidance_scale=1.0, latents=noise, output_type="np"
    ).images
    with torch.no_grad():
        projector_zero = VQProjector(FEATURES, 64, 24).eval()
        for parameter in projector_zero.parameters():
            parameter.zero_()
        decoder.projector = projector_zero
        found = decoder(torch.zeros(1, *GRID, dtype=torch.long), ["a red sign"])
    assert found.shape == (1, 32, 48, 3)
    assert np.abs(found.numpy() / 255 - expected).max() <= 1 / 255


def test_both_guidance_scales_combine_three_velocities(folders: tuple[Path, Path], projector: VQProjector) -> None:
    settings = {"num_inference_steps": 1, "cfg_scale": 3.0, "cfg_scale_2": 2.0}
    decoder = load_flux_decoder(folders[0], folders[1], projector, settings)
    plain = load_flux_decoder(folders[0], folders[1], projector, {"num_inference_steps": 1})
    tokens = torch.tensor([[[1, 5, 9], [2, 0, 7]]])
    noise = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = plain.features(tokens)
        sequence, pooled = plain.prompt_encoder(["a red sign", ""])
        prompt, empty = (sequence[:1], pooled[:1]), (sequence[1:], pooled[1:])
        one = torch.ones(1)
        both = plain.velocity(noise, one, features, GRID, prompt)
        alone = plain.velocity(noise, one, features, GRID, empty)
        nothing = plain.velocity(noise, one, torch.zeros_like(features), GRID, empty)
        velocity = nothing + 2 * (alone - nothing) + 3 * (both - alone)
        pixels = plain.codec.decode(noise - velocity, GRID).clamp(-1, 1)  # one step from σ = 1 to 0
        expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        found = decoder(tokens, ["a red sign"])
    assert (found.int() - expected.int()).abs().max() <= 1
    assert not torch.equal(found, plain(tokens, ["a red sign"]))


def test_images_at_a_time_and_moving_parts_change_no_image(folders: tuple[Path, Path], projector: VQProjector) -> None:
    tokens = torch.arange(18).view(3, *GRID)
    texts = ["a red sign", "a blue sign", "something long and green"]
    together = load_flux_decoder(folders[0], folders[1], projector, {"num_inference_steps": 2})
    apart = load_flux_decoder(*folders, projector, {"num_inference_steps": 2}, batch=2, works_on=torch.device("cpu"))
    difference = (together(tokens, texts).int() - apart(tokens, texts).int()).abs()
    assert difference.max() <= 1


def test_tiles_are_decoded_apart_where_a_picture_is_larger_than_one(folders: tuple[Path, Path], projector: VQProjector) -> None:
    whole = load_flux_decoder(*folders, projector, {"num_inference_steps": 1})
    tiled = load_flux_decoder(*folders, projector, {"num_inference_steps": 1}, tiling=True)
    tokens, texts = torch.arange(6).view(1, *GRID), ["a red sign"]
    assert not torch.equal(whole(tokens, texts), tiled(tokens, texts))  # 48 px, tiles of the VAE's sample_size, 32 px
    tiled.codec.vae.tile_sample_min_size, tiled.codec.vae.tile_latent_min_size = 64, 8
    assert torch.equal(whole(tokens, texts), tiled(tokens, texts))


def test_schedule_is_shifted_by_the_number_of_latents(folders: tuple[Path, Path], projector: VQProjector) -> None:
    decoder = load_flux_decoder(*folders, projector, {})
    # linear from 0.5 at 256 latents to 1.15 at 4096
    assert decoder._shift(256) == pytest.approx(0.5)
    assert decoder._shift(4096) == pytest.approx(1.15)
    assert decoder._shift(1024) == pytest.approx(0.5 + 0.65 * 768 / 3840)
    decoder.scheduler = FlowMatchEulerDiscreteScheduler()
    assert decoder._shift(1024) is None


def test_transformer_without_the_injecting_layer_is_refused_with_its_shape() -> None:
    state = tiny_transformer().state_dict()
    with pytest.raises(ValueError, match=r"needs one linear layer \[32, 48\].*found: none"):
        joined_tensors(state, set(state), 32, 48)
    strange = state | {"adapter.weight": torch.zeros(32, 7)}
    with pytest.raises(ValueError, match=r"found: adapter\.weight \[32, 7\]"):
        joined_tensors(strange, set(state), 32, 48)


def test_full_size_transformer_has_every_published_tensor() -> None:
    with torch.device("meta"):
        published = FluxTransformer2DModel(guidance_embeds=True)  # FLUX.1-dev's sizes are diffusers' defaults
        state = published.state_dict() | {"siglip_embedder.weight": torch.empty(3072, 1536)}
        joined = joined_tensors(state, set(published.state_dict()), published.inner_dim, 1536)
        wanted = new_transformer({"guidance_embeds": True}, 1536).state_dict()
    assert {k: v.shape for k, v in joined.items()} == {k: v.shape for k, v in wanted.items()}
    assert joined["x_embedder.weight"].shape == (3072, 64 + 1536)


def test_quantised_weights_give_nearly_the_same_picture(folders: tuple[Path, Path], projector: VQProjector) -> None:
    pytest.importorskip("torchao")
    tokens, texts = torch.arange(6).view(1, *GRID), ["a red sign"]
    plain = load_flux_decoder(*folders, projector, {"num_inference_steps": 2})
    quantised = load_flux_decoder(*folders, projector, {"num_inference_steps": 2}, quantisation="int8")
    difference = (plain(tokens, texts).int() - quantised(tokens, texts).int()).abs()
    assert 0 < difference.max() <= 32  # of 255: eight bits a weight, in the latents of a random VAE
    assert difference.float().mean() < 4


def test_quantisation_is_by_known_names() -> None:
    with pytest.raises(ValueError, match='one of int8, int4, not "int2"'):
        quantise(torch.nn.Linear(4, 4), "int2")
