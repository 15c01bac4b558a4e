"""What a person sees of an error: one sentence, unless it is a bug of ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text


def is_for_people(error: BaseException) -> bool:
    """Whether an error speaks to the user: one of our own classes, a ValueError our code raised, or a file's trouble.

    A ValueError out of somebody else's code, and every other class, is a bug, and bugs keep their traceback.
    """
    if isinstance(error, OSError) or _is_ours(type(error).__module__):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error) is ValueError and trace is not None and _is_ours(trace.tb_frame.f_globals.get("__name__", ""))


def sentence(error: BaseException) -> str:
    """The error as one line."""
    if isinstance(error, OSError) and error.strerror and not _is_ours(type(error).__module__):
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def print_error(error: BaseException, prefix: str = "") -> None:
    """Prints the sentence on standard error."""
    line = Text.assemble(("error: ", "bold red"), prefix, sentence(error))
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def wants_traceback() -> bool:
    """Whether XOMNI_RL_TRACEBACK=1 asks for the whole story."""
    return os.environ.get("XOMNI_RL_TRACEBACK") == "1"


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Turns an error for people into its sentence and exit status 1; an interrupt into 130."""
    try:
        yield
    except KeyboardInterrupt as error:
        Console(stderr=True).print("interrupted")
        raise typer.Exit(130) from error
    except BrokenPipeError as error:
        # The reader has seen enough. Python must not write the rest at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from error
    except Exception as error:
        if wants_traceback() or not is_for_people(error):
            raise
        print_error(error)
        raise typer.Exit(1) from error


def _is_ours(module: str) -> bool:
    return module == "xomni_rl" or module.startswith("xomni_rl.")
