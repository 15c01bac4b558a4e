import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from xomni_rl.stack import embedded
from xomni_rl.stack.decoder import DiffusionDecoder, PatchCodec, flow_matching_loss
from xomni_rl.stack.image_tokenizer import VQProjector
from xomni_rl.stack.prompt_encoder import FluxPromptEncoder
from xomni_rl.stack.stack import Stack


def make_decoder(steps: int = 1, **changes: object) -> DiffusionDecoder:
    torch.manual_seed(0)
    projector = VQProjector(**embedded.PROJECTOR)
    return DiffusionDecoder.from_config({**embedded.DECODER, "num_single_layers": 1, **changes}, projector, 8, steps).eval()


def test_codec_with_every_component_is_lossless() -> None:
    pixels = torch.rand(20, 3, 32, 48) * 2 - 1
    codec = PatchCodec(8, 192)
    codec.fit(pixels)
    torch.testing.assert_close(codec.decode(codec.encode(pixels), (4, 6)), pixels, atol=1e-5, rtol=0)


def test_codec_keeps_what_lies_in_its_components() -> None:
    # patches are multiples of one random pattern: a single component holds them all
    pattern = torch.randn(1, 3, 8, 8)
    pixels = (torch.randn(50, 1, 1, 1) * pattern).repeat(1, 1, 2, 3)
    codec = PatchCodec(8, 1)
    codec.fit(pixels)
    torch.testing.assert_close(codec.decode(codec.encode(pixels), (2, 3)), pixels, atol=1e-4, rtol=0)


def test_image_depends_on_its_tokens_alone_not_on_its_batch() -> None:
    decoder = make_decoder(steps=2)
    tokens = torch.randint(512, (5, 4, 12))
    together = decoder(tokens).int()
    alone = torch.cat([decoder(t[None]) for t in tokens]).int()
    assert (together - alone).abs().max() <= 1
    assert not torch.equal(together[0], together[1])


def test_one_euler_step_is_noise_minus_velocity() -> None:
    # x_0 = x_1 + (0 − 1)·v(x_1, σ = 1)
    decoder = make_decoder(steps=1)
    tokens = torch.randint(512, (2, 4, 12))
    noise = torch.randn(1, 48, 64, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1)
    with torch.no_grad():
        velocity = decoder.velocity(noise, torch.ones(2), decoder.features(tokens), (4, 12))
    pixels = decoder.codec.decode(noise - velocity, (4, 12)).clamp(-1, 1)
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(decoder(tokens), expected)


def test_flow_matching_loss_at_zero_velocity_is_the_mean_square_of_noise_minus_image() -> None:
    decoder = make_decoder()
    torch.nn.init.zeros_(decoder.transformer.proj_out.weight)
    torch.nn.init.zeros_(decoder.transformer.proj_out.bias)
    latents, noise = torch.randn(2, 48, 64), torch.randn(2, 48, 64)
    loss = flow_matching_loss(decoder, latents, torch.randn(2, 48, 128), (4, 12), noise, torch.tensor([0.3, 1.0]))
    torch.testing.assert_close(loss, (noise - latents).square().mean())


def test_other_grids_decode_to_their_size() -> None:
    assert make_decoder()(torch.randint(512, (1, 6, 3))).shape == (1, 48, 24, 3)


def test_text_encoders_condition_the_image_and_need_texts() -> None:
    text = Stack.tiny_random().text_tokenizer
    clip = CLIPTextModel(
        CLIPTextConfig(vocab_size=900, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    t5 = T5EncoderModel(T5Config(vocab_size=900, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    decoder = make_decoder()
    decoder.prompt_encoder = FluxPromptEncoder(clip, text, t5, text, length=24)
    tokens = torch.randint(512, (1, 4, 12))
    red, blue = decoder(tokens, ["a red sign"]), decoder(tokens, ["something blue and long"])
    assert not torch.equal(red, blue)
    assert torch.equal(red, decoder(tokens, ["a red sign"]))
    with pytest.raises(ValueError, match="texts"):
        decoder(tokens)


def test_wrong_shapes_are_printed() -> None:
    decoder = make_decoder()
    with pytest.raises(ValueError, match=r"\[N, h, w\], not \(2, 48\)"):
        decoder(torch.zeros(2, 48, dtype=torch.long))
    with pytest.raises(ValueError, match=r"outside the codebook of 512"):
        decoder(torch.full((1, 4, 12), 512))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        make_decoder(steps=0)
