"""`python -m xomni_rl.experiments.report RUN_FOLDER [--out FILE]`: build (or rebuild) a run's report.html."""

import argparse
import sys
from pathlib import Path

from xomni_rl.experiments.report import ReportError, build_report


def main(arguments: list[str] | None = None) -> int:
    """Build the report and print its path; exit status 1 with one sentence when the folder is no run folder."""
    parser = argparse.ArgumentParser(prog="python -m xomni_rl.experiments.report", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="default: RUN_FOLDER/report.html")
    options = parser.parse_args(arguments)
    try:
        print(build_report(options.run_folder, options.out))
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
