"""imagereward against BLIP written out here from the paper's code, on the published file's own names; bad checkpoints."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, gelu, layer_norm, linear, softmax

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardResult, RewardUnavailableError
from xomni_rl.rewards.imagereward import ImageRewardReward, inferred_sizes, own_names

TEXTS = ("a red circle", "Is it 'Ω', naïve cat?", "very long words " * 30)
WIDTH = 128
"""Two heads of 64 in each tower of the tiny checkpoint."""
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ImageRewardReward.write_tiny(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="module")
def tensors(options: dict[str, Any]) -> Tensors:
    found: Tensors = torch.load(options["weights"], weights_only=True)
    return found


def images() -> list[np.ndarray]:
    """Three sizes; the margins of the last are odd."""
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for height, width in ((32, 96), (224, 224), (301, 235))]


def prompts() -> list[Prompt]:
    return [Prompt(str(index), text) for index, text in enumerate(TEXTS)]


def score(options: dict[str, Any], **more: Any) -> RewardResult:
    return ImageRewardReward(**options | more)(images(), prompts())


def published_pixels(image: np.ndarray) -> torch.Tensor:
    """Shortest side to 224 by Pillow's bicubic, torchvision's centre crop, CLIP's mean and deviation."""
    height, width = image.shape[:2]
    scale = 224 / min(height, width)
    wide, high = int(width * scale + 1e-9), int(height * scale + 1e-9)
    left, top = round((wide - 224) / 2), round((high - 224) / 2)
    cut = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((torch.tensor(np.asarray(cut)) / 255 - mean) / std).permute(2, 0, 1)[None]


def published_ids(text: str) -> list[int]:
    """WordPiece on the tiny vocabulary: letters, then letters inside a word; accents stripped, punctuation split off."""
    import unicodedata

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-"
    stripped = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    words = "".join(f" {c} " if c in ".,!?'\"-" else c for c in stripped).split()
    ids = [2]  # [CLS]
    for word in words:
        known = all(c in letters for c in word)
        ids += [5 + letters.index(c) + (len(letters) if i else 0) for i, c in enumerate(word)] if known else [1]
    return [*ids[:34], 3]  # [SEP]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Heads of 64 over [T, D] tensors, side by side."""
    heads = []
    for columns in (slice(start, start + 64) for start in range(0, query.shape[1], 64)):
        weights = query[:, columns] @ key[:, columns].T / math.sqrt(64)
        if mask is not None:
            weights = weights.masked_fill(~mask[None], -math.inf)
        heads.append(softmax(weights, -1) @ value[:, columns])
    return torch.cat(heads, 1)


