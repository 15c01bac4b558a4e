"""What can go wrong in scoring, as sentences."""

from __future__ import annotations


class ScoringError(ValueError):
    """Images, prompts and output that do not go together, or work that cannot go on; the message names the files."""


class ScoringInterruptedError(KeyboardInterrupt):
    """Ctrl-C; the message says what is kept."""
