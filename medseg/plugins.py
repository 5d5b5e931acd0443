"""Finding plugins. A plugin is a Python module that registers components when it is imported.

There are three ways in, and no others: the entry-point group `medseg.plugins` of an installed
distribution (medseg's own components come this way too), `plugins:` in the YAML, and `--plugin`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import walk_tb

from medseg.errors import MedsegError, PluginError
from medseg.files import sha256
from medseg.signatures import Declared, files, is_readable, module_file, scan, syntax_problem

GROUP = "medseg.plugins"


def load(references: Iterable[str] = ()) -> None:
    """Import every installed plugin, then the named ones. Safe to call often.

    Args:
        references: Absolute paths of .py files or folders, or names of importable modules.

    Raises:
        PluginError: One of them cannot be found or imported.
    """
    _load_installed()
    for reference in references:
        _load_one(reference)


def declared(references: Iterable[str] = ()) -> tuple[dict[tuple[str, str], Declared], bool]:
    """What the same plugins declare, by (kind, name), read from their source without importing.

    The second value says whether that is all of it: False if some source cannot be read so.
    """
    places = [module_file(point.value) for point in _points()] + [_place(r) for r in references]
    found = [item for place in places if place is not None for item in scan(place)]
    complete = all(place is not None and is_readable(place) for place in places)
    return {(item.kind, item.name): item for item in found}, complete


def is_path(reference: str) -> bool:
    """Whether a plugin reference names a file or folder (by a / or .py) rather than a module."""
    return reference.endswith(".py") or "/" in reference or "\\" in reference


def problem(reference: str) -> str | None:
    """Why a reference leads nowhere, or to something that is no Python; or None."""
    place = _place(reference)
    if place is None:
        return (
            f"plugin {reference!r}: no such module; a file ends in .py, a folder is ./{reference}"
        )
    if not place.exists():
        return f"plugin {reference}: no such {'file' if place.suffix == '.py' else 'folder'}"
    if is_path(reference) and place.suffix != ".py" and not place.is_dir():
        return f"plugin {reference}: give a .py file, a folder or a module"
    if not files(place):
        return f"plugin {reference}: holds no .py file"
    broken = syntax_problem(place)
    return f"plugin {broken}" if broken else None


def provenance(references: Iterable[str] = ()) -> list[dict[str, str]]:
    """Each plugin's reference, file and sha256, as a run records it."""
    places = [(f"{p.name} = {p.value}", module_file(p.value)) for p in _points()]
    places += [(reference, _place(reference)) for reference in references]
    return [
        {"plugin": reference, "file": str(file), "sha256": sha256(file)}
        for reference, place in places
        if place is not None
        for file in files(place)
    ]


def fingerprint(references: Iterable[str]) -> list[str]:
    """The sha256 of each file of the named plugins: what is made with them depends on these."""
    places = [_place(reference) for reference in references]
    return [sha256(file) for place in places if place is not None for file in files(place)]


def _place(reference: str) -> Path | None:
    return Path(reference) if is_path(reference) else module_file(reference)


def _points() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP))


@cache
def _load_installed() -> None:
    for point in _points():
        try:
            point.load()
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {point.name} = {point.value}: {_told(error)}") from error


@cache
def _load_one(reference: str) -> None:
    trouble = problem(reference)
    if trouble:
        raise PluginError(trouble)
    path = Path(reference)
    if not is_path(reference):
        try:
            import_module(reference)
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {reference!r}: {_told(error)}") from error
    elif path.suffix == ".py":
        _import_file(path)
    elif (path / "__init__.py").exists():
        _import_file(path / "__init__.py")
    else:
        for file in files(path):
            _import_file(file)


@cache
def _import_file(path: Path) -> None:
    """Import a file once, under a name of its own, leaving `sys.path` as it is."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    stem = path.parent.name if path.name == "__init__.py" else path.stem
    name = f"medseg_plugin_{stem}_{digest}"
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = spec_from_file_location(name, path, submodule_search_locations=folder)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin {path}: not a Python file")
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"plugin {path}{_line(error, path)}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, MedsegError) else f"{type(error).__name__}: {error}"


def _line(error: BaseException, path: Path) -> str:
    """Which line of a plugin went wrong, as far as it is its own."""
    lines = [line for frame, line in walk_tb(error.__traceback__)
             if frame.f_code.co_filename == str(path)]  # fmt: skip
    return f", line {lines[-1]}" if lines else ""