def see(tensors: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """The published ViT's tokens [50, D], from its tensors: pre-norm blocks, eps 1e-6."""
    v = {name.removeprefix("blip.visual_encoder."): t for name, t in tensors.items()}

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, (WIDTH,), v[f"{name}.weight"], v[f"{name}.bias"], 1e-6)

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, v[f"{name}.weight"], v[f"{name}.bias"])

    patches = conv2d(pixels, v["patch_embed.proj.weight"], v["patch_embed.proj.bias"], stride=32)[0].flatten(1).T
    x = torch.cat([v["cls_token"][0], patches]) + v["pos_embed"][0]
    for block in ("blocks.0", "blocks.1"):
        query, key, value = dense(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).split(WIDTH, dim=1)
        x = x + dense(f"{block}.attn.proj", attend(query, key, value))
        x = x + dense(f"{block}.mlp.fc2", gelu(dense(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    return norm("norm", x)


def read(tensors: Tensors, ids: list[int], seen: torch.Tensor) -> torch.Tensor:
    """The published BERT's tokens [35, D], each layer attending to itself, then to the image: post-norm, eps 1e-12."""
    w = {name.removeprefix("blip.text_encoder."): t for name, t in tensors.items()}

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def attended(name: str, x: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        heads = attend(
            dense(f"{name}.self.query", x), dense(f"{name}.self.key", other), dense(f"{name}.self.value", other), mask
        )
        return norm(f"{name}.output.LayerNorm", dense(f"{name}.output.dense", heads) + x)

    padded = torch.tensor([*ids, *[0] * (35 - len(ids))])
    mask = torch.arange(35) < len(ids)
    x = w["embeddings.word_embeddings.weight"][padded] + w["embeddings.position_embeddings.weight"][:35]
    x = norm("embeddings.LayerNorm", x)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        x = attended(f"{layer}.attention", x, x, mask)
        x = attended(f"{layer}.crossattention", x, seen, None)
        inner = gelu(dense(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", dense(f"{layer}.output.dense", inner) + x)
    return x


def independent_scores(tensors: Tensors) -> list[float]:
    scores = []
    for image, text in zip(images(), TEXTS, strict=True):
        x = read(tensors, published_ids(text), see(tensors, published_pixels(image)))[0]
        for index in (0, 2, 4, 6, 7):
            x = linear(x, tensors[f"mlp.layers.{index}.weight"], tensors[f"mlp.layers.{index}.bias"])
        scores.append((float(x) - 0.16717362830052426) / 1.0333394966054072)
    return scores


def test_scores_equal_an_independent_computation(options: dict[str, Any], tensors: Tensors) -> None:
    np.testing.assert_allclose(score(options).scores, independent_scores(tensors), rtol=0, atol=1e-5)


def test_image_and_text_both_matter(options: dict[str, Any]) -> None:
    reward = ImageRewardReward(**options)
    pictures, asked = images(), prompts()
    by_image = reward(pictures, [asked[0]] * 3).scores
    by_text = reward([pictures[0]] * 3, asked).scores
    assert np.ptp(by_image) > 1e-3
    assert np.ptp(by_text) > 1e-3


def test_tokenizer_has_the_two_words_that_blip_adds(options: dict[str, Any]) -> None:
    tokenizer = ImageRewardReward(**options)._tokenizer()
    assert tokenizer("[DEC] [ENC]", add_special_tokens=False).input_ids == [len(tokenizer) - 2, len(tokenizer) - 1]


def test_long_prompt_is_marked_as_cut(options: dict[str, Any]) -> None:
    assert [detail["cut"] for detail in score(options).details] == [False, False, True]


def test_batches_of_one_score_the_same(options: dict[str, Any]) -> None:
    np.testing.assert_allclose(score(options, batch_size=1).scores, score(options).scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (8, 4000)])
def test_freak_sizes_are_scored(options: dict[str, Any], shape: tuple[int, int]) -> None:
    result = ImageRewardReward(**options)([np.zeros((*shape, 3), np.uint8)], prompts()[:1])
    assert np.isfinite(result.scores[0])


def test_grey_image_is_scored(options: dict[str, Any]) -> None:
    assert np.isfinite(ImageRewardReward(**options)([Image.new("L", (40, 30), 99)], prompts()[:1]).scores[0])


def test_sizes_of_the_published_checkpoint_are_inferred() -> None:
    # Shapes as published: ViT-L/16 at 224 px (197 = 14² + 1 positions), BERT-base with 30522 + 2 words; without memory (meta).
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.pos_embed": (1, 197, 1024),
        "blip.visual_encoder.patch_embed.proj.weight": (1024, 3, 16, 16),
        "blip.text_encoder.embeddings.word_embeddings.weight": (30524, 768),
        "blip.text_encoder.embeddings.position_embeddings.weight": (512, 768),
        "blip.text_encoder.embeddings.position_ids": (1, 512),
    }
    shapes |= {f"blip.visual_encoder.blocks.{i}.mlp.fc1.weight": (4096, 1024) for i in range(24)}
    shapes |= {f"blip.text_encoder.encoder.layer.{i}.intermediate.dense.weight": (3072, 768) for i in range(12)}
    widths = [768, 1024, 128, 64, 16, 1]
    shapes |= {f"mlp.layers.{n}.weight": (widths[i + 1], widths[i]) for i, n in enumerate((0, 2, 4, 6, 7))}
    found = inferred_sizes(own_names({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}))
    assert found["vision"] == {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "image_size": 224,
    }
    assert found["text"] == {
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
    }
    assert found["mlp"] == widths


def saved(tmp_path: Path, tensors: Tensors) -> str:
    torch.save(tensors, tmp_path / "changed.pt")
    return str(tmp_path / "changed.pt")


def test_nan_from_the_model_is_a_failure_that_keeps_the_others(
    options: dict[str, Any], tensors: Tensors, tmp_path: Path
) -> None:
    # "?" occurs only in the second text: NaN in its embedding reaches no other sample.
    table = tensors["blip.text_encoder.embeddings.word_embeddings.weight"].clone()
    table[5 + "abcdefghijklmnopqrstuvwxyz0123456789.,!?".index("?")] = torch.nan
    bad = saved(tmp_path, tensors | {"blip.text_encoder.embeddings.word_embeddings.weight": table})
    with pytest.raises(RewardError, match="sample 1: the model gave a score that is not a number") as caught:
        score(options, weights=bad)
    assert list(caught.value.failures) == [1]
    assert caught.value.partial is not None
    np.testing.assert_allclose(caught.value.partial.scores[[0, 2]], score(options).scores[[0, 2]], atol=1e-5)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("mlp.layers.4.weight", r"mlp\.4\.weight is missing"),
        ("blip.visual_encoder.norm.bias", r"vision\.post_layernorm\.bias is missing"),
        ("blip.text_encoder.embeddings.word_embeddings.weight", "word_embeddings.weight is missing"),
    ],
)
def test_missing_tensor_is_named(options: dict[str, Any], tensors: Tensors, tmp_path: Path, without: str, message: str) -> None:
    bad = saved(tmp_path, {name: tensor for name, tensor in tensors.items() if name != without})
    with pytest.raises(RewardUnavailableError, match=rf"is not ImageReward\.pt \(.*{message}.*huggingface\.co/zai-org"):
        score(options, weights=bad)


def test_tensor_too_many_is_refused(options: dict[str, Any], tensors: Tensors, tmp_path: Path) -> None:
    bad = saved(tmp_path, tensors | {"text_decoder.cls.bias": torch.zeros(3)})
    with pytest.raises(RewardUnavailableError, match=r"text_decoder\.cls\.bias is unknown"):
        score(options, weights=bad)


def test_another_models_checkpoint_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    bad = saved(tmp_path, {"logit_scale": torch.zeros(())})
    with pytest.raises(RewardUnavailableError, match=r"is not ImageReward\.pt"):
        score(options, weights=bad)


def test_width_without_heads_of_64_is_refused(tensors: Tensors) -> None:
    narrow = own_names(tensors) | {"text.embeddings.word_embeddings.weight": torch.zeros(93, 96)}
    with pytest.raises(ValueError, match="the text tower is 96 wide"):
        inferred_sizes(narrow)


def test_file_with_code_in_it_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"weights": Path("/")}, tmp_path / "code.pt")  # an object that only unpickling could make
    with pytest.raises(RewardUnavailableError, match=r"code\.pt cannot be read"):
        score(options, weights=str(tmp_path / "code.pt"))


