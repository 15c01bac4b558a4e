"""What all pages of this project have in common: their colours, for light and dark mode."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

HERE = Path(__file__).parent


def styles(*files: Path) -> Markup:
    """The shared colours, and then these style sheets, for a page's head."""
    return Markup("\n".join(file.read_text(encoding="utf-8") for file in (HERE / "colours.css", *files)))
