"""The ocr reward on real pictures: targets, metrics, layouts, failures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardResult, RewardUnavailableError, build_reward
from xomni_rl.rewards.ocr_engine import (
    FULL_WIDTH,
    NARROW,
    TESTED_MODELS,
    OcrEngine,
    OcrEngineError,
    greedy_ctc,
    padded_widths,
    wheel_model,
)


def wanted(*texts: str, text: str = "a sign") -> Prompt:
    return Prompt(id="p", text=text, texts=texts)


def page(*lines: str, size: tuple[int, int] = (200, 400), font: int = 36) -> np.ndarray:
    """Black lines on white, one under the other: uint8 [H, W, 3]."""
    image = Image.new("RGB", (size[1], size[0]), "white")
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        draw.text((20, 20 + index * (font + 24)), line, font=ImageFont.load_default(font), fill="black")
    return np.asarray(image)


def score(images: Sequence[np.ndarray], prompts: Sequence[Prompt], **options: Any) -> RewardResult:
    return build_reward("ocr", **{"layout": "line"} | options)(images, prompts)


def test_sign_is_read_and_scored_with_details_and_metrics() -> None:
    result = score([render_sign("K7AX", "blue")], [wanted("K7AX")])
    assert result.scores.tolist() == [1.0]
    assert result.scores.dtype == np.float32
    assert result.details[0]["read"] == result.details[0]["target"] == "K7AX"
    assert result.details[0]["confidence"] > 0.9
    assert {name: values.tolist() for name, values in result.metrics.items()} == {"exact": [1.0], "char": [1.0]}


def test_wrong_character_costs_its_share() -> None:
    result = score([render_sign("K7AX", "blue")], [wanted("K7AY")])
    assert result.scores.tolist() == [0.75]  # 1 substitution in 4
    assert result.metrics["exact"].tolist() == [0.0]
    assert result.metrics["char"].tolist() == [0.75]


def test_metrics_do_not_depend_on_the_chosen_score() -> None:
    result = score([render_sign("K7AX", "blue")], [wanted("K7AY")], metric="exact")
    assert result.scores.tolist() == [0.0]
    assert result.metrics["char"].tolist() == [0.75]


def test_longtext_counts_wanted_words_whatever_else_stands_there() -> None:
    images = [page("GRAND", "OPENING", "SALE"), page("GRAND", "OPENING", "SALE"), page("GRAND", "OPENING", "SALE")]
    prompts = [wanted("grand opening"), wanted("Grand Closing Today"), wanted("!?")]
    result = score(images, prompts, layout="auto", metric="longtext")
    np.testing.assert_allclose(result.scores, [1, 1 / 3, np.nan])  # lower-cased words; spam costs nothing; nothing to count
    assert [detail.get("matched") for detail in result.details] == [2, 1, None]
    assert [detail.get("total") for detail in result.details] == [2, 3, None]
    assert "LongText-Bench counts none" in result.details[2]["reason"]


def test_longtext_of_a_chinese_prompt_counts_characters() -> None:
    prompt = Prompt("p", "a sign", ("K7AX AX",), language="zh")
    # In Chinese, characters are counted and case is kept: K 7 A X A X, of which K 7 A X are there once.
    assert score([render_sign("K7AX", "blue")], [prompt], metric="longtext").scores.tolist() == [pytest.approx(4 / 6)]


def test_published_edit_pays_what_the_common_reward_pays_and_the_repaired_one_does_not() -> None:
    spam = page("BUY NOW OPEN", "SALE TODAY")
    sign = render_sign("K7AX", "blue")
    prompts = [Prompt("1", 'a shop that says "Open"'), Prompt("2", 'says "K7AY" and "MW8B"'), Prompt("3", "says “K7AX”")]
    published = score([spam, sign, sign], prompts, layout="auto", metric="published_edit")
    # The target is part of the page, whatever else is; of two texts only the first counts, one letter of four is wrong;
    # curly quotes are not seen.
    np.testing.assert_allclose(published.scores, [1.0, 0.75, np.nan])
    assert published.details[0]["target"] == "open"
    assert "no text in straight double quotes" in published.details[2]["reason"]
    repaired = score([spam, sign, sign], prompts, layout="auto", ignore_case=True)
    assert repaired.scores[0] < 0.3
    assert repaired.scores[1] < 0.5
    assert repaired.scores[2] == 1.0


@pytest.mark.parametrize("layout", ["line", "auto"])
@pytest.mark.parametrize("metric", ["edit", "exact", "cer", "precision", "recall", "f1"])
def test_blank_image_scores_floor(layout: str, metric: str) -> None:
    result = score([np.full((32, 96, 3), 90, np.uint8)], [wanted("K7AX")], layout=layout, metric=metric)
    assert result.scores.tolist() == [0.0]
    assert result.details[0]["read"] == ""


def test_prompt_without_target_is_not_applicable() -> None:
    images = [render_sign("K7AX", "blue")] * 2
    result = score(images, [wanted("K7AX"), Prompt("q", "a cat, and it's the dog's")])
    assert result.scores[0] == 1
    assert np.isnan(result.scores[1])
    assert np.isnan([values[1] for values in result.metrics.values()]).all()
    assert result.details[1] == {"read": None, "target": None, "reason": "the prompt asks for no text"}


def test_quoted_spans_are_the_target_without_texts() -> None:
    result = score([render_sign("K7AX", "blue")], [Prompt("q", "a sign that says “K7AX”")])
    assert result.scores.tolist() == [1.0]


def test_texts_win_over_quoted_spans() -> None:
    result = score([render_sign("K7AX", "blue")], [wanted("K7AX", text='not "this"')])
    assert result.scores.tolist() == [1.0]


def test_case_counts_unless_ignored() -> None:
    image, prompt = render_sign("K7AX", "blue"), wanted("k7ax")
    assert score([image], [prompt]).scores.tolist() == [0.25]  # only the 7 is right
    assert score([image], [prompt], ignore_case=True).scores.tolist() == [1.0]


def test_full_width_target_matches_under_nfkc_only() -> None:
    image, prompt = render_sign("K7AX", "blue"), wanted("Ｋ７ＡＸ")
    assert score([image], [prompt]).scores.tolist() == [1.0]
    assert score([image], [prompt], unicode="none").scores.tolist() == [0.0]


def test_page_is_found_and_read_line_by_line() -> None:
    result = score([page("HELLO", "WORLD")], [wanted("HELLO", "WORLD")], layout="auto")
    assert result.details[0]["read"] == "HELLO WORLD"
    assert result.scores.tolist() == [1.0]


def test_targets_in_another_order_score_the_same() -> None:
    result = score([page("HELLO", "WORLD")], [wanted("WORLD", "HELLO")], layout="auto")
    assert result.scores.tolist() == [1.0]
    assert result.metrics["exact"].tolist() == [1.0]


def test_missing_target_costs_its_share() -> None:
    result = score([page("HELLO")], [wanted("HELLO", "WORLD")], layout="auto")
    assert result.scores[0] == pytest.approx(5 / 11)  # "HELLO" of "HELLO WORLD": 6 of 11 characters missing


@pytest.mark.parametrize(("metric", "most"), [("edit", 0.25), ("exact", 0), ("cer", 0), ("precision", 0.3), ("f1", 0.5)])
def test_page_of_spam_with_the_target_scores_low(metric: str, most: float) -> None:
    spam = page("SALE NOW", "HELLO BUY", "CHEAP", size=(220, 400))
    result = score([spam], [wanted("HELLO")], layout="auto", metric=metric)
    assert "HELLO" in result.details[0]["read"]  # it was read, and still
    assert result.scores[0] <= most


def test_images_of_different_sizes_go_in_one_batch() -> None:
    images = [render_sign("K7AX", "blue"), page("HELLO"), np.full((300, 20, 3), 5, np.uint8)]
    result = score(images, [wanted("K7AX"), wanted("HELLO"), wanted("ABC")], layout="auto")
    assert result.scores.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (8, 4000), (4000, 8)])
@pytest.mark.parametrize("layout", ["line", "auto"])
def test_freak_sizes_are_scored(shape: tuple[int, int], layout: str) -> None:
    result = score([np.zeros((*shape, 3), np.uint8)], [wanted("K7AX")], layout=layout)
    assert 0 <= result.scores[0] <= 1


def test_reading_does_not_depend_on_the_batch_or_on_threads() -> None:
    # Blurred signs, so that some are read twice; 11 cut into unequal batches.
    rng = np.random.default_rng(3)
    images = [
        np.clip(render_sign(text, "teal", rng) + rng.normal(0, 60, (32, 96, 3)), 0, 255).astype(np.uint8)
        for text in ("K7AX", "B2CD", "WXYZ", "9Q8P", "HJKL", "MNPQ", "2345", "ZXCV", "QWER", "ASDF", "7777")
    ]
    together, _ = OcrEngine(workers=2).read_lines(images)
    again, _ = OcrEngine(workers=1).read_lines(images[::-1])
    single = [OcrEngine(workers=3).read_lines([image])[0][0] for image in images]
    texts = [line.text for line in together if line is not None]
    assert len(texts) == len(images)
    assert texts == [line.text for line in again[::-1] if line is not None]
    assert texts == [line.text for line in single if line is not None]


def test_line_path_reads_as_rapidocr_does() -> None:
    from rapidocr import RapidOCR

    rng = np.random.default_rng(11)
    texts = ["K7AX", "B2CD", "DNWE", "3NW6", "QWTJ", "9SHL", "H8YK", "T74M"]  # some of which padding confuses
    images = [render_sign(text, "green", rng) for text in texts]
    peer = RapidOCR(params={"Global.log_level": "critical"})
    expected = [
        peer(np.ascontiguousarray(image[..., ::-1]), use_det=False, use_cls=False, use_rec=True).txts[0].strip()
        for image in images
    ]
    lines, failures = OcrEngine().read_lines(images)
    assert not failures
    assert [line.text.strip() for line in lines if line is not None] == expected


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        # 96 · 48/32 = 144 px of line; 144 + 16 = 160 is a multiple of 32.
        ((32, 96), (160, FULL_WIDTH)),
        # 150 · 48/32 = 225; 225 + 16 = 241 → 256, wider than NARROW: read once at 320.
        ((32, 150), (FULL_WIDTH, FULL_WIDTH)),
        # 400 · 48/32 = 600 → 608: no wider than its own line needs.
        ((32, 400), (608, 608)),
        ((48, 1), (32, FULL_WIDTH)),
    ],
)
def test_padded_widths(size: tuple[int, int], widths: tuple[int, int]) -> None:
    assert padded_widths(*size) == widths
    assert widths[0] <= NARROW or widths[0] == widths[1]


def test_greedy_ctc_merges_repeats_and_drops_blanks() -> None:
    # Positions: A A blank A B B blank → "AAB"; kept probabilities 0.8 (A), 0.6 (A), 1.0 (B): mean 0.8, least of all 0.5.
    chances = [(1, 0.8), (1, 0.9), (0, 0.5), (1, 0.6), (2, 1.0), (2, 0.9), (0, 1.0)]
    probabilities = np.zeros((1, 7, 3), np.float32)
    for position, (index, chance) in enumerate(chances):
        probabilities[0, position, index] = chance
    (line,) = greedy_ctc(probabilities, ("", "A", "B"))
    assert line.text == "AAB"
    assert line.confidence == pytest.approx(0.8)
    assert line.certainty == pytest.approx(0.5)


def test_nothing_but_blanks_is_no_text() -> None:
    (line,) = greedy_ctc(np.eye(3, dtype=np.float32)[[[0, 0]]], ("", "A", "B"))
    assert (line.text, line.confidence) == ("", 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_probability_is_a_failure(bad: float) -> None:
    probabilities = np.full((1, 2, 3), 0.1, np.float32)
    probabilities[0, 1, 2] = bad
    with pytest.raises(OcrEngineError, match="non-finite"):
        greedy_ctc(probabilities, ("", "A", "B"))


def test_alphabet_of_another_length_raises() -> None:
    with pytest.raises(ValueError, match=r"expected probabilities \[N, T, 2\], got \[1, 2, 3\]"):
        greedy_ctc(np.zeros((1, 2, 3), np.float32), ("", "A"))


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A protocol buffer of (number, value) fields: whole numbers as varints, text and bytes with their length."""

    def varint(number: int) -> bytes:
        return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])

    made = b""
    for number, value in fields:
        if isinstance(value, int):
            made += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            made += varint(number << 3 | 2) + varint(len(content)) + content
    return made


