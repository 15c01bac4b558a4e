"""What a reward server and its clients say to each other: JSON over HTTP, images as base64 PNG, JPEG or WebP.

The form is that of the public UniRL reward service (protocol version 1, Tencent-Hunyuan/UniRL, unirl-reward-service), so that
either side can be theirs; `docs/rewards/served.md` lists what is theirs and what this package adds.
"""

import base64
import binascii
import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, Field

from xomni_rl.images import to_rgb
from xomni_rl.prompts import Prompt, PromptError
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardResult

PROTOCOL_VERSION = "1"
SCORE = "score"
"""Name of the score among a reward's figures; it comes first, which UniRL's client takes for the score."""
IMAGE_FORMATS = ("png", "jpeg", "webp")
_PROMPT_FIELDS = tuple(entry.name for entry in fields(Prompt) if entry.name not in ("text", "metadata"))
_DEEPEST_DETAIL = 16


class WireError(ValueError):
    """Something that cannot be scored as it came; the message says which part and why."""


class TooLargeError(WireError):
    """More images or pixels than are taken."""


class Turn(BaseModel):
    """A text and the image it led to."""

    text: str = Field(description="the prompt")
    image_b64: str | None = Field(default=None, description="base64 of a PNG, JPEG or WebP file")


class Identity(BaseModel):
    """Names a client gives to a sample, sent back as they came; `scorer_version` is the server's."""

    request_id: str | None = None
    sample_id: str | None = None
    group_id: str | None = None
    source_rank: int | None = None
    policy_version: int | None = None
    scorer_version: str | None = None
    idempotency_key: str | None = None


class ScoreItem(Identity):
    """One sample."""

    history: list[Turn] = Field(min_length=1, description="turns of a conversation; the last one is scored")
    required_rewards: list[str] | None = Field(default=None, description="names out of GET /rewards; left out: all")
    metadata: dict[str, Any] | None = Field(
        default=None, description="id, texts, checks, language and size of the prompt; further keys go to its metadata"
    )


class ScoreRequest(BaseModel):
    """Body of POST /score."""

    protocol_version: str = PROTOCOL_VERSION
    requests: list[ScoreItem]


class ScoreResponse(BaseModel):
    """Answer to POST /score: lists with one entry per request."""

    results: list[dict[str, dict[str, float]]] = Field(description="reward → {score, further figures}; finite numbers only")
    errors: list[dict[str, str]] = Field(default_factory=list, description="reward → why it failed on this sample")
    not_applicable: list[list[str]] = Field(default_factory=list, description="rewards that do not apply to this sample")
    details: list[dict[str, Any]] = Field(default_factory=list, description="reward → what was read, asked, measured")
    versions: dict[str, str] = Field(default_factory=dict, description="reward → its version")
    identities: list[Identity] = Field(default_factory=list)
    protocol_version: str = PROTOCOL_VERSION


