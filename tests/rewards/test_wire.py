"""The wire format: images and prompts there and back, hostile pictures, and UniRL's own examples of it."""

import base64
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardResult
from xomni_rl.rewards.wire import (
    RewardCard,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    TooLargeError,
    WireError,
    decode_image,
    encode_image,
    item_of,
    open_image,
    outcomes_of,
    plain,
    prompt_of,
)

NOISE = np.random.default_rng(0).integers(0, 256, (13, 17, 3)).astype(np.uint8)


def item(image_b64: str | None, **values: Any) -> ScoreItem:
    return ScoreItem.model_validate({"history": [{"text": "a cat", "image_b64": image_b64}], **values})


def decoded(image_b64: str, most_pixels: int = 10_000) -> np.ndarray:
    return decode_image(open_image(item(image_b64), 0, most_pixels), 0)


def file_b64(image: Image.Image, image_format: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return base64.b64encode(stream.getvalue()).decode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing: signature, IHDR, an empty IDAT, IEND."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    encoded = encode_image(NOISE, image_format)
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).format == image_format.upper()
    np.testing.assert_array_equal(decoded(encoded), NOISE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (64, 96)])
def test_png_of_any_size_and_memory_layout_is_read_by_pillow(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for picture in (image, image[::-1, ::-1], np.asfortranarray(image)):
        read = Image.open(io.BytesIO(base64.b64decode(encode_image(picture))))
        read.verify()  # checks every chunk's sum
        np.testing.assert_array_equal(decoded(encode_image(picture)), picture)


def test_jpeg_keeps_smooth_pictures_nearly() -> None:
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    assert np.abs(decoded(encode_image(ramp, "jpeg")).astype(int) - ramp).max() <= 4


def test_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="nearest: png"):
        encode_image(NOISE, "pgn")


