"""A page for every notebook: its text and code as they are, and the outputs it was saved with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def joined(value: str | list[str]) -> str:
    """A notebook keeps text as one string or as lines."""
    return value if isinstance(value, str) else "".join(value)


def output(part: dict[str, Any]) -> str:
    """Markdown of one output: a picture where there is one, else its text."""
    data = part.get("data", {"text/plain": part.get("text", "")})
    if "image/png" in data:
        return f"![output](data:image/png;base64,{joined(data['image/png']).strip()})"
    return f"```text\n{joined(data.get('text/plain', '')).rstrip()}\n```"


def blocks(notebook: dict[str, Any]) -> Iterator[str]:
    """Markdown of every cell, and of the outputs of code."""
    for cell in notebook["cells"]:
        source = joined(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        yield from (output(part) for part in cell.get("outputs", []))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page beside every notebook, which itself can be downloaded."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(config.docs_dir, file.src_uri).read_text(encoding="utf-8"))
        title, *rest = blocks(notebook)
        name = Path(file.src_uri).name
        download = f'<a href="{name}" download>{name}</a> runs as it is.'
        content = "\n\n".join([title, download, *rest])
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=content))
    return files
