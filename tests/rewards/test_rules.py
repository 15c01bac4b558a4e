"""The rules reward: signs without any model, GenEval's rows with a detector, bad checks, missing weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from xomni_rl.prompt_sets.signs import COLOURS, render_sign, signs
from xomni_rl.prompts import Prompt, load_prompts
from xomni_rl.rewards.base import RewardError, RewardResult, RewardUnavailableError
from xomni_rl.rewards.models import loaded_models
from xomni_rl.rewards.rule_checks import Box, intersection_over_union
from xomni_rl.rewards.rules import RulesReward

CLASSES = ("dog", "cat", "bench")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    options = RulesReward.write_tiny(tmp_path_factory.mktemp("rules"))
    return str(options["weights"])


def picture(seed: int = 5, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def asking(*checks: dict[str, Any], name: str = "p") -> Prompt:
    return Prompt(name, "a photo", checks=checks)


def background(colour: str) -> dict[str, Any]:
    return {"kind": "background", "colour": colour, "rgb": COLOURS[colour]}


def raw_boxes(weights: str, image: np.ndarray, threshold: float) -> dict[str, list[tuple[float, list[float]]]]:
    """Class → (score, corners in px), best first, from transformers' own calls; a query may count for several classes."""
    from transformers import RTDetrImageProcessor, RTDetrV2ForObjectDetection

    model = RTDetrV2ForObjectDetection.from_pretrained(weights).eval()
    inputs = RTDetrImageProcessor.from_pretrained(weights)(images=[Image.fromarray(image)], return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    chances, height, width = out.logits[0].sigmoid(), *image.shape[:2]
    least = chances.flatten().topk(len(chances)).values.min()
    found: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in CLASSES}
    for row, (x, y, w, h) in zip(chances, out.pred_boxes[0].tolist(), strict=True):
        corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        for name, chance in zip(CLASSES, row, strict=True):
            if chance >= least and chance > threshold:
                found[name].append((float(chance), corners))
    return {name: sorted(boxes, reverse=True) for name, boxes in found.items()}


def altered(weights: str, folder: Path, chosen: Callable[[str], bool], value: float) -> str:
    """A copy of the detector whose chosen tensors hold that value."""
    shutil.copytree(weights, folder / "altered")
    file = folder / "altered" / "model.safetensors"
    tensors = {name: torch.full_like(x, value) if chosen(name) else x.clone() for name, x in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    return str(folder / "altered")


# Signs: no model


def test_sign_of_the_right_colour_scores_one_and_of_another_zero() -> None:
    prompt = asking(background("teal"))
    result = RulesReward()([render_sign("K7AX", "teal"), render_sign("K7AX", "green")], [prompt] * 2)
    assert result.scores.tolist() == [1.0, 0.0]
    assert result.details[0]["checks"][0]["asked"] == "teal background"
    assert [detail["checks"][0]["holds"] for detail in result.details] == [True, False]


def test_every_sign_of_the_embedded_domain_keeps_its_own_rule_and_only_that() -> None:
    prompts = signs("heldout", 48)
    rng = np.random.default_rng(0)
    colours = [str(prompt.checks[0]["colour"]) for prompt in prompts]
    images = [render_sign(prompt.texts[0], colour, rng) for prompt, colour in zip(prompts, colours, strict=True)]
    np.testing.assert_array_equal(RulesReward()(images, prompts).scores, np.ones(48, np.float32))
    shifted = RulesReward()(images[1:] + images[:1], prompts).scores
    same = [a == b for a, b in zip(colours, colours[1:] + colours[:1], strict=True)]
    assert shifted.tolist() == [float(equal) for equal in same]


def test_signs_need_no_weights_and_load_no_model() -> None:
    before = set(loaded_models())
    reward = RulesReward()
    reward.load()
    assert reward.files() == ()
    reward([render_sign("A", "red")], [asking(background("red"))])
    assert set(loaded_models()) == before


@pytest.mark.parametrize(("mode", "expected"), [("share", 0.5), ("all", 0.0)])
def test_half_of_the_checks(mode: str, expected: float) -> None:
    prompt = asking(background("red"), background("blue"))
    result = RulesReward(mode)([render_sign("A", "red")], [prompt])
    assert result.scores.tolist() == [expected]
    assert {name: values.tolist() for name, values in result.metrics.items()} == {"share": [0.5], "all": [0.0]}


@pytest.mark.parametrize(("kinds", "expected"), [(["background"], 0.0), (["lines"], 1.0), (None, 0.5), ([], np.nan)])
def test_kinds_say_which_checks_count(kinds: list[str] | None, expected: float) -> None:
    prompt = asking(background("blue"), {"kind": "lines", "count": 1})
    scores = RulesReward(kinds=kinds)([render_sign("K7AX", "red")], [prompt]).scores
    np.testing.assert_array_equal(scores, np.array([expected], np.float32))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match='unknown kind "line"; nearest: lines'):
        RulesReward(kinds=["line"])