def write_root_reader(path: Path, characters: str = "A") -> None:
    """An ONNX recogniser of blank, "A" and space, each with the root of a column's mean level: NaN for what is dark."""

    def node(kind: str, source: str, target: str, *attributes: bytes) -> tuple[int, bytes]:
        sources = [(1, source)] * (3 if kind == "Concat" else 1)
        return 1, message(*sources, (2, target), (4, kind), *((5, attribute) for attribute in attributes))

    def axes(*numbers: int) -> bytes:
        return message((1, "axes"), *((8, number) for number in numbers), (20, 7))

    def tensor(name: str, *sides: str | int) -> bytes:
        shape = message(*((1, message((2, side) if isinstance(side, str) else (1, side))) for side in sides))
        return message((1, name), (2, message((1, message((1, 1), (2, shape))))))

    graph = message(
        node("ReduceMean", "pixels", "mean", axes(1, 2), message((1, "keepdims"), (3, 0), (20, 2))),
        node("Sqrt", "mean", "root"),
        node("Unsqueeze", "root", "one", axes(2)),
        node("Concat", "one", "chances", message((1, "axis"), (3, 2), (20, 2))),
        (2, "reader"),
        (11, tensor("pixels", "n", 3, 48, "w")),
        (12, tensor("chances", "n", "w", 3)),
    )
    alphabet = message((1, "character"), (2, characters))
    path.write_bytes(message((1, 6), (7, graph), (8, message((1, ""), (2, 11))), (14, alphabet)))


