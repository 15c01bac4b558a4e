"""Names: registration, discovery, `module:object`, nearest names."""

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from xomni_rl.registry import Registry, UnknownNameError, UserCodeError, nearest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A package on disk whose `plain` module registers "plain" in its `registry` module."""
    name = f"parts_{request.node.name.split('[')[0]}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "registry.py").write_text(
        f"from xomni_rl.registry import Registry\nparts = Registry('part', '{name}', 'no.such.group')\n"
    )
    write_part(folder, "plain")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return name


def write_part(folder: Path, module: str, name: str | None = None) -> None:
    source = f'''
        """A module."""
        from {folder.name}.registry import parts

        @parts.register("{name or module}")
        def make():
            """Makes a {module}."""
            return "{module}"
    '''
    (folder / f"{module}.py").write_text(textwrap.dedent(source).lstrip())


def parts_of(package: str) -> Registry:
    registry: Registry = importlib.import_module(f"{package}.registry").parts
    return registry


def test_module_in_the_package_is_found_without_being_imported(package: str) -> None:
    parts = parts_of(package)
    assert f"{package}.plain" not in sys.modules
    assert parts.names() == ["plain"]
    assert parts.get("plain")() == "plain"


def test_describe_gives_name_file_and_first_line(package: str, tmp_path: Path) -> None:
    assert parts_of(package).describe() == [("plain", str(tmp_path / package / "plain.py"), "Makes a plain.")]


def test_name_in_two_modules_raises_with_both_places(package: str, tmp_path: Path) -> None:
    write_part(tmp_path / package, "second", name="plain")
    with pytest.raises(ValueError, match=r'part "plain" is defined twice: .*plain\.py:4 and .*second\.py:4'):
        parts_of(package).names()


def test_failed_import_is_reported_again_at_the_next_use(package: str, tmp_path: Path) -> None:
    # "plain" is registered before "zebra" breaks; the second attempt must say what is broken, not "defined twice".
    (tmp_path / package / "zebra.py").write_text("import no_such_dependency\n")
    parts = parts_of(package)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            parts.get("plain")


def test_unknown_name_gives_nearest_and_known_names(package: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parts_of(package).get("plian")
    assert str(caught.value) == 'unknown part "plian"; nearest: plain; known: plain'


def test_name_with_a_colon_cannot_be_registered(package: str) -> None:
    with pytest.raises(ValueError, match="free of"):
        parts_of(package).register("a:b")


def test_object_of_a_module_in_the_working_directory_is_found(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "own_part_of_a_user.py").write_text("class Box:\n    part = 7\n")
    monkeypatch.chdir(tmp_path / "here")
    before = list(sys.path)
    assert parts_of(package).get("own_part_of_a_user:Box.part") == 7
    assert sys.path == before


def test_object_of_a_python_file_is_found(package: str, tmp_path: Path) -> None:
    (tmp_path / "a file.py").write_text("part = 8\n")
    assert parts_of(package).get(f"{tmp_path / 'a file.py'}:part") == 8


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module_at_all:part", 'there is no module "no_such_module_at_all"'),
        ("json:lodas", 'unknown part in json "lodas"; nearest: loads'),
        ("not a module:part", "is not a module name"),
        ("missing.py:part", "there is no file missing.py"),
    ],
)
def test_reference_that_leads_nowhere_raises_what_is_missing(package: str, reference: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        parts_of(package).get(reference)


@pytest.mark.parametrize("reference", ["own_broken_part:part", "own_broken_part.py:part"])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_dependency\n", "1: ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("x = 1\ndef part(:\n", "2: SyntaxError: invalid syntax"),
        ("\n\nx = 1 / 0\n", "3: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('usage')\n", "2: SystemExit: usage"),
    ],
)
def test_module_of_a_user_that_breaks_on_import_is_a_sentence_with_its_place(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, source: str, reason: str
) -> None:
    (tmp_path / "own_broken_part.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserCodeError) as caught:
        parts_of(package).get(reference)
    said = str(caught.value)
    assert said.startswith(f'part "{reference}" cannot be imported: ')
    assert said.endswith(f"own_broken_part.py:{reason}; correct it or install what it needs")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("orc", ["ocr"]), ("OCR", ["ocr"]), ("clip", ["clip_score"]), ("zzzzz", [])],
)
def test_nearest_name(name: str, expected: list[str]) -> None:
    assert nearest(name, ["ocr", "clip_score", "aesthetic"]) == expected


def test_plugin_of_another_distribution_is_listed_and_loaded(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An installed distribution is a folder <name>-<version>.dist-info beside its modules.
    info = tmp_path / "some_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[test.parts]\nfar = some_plugin_of_a_user:far\nbroken = not_there:far\n")
    (tmp_path / "some_plugin_of_a_user.py").write_text('def far():\n    """From far away."""\n')
    parts: Registry = Registry("part", package, "test.parts")
    assert parts.names() == ["broken", "far"]
    assert parts.get("far").__doc__ == "From far away."
    described = {name: line for name, _, line in parts.describe()}
    assert described["far"] == "From far away."
    assert described["broken"].startswith("cannot be imported: No module named")
