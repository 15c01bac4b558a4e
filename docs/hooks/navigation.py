"""Entries of the navigation with a star: every page that fits and has no entry of its own, in alphabetical order."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files


def named(entries: list[Any]) -> Iterator[str]:
    """Pages that a navigation names."""
    for entry in entries:
        if isinstance(entry, dict):
            for value in entry.values():
                yield from named(value if isinstance(value, list) else [value])
        else:
            yield entry


def expanded(entries: list[Any], pages: list[str]) -> list[Any]:
    """A navigation with the pages in place of its stars; a star stands for names in one folder, not below it."""
    result: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict):
            result += [{title: expanded(value, pages) if isinstance(value, list) else value} for title, value in entry.items()]
        elif "*" in entry:
            result += [page for page in pages if fnmatch.fnmatch(page, entry) and page.count("/") == entry.count("/")]
        else:
            result.append(entry)
    return result


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Runs after the hooks that add pages, before the navigation is made."""
    assert config.nav is not None
    own = set(named(config.nav))
    pages = sorted({file.src_uri for file in files.documentation_pages()} - own)
    config.nav = expanded(config.nav, pages)
    return files
