"""Names for pluggable parts: decorator in-tree, entry point out of tree, `module:object` in a configuration.

A registry finds its own in-tree entries: on first use it imports every module of its package, so that adding one is
adding one file. Modules of such a package must therefore be cheap and harmless to import. A duplicate name is an error,
and an unknown name is answered with the nearest ones.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Registered = TypeVar("Registered")


class UnknownNameError(KeyError):
    """A name that no registry entry has; `str()` gives the sentence itself, without KeyError's quotes."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UserCodeError(ImportError):
    """Code from outside this package that cannot be imported; one sentence with the file, the line and the error."""


def nearest(name: str, candidates: Iterable[str]) -> list[str]:
    """Up to three candidates that the name may have been meant for, best first; empty when none is close."""
    by_folded: dict[str, str] = {}
    for candidate in candidates:
        by_folded.setdefault(candidate.casefold(), candidate)
    folded = name.casefold()
    close = difflib.get_close_matches(folded, by_folded, n=3, cutoff=0.55)
    if len(folded) >= 3:
        close += [known for known in by_folded if known not in close and (folded in known or known in folded)]
    return [by_folded[known] for known in close[:3]]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence that answers an unknown name: what it is, what is near, what there is."""
    known = sorted(known)
    close = nearest(name, known)
    hint = f" nearest: {', '.join(close)};" if close else ""
    return f'unknown {kind} "{name}";{hint} known: {", ".join(known) or "none"}'


class Registry(Generic[T]):
    """Entries of one kind by name.

    Args:
        kind: what an entry is, in words for error messages ("reward").
        package: package whose modules register themselves; all of them are imported on first use.
        entry_point_group: group under which other distributions offer entries.
    """

    def __init__(self, kind: str, package: str, entry_point_group: str) -> None:
        self.kind = kind
        self.package = package
        self.entry_point_group = entry_point_group
        self._entries: dict[str, T] = {}
        self._plugins: dict[str, EntryPoint] = {}
        self._discovered = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator that files a class or function under `name`.

        Raises: ValueError if the name is taken, naming both places. (The same definition may come again: a module that
        failed half-way is imported again at the next use.)
        """
        if not name or ":" in name:
            raise ValueError(f'a {self.kind} name must be non-empty and free of ":", got "{name}"')

        def file_under(entry: Registered) -> Registered:
            with self._lock:
                known = self._entries.get(name)
                if known is not None and place(known) != place(entry):
                    raise ValueError(f'{self.kind} "{name}" is defined twice: {place(known)} and {place(entry)}')
                self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return file_under

    def get(self, name: str) -> T:
        """The entry of that name, or the object that `module:object` (or `file.py:object`) points to.

        Modules are looked for in the working directory first, so that a researcher's own file needs no installing.

        Raises: UnknownNameError with the nearest names; UserCodeError if a module is there and cannot be imported.
        """
        if ":" in name:
            return self._import_object(name)
        with self._lock:
            self._discover()
            if name in self._entries:
                return self._entries[name]
            if name in self._plugins:
                with self._importing(name):
                    entry: T = self._plugins[name].load()
                self._entries[name] = entry
                return entry
            raise UnknownNameError(unknown_name(self.kind, name, self.names()))

    def names(self) -> list[str]:
        """All names, sorted; offers of other distributions are listed without importing them."""
        with self._lock:
            self._discover()
            return sorted({*self._entries, *self._plugins})

    def describe(self) -> list[tuple[str, str, str]]:
        """(name, file, first docstring line) of every entry, by name; a plug-in that cannot be imported says so."""
        return [self._describe_one(name) for name in self.names()]

    def _describe_one(self, name: str) -> tuple[str, str, str]:
        try:
            entry = self.get(name)
        except UserCodeError as error:
            return name, self._plugins[name].value, f"cannot be imported: {error.__cause__}"
        return name, place(entry).rpartition(":")[0], (inspect.getdoc(entry) or "").partition("\n")[0]

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # set first: a module may look at the registry while it is being imported
        try:
            package = importlib.import_module(self.package)
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
                importlib.import_module(f"{self.package}.{module.name}")
            self._find_plugins()
        except BaseException:
            self._discovered = False
            raise

    def _find_plugins(self) -> None:
        for plugin in entry_points(group=self.entry_point_group):
            other = self._plugins.get(plugin.name)
            if other is not None and other.value != plugin.value:
                raise ValueError(f'{self.kind} "{plugin.name}" is defined twice: {other.value} and {plugin.value}')
            if plugin.name in self._entries:
                inside = place(self._entries[plugin.name])
                raise ValueError(f'{self.kind} "{plugin.name}" is defined twice: {inside} and {plugin.value}')
            self._plugins[plugin.name] = plugin

    def _import_object(self, reference: str) -> T:
        module_name, _, attribute = reference.rpartition(":")
        module = self._import_file(reference) if module_name.endswith(".py") else self._import_module(reference)
        found: Any = module
        for part in attribute.split("."):
            if not hasattr(found, part):
                public = [name for name in vars(found) if not name.startswith("_")]
                raise UnknownNameError(unknown_name(f"{self.kind} in {module_name}", attribute, public))
            found = getattr(found, part)
        return found

    def _import_file(self, reference: str) -> ModuleType:
        path = Path(reference.rpartition(":")[0])
        if not path.is_file():
            raise UnknownNameError(f'{self.kind} "{reference}": there is no file {path}')
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise UnknownNameError(f'{self.kind} "{reference}": {path} is not a Python file')
        module = importlib.util.module_from_spec(spec)
        with self._importing(reference):
            spec.loader.exec_module(module)
        return module

    def _import_module(self, reference: str) -> ModuleType:
        module_name = reference.rpartition(":")[0]
        if not all(part.isidentifier() for part in module_name.split(".")):
            raise UnknownNameError(f'{self.kind} "{reference}": "{module_name}" is not a module name')
        here = str(Path.cwd())
        sys.path.insert(0, here)
        try:
            importlib.invalidate_caches()
            with self._importing(reference):
                return importlib.import_module(module_name)
        except UserCodeError as error:
            cause = error.__cause__
            missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
            if missing is not None and (module_name == missing or module_name.startswith(missing + ".")):
                reason = f'{self.kind} "{reference}": there is no module "{missing}" here ({here}) or installed'
                raise UnknownNameError(reason) from cause
            raise
        finally:
            sys.path.remove(here)

    @contextmanager
    def _importing(self, name: str) -> Iterator[None]:
        """What somebody else's module raises or exits with while it is imported, which may be anything, as UserCodeError."""
        try:
            yield
        except (Exception, SystemExit) as error:
            reason = f"cannot be imported: {origin(error, name)}; correct it or install what it needs"
            raise UserCodeError(f'{self.kind} "{name}" {reason}') from error


def place(entry: object) -> str:
    """`file:line` where an entry is defined, or its module and name when there is no source."""
    target: Any = inspect.unwrap(entry) if callable(entry) else entry
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', repr(target))}"


def origin(error: BaseException, fallback: str) -> str:
    """`file:line: Type: message` of an error out of somebody else's code: the first line there that led to it.

    Args:
        error: caught by code of this package.
        fallback: what stands for `file:line` of an error that no line of theirs led to.
    """
    if isinstance(error, SyntaxError) and error.filename:  # str() of it repeats the place
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _IMPORTING
    ]
    return f"{frames[0] if frames else fallback}: {type(error).__name__}: {error}"


_IMPORTING = {"xomni_rl", "importlib", "_frozen_importlib", "_frozen_importlib_external"}
"""Packages whose lines stand above somebody else's in the traceback of their import."""
