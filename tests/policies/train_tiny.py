"""Trains in processes of their own that start at once: what the resume test starts, kills and starts again.

Imports take seconds and training these runs does not. So this one imports everything, and forks for every line on its
standard input: {"config": …, "resume": FOLDER or null, "errors": FILE}. It answers with the child's id and, when that has
ended, with its exit status (negative = the signal that killed it).
"""

import io
import json
import os
import sys
import traceback
from typing import Any

from rich.console import Console

from xomni_rl.experiments.run import build_parts
from xomni_rl.policies.trainer import train


def run(config: dict[str, Any], resume: str | None, errors: str) -> int:
    """Trains; 0, or 1 with the traceback in the file `errors`."""
    try:
        config = config | {"resume": resume}
        train(config, **build_parts(config), console=Console(file=io.StringIO()))
    except BaseException:
        with open(errors, "w") as stream:
            traceback.print_exc(file=stream)
        return 1
    return 0


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run(**json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
