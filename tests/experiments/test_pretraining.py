import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from xomni_rl.experiments.pretraining.clip import families, spoilt, to_input, train_clip_tokenizer
from xomni_rl.experiments.pretraining.data import character_columns, sign_batch, stream
from xomni_rl.experiments.pretraining.long_signs import pretrain_long
from xomni_rl.experiments.pretraining.loop import Stage, run_stage
from xomni_rl.experiments.pretraining.recipe import claim, pretrain
from xomni_rl.prompt_sets.signs import ALPHABET, is_heldout, random_strings, render_sign, signs
from xomni_rl.stack.stack import Stack, StackError
from xomni_rl.weights import SIGNS_CLIP


def test_heldout_strings_never_occur_in_training() -> None:
    trained = {t for step in range(50) for t in sign_batch(stream(0, "ar", step), 64).texts}
    trained |= {p.texts[0] for p in signs("train", 4096, 0)}
    heldout = {p.texts[0] for p in signs("heldout", 512, 0)} | set(sign_batch(stream(7, "figures", 0), 64, heldout=True).texts)
    assert not trained & heldout
    assert not any(is_heldout(t) for t in trained)
    assert all(is_heldout(t) for t in heldout)


def test_heldout_share_is_one_in_sixteen() -> None:
    rng = np.random.default_rng(0)
    drawn = ["".join(rng.choice(list(ALPHABET), 4)) for _ in range(4000)]
    # 4000 draws at 1/16: mean 250, standard deviation 15.3
    assert 190 < sum(map(is_heldout, drawn)) < 310


def test_batch_depends_on_seed_stage_and_step_alone() -> None:
    first, again = sign_batch(stream(0, "ar", 5), 8), sign_batch(stream(0, "ar", 5), 8)
    assert np.array_equal(first.images, again.images)
    assert first.prompts() == again.prompts()
    assert sign_batch(stream(0, "ar", 6), 8).texts != first.texts
    assert sign_batch(stream(0, "decoder", 5), 8).texts != first.texts


def test_sign_has_its_colour_and_white_letters() -> None:
    image = render_sign("K7AX", "red")
    assert image.shape == (32, 96, 3)
    assert tuple(image[0, 0]) == (190, 30, 40)
    assert (image.min(-1) > 240).sum() > 100


def test_character_columns_name_the_letter_over_each_column() -> None:
    columns = character_columns(["AAAA", "KKKK"], ALPHABET, 12)
    assert set(columns[0].tolist()) == {0, 1 + ALPHABET.index("A")}
    assert set(columns[1].tolist()) == {0, 1 + ALPHABET.index("K")}


def test_random_strings_of_a_negative_count_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        random_strings(np.random.default_rng(0), -1, heldout=False)


