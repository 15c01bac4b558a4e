"""`xomni-rl chat`: questions about images, or a conversation in which more of them are shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xomni_rl.commands.draw import DtypeOption, FluxOption, StackOption, load_stack, refuse_idle_flux
from xomni_rl.commands.errors import is_for_people, print_error

if TYPE_CHECKING:
    from xomni_rl.stack.stack import Stack

SHOW = "/image"
"""Begins a line that shows one more image."""
PICTURES = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?)$", re.IGNORECASE)


def chat(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE… [QUESTION]", help="Image files, and what to ask.", show_default=False)
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="One question, one answer; then every argument is an image.", show_default=False)
    ] = None,
    stack: StackOption = "embedded",
    flux: FluxOption = None,
    dtype: DtypeOption = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
) -> None:
    """Ask the model about images.

    Without a question it is a conversation: a line is what you say, and the model knows every turn before. The line /image FILE
    shows one more image with what you say next; an empty line or the end of the input ends it.

    Examples:

    • xomni-rl chat pictures/0000.png 'What does the sign say?'

    • xomni-rl chat before.png after.png --question 'What has changed?'

    • xomni-rl chat pictures/0000.png
    """
    from xomni_rl.images import load_image
    from xomni_rl.stack.stack import Stack, StackError

    paths = list(images or ())
    if question is None and paths and not (Path(paths[-1]).exists() or PICTURES.search(paths[-1])):
        question = paths.pop()
    shown = [_image(load_image(path)) for path in paths]
    refuse_idle_flux(stack, flux)
    loaded = load_stack(stack, device, flux, dtype)
    if not isinstance(loaded, Stack):
        raise StackError(f"{stack} draws only: of the model families, xomni alone answers questions about images")
    if question is not None:
        typer.echo(loaded.reply([{"role": "user", "content": [*shown, _text(question)]}]))
        return
    for answer in _conversation(loaded, shown):
        typer.echo(answer)


def _conversation(stack: Stack, shown: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Answers to one line of standard input after the other.

    Args:
        stack: answers.
        shown: images that come with the first line.
    """
    from xomni_rl.images import load_image

    messages: list[dict[str, Any]] = []
    waiting = list(shown)
    by_person = sys.stdin.isatty()
    while line := _line(by_person):
        try:
            command, _, path = line.partition(" ")
            if command == SHOW:
                waiting.append(_image(stack.fitting(load_image(path.strip()))))
                continue
            asked = {"role": "user", "content": [*waiting, _text(line)]}
            answer = stack.reply([*messages, asked])
        except Exception as error:  # a mistyped file is no reason to lose a conversation
            if not by_person or not is_for_people(error):
                raise
            print_error(error)
            continue
        messages += [asked, {"role": "assistant", "content": answer}]
        waiting = []
        yield answer


def _line(by_person: bool) -> str:
    """The next line of standard input; "" at its end."""
    try:
        return input("you (/image FILE shows one, empty to end): " if by_person else "").strip()
    except EOFError:
        return ""


def _image(pixels: Any) -> dict[str, Any]:
    return {"type": "image", "image": pixels}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
