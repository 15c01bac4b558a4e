"""Prompts: what is asked of an image and the facts a reward may check; loading them; quoted text in them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from xomni_rl.registry import Registry, unknown_name

HAN_SHARE = 0.3
"""A text is Chinese if at least this share of its letters, quoted strings aside, are Chinese characters."""
OTHER_SHARE = 0.1
"""Kana and Hangul from this share on make it Japanese or Korean."""


class PromptError(ValueError):
    """A prompt or prompt file that cannot be used; for files the message reads `file:line: reason`."""


@dataclass(frozen=True)
class Prompt:
    """One request for an image.

    Args:
        id: unique within its set; images are matched to it and random streams are seeded by it.
        text: what the model is told.
        texts: strings that must be legible in the image, in reading order; empty = not stated.
        checks: countable facts, for example `{"class": "dog", "count": 2, "color": "brown"}`.
        language: ISO 639-1 code of the text; "" = not stated: "zh" if its script says so (`script_language`), else "en".
        size: (height, width) in px; None = the model's default.
        metadata: anything else worth keeping; must be JSON-like.
    Raises: PromptError if a field has the wrong type or form.
    """

    id: str
    text: str
    texts: tuple[str, ...] = ()
    checks: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    language: str = ""
    size: tuple[int, int] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("id", "text"):
            _check_string(name, getattr(self, name))
        if self.language == "":
            object.__setattr__(self, "language", _language(self.text))
        _check_string("language", self.language)
        object.__setattr__(self, "texts", _string_tuple("texts", self.texts))
        object.__setattr__(self, "checks", _mapping_tuple("checks", self.checks))
        object.__setattr__(self, "size", _check_size(self.size))
        if not isinstance(self.metadata, Mapping):
            raise PromptError(f"metadata must be an object, got {type(self.metadata).__name__}")


PromptSet = Callable[..., list[Prompt]]
"""callable(split: "train" | "heldout", count: int, seed: int, **options) -> at most `count` prompts of that split."""

prompt_sets: Registry[PromptSet] = Registry(
    "prompt set", package="xomni_rl.prompt_sets", entry_point_group="xomni_rl.prompt_sets"
)


@dataclass(frozen=True)
class Row:
    """One line or row of a source of prompts.

    Args:
        file: where it stands.
        number: of the line or row, from 1.
        prompt: what it asks for, or why it is no prompt.
        unit: "line" or "row".
    """

    file: str
    number: int
    prompt: Prompt | PromptError
    unit: str = "line"

    @property
    def place(self) -> str:
        """`file:12`, or `file, row 12`."""
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file}, row {self.number}"


def load_prompts(path: str | Path) -> list[Prompt]:
    """Prompts of a file: `.jsonl` (one object of Prompt's fields per line) or `.txt` (one prompt text per line).

    Blank lines are skipped. Without an `id` a prompt gets its position among the prompts, from `0000`.

    Raises: PromptError "file:line: reason" for the first bad line; FileNotFoundError and other OSErrors as they come.
    """
    prompts = list(usable_prompts(line_rows(path)))
    if not prompts:
        raise PromptError(f"{path}: there is no prompt in this file")
    return prompts


def usable_prompts(rows: Iterable[Row], skipped: list[str] | None = None, remedy: str = "") -> Iterator[Prompt]:
    """The prompts of rows, one by one; ids must differ.

    Args:
        rows: of one source.
        skipped: gets "place: reason" of every bad row, which is left out; None = the first one raises.
        remedy: ends the message of that error.
    Raises: PromptError "place: reason".
    """
    row_of: dict[str, tuple[str, int]] = {}
    for row in rows:
        reason = str(row.prompt) if isinstance(row.prompt, PromptError) else _taken(row, row.prompt.id, row_of)
        if not isinstance(row.prompt, PromptError) and not reason:
            row_of[row.prompt.id] = row.file, row.number
            yield row.prompt
        elif skipped is None:
            raise PromptError(f"{row.place}: {reason}{remedy}")
        else:
            skipped.append(f"{row.place}: {reason}")


def _taken(row: Row, identity: str, row_of: Mapping[str, tuple[str, int]]) -> str:
    if identity not in row_of:
        return ""
    file, number = row_of[identity]
    return f'id "{identity}" is already that of {row.unit} {number}' + ("" if file == row.file else f" of {file}")


def line_rows(path: str | Path) -> Iterator[Row]:
    """The lines of a `.jsonl` or `.txt` file that are not blank, read one by one.

    Raises: PromptError for another suffix; OSErrors as they come.
    """
    path = Path(path)
    parsers = {".jsonl": _parse_json_line, ".txt": _parse_text_line}
    if path.suffix.lower() not in parsers:
        raise PromptError(f"{path}: prompts are read from .jsonl or .txt files, not from {path.suffix or 'this'}")
    parse = parsers[path.suffix.lower()]
    for position, (number, raw) in enumerate(filled_lines(path)):
        try:
            prompt: Prompt | PromptError = parse(decoded(raw), default_id=f"{position:04d}")
        except PromptError as error:
            prompt = error
        yield Row(str(path), number, prompt)


def filled_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of every line that is not blank, without a byte order mark."""
    # Binary, because U+2028 and its like are legal inside a JSON string and end a line of text.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield number, line


def decoded(raw: bytes) -> str:
    """A line as text, stripped. Raises: PromptError if it is not UTF-8."""
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise PromptError(f"not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}") from error


def _parse_text_line(line: str, default_id: str) -> Prompt:
    return Prompt(id=default_id, text=line)


def _parse_json_line(line: str, default_id: str) -> Prompt:
    record = json_object(line)
    known = [entry.name for entry in fields(Prompt)]
    for key in record:
        if key not in known:
            raise PromptError(unknown_name("key", key, known))
    if "text" not in record:
        raise PromptError('the key "text" is missing')
    return Prompt(**{"id": default_id, **record})


def json_object(line: str) -> dict[str, Any]:
    """The object that a line of JSON holds. Raises: PromptError for anything else."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise PromptError("not usable JSON: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise PromptError(f"not usable JSON: {error}") from error
    if not isinstance(record, dict):
        raise PromptError(f'expected an object such as {{"text": "…"}}, got {_json_type(record)}')
    return record


def _json_type(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _check_string(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise PromptError(f"{name} must be a string, got {value!r}")
    if not value.strip():
        raise PromptError(f"{name} must not be empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"{name} holds half of a surrogate pair at position {error.start}") from error


def _string_tuple(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise PromptError(f"{name} must be a list of strings, got {value!r}")
    strings = tuple(value)
    for index, string in enumerate(strings):
        _check_string(f"{name}[{index}]", string)
    return strings


def _mapping_tuple(name: str, value: object) -> tuple[Mapping[str, Any], ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise PromptError(f"{name} must be a list of objects, got {value!r}")
    mappings = tuple(value)
    for index, mapping in enumerate(mappings):
        if not isinstance(mapping, Mapping):
            raise PromptError(f"{name}[{index}] must be an object, got {mapping!r}")
    return mappings


def _check_size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    good = isinstance(value, list | tuple) and len(value) == 2
    if not good or not all(type(side) is int and side > 0 for side in value):
        raise PromptError(f"size must be [height, width] in whole positive px, got {value!r}")
    return value[0], value[1]


# Opening mark → the marks that may close it. Book-title marks 《》 quote a title, not a text to draw, and are left out.
_CLOSERS = {
    '"': '"', "“": "”", "„": "“”", "«": "»", "'": "'", "‘": "’",
    "「": "」", "『": "』", "﹁": "﹂", "﹃": "﹄", "｢": "｣", "〝": "〞〟", "＂": "＂",
}  # fmt: skip
_CAN_BE_APOSTROPHE = "'‘’"


def quoted_spans(text: str) -> tuple[str, ...]:
    """All quoted strings of a text, in order: straight, curly, German, French and CJK quotes.

    An apostrophe inside or at the end of a word is not a quote, nor is an inch mark after a number; a quote inside a
    quote belongs to the outer one; an opening mark that nothing closes is skipped. Spans are stripped, empty ones left
    out.

    >>> quoted_spans("the baker's sign says “Don’t panic” and 'OPEN'")
    ('Don’t panic', 'OPEN')
    """
    spans: list[str] = []
    position = 0
    while position < len(text):
        end = _closing(text, position) if _opens(text, position) else None
        if end is None:
            position += 1
            continue
        span = text[position + 1 : end].strip()
        if span:
            spans.append(span)
        position = end + 1
    return tuple(spans)


def _opens(text: str, position: int) -> bool:
    mark, before = text[position], text[position - 1 : position]
    after = text[position + 1 : position + 2]
    if mark not in _CLOSERS:
        return False
    if mark in _CAN_BE_APOSTROPHE:
        return not _is_word(before) and bool(after.strip())
    is_inch_mark = mark == '"' and before.isdigit() and not _is_word(after)
    return not is_inch_mark


def _closing(text: str, start: int) -> int | None:
    closers = _CLOSERS[text[start]]
    for position in range(start + 1, len(text)):
        if text[position] in closers and not _is_apostrophe(text, position):
            return position
    return None


def _is_apostrophe(text: str, position: int) -> bool:
    goes_on, had_space = _is_word(text[position + 1 : position + 2]), not text[position - 1].strip()
    return text[position] in _CAN_BE_APOSTROPHE and (goes_on or had_space)


def _is_word(character: str) -> bool:
    """Whether it can stand beside an apostrophe in a word; CJK scripts have no apostrophes and no spaces."""
    return character.isalnum() and ord(character) < 0x2E80


def _language(text: str) -> str:
    """Of a text that nobody labelled: scores count words or characters by it, so Chinese must not pass for English."""
    return "zh" if not text.isascii() and script_language(text) == "zh" else "en"


def script_language(text: str) -> str:
    """ "zh", "en" or "other", by the letters outside of quoted strings (of all letters if there are no others).

    "en" means Latin letters: French is not told from English.
    """
    outside = text
    for span in quoted_spans(text):
        outside = outside.replace(span, " ", 1)
    letters = [c for c in outside if c.isalpha()] or [c for c in text if c.isalpha()]
    if not letters or sum(map(_is_kana_or_hangul, letters)) >= OTHER_SHARE * len(letters):
        return "other"
    if sum(map(is_han, letters)) >= HAN_SHARE * len(letters):
        return "zh"
    return "en" if sum(ord(c) < 0x250 for c in letters) > len(letters) / 2 else "other"


def is_han(character: str) -> bool:
    code = ord(character)
    return 0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF


def _is_kana_or_hangul(character: str) -> bool:
    code = ord(character)
    return 0x3041 <= code <= 0x30FF or 0x31F0 <= code <= 0x31FF or 0x1100 <= code <= 0x11FF or 0xAC00 <= code <= 0xD7AF
