"""The documentation's site: it builds strictly, without network, and its pages load nothing from elsewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ROOMS = ("envs", "experiments", "policies", "rewards", "tests", "xomni_rl")
BUILD = """
import socket, sys
from mkdocs.__main__ import cli

def refused(*_):
    raise OSError("the site must build without network")

socket.socket.connect = socket.getaddrinfo = refused
cli(["build", "--strict", "--quiet", "--site-dir", sys.argv[1]])
"""
LOADED = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "manifest"}


def hook(name: str) -> ModuleType:
    """A hook of the site, loaded as mkdocs does."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What a page loads by itself, where its links lead, and its identifiers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.identifiers: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.identifiers.add(given.get("id", ""))
        if tag == "link":
            self.loads += [given["href"]] if LOADED & set(given.get("rel", "").split()) else []
        elif tag == "a":
            self.links += [given["href"]] if "href" in given else []
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a process that cannot connect to anything."""
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page by its path in the site; the one for missing pages, whose addresses begin at the server's root, left out."""
    found = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in found}


@pytest.mark.slow
def test_pages_and_their_styles_load_nothing_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    assert pages
    elsewhere = {path: [load for load in page.loads if re.match(r"(https?:)?//", load)] for path, page in pages.items()}
    assert {path: loads for path, loads in elsewhere.items() if loads} == {}
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles
    assert [match for style in styles for match in re.findall(r"url\(['\"]?https?:[^)]*\)|@import[^;]*", style)] == []
    # The theme fetches a script for diagrams when a page has one.
    assert [path for path in site.rglob("*.html") if 'class="mermaid"' in path.read_text(encoding="utf-8")] == []


@pytest.mark.slow
def test_every_link_of_a_page_leads_to_a_file_of_the_site(site: Path, pages: dict[str, Page]) -> None:
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    missing = set()
    for path, page in pages.items():
        for link in {link.partition("#")[0] for link in page.links} - {""}:
            target = os.path.normpath(os.path.join(os.path.dirname(path), link))
            if "://" not in link and not {target, os.path.normpath(f"{target}/index.html")} & files:
                missing.add((path, link))
    assert missing == set()


@pytest.mark.slow
def test_every_document_and_notebook_of_the_repository_is_a_page(pages: dict[str, Page]) -> None:
    found = [*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.md"))]
    documents = [f"code/{path.relative_to(ROOT).as_posix()}" for path in found]
    docs = ROOT / "docs"
    documents += [path.relative_to(docs).as_posix() for kind in ("*.md", "*.ipynb") for path in docs.rglob(kind)]
    expected = {
        re.sub(r"README\.md$|\.(md|ipynb)$", lambda end: "index.html" if "README" in end[0] else ".html", path)
        for path in documents
    }
    assert expected - set(pages) == set()


@pytest.mark.slow
def test_every_page_written_for_the_site_is_in_its_navigation(pages: dict[str, Page]) -> None:
    linked = {link.partition("#")[0] for link in pages["index.html"].links}
    written = {path for path in pages if not path.startswith("code/")} | {"code/policies/algorithms/index.html"}
    assert written - linked - {"index.html"} == set()


@pytest.mark.slow
def test_every_public_module_is_in_the_reference(pages: dict[str, Page]) -> None:
    identifiers = set().union(*(page.identifiers for path, page in pages.items() if path.startswith("reference/")))
    modules = {f"xomni_rl.{path.stem}" for path in (ROOT / "xomni_rl").glob("*.py") if not path.stem.startswith("_")}
    for room in ("envs", "experiments", "policies", "rewards"):
        modules |= {
            ".".join(["xomni_rl", *path.relative_to(ROOT).with_suffix("").parts])
            for path in (ROOT / room).rglob("*.py")
            if not path.stem.startswith("_")
        }
    assert {"xomni_rl.rewards.base.Reward.score", "xomni_rl.policies.losses.common.kl_estimate"} <= identifiers
    assert modules - identifiers == set()


def test_link_that_leaves_docs_leads_to_the_page_of_its_target() -> None:
    rewritten = hook("repository").rewritten
    # docs/own_model.md → own_model.html beside code/; a document of a room and back again; code and addresses stay.
    assert rewritten("[a](../policies/policy.py)", "own_model.md") == "[a](code/policies/policy.py.md)"
    assert rewritten("[a](../../docs/scale.md#sweeps)", "code/experiments/conf/README.md") == "[a](../../../scale.md#sweeps)"
    assert rewritten("[a](../policies)", "scale.md") == "[a](code/policies/README.md)"
    for same in ("`[a](../x.py)`", "```\n[a](../x.py)\n```", "[a](https://example.org)", "[a](#sweeps)", "[a](scale.md)"):
        assert rewritten(same, "own_model.md") == same


def test_list_after_text_is_set_apart_and_one_in_code_is_not() -> None:
    with_lists_apart = hook("repository").with_lists_apart
    assert with_lists_apart("**Gotchas**\n- a\n- b\n\n- c") == "**Gotchas**\n\n- a\n- b\n\n- c"
    code = "```yaml\nkeys:\n- a\n```"
    assert with_lists_apart(code) == code


def test_star_of_the_navigation_takes_pages_of_one_folder_that_have_no_entry() -> None:
    navigation = hook("navigation")
    nav = ["README.md", {"How": ["b.md", "*", "x/*"]}]
    assert sorted(navigation.named(nav)) == ["*", "README.md", "b.md", "x/*"]
    assert navigation.expanded(nav, ["a.md", "c.md", "x/d.md", "x/y/e.md"]) == [
        "README.md",
        {"How": ["b.md", "a.md", "c.md", "x/d.md"]},
    ]


def test_bare_doctest_becomes_a_section_and_one_in_a_section_stays() -> None:
    with_examples = hook("reference").with_examples
    bare = 'def f():\n    """One.\n\n    >>> f()\n    1\n    """\n'
    assert with_examples(bare) == 'def f():\n    """One.\n\n    Examples:\n        >>> f()\n        1\n    """\n'
    inside = 'def f():\n    """One.\n\n    Examples:\n        >>> f()\n        1\n    """\n'
    assert with_examples(inside) == inside


def test_notebook_becomes_its_text_code_and_outputs() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "b"]},
        {"cell_type": "code", "source": "1 + 1", "outputs": [{"output_type": "execute_result", "data": {"text/plain": "2"}}]},
        {"cell_type": "code", "source": "p", "outputs": [{"data": {"image/png": "QUJD\n", "text/plain": "<P>"}}]},
    ]
    assert list(hook("notebooks").blocks({"cells": cells})) == [
        "# A\nb",
        "```python\n1 + 1\n```",
        "```text\n2\n```",
        "```python\np\n```",
        "![output](data:image/png;base64,QUJD)",
    ]


def test_site_has_no_fonts_from_elsewhere() -> None:
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert yaml.safe_load(text)["theme"]["font"] is False
