"""The built wheel, installed into a folder of its own: everything is in it, and nothing shadows it."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("rewards", "envs", "policies", "experiments", "xomni_rl")
PACKAGED = {".py", ".typed", ".yaml", ".json", ".safetensors", ".txt", ".html", ".css", ".js"}

pytestmark = pytest.mark.slow


def run(arguments: list[str], cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    ran = subprocess.run(arguments, cwd=cwd, env={**os.environ, **environment}, text=True, capture_output=True, check=False)
    assert ran.returncode == 0, f"{' '.join(arguments)}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources to build from, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for entry in (*ROOMS, "pyproject.toml", "README.md", "LICENSE"):
        origin = ROOT / entry
        if origin.is_dir():
            shutil.copytree(origin, source / entry, ignore=shutil.ignore_patterns("__pycache__"))
        elif origin.is_file():
            shutil.copy(origin, source / entry)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel, built without network."""
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."], source)
    return next((source / "dist").glob("xomni_rl-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it and no dependencies; those come from the environment the tests run in."""
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    run([*pip, str(target), str(wheel)], target)
    return target


@pytest.fixture
def in_users_folder(installed: Path, tmp_path: Path) -> Callable[[str], str]:
    """Runs Python where a researcher would: in a folder that has packages of its own with the rooms' names."""
    for name in ("envs", "rewards", "policies", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f'MINE = "{name}"\n')

    def python(code: str) -> str:
        return run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed), HF_HUB_OFFLINE="1")

    return python


def test_wheel_holds_every_file_of_every_room(wheel: Path, source: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for room in ROOMS:
        for path in (source / room).rglob("*"):
            if path.suffix in PACKAGED:
                inside = path.relative_to(source).as_posix()
                expected.add(inside if room == "xomni_rl" else f"xomni_rl/{inside}")
    assert expected - names == set()


def test_wheel_holds_configurations_and_weights(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "xomni_rl/experiments/conf/config.yaml" in names
    weights = [name for name in names if name.startswith("xomni_rl/weights/") and name.endswith(".safetensors")]
    assert len(weights) >= 3  # the autoregressive model, the tokenizer, the decoder


def test_wheel_claims_no_top_level_name_but_its_own(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"xomni_rl"}


def test_folder_with_own_rooms_shadows_nothing(in_users_folder: Callable[[str], str], installed: Path) -> None:
    output = in_users_folder(
        "import xomni_rl.rewards.base, xomni_rl.envs.rollout, xomni_rl.policies.losses, xomni_rl.experiments\n"
        "import envs, rewards, policies, experiments\n"
        "print(xomni_rl.__file__, xomni_rl.rewards.base.__file__, xomni_rl.envs.rollout.__file__)\n"
        "print(envs.MINE, rewards.MINE, policies.MINE, experiments.MINE)"
    )
    files, mine = output.splitlines()
    assert all(Path(file).is_relative_to(installed) for file in files.split())
    assert mine == "envs rewards policies experiments"


def test_import_registers_the_environments_and_loads_nothing_heavy(in_users_folder: Callable[[str], str]) -> None:
    output = in_users_folder(
        "import sys, xomni_rl, gymnasium\n"
        "print('xomni_rl/TextToImage-v0' in gymnasium.registry)\n"
        "print([name for name in ('torch', 'transformers', 'diffusers', 'onnxruntime') if name in sys.modules])"
    )
    assert output.splitlines() == ["True", "[]"]


def test_environment_runs_from_the_wheel(in_users_folder: Callable[[str], str]) -> None:
    output = in_users_folder(
        "import gymnasium, xomni_rl\n"
        "env = gymnasium.make('xomni_rl/TextToImage-v0')\n"
        "observation, info = env.reset(seed=0)\n"
        "observation, reward, terminated, truncated, info = env.step(0)\n"
        "print(reward, terminated, truncated)"
    )
    assert output.strip() == "0.0 False False"