class RewardCard(BaseModel):
    """What a served reward says of itself; a bound of None = unbounded."""

    reward: str = ""
    version: str = "unversioned"
    range: tuple[float | None, float | None] = (None, None)
    higher_is_better: bool = True
    needs: tuple[str, ...] = ("text",)
    cost: str = ""
    weight: float = Field(default=1.0, description="in the server's own configuration; the client's decides")

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest score."""
        low, high = self.range
        return -math.inf if low is None else low, math.inf if high is None else high


class Limits(BaseModel):
    """What a server takes; beyond, it answers 413, or 503 while too much is waiting.

    Args:
        body_bytes: of one HTTP request.
        images: of one HTTP request.
        pixels: of one image.
        request_pixels: of all images of one HTTP request.
        waiting_images, waiting_pixels: decoded and not yet answered, over all HTTP requests.
        seconds: from the arrival of a request to its answer.
    """

    body_bytes: int = Field(default=64 * 2**20, gt=0)
    images: int = Field(default=512, gt=0)
    pixels: int = Field(default=16 * 2**20, gt=0)
    request_pixels: int = Field(default=128 * 2**20, gt=0)
    waiting_images: int = Field(default=4096, gt=0)
    waiting_pixels: int = Field(default=512 * 2**20, gt=0)
    seconds: float = Field(default=300.0, gt=0)


class RewardList(BaseModel):
    """Answer to GET /rewards."""

    rewards: list[str]
    cards: dict[str, RewardCard] = Field(default_factory=dict)
    limits: Limits | None = None


class Health(BaseModel):
    """Answer to GET /health."""

    status: str = "ok"
    rewards: dict[str, list[str]] = Field(description="reward → state of each replica")
    waiting_images: int = Field(default=0, description="taken and not yet answered")


class SelfCheck(BaseModel):
    """Answer to GET /rewards/NAME/self_check: pictures that must score near the two ends."""

    good: ScoreItem
    worthless: ScoreItem


class Problem(BaseModel):
    """Answer with any 4xx or 5xx status."""

    detail: str


@dataclass
class Outcome:
    """What one reward says of one sample: a finite score, NaN = not applicable, or an error."""

    score: float = math.nan
    detail: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None


def outcomes_of(result: RewardResult, failures: Mapping[int, str]) -> list[Outcome]:
    """The N outcomes of a result and of its failures by index; figures that are NaN are left out."""
    return [
        Outcome(
            score=float(result.scores[index]),
            detail=result.details[index],
            metrics={name: float(values[index]) for name, values in result.metrics.items() if np.isfinite(values[index])},
            error=failures.get(index),
        )
        for index in range(len(result.scores))
    ]


def item_of(image_b64: str, prompt: Prompt, required_rewards: Sequence[str] | None) -> dict[str, Any]:
    """One entry of `requests`, ready for JSON.

    Raises: WireError if the prompt's metadata has a key that is also a field of a prompt.
    """
    for key in prompt.metadata:
        if key in _PROMPT_FIELDS:
            raise WireError(f'metadata "{key}" of prompt "{prompt.id}" cannot be sent: a prompt has a field of that name')
    facts = {name: getattr(prompt, name) for name in _PROMPT_FIELDS}
    return {
        "history": [{"text": prompt.text, "image_b64": image_b64}],
        "required_rewards": None if required_rewards is None else list(required_rewards),
        "metadata": {**prompt.metadata, **facts},
    }


def prompt_of(item: ScoreItem, index: int) -> Prompt:
    """The prompt of an entry of `requests`. Raises: WireError for an empty text or facts of the wrong type."""
    metadata = item.metadata or {}
    facts = {key: value for key, value in metadata.items() if key in _PROMPT_FIELDS and value is not None}
    rest = {key: value for key, value in metadata.items() if key not in _PROMPT_FIELDS}
    try:
        return Prompt(**({"id": str(index)} | facts), text=item.history[-1].text, metadata=rest)
    except PromptError as error:
        raise WireError(f"requests[{index}]: {error}") from error


def encode_image(image: np.ndarray, image_format: str = "png") -> str:
    """A uint8 [H, W, 3] image as base64. PNG and WebP keep every pixel; JPEG (quality 95) does not.

    Raises: ValueError for another format.
    """
    options: dict[str, dict[str, Any]] = {
        "jpeg": {"quality": 95, "subsampling": 0},
        "webp": {"lossless": True, "quality": 0, "method": 0},
    }
    if image_format == "png":
        return base64.b64encode(_png(image)).decode("ascii")
    if image_format not in options:
        raise ValueError(unknown_name("image format", image_format, IMAGE_FORMATS))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, image_format, **options[image_format])
    return base64.b64encode(stream.getbuffer()).decode("ascii")


def _png(image: np.ndarray) -> bytes:
    """A PNG file of a uint8 [H, W, 3] image.

    Every row is stored as the difference from the one above (filter type 2) and packed by zlib at level 1. Pillow tries
    all filters on every row, which takes two to three times as long for a file of the same size.
    """
    height, width = image.shape[:2]
    pixels = image.reshape(height, 3 * width)
    rows = np.full((height, 1 + 3 * width), 2, np.uint8)
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # modulo 256, as the format wants it
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def open_image(item: ScoreItem, index: int, most_pixels: int) -> Image.Image:
    """The last turn's image, of which only the header has been read.

    Raises: TooLargeError if it has more than `most_pixels`; WireError if there is none, or it is no PNG, JPEG or WebP.
    """
    where = f"requests[{index}].history[{len(item.history) - 1}].image_b64"
    encoded = item.history[-1].image_b64
    if encoded is None:
        raise WireError(f"{where}: the last turn must carry an image")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"{where}: is not base64 ({error})") from error
    try:
        image = Image.open(io.BytesIO(raw), formats=[name.upper() for name in IMAGE_FORMATS])
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"{where}: {error}") from error
    except Exception as error:  # a decoder raises what it likes on hostile bytes
        raise WireError(f"{where}: is not a PNG, JPEG or WebP image") from error
    if image.width * image.height > most_pixels:
        raise TooLargeError(f"{where}: {image.width}×{image.height} px is more than the limit of {most_pixels} px")
    return image


def decode_image(image: Image.Image, index: int) -> np.ndarray:
    """An opened image as uint8 [H, W, 3], upright. Raises: WireError if it is damaged."""
    try:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # a decoder raises what it likes on hostile bytes
        raise WireError(f"requests[{index}]: the image is damaged ({error})") from error


def plain(value: Any, depth: int = 0) -> Any:
    """A detail in JSON's types: arrays and tuples as lists, NaN and infinities as null, anything else as its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), depth + 1)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > _DEEPEST_DETAIL:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry, depth + 1) for entry in value]
    return str(value)
