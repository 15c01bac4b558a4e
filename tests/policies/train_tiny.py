"""Trains as a JSON file says: what the resume test starts, kills and starts again. `python train_tiny.py CONFIG [RESUME]`."""

import json
import sys
from pathlib import Path

from xomni_rl.experiments.run import build_parts
from xomni_rl.policies.trainer import train


def main(config_file: str, resume: str | None = None) -> None:
    config = json.loads(Path(config_file).read_text()) | {"resume": resume}
    train(config, **build_parts(config))


if __name__ == "__main__":
    main(*sys.argv[1:])