def test_nan_out_of_the_recogniser_fails_those_images_and_keeps_the_others(tmp_path: Path) -> None:
    write_root_reader(tmp_path / "root.onnx")
    white, black = np.full((32, 96, 3), 255, np.uint8), np.zeros((32, 96, 3), np.uint8)
    with pytest.raises(RewardError, match=r"sample 1: .*the recogniser gave non-finite probabilities") as caught:
        score([white, black, white, black], [wanted("A")] * 4, model_path=str(tmp_path / "root.onnx"))
    assert list(caught.value.failures) == [1, 3]
    assert caught.value.partial is not None
    # All three classes are equally likely, of which the first is the blank: nothing is read of the white ones.
    np.testing.assert_array_equal(caught.value.partial.scores, np.array([0, np.nan, 0, np.nan], np.float32))
    assert caught.value.partial.details[1]["target"] == "A"


def test_recogniser_whose_classes_are_not_its_alphabet_is_refused(tmp_path: Path) -> None:
    write_root_reader(tmp_path / "root.onnx", characters="A\nB")
    with pytest.raises(RewardUnavailableError, match=r"root\.onnx: 3 classes do not fit an alphabet of 4 characters"):
        build_reward("ocr", layout="line", model_path=str(tmp_path / "root.onnx")).load()


