"""The house's rules, read from the source itself: who imports whom, a README per room, short modules, no unpickling."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"rewards": "xomni_rl.rewards", "envs": "xomni_rl.envs", "policies": "xomni_rl.policies"}
ROOMS |= {"experiments": "xomni_rl.experiments", "xomni_rl": "xomni_rl"}

FOUNDATION = (
    "xomni_rl.registry",
    "xomni_rl.prompts",
    "xomni_rl.images",
    "xomni_rl.locks",
    "xomni_rl.prompt_sets",
    "xomni_rl.weights",
)
FOUNDATION += ("xomni_rl.__version__",)
# What else stands in xomni_rl/ itself is "top": the command line, and the root, which registers the environments.
MAY_IMPORT = {
    "foundation": {"foundation"},
    "stack": {"stack", "foundation"},
    "rewards": {"rewards", "foundation"},
    "envs": {"envs", "rewards", "stack", "foundation"},
    "policies": {"policies", "envs", "stack", "foundation"},
    "experiments": {"experiments", "policies", "envs", "rewards", "stack", "foundation", "top"},
    "top": {"experiments", "policies", "envs", "rewards", "stack", "foundation", "top"},
}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def module_name(path: Path) -> str:
    """`policies/losses.py` → `xomni_rl.policies.losses`."""
    room, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([ROOMS[room], *(part for part in rest if part != "__init__")])


MODULES = {path: module_name(path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


def layer_of(module: str) -> str | None:
    """The layer a module belongs to; None for other distributions' modules."""
    if module.split(".")[0] != "xomni_rl":
        return None
    for layer in ("stack", "rewards", "envs", "policies", "experiments"):
        if is_inside(module, f"xomni_rl.{layer}"):
            return layer
    return "foundation" if any(is_inside(module, package) for package in FOUNDATION) else "top"


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every module that a source imports anywhere, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            package = ".".join([*base, *([node.module] if node.module else [])])
            # `from xomni_rl import stack` imports the submodule; `from xomni_rl.prompts import Prompt` imports prompts.
            yield from (package if node.module and package != "xomni_rl" else f"{package}.{a.name}" for a in node.names)


def wrong_imports(source: str, module: str, is_package: bool) -> list[str]:
    own = layer_of(module)
    assert own is not None
    layers = {name: layer_of(name) for name in imported_modules(source, module, is_package)}
    allowed = {None, *MAY_IMPORT[own]}
    return [f"{module} ({own}) imports {name} ({layer})" for name, layer in layers.items() if layer not in allowed]


def test_every_module_imports_only_what_lies_below_it() -> None:
    wrong: list[str] = []
    for path, name in MODULES.items():
        wrong += wrong_imports(path.read_text(), name, is_package=path.stem == "__init__")
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("xomni_rl.rewards.ocr", "from xomni_rl.stack.stack import Stack"),
        ("xomni_rl.rewards.ocr", "def load():\n    import xomni_rl.policies"),
        ("xomni_rl.rewards.ocr", "from ..stack import sampler"),
        ("xomni_rl.stack.stack", "from xomni_rl import rewards"),
        ("xomni_rl.stack.stack", "from xomni_rl.envs.rollout import rollout"),
        ("xomni_rl.policies.trainer", "from xomni_rl.rewards.composite import build_composite"),
        ("xomni_rl.envs.task", "import xomni_rl.policies.losses"),
        ("xomni_rl.prompts", "from xomni_rl.stack import stack"),
        ("xomni_rl.prompt_sets.signs", "from xomni_rl.cli import main"),
    ],
)
def test_import_from_above_is_found(module: str, source: str) -> None:
    assert len(wrong_imports(source, module, is_package=False)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("xomni_rl.rewards.ocr", "import numpy\nfrom .base import Reward\nfrom xomni_rl.prompts import Prompt"),
        ("xomni_rl.envs.rollout", "from xomni_rl.rewards.composite import CompositeReward\nfrom ..stack import stack"),
        ("xomni_rl.experiments.sb3_ppo", "from xomni_rl import envs, policies"),
    ],
)
def test_import_from_below_is_allowed(module: str, source: str) -> None:
    assert wrong_imports(source, module, is_package=False) == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_room_has_a_readme(room: str) -> None:
    readme = ROOT / room / "README.md"
    assert readme.is_file()
    assert readme.read_text().startswith("# ")


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


def unpicklings(source: str) -> list[str]:
    """Imports of unpickling modules, `torch.load` without `weights_only=True`, `allow_pickle` other than False."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in UNPICKLERS:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load" and not is_literally(options.get("weights_only"), True):
                found.append(ast.unparse(node))
            if "allow_pickle" in options and not is_literally(options["allow_pickle"], False):
                found.append(ast.unparse(node))
    return found


def is_literally(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_module_unpickles() -> None:
    found = {str(path.relative_to(ROOT)): unpicklings(path.read_text()) for path in MODULES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import pickle", 1),
        ("from cloudpickle import dumps", 1),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=False)", 1),
        ("torch.load(path, weights_only=True)", 0),
        ("np.load(path, allow_pickle=True)", 1),
        ("np.load(path, allow_pickle=False)", 0),
    ],
)
def test_unpickling_is_found(source: str, count: int) -> None:
    assert len(unpicklings(source)) == count
