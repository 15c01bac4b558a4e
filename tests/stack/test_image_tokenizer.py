from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xomni_rl.stack import embedded
from xomni_rl.stack.image_tokenizer import SemanticImageTokenizer, VQProjector, to_pixels


def make_tokenizer() -> SemanticImageTokenizer:
    torch.manual_seed(0)
    return SemanticImageTokenizer.from_config(embedded.VISION, embedded.PROJECTOR).eval()


@pytest.mark.parametrize("size", [(32, 96), (64, 64), (8, 200)])
def test_any_multiple_of_the_patch_gives_its_grid(size: tuple[int, int]) -> None:
    with torch.no_grad():
        tokens = make_tokenizer()(torch.zeros(2, 3, *size))
    assert tokens.shape == (2, size[0] // 8, size[1] // 8)


def test_size_off_the_patch_names_the_size() -> None:
    with pytest.raises(ValueError, match=r"\(30, 96\).*8 px"):
        make_tokenizer()(torch.zeros(1, 3, 30, 96))


def test_saved_tokenizer_gives_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 32, 96)
    with torch.no_grad():
        assert torch.equal(SemanticImageTokenizer.from_pretrained(tmp_path)(pixels), tokenizer(pixels))


def test_nearest_code_ignores_length() -> None:
    # unit circle codes at 0°, 90°; a long vector at 30° is nearer 0°, although the 90° code has the larger norm
    projector = VQProjector(32, 2, 2)
    projector.quantize.embedding.weight.data = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    assert projector.quantize.nearest(torch.tensor([[8.7, 5.0], [0.1, 0.2]])).tolist() == [0, 1]


def test_checkpoint_that_does_not_fit_names_the_tensor(tmp_path: Path) -> None:
    projector = VQProjector(32, 8, 4)
    projector.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "projector.safetensors")
    save_file({**tensors, "quant_conv.bias": torch.zeros(5)}, tmp_path / "projector.safetensors")
    with pytest.raises(ValueError, match=r"quant_conv\.bias is \(5,\), not \(4,\)"):
        VQProjector.from_pretrained(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != "quant_conv.bias"}, tmp_path / "projector.safetensors")
    with pytest.raises(ValueError, match=r"quant_conv\.bias missing"):
        VQProjector.from_pretrained(tmp_path)


def test_pixels_are_scaled_to_plus_minus_one() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert to_pixels(images)[0, :, 0].tolist() == [[-1.0, 1.0]] * 3
    with pytest.raises(ValueError, match="uint8"):
        to_pixels(torch.zeros(1, 2, 2, 3))