def test_prompt_without_checks_is_not_applicable() -> None:
    result = RulesReward()([render_sign("A", "red")] * 2, [Prompt("p", "a cat"), asking(background("red"))])
    np.testing.assert_array_equal(result.scores, np.array([np.nan, 1], np.float32))
    assert result.details[0] == {"checks": [], "reason": "the prompt has no checks"}
    assert all(np.isnan(values[0]) for values in result.metrics.values())


def test_check_of_another_form_fails_its_sample_by_prompt_and_key_and_keeps_the_others() -> None:
    prompts = [asking(background("red")), asking({"class": "dog", "colour": "red"}, name="p7"), Prompt("q", "a cat")]
    with pytest.raises(RewardError, match=r'sample 1: prompt "p7": checks\[0\] has an unknown key "colour"') as caught:
        RulesReward()([render_sign("A", "red")] * 3, prompts)
    assert list(caught.value.failures) == [1]
    assert caught.value.partial is not None
    np.testing.assert_array_equal(caught.value.partial.scores, np.array([1, np.nan, np.nan], np.float32))
    assert "unknown key" in caught.value.partial.details[1]["reason"]
    assert caught.value.partial.details[2]["reason"] == "the prompt has no checks"


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (8, 500)])
def test_freak_sizes_have_a_ground(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), COLOURS["blue"], np.uint8)
    assert RulesReward()([image], [asking(background("blue"))]).scores.tolist() == [1.0]


def test_grey_image_and_mixed_sizes_score_as_alone() -> None:
    images = [Image.new("L", (40, 30), 99), Image.fromarray(render_sign("AB", "red")), Image.new("RGB", (5, 9), COLOURS["red"])]
    prompt = asking(background("red"))
    assert RulesReward()(images, [prompt] * 3).scores.tolist() == [0.0, 1.0, 1.0]


# Objects: a detector


def score(weights: str, image: np.ndarray, *checks: dict[str, Any], **options: Any) -> RewardResult:
    return RulesReward(weights=weights, **{"overlap": 1.0, "threshold": 0.1} | options)([image], [asking(*checks)])


def test_counts_are_those_of_the_detectors_raw_outputs(weights: str) -> None:
    expected = {name: len(boxes) for name, boxes in raw_boxes(weights, picture(), 0.1).items()}
    assert max(expected.values()) > 1
    for name, count in expected.items():
        if count > 0:
            assert score(weights, picture(), {"class": name, "count": count}).scores.tolist() == [1.0]
        more = score(
            weights, picture(), {"class": name, "count": count + 1}, {"class": name, "count": count + 1, "exclude": True}
        )
        assert [check["holds"] for check in more.details[0]["checks"]] == [False, True]


def test_higher_threshold_finds_what_raw_scores_say(weights: str) -> None:
    name, boxes = max(raw_boxes(weights, picture(), 0.0).items(), key=lambda item: len(item[1]))
    middle = (boxes[1][0] + boxes[2][0]) / 2  # between the second and the third best
    holds = score(weights, picture(), {"class": name, "count": 2}, {"class": name, "count": 3}, threshold=middle)
    assert [check["holds"] for check in holds.details[0]["checks"]] == [True, False]


def test_counting_prompts_have_a_threshold_of_their_own(weights: str) -> None:
    name, boxes = max(raw_boxes(weights, picture(), 0.0).items(), key=lambda item: len(item[1]))
    options = {"threshold": 0.0, "counting_threshold": (boxes[0][0] + 1) / 2}  # which nothing exceeds
    assert score(weights, picture(), {"class": name, "count": 1}, **options).scores.tolist() == [1.0]
    assert score(weights, picture(), {"class": name, "count": 2}, **options).scores.tolist() == [0.0]
    exclusion = {"class": name, "count": 99, "exclude": True}
    assert score(weights, picture(), {"class": name, "count": 1}, exclusion, **options).scores.tolist() == [0.5]


