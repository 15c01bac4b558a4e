"""Takes what lies outside `docs/` into the site: every document of the rooms, and every file that a document links to.

Documents are written for the repository, where a link leads from file to file. In the site a document of a room lies under
`code/`, a linked file of text is a page that shows it, and links are rewritten to where their target went.
"""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("envs", "experiments", "policies", "rewards", "tests", "xomni_rl")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".sh": "bash", ".txt": "text", "": "text"}
CODE_OR_LINK = re.compile(r"(?P<code>^```.*?^```$|`[^`\n]*`)|\]\((?P<link>[^)\s]+)\)", re.MULTILINE | re.DOTALL)
FILE_BLOCK = re.compile(r"^<!-- test: file (\S+) -->\n```(\w+)$", re.MULTILINE)
COMMENT = re.compile(r"^<!-- (test|[Mm]ade|results|end)\b.*?-->\n?", re.MULTILINE)
LIST_AFTER_TEXT = re.compile(r"(?P<code>^```.*?^```$)|(?P<text>^(?![-#|>\s])[^\n]*\S)\n(?=- )", re.MULTILINE | re.DOTALL)


def documents() -> Iterator[str]:
    """Markdown files outside `docs/`, as paths in the repository."""
    found = [*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.md"))]
    yield from sorted(path.relative_to(ROOT).as_posix() for path in found)


def links(text: str) -> Iterator[str]:
    """Targets of a document's inline links and images, those in code left out."""
    yield from (match["link"] for match in CODE_OR_LINK.finditer(text) if match["link"])


def target_of(link: str, origin: str) -> str | None:
    """Path in the repository of what a link in the document `origin` leads to; None for an address or a place on the page."""
    parts = urllib.parse.urlsplit(link)
    return None if parts.scheme or not parts.path else posixpath.normpath(posixpath.join(posixpath.dirname(origin), parts.path))


def place_of(path: str) -> str:
    """Where a file or folder lies in the site's sources: `policies/policy.py` → `code/policies/policy.py.md`."""
    if (ROOT / path).is_dir():
        path += "/README.md"
    if path.startswith("docs/"):
        path = path.removeprefix("docs/")
        return path.removesuffix(".ipynb") + ".md" if path.endswith(".ipynb") else path
    suffix = Path(path).suffix
    return f"code/{path}.md" if suffix in LANGUAGES else f"code/{path}"


def origin_of(place: str) -> str:
    """The document that a page of the site was made from: the other way from `place_of`."""
    return place.removeprefix("code/") if place.startswith("code/") else f"docs/{place}"


def shown(path: str) -> str:
    """A page that shows a file of text."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"# {path}\n\n`````{LANGUAGES[Path(path).suffix]}\n{text}\n`````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the rooms' documents, and what any document links to outside `docs/`."""
    outside = list(documents())
    for path in outside:
        files.append(File.generated(config, place_of(path), abs_src_path=str(ROOT / path)))
    inside = [f"docs/{file.src_uri}" for file in files.documentation_pages() if (ROOT / "docs" / file.src_uri).is_file()]
    for origin in (*outside, *inside):
        for link in links((ROOT / origin).read_text(encoding="utf-8")):
            path = target_of(link, origin)
            if path is not None and not path.startswith("docs") and (ROOT / path).is_file():
                add(path, files, config)
    return files


def add(path: str, files: Files, config: MkDocsConfig) -> None:
    """One file of the repository, unless it is there: text as a page, anything else as it is."""
    place = place_of(path)
    if files.get_file_from_path(place) is not None:
        return
    if Path(path).suffix in LANGUAGES:
        files.append(File.generated(config, place, content=shown(path)))
    else:
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))


def rewritten(markdown: str, place: str) -> str:
    """A document with every link leading to where the site has its target."""
    origin = origin_of(place)

    def replace(match: re.Match[str]) -> str:
        target = target_of(match["link"], origin) if match["link"] else None
        if target is None:
            return match[0]
        fragment = urllib.parse.urlsplit(match["link"]).fragment
        address = posixpath.relpath(place_of(target), posixpath.dirname(place) or ".")
        return f"]({address}{'#' if fragment else ''}{fragment})"

    return CODE_OR_LINK.sub(replace, markdown)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links rewritten; blocks that are files titled with their names; the tests' comments left out; lists set apart."""
    place = page.file.src_uri
    if place.startswith(("reference/", "notebooks/")) or place.endswith(
        tuple(f"{suffix}.md" for suffix in LANGUAGES if suffix)
    ):
        return markdown
    markdown = FILE_BLOCK.sub(r'```\2 title="\1"', rewritten(markdown, place))
    return with_lists_apart(COMMENT.sub("", markdown))


def with_lists_apart(markdown: str) -> str:
    """An empty line before every list that follows a line of text: GitHub needs none, the site's Markdown does."""
    return LIST_AFTER_TEXT.sub(lambda match: match["code"] or f"{match['text']}\n\n", markdown)
