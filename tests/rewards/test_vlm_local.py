"""The local judge against the same model asked one question at a time, and its bad days."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.rewards.tiny_vlm import QUESTIONS, pictures, reference
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.vlm import Vlm, VlmError, build_vlm
from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

ANSWER = (("one", "two", "three"), (" cat", " dog"), (".", "!"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm(tmp_path_factory.mktemp("yes-no"))


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers in three tokens."""
    return write_tiny_vlm(tmp_path_factory.mktemp("talker"), ANSWER)


@pytest.fixture
def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def judge(weights: Path | str, **options: Any) -> Vlm:
    return build_vlm("test", {"weights": str(weights), "device": "cpu", **options})


def spoil(folder: Path, name: str, value: torch.Tensor | None) -> None:
    """Writes another tensor, or none, under a name into the folder's weights."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert name in tensors
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value.expand_as(tensors[name]).clone()
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_p_yes_of_a_padded_batch_equals_single_questions(folder: Path, batch_size: int) -> None:
    expected = [reference(folder).yes_probability(*pair) for pair in zip(pictures(), QUESTIONS, strict=True)]
    found = judge(folder, batch_size=batch_size).yes_probability(pictures(), QUESTIONS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(found) > 0.05  # it depends on picture and question, or the comparison would show nothing


def test_p_yes_without_token_types_would_be_another(folder: Path) -> None:
    # The trap that passing them avoids: the model accepts their absence and places the image tokens as if they were text.
    image, question = pictures()[2], QUESTIONS[0]
    inputs = reference(folder).inputs(image, question)
    del inputs["mm_token_type_ids"]
    with torch.inference_mode():
        wrong = reference(folder).model(**inputs).logits[0, -1]
    assert (wrong - reference(folder).logits(image, question)).abs().max() > 1e-3


def test_greedy_answers_of_a_padded_batch_equal_single_ones_whatever_the_checkpoint_says(talker: Path) -> None:
    settings = json.loads((talker / "generation_config.json").read_text())
    assert settings["do_sample"] is True
    assert settings["repetition_penalty"] != 1
    expected = [reference(talker).answer(*pair) for pair in zip(pictures(), QUESTIONS, strict=True)]
    found = judge(talker, batch_size=3).generate(pictures(), QUESTIONS, max_new_tokens=8)
    assert found == expected
    assert all(answer.split()[0] in ANSWER[0] for answer in found)


def test_answer_is_cut_after_max_new_tokens(talker: Path) -> None:
    (answer,) = judge(talker).generate(pictures()[:1], QUESTIONS[:1], max_new_tokens=1)
    assert answer in ANSWER[0]


def test_checkpoint_has_the_published_layout(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    # As in Qwen2.5-VL-7B-Instruct: visual.*, model.*, lm_head; not the class's own model.visual.*, model.language_model.*.
    assert {name.split(".")[0] for name in names} == {"visual", "model", "lm_head"}
    assert {"visual.blocks.0.attn.qkv.weight", "model.layers.0.self_attn.q_proj.bias", "visual.merger.ln_q.weight"} <= names
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2_5_vl"
    assert {path.name for path in judge(folder).files()} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_flat_configuration_of_older_checkpoints_gives_the_same(folder: Path, copy_of: Path) -> None:
    file = copy_of / "config.json"
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": text.pop("rope_parameters")["mrope_section"]}
    file.write_text(json.dumps({**text, **config, "rope_theta": 1e6}))
    found = judge(copy_of).yes_probability(pictures(), QUESTIONS)
    np.testing.assert_allclose(found, judge(folder).yes_probability(pictures(), QUESTIONS), rtol=0, atol=1e-6)


def test_no_questions_load_nothing(tmp_path: Path) -> None:
    nowhere = judge(tmp_path / "nowhere")
    assert nowhere.yes_probability([], []).shape == (0,)
    assert nowhere.generate([], []) == []


def test_special_tokens_in_a_question_are_words_and_break_nothing(folder: Path) -> None:
    questions = ["Is <|image_pad|> blue?<|im_end|>", QUESTIONS[1]]
    found = judge(folder).yes_probability(pictures()[:2], questions)
    neutral = [reference(folder).yes_probability(pictures()[0], "Is < |image_pad|> blue?< |im_end|>")]
    np.testing.assert_allclose(found[0], neutral[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[1], judge(folder).yes_probability(pictures()[1:2], questions[1:])[0], rtol=0, atol=1e-5)


def test_too_long_question_fails_alone(folder: Path) -> None:
    questions = [*QUESTIONS[:2], "very " * 500, QUESTIONS[3]]
    with pytest.raises(VlmError, match=r"take 25\d\d tokens, the model can take 2048") as caught:
        judge(folder).yes_probability(pictures(), questions)
    assert list(caught.value.failures) == [2]
    others = judge(folder).yes_probability([pictures()[i] for i in (0, 1, 3)], [QUESTIONS[i] for i in (0, 1, 3)])
    assert caught.value.partial is not None
    np.testing.assert_allclose(np.delete(caught.value.partial, 2), others, rtol=0, atol=1e-5)
    assert np.isnan(caught.value.partial[2])


def test_image_that_the_processor_refuses_fails_alone(talker: Path) -> None:
    strip = np.zeros((1, 900, 3), np.uint8)  # Qwen's limit is 200 to 1
    with pytest.raises(VlmError, match=r"processor refuses it: .*aspect ratio") as caught:
        judge(talker).generate([pictures()[0], strip], ["a?", "b?"], max_new_tokens=4)
    assert list(caught.value.failures) == [1]
    assert caught.value.partial == [reference(talker).answer(pictures()[0], "a?"), ""]


@pytest.mark.parametrize("name", ["model.norm.weight", "visual.merger.mlp.2.bias"])
def test_nan_from_the_model_is_a_failure_of_every_question(copy_of: Path, name: str) -> None:
    spoil(copy_of, name, torch.tensor(float("nan")))
    for call in (judge(copy_of).yes_probability, judge(copy_of).generate):
        with pytest.raises(VlmError, match="not finite") as caught:
            call(pictures()[:2], QUESTIONS[:2])
        assert list(caught.value.failures) == [0, 1]


def test_missing_tensor_is_named_instead_of_filled_at_random(copy_of: Path) -> None:
    spoil(copy_of, "model.layers.1.mlp.up_proj.weight", None)
    with pytest.raises(RewardUnavailableError, match=r'"test": .*lack .*layers\.1\.mlp\.up_proj.*Qwen2\.5-VL-7B-Instruct'):
        judge(copy_of).load()


def test_damaged_weights_are_one_sentence(copy_of: Path) -> None:
    file = copy_of / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RewardUnavailableError, match="cannot be used as an image-text-to-text model"):
        judge(copy_of).load()


def test_folder_without_a_chat_template_is_refused(copy_of: Path) -> None:
    (copy_of / "chat_template.jinja").unlink()
    with pytest.raises(RewardUnavailableError, match="it has no chat template"):
        judge(copy_of).load()


def test_file_instead_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(RewardUnavailableError, match="it is a file, not a folder"):
        judge(folder / "model.safetensors").load()


def test_missing_weights_name_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(RewardUnavailableError, match=r"nowhere does not exist; download .*Qwen2\.5-VL.*licence: Apache-2\.0"):
        judge(tmp_path / "nowhere").load()


def test_tokenizer_without_yes_still_generates_but_gives_no_probability(talker: Path) -> None:
    with pytest.raises(RewardUnavailableError, match="no single token for Yes or for No"):
        judge(talker).yes_probability(pictures()[:1], QUESTIONS[:1])


def test_judge_is_copied_and_pickled_after_use_and_shares_its_model(folder: Path) -> None:
    from xomni_rl.rewards import models

    made = judge(folder)
    expected = made.yes_probability(pictures()[:1], QUESTIONS[:1])
    loaded = len(models._models)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), judge(folder, batch_size=7)):
        np.testing.assert_array_equal(twin.yes_probability(pictures()[:1], QUESTIONS[:1]), expected)
    assert len(models._models) == loaded


def test_fewer_pixels_take_fewer_tokens_and_change_the_answer(folder: Path) -> None:
    # 200×100 px are 14×8 patches, 28 tokens; with at most 56·56 px they are 4×2 patches, 2 tokens.
    small = judge(folder, max_pixels=56 * 56)
    found = small.yes_probability(pictures()[2:3], QUESTIONS[:1])
    assert abs(found[0] - judge(folder).yes_probability(pictures()[2:3], QUESTIONS[:1])[0]) > 1e-3


def test_bfloat16_is_close_to_float32(folder: Path) -> None:
    found = judge(folder, dtype="bfloat16").yes_probability(pictures(), QUESTIONS)
    np.testing.assert_allclose(found, judge(folder).yes_probability(pictures(), QUESTIONS), rtol=0, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_gives_the_cpus_answers_and_is_left_when_offloaded(folder: Path) -> None:
    # float32 products on a GPU may run in TF32, hence the wider tolerance.
    found = judge(folder, device="cuda", offload=True).yes_probability(pictures(), QUESTIONS)
    np.testing.assert_allclose(found, judge(folder).yes_probability(pictures(), QUESTIONS), rtol=0, atol=1e-3)
    assert torch.cuda.memory_allocated() < 2**20


def test_one_image_per_question_is_demanded(folder: Path) -> None:
    with pytest.raises(ValueError, match="got 1 images and 2 questions"):
        judge(folder).yes_probability(pictures()[:1], QUESTIONS[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"max_pixels": 2.5}, "max_pixels must be a whole number of at least 1, got 2.5"),
        ({"dtype": "int8"}, 'unknown dtype "int8"'),
        ({"batchsize": 2}, 'unknown vlm option "batchsize"; nearest: batch_size'),
        ({"backend": "locla"}, 'unknown vlm backend "locla"; nearest: local'),
    ],
)
def test_bad_option_raises(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(folder, **options)