def test_overlapping_boxes_of_a_class_count_once(weights: str, tmp_path: Path) -> None:
    # An untrained detector's boxes lie beside each other: these are made larger, so that they overlap.
    weights = altered(weights, tmp_path, lambda name: "bbox_embed" in name and name.endswith("layers.2.bias"), 0.7)
    # The overlap at which the two boxes that overlap most are taken for one, and just above.
    name, raw = max(raw_boxes(weights, picture(), 0.0).items(), key=lambda item: len(item[1]))
    boxes = [Box(*corners, score) for score, corners in raw[:16]]
    most = max(intersection_over_union(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert 0 < most < 1
    every = {"class": name, "count": len(boxes)}
    assert score(weights, picture(), every, threshold=0.0, overlap=most - 1e-4).scores.tolist() == [0.0]
    assert score(weights, picture(), every, threshold=0.0, overlap=most + 1e-4).scores.tolist() == [1.0]


def test_relative_place_is_that_of_the_best_boxes(weights: str) -> None:
    # The published rule, applied by hand to the best box of two classes; pictures until one of each relation was seen.
    seen: dict[bool, int] = {True: 0, False: 0}
    for seed in range(12):
        raw = raw_boxes(weights, picture(seed), 0.0)
        names = [name for name in CLASSES if raw[name]][:2]
        if len(names) < 2:
            continue
        (a, b) = (np.array(raw[name][0][1]).reshape(2, 2) for name in names)
        offset = b.mean(0) - a.mean(0)
        shrunk = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * (np.ptp(a, 0) + np.ptp(b, 0)), 0)
        dx, dy = shrunk / np.linalg.norm(offset)
        relations = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
        for relation, expected in relations.items():
            checks = ({"class": names[0]}, {"class": names[1], "position": [relation, 0]})
            found = score(weights, picture(seed), *checks, threshold=0.0).details[0]["checks"][1]["holds"]
            assert found == expected, (seed, relation)
            seen[bool(expected)] += 1
    assert min(seen.values()) > 2


@pytest.mark.parametrize(("colour", "holds"), [("red", True), ("blue", False)])
def test_colour_is_that_of_the_pixels_in_the_box(weights: str, colour: str, holds: bool) -> None:
    flat = np.full((60, 80, 3), (200, 20, 30), np.uint8)  # wherever the box is
    name = next(name for name, boxes in raw_boxes(weights, flat, 0.0).items() if boxes)
    result = score(weights, flat, {"class": name, "color": colour}, threshold=0.0)
    assert result.details[0]["checks"] == [{"asked": f"1 {colour} {name}", "holds": holds, "found": "red"}]


def test_colour_can_be_asked_of_a_clip_model(weights: str, tmp_path: Path) -> None:
    # A tiny random CLIP of open_clip; expected: zero-shot over GenEval's colours and templates, by open_clip itself.
    import json

    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (tmp_path / "tiny-for-colours.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-for-colours.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-for-colours").eval()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(model.state_dict(), tmp_path / "clip" / "open_clip_model.safetensors")

    image = picture(3, (96, 96))
    name, boxes = next((name, boxes) for name, boxes in raw_boxes(weights, image, 0.0).items() if boxes)
    left, top, right, bottom = boxes[0][1]
    left, top, right, bottom = int(max(left, 0)), int(max(top, 0)), round(min(right, 96)), round(min(bottom, 96))
    transform = open_clip.image_transform(32, is_train=False)
    colours = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
    templates = ["a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object"]
    tokenizer = open_clip.get_tokenizer("tiny-for-colours")
    with torch.no_grad():
        seen = model.encode_image(transform(Image.fromarray(image[top:bottom, left:right]))[None], normalize=True)
        told = [model.encode_text(tokenizer([t.format(c, name) for t in templates]), normalize=True).mean(0) for c in colours]
        expected = colours[int((torch.nn.functional.normalize(torch.stack(told), dim=-1) @ seen[0]).argmax())]
    options = {"threshold": 0.0, "colour_model": str(tmp_path / "clip")}
    result = score(weights, image, {"class": name, "color": expected}, **options)
    assert result.scores.tolist() == [1.0]
    other = next(colour for colour in colours if colour != expected)
    assert score(weights, image, {"class": name, "color": other}, **options).details[0]["checks"][0]["found"] == expected


def test_backgrounds_and_objects_mix_in_one_prompt_and_keep_their_order(weights: str) -> None:
    image = np.full((60, 80, 3), COLOURS["red"], np.uint8)
    name = next(name for name, boxes in raw_boxes(weights, image, 0.0).items() if boxes)
    checks = ({"class": name}, background("red"), {"class": name, "count": 99}, background("blue"))
    result = score(weights, image, *checks, threshold=0.0)
    assert [check["holds"] for check in result.details[0]["checks"]] == [True, True, False, False]
    assert result.scores.tolist() == [0.5]


def test_batch_of_mixed_prompts_scores_as_alone(weights: str) -> None:
    reward = RulesReward(weights=weights, threshold=0.1, batch_size=2)
    images = [picture(1), picture(2, (50, 50)), render_sign("A", "red"), picture(3), picture(4)]
    prompts = [
        asking({"class": "dog", "count": 2}),
        asking({"class": "cat"}, {"class": "bench", "color": "red"}),
        asking(background("red")),
        Prompt("q", "no checks"),
        asking({"class": "bench", "count": 3}, {"class": "bench", "count": 5, "exclude": True}),
    ]
    singles = [reward([image], [prompt]).scores[0] for image, prompt in zip(images, prompts, strict=True)]
    np.testing.assert_array_equal(reward(images, prompts).scores, np.array(singles, np.float32))


def test_class_that_the_detector_does_not_know_fails_its_sample(weights: str) -> None:
    prompts = [asking({"class": "dgo"}, name="p9"), asking({"class": "dog", "count": 1})]
    with pytest.raises(RewardError, match='prompt "p9": unknown class of this detector "dgo"; nearest: dog') as caught:
        RulesReward(weights=weights)([picture()] * 2, prompts)
    assert list(caught.value.failures) == [0]
    assert caught.value.partial is not None
    assert np.isfinite(caught.value.partial.scores[1])


def test_nan_out_of_the_detector_is_a_failure_not_a_score(weights: str, tmp_path: Path) -> None:
    broken = altered(weights, tmp_path, lambda name: "class_embed" in name, torch.nan)
    prompts = [asking({"class": "dog"}, name="p3"), asking(background("red"))]
    with pytest.raises(RewardError, match='sample 0: prompt "p3": the detector returned NaN') as caught:
        RulesReward(weights=broken)([picture(), render_sign("A", "red")], prompts)
    assert caught.value.partial is not None
    np.testing.assert_array_equal(caught.value.partial.scores, np.array([np.nan, 1], np.float32))


def test_prompts_of_a_file_in_genevals_form_are_scored(weights: str, tmp_path: Path) -> None:
    import json

    rows = [
        {
            "id": "g1",
            "text": "a photo of a dog left of a cat",
            "checks": [{"class": "cat"}, {"class": "dog", "position": ["left of", 0]}],
        },
        {
            "id": "g2",
            "text": "two dogs",
            "checks": [{"class": "dog", "count": 2}, {"class": "dog", "count": 3, "exclude": True}],
        },
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    prompts = load_prompts(tmp_path / "prompts.jsonl")
    result = RulesReward(weights=weights, threshold=0.1)([picture(), picture(6)], prompts)
    assert set(result.scores.tolist()) <= {0.0, 0.5, 1.0}
    assert [len(detail["checks"]) for detail in result.details] == [2, 2]


def test_missing_detector_is_one_sentence_and_concerns_no_sample() -> None:
    with pytest.raises(RewardUnavailableError, match=r'reward "rules".*PekingU/rtdetr_v2_r101vd.*Apache-2\.0.*weights=PATH'):
        RulesReward(weights="/nowhere/detector")([picture()], [asking({"class": "dog"})])


def test_named_detector_is_loaded_and_listed_before_it_is_needed(weights: str) -> None:
    reward = RulesReward(weights=weights)
    reward.load()
    assert "model.safetensors" in [path.name for path in reward.files()]
    with pytest.raises(RewardUnavailableError):
        RulesReward(weights="/nowhere/detector").load()


def test_disc_drawn_in_a_box_has_its_colour_under_other_ground() -> None:
    # The colour is looked up in the middle of the box, not in its corners.
    image = Image.new("RGB", (80, 60), "green")
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill="orange")
    assert RulesReward()._colours(np.asarray(image), [Box(20, 10, 60, 50, 0.9)], "dog") == ["orange"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "al"}, 'unknown mode "al"; nearest: all'),
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
        ({"counting_threshold": -1}, r"counting_threshold must be in \[0, 1\], got -1"),
        ({"overlap": 2}, r"overlap must be in \[0, 1\], got 2"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"dtype": "int8"}, 'unknown dtype "int8"'),
    ],
)
def test_bad_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RulesReward(**options)