def test_tokenizer_of_another_size_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path / "other")
    with pytest.raises(RewardUnavailableError, match=r"has 8 words with .* was trained with 93"):
        score(options, tokenizer=str(tmp_path / "other"))


def test_missing_tokenizer_names_the_option(options: dict[str, Any]) -> None:
    with pytest.raises(RewardUnavailableError, match=r"the tokenizer /nowhere/bert cannot be loaded.*tokenizer=PATH"):
        score(options, tokenizer="/nowhere/bert")


def test_tokenizer_of_a_vocabulary_file_alone_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    np.testing.assert_array_equal(score(options, tokenizer=str(tmp_path)).scores, score(options).scores)


def test_missing_weights_name_download_place_and_licence() -> None:
    with pytest.raises(RewardUnavailableError, match=r'reward "imagereward".*zai-org/ImageReward.*licence: Apache-2\.0'):
        ImageRewardReward("/nowhere/ImageReward.pt").load()


def test_files_are_checkpoint_and_tokenizer(options: dict[str, Any]) -> None:
    names = {path.name for path in ImageRewardReward(**options).files()}
    assert {"ImageReward.pt", "tokenizer.json"} <= names


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"dtype": "int8"}, 'unknown dtype "int8"'), ({"batch_size": -1}, "must be a whole number of at least 1, got -1")],
)
def test_bad_option_raises(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageRewardReward(**wrong)