@pytest.mark.parametrize("layout", ["line", "auto"])
def test_missing_model_makes_the_reward_unavailable(layout: str) -> None:
    missing = build_reward("ocr", layout=layout, model_path="none.onnx")
    message = r'^reward "ocr": there is no recognition model none\.onnx; give .* as model_path$'
    for use in (missing.load, missing.files, lambda: missing([page("HELLO")], [wanted("HELLO")])):
        with pytest.raises(RewardUnavailableError, match=message):
            use()


def test_prompts_without_targets_need_no_model() -> None:
    result = score([page("HELLO")], [Prompt("q", "a cat")], model_path="none.onnx")
    assert np.isnan(result.scores).all()


def test_damaged_model_makes_the_reward_unavailable(tmp_path: Path) -> None:
    damaged = tmp_path / "rec.onnx"
    damaged.write_bytes(wheel_model().read_bytes()[:1000])
    with pytest.raises(RewardUnavailableError, match=r"rec\.onnx cannot be loaded, get it anew"):
        build_reward("ocr", model_path=str(damaged)).load()


def test_model_that_is_no_recogniser_makes_the_reward_unavailable() -> None:
    with pytest.raises(RewardUnavailableError, match="no text recogniser"):
        score([render_sign("K7AX", "blue")], [wanted("K7AX")], model_path=str(wheel_model("det")))


@pytest.mark.parametrize(("layout", "names"), [("line", ["PP-OCRv6_rec_small.onnx"]), ("auto", list(TESTED_MODELS.values()))])
def test_files_are_the_models_that_the_layout_uses(layout: str, names: list[str]) -> None:
    assert [path.name for path in build_reward("ocr", layout=layout).files()] == names
    assert all(path.is_file() for path in build_reward("ocr", layout=layout).files())


def test_copy_of_the_wheels_model_reads_the_same(tmp_path: Path) -> None:
    copy = tmp_path / "own.onnx"
    copy.write_bytes(wheel_model().read_bytes())
    assert score([render_sign("K7AX", "blue")], [wanted("K7AX")], model_path=str(copy)).scores.tolist() == [1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "edti"}, 'unknown metric "edti"; nearest: edit'),
        ({"layout": "lines"}, 'unknown layout "lines"; nearest: line'),
        ({"unicode": "NFKD"}, 'unknown unicode "NFKD"; nearest: NFKC'),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"min_confidence": 2}, r"min_confidence must be in \[0, 1\], got 2"),
    ],
)
def test_bad_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_reward("ocr", **options)


def test_line_below_least_confidence_is_dropped() -> None:
    image = render_sign("K7AX", "blue")
    assert score([image], [wanted("K7AX")], min_confidence=1.0).details[0]["read"] == ""
