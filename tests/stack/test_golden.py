import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xomni_rl.stack.golden import compare_golden
from xomni_rl.stack.image_tokenizer import VQProjector
from xomni_rl.stack.stack import StackError

GOLDEN = Path(__file__).parents[1] / "golden"


def test_reference_fixtures_match_to_float_precision() -> None:
    rows = {row.name: row for row in compare_golden(GOLDEN)}
    assert set(rows) == {"text logits", "image logits", "greedy tokens", "token ids", "decoded features"}
    assert all(row.ok for row in rows.values())
    assert max(row.value for row in rows.values()) < 1e-5


def test_each_part_is_optional(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "image_tokenizer", tmp_path / "image_tokenizer")
    assert [row.name for row in compare_golden(tmp_path)] == ["token ids", "decoded features"]


def test_changed_weight_is_reported_as_not_ok(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "autoregressive", tmp_path / "autoregressive")
    path = tmp_path / "autoregressive/model.safetensors"
    tensors = load_file(path)
    tensors["model.mm_norm.weight"] = tensors["model.mm_norm.weight"] * 1.01
    save_file(tensors, path, metadata={"format": "pt"})
    rows = {row.name: row for row in compare_golden(tmp_path)}
    assert not rows["image logits"].ok
    assert rows["greedy tokens"].kind == "mismatches"


def test_missing_tensor_is_an_error_not_a_random_weight(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "autoregressive", tmp_path / "autoregressive")
    path = tmp_path / "autoregressive/model.safetensors"
    tensors = load_file(path)
    del tensors["mm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(StackError, match=r"mm_head\.weight"):
        compare_golden(tmp_path)


def test_empty_folder_says_what_it_expects(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="neither"):
        compare_golden(tmp_path)


def test_another_configuration_of_the_form_works(tmp_path: Path) -> None:
    """Sizes that differ from the fixtures', checked against a direct computation of nearest neighbours."""
    torch.manual_seed(0)
    projector = VQProjector(z_channels=64, codebook_size=10, codebook_dim=6)
    folder = tmp_path / "image_tokenizer"
    projector.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"grid": [2, 4],', 1))
    features = torch.randn(3, 8, 64)
    weight = projector.quant_conv.weight[:, :, 0, 0]
    z = torch.nn.functional.normalize(features @ weight.T + projector.quant_conv.bias, dim=-1)
    codes = torch.nn.functional.normalize(projector.quantize.embedding.weight, dim=-1)
    tokens = (z[:, :, None] - codes).square().sum(-1).argmin(-1).view(3, 2, 4)
    with torch.no_grad():
        save_file(
            {"features": features, "tokens": tokens, "decoded": projector.decode(tokens).contiguous()},
            folder / "expected.safetensors",
        )
    assert all(row.ok for row in compare_golden(tmp_path))
