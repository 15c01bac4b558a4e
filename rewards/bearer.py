"""The key that a server wants: read from the environment, sent as a bearer token, shown nowhere."""

import os
import re
from collections.abc import Mapping
from typing import Any

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_variable(option: str, variable: str | None) -> None:
    """Raises: ValueError if the option does not name an environment variable."""
    if variable is not None and not _VARIABLE.fullmatch(variable):
        # Not quoted: it may be the key itself.
        raise ValueError(f"{option} must be the name of an environment variable, not the key")


def bearer_key(variable: str | None) -> str | None:
    """The key in an environment variable, without spaces and line ends around it; None if there is no variable.

    Raises: ValueError if it holds none, or one that no HTTP header can hold.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable {variable} holds no key")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"the environment variable {variable} holds no key but text of several lines or beyond ASCII")
    return key


def bearer_header(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def masked(value: Any, key: str | None) -> Any:
    """The value, text or whatever JSON may hold, with *** for the key: some servers repeat what they were sent."""
    if key is None:
        return value
    if isinstance(value, str):
        return value.replace(key, "***")
    if isinstance(value, Mapping):
        return {masked(name, key): masked(each, key) for name, each in value.items()}
    return [masked(each, key) for each in value] if isinstance(value, list) else value
