"""The page a run leaves behind, and the README's picture."""

from xomni_rl.experiments.report.data import ReportError
from xomni_rl.experiments.report.page import build_report

__all__ = ["ReportError", "build_report"]