def test_grey_transparent_palette_and_16_bit_pictures_become_rgb() -> None:
    rgb = Image.new("RGB", (3, 2), (200, 10, 30))
    see_through = Image.new("RGBA", (3, 2), (200, 10, 30, 0))
    grey_16 = Image.fromarray(np.full((2, 3), 0x8080, np.uint16))  # 0x80 · 257
    assert (decoded(file_b64(rgb.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")) == (200, 10, 30)).all()
    assert (decoded(file_b64(see_through, "PNG")) == 255).all()  # laid on white
    assert (decoded(file_b64(grey_16, "PNG")) == 0x80).all()


def test_picture_on_its_side_is_turned_upright() -> None:
    picture = Image.fromarray(np.zeros((2, 5, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° to show
    assert decoded(file_b64(picture, "JPEG", exif=exif)).shape == (5, 2, 3)


@pytest.mark.parametrize(
    ("image_b64", "reason"),
    [
        (None, "the last turn must carry an image"),
        ("", "is not a PNG, JPEG or WebP image"),
        ("%%%", "is not base64"),
        (encode_image(NOISE)[:-3], "is not base64"),
        ("ä" * 8, "is not base64"),
        (base64.b64encode(b"GIF89a" + bytes(50)).decode(), "is not a PNG, JPEG or WebP image"),
        (file_b64(Image.fromarray(NOISE), "BMP"), "is not a PNG, JPEG or WebP image"),
        (base64.b64encode(base64.b64decode(encode_image(NOISE))[:200]).decode(), "the image is damaged"),
        (base64.b64encode(png_header(20, 20)).decode(), "the image is damaged"),
        (base64.b64encode(png_header(0, 20)).decode(), "image"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_place(image_b64: str | None, reason: str) -> None:
    with pytest.raises(WireError, match=rf"requests\[0\].*{reason}"):
        decode_image(open_image(item(image_b64), 0, 10_000), 0)


def test_bomb_is_refused_by_its_header() -> None:
    # 100 bytes that claim 20 Mpx, 1.2 Gpx (beyond Pillow's own limit) and more than a C int holds
    for width, height in ((5000, 4000), (40_000, 30_000), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(WireError) as caught:
            open_image(item(base64.b64encode(png_header(width, height)).decode()), 0, 10_000_000)
        assert isinstance(caught.value, TooLargeError) or "is not a PNG" in str(caught.value)
    with pytest.raises(TooLargeError, match=r"5000×4000 px is more than the limit of 10000000 px"):
        open_image(item(base64.b64encode(png_header(5000, 4000)).decode()), 0, 10_000_000)


def test_last_turn_counts() -> None:
    red, blue = (np.full((2, 2, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    turns = [{"text": "red", "image_b64": encode_image(red)}, {"text": "blue", "image_b64": encode_image(blue)}]
    made = ScoreItem.model_validate({"history": turns})
    np.testing.assert_array_equal(decode_image(open_image(made, 0, 100), 0), blue)
    assert prompt_of(made, 0).text == "blue"


PROMPT = Prompt(
    id="p7",
    text='招牌写着“你好” "A"',
    texts=("你好", "A"),
    checks=({"class": "dog", "count": 2},),
    language="zh",
    size=(32, 96),
    metadata={"tag": {"deep": [1, 2.5, None]}},
)


@pytest.mark.parametrize("prompt", [PROMPT, Prompt("q", "a cat")])
def test_prompt_survives_the_journey(prompt: Prompt) -> None:
    sent = json.dumps(item_of(encode_image(NOISE), prompt, ["ocr"]))
    arrived = ScoreItem.model_validate_json(sent)
    assert prompt_of(arrived, 0) == prompt
    assert arrived.required_rewards == ["ocr"]


def test_metadata_that_would_be_taken_for_a_field_is_refused() -> None:
    with pytest.raises(WireError, match='metadata "texts" of prompt "p" cannot be sent'):
        item_of("", Prompt("p", "a cat", metadata={"texts": 3}), None)


def test_sample_without_facts_has_its_position_as_id() -> None:
    assert prompt_of(item(None), 4) == Prompt("4", "a cat")
    assert prompt_of(item(None, metadata={"texts": None, "id": None}), 4) == Prompt("4", "a cat")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"history": [{"text": "  "}]}, "text must not be empty"),
        ({"metadata": {"texts": "A"}}, "texts must be a list of strings"),
        ({"metadata": {"checks": [3]}}, r"checks\[0\] must be an object"),
        ({"metadata": {"size": [0, 3]}}, "size must be"),
        ({"metadata": {"id": 5}}, "id must be a string"),
    ],
)
def test_facts_of_the_wrong_type_are_refused_with_their_place(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError, match=rf"requests\[3\]: {reason}"):
        prompt_of(item(None, **values), 3)


def test_request_as_unirls_client_sends_it_is_understood() -> None:
    """The fields of its schemas.py, protocol version 1, with those of `required_rewards` that a request must have there."""
    identity = {"request_id": "r", "sample_id": "s", "group_id": "g", "source_rank": 0, "policy_version": 3}
    theirs = {
        "protocol_version": "1",
        "requests": [
            {
                "history": [{"text": "a cute dog", "image_b64": encode_image(NOISE, "jpeg"), "video_b64": None}],
                "required_rewards": ["hpsv2", "clip"],
                "metadata": {"include": [{"class": "dog", "count": 1}], "tag": "single_object"},
                **identity,
                "scorer_version": None,
                "idempotency_key": "k",
            }
        ],
        "grad_mode": False,
    }
    [read] = ScoreRequest.model_validate(theirs).requests
    assert prompt_of(read, 0).metadata == theirs["requests"][0]["metadata"]  # type: ignore[index]
    assert read.model_dump(include=set(identity)) == identity


def test_answer_as_unirls_service_gives_it_is_understood() -> None:
    read = ScoreResponse.model_validate({"results": [{"clip": {"clip": 0.31}}], "errors": [{}]})
    assert read.results == [{"clip": {"clip": 0.31}}]


def test_nan_figures_are_left_out_and_failures_kept() -> None:
    nan = np.nan
    result = RewardResult(np.array([0.5, nan, nan]), [{}, {}, {}], {"exact": np.array([1.0, nan, nan], np.float32)})
    first, second, third = outcomes_of(result, {2: "smudged"})
    assert (first.score, first.metrics, first.error) == (0.5, {"exact": 1.0}, None)
    assert np.isnan(second.score)
    assert (second.metrics, second.error) == ({}, None)
    assert third.error == "smudged"


def test_details_become_json() -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    made = plain({"a": np.float32(0.5), "b": np.arange(2), 3: (True, None), "n": float("nan"), "i": np.inf, "p": PROMPT.size})
    assert json.dumps(made, allow_nan=False) == json.dumps(
        {"a": 0.5, "b": [0, 1], "3": [True, None], "n": None, "i": None, "p": [32, 96]}
    )
    assert "…" in json.dumps(plain(deep), ensure_ascii=False)
    assert plain(Image) == str(Image)


def test_missing_bound_is_unbounded() -> None:
    assert RewardCard(range=(None, 1.0)).bounds() == (-np.inf, 1.0)
