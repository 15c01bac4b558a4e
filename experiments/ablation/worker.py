"""`python -m xomni_rl.experiments.ablation.worker PARENT train …`: a run of an ablation, which ends when its parent does.

An ablation that is interrupted ends its runs itself. One that is killed cannot: on Linux the system then does it for it, so
that no run goes on writing into a folder that the next call takes up.
"""

import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Asks the system for SIGTERM when the parent process ends; ends at once if it already has. Linux only."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(f"process {parent}, which began this run, has ended")


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    sys.argv = ["xomni-rl", *sys.argv[2:]]
    runpy.run_module("xomni_rl", run_name="__main__")