class Line(nn.Module):
    """y = w·x with noise from torch's generator, so that a lost random state would show."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.zeros(3))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(4, 3)
        loss = (x @ self.w - x.sum(1) - step / 100).square().mean()
        return loss, {"loss": float(loss.detach())}


def test_interrupted_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    stage = Stage("line", 12, batch=4, learning_rate=0.1, weight_decay=0.0, beta2=0.99, save_every=4)
    quiet = Console(quiet=True)
    straight = Line()
    run_stage(stage, straight, straight.loss, tmp_path / "a.safetensors", quiet)

    class StopError(Exception):
        pass

    def stops_at_ten(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == 10:
            raise StopError
        return cut.loss(step)

    cut = Line()
    with pytest.raises(StopError):
        run_stage(stage, cut, stops_at_ten, tmp_path / "b.safetensors", quiet)
    resumed = Line()
    torch.manual_seed(99)
    run_stage(stage, resumed, resumed.loss, tmp_path / "b.safetensors", quiet)
    assert torch.equal(resumed.w, straight.w)
    assert not list(tmp_path.iterdir())


def test_damaged_state_file_is_named(tmp_path: Path) -> None:
    stage = Stage("line", 2, batch=4, learning_rate=0.1, weight_decay=0.0, beta2=0.99)
    (tmp_path / "s.safetensors").write_bytes(b"no")
    line = Line()
    with pytest.raises(ValueError, match=r"s\.safetensors is damaged"):
        run_stage(stage, line, line.loss, tmp_path / "s.safetensors", Console(quiet=True))


def test_infinite_loss_stops_with_the_step(tmp_path: Path) -> None:
    stage = Stage("line", 2, batch=4, learning_rate=0.1, weight_decay=0.0, beta2=0.99)
    line = Line()
    with pytest.raises(FloatingPointError, match="at step 0"):
        run_stage(stage, line, lambda step: (line.w.sum() * torch.inf, {}), tmp_path / "s.safetensors", Console(quiet=True))


@pytest.mark.slow
def test_quick_recipe_writes_a_loadable_stack_with_a_card(tmp_path: Path) -> None:
    out = tmp_path / "stack"
    pretrain(out, quick=True, figures=16, console=Console(quiet=True))
    assert Stack.from_pretrained(out).generate(["a"]).images.shape == (1, 32, 96, 3)
    card = (out / "README.md").read_text()
    assert "| reconstruction |" in card
    assert not (out / "pretraining").exists()
    clip, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{out / 'clip'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{out / 'clip'}")(["a red sign"])
    assert clip.encode_text(tokens).shape == clip.encode_image(prepare(Image.new("RGB", (96, 32)))[None]).shape
    assert "| near misses |" in (out / "clip/README.md").read_text()


def test_unfinished_work_of_another_seed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "pretraining/recipe.json").write_text(json.dumps({"seed": 5}))
    with pytest.raises(StackError, match="another seed or recipe"):
        pretrain(tmp_path, seed=0, console=Console(quiet=True))


@pytest.mark.parametrize("name", ["pretraining/data.csv", "README.md", "clip/notes.txt"])
@pytest.mark.parametrize("make", [pretrain, pretrain_long])
def test_files_of_somebody_else_are_refused_and_kept(make: Callable[..., Stack], name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(StackError, match=r"would be removed or replaced .* choose another --out"):
        make(tmp_path, quick=True, console=Console(quiet=True))
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_unfinished_work_and_a_finished_stack_may_be_gone_on_with(tmp_path: Path) -> None:
    recipe: dict[str, object] = {"seed": 0}
    (tmp_path / "notes.txt").write_text("mine")  # nothing of a stack has this name
    work = claim(tmp_path, recipe)
    (work / "ar.safetensors").write_text("state")
    (tmp_path / "clip").mkdir()
    assert claim(tmp_path, recipe) == work
    shutil.rmtree(work)
    (tmp_path / "stack.json").write_text("{}")
    assert claim(tmp_path, recipe) == work


def test_family_is_a_sign_its_twin_in_another_colour_and_its_twin_with_one_other_letter() -> None:
    batch = families(np.random.default_rng(0), 20)
    for i in range(0, 60, 3):
        sign, recoloured, respelt = zip(batch.texts[i : i + 3], batch.colours[i : i + 3], strict=True)
        assert sign[0] == recoloured[0]
        assert sign[1] != recoloured[1]
        assert sign[1] == respelt[1]
        assert sum(a != b for a, b in zip(sign[0], respelt[0], strict=True)) == 1
    assert not any(is_heldout(text) for text in batch.texts)


def test_clip_tokenizer_keeps_letters_apart_and_ends_with_eos() -> None:
    tokenizer = train_clip_tokenizer(sign_batch(stream(0, "corpus", 0), 200).prompts())
    assert [tokenizer.decode([i]) for i in tokenizer('"K7AX"').input_ids] == ['"', "K", "7", "A", "X", '"', "<eos>"]
    # BPE merges the words every prompt has, so a prompt fits the context with room to spare
    assert len(tokenizer('a purple sign with the text "K7AX"').input_ids) < 20


def test_clip_input_is_what_open_clip_prepares() -> None:
    _, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{SIGNS_CLIP}")
    image = render_sign("K7AX", "red", np.random.default_rng(0))
    assert torch.allclose(to_input(image[None])[0], prepare(Image.fromarray(image)), atol=1e-6)


def test_spoilt_signs_keep_form_and_are_half_of_them() -> None:
    rng, image = np.random.default_rng(0), render_sign("K7AX", "red")
    kept = sum(np.array_equal(spoilt(image, rng), image) for _ in range(200))
    assert 70 < kept < 130  # 200 fair coins: mean 100, standard deviation 7
    assert spoilt(image, rng).dtype == np.uint8
