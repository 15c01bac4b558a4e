"""Trains in several processes that start at once, as torchrun would start them but without seconds of imports each.

This one imports everything, and forks for every line on its standard input: {"config": …, "size": processes, "errors": FOLDER}
and, if weights are to be divided by FSDP2, "divided": true. It answers with the children's ids and, when all have ended, with
their exit statuses (negative = the signal that killed one). What a child says of an error is in FOLDER/RANK.
"""

import io
import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, TorchDynamoPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from rich.console import Console

import xomni_rl.experiments.launch
from xomni_rl.commands.errors import is_for_people, sentence
from xomni_rl.experiments.run import build_parts
from xomni_rl.policies.distributed import Team
from xomni_rl.policies.trainer import train


def divide_weights(mixed_precision: str) -> None:
    """FSDP2 as `fsdp2.yaml` describes it. accelerate itself would divide on GPUs only, and go on without a word on a CPU."""
    file = Path(xomni_rl.experiments.launch.__file__).parent / "fsdp2.yaml"
    launched = launch_command_parser().parse_args(["--config_file", str(file), "-m", "xomni_rl"])
    os.environ |= prepare_multi_gpu_env(_validate_launch_command(launched)[0])
    state = AcceleratorState(mixed_precision, cpu=True, dynamo_plugin=TorchDynamoPlugin(), _from_accelerator=True)
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(mixed_precision)
    PartialState().distributed_type = DistributedType.FSDP  # of which every AcceleratorState is made anew


def run(config: dict[str, Any], errors: Path, rank: int, divided: bool) -> int:
    """Trains; 0, or 1 with the sentence or the traceback in a file."""
    try:
        Team.current("cpu")
        if divided:
            divide_weights(config["trainer"].get("mixed_precision", "no"))
        train(config, **build_parts(config), console=Console(file=io.StringIO()))
    except BaseException as error:
        with (errors / str(rank)).open("w") as stream:
            if is_for_people(error):
                stream.write(sentence(error))
            else:
                traceback.print_exc(file=stream)
        return 1
    return 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def forked(config: dict[str, Any], size: int, errors: str, divided: bool = False) -> list[int]:
    """Ids of the processes of one run."""
    port, children = free_port(), []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os._exit(run(config, Path(errors), rank, divided))
        children.append(child)
    return children


def waited(children: list[int]) -> list[int]:
    """Exit statuses of processes, by their order."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        children = forked(**json.loads(line))
        print(json.dumps(children), flush=True)
        print(json.dumps(waited(children)), flush=True)


if __name__ == "__main__":
    main()
