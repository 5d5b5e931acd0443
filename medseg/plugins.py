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

from medseg.errors import PluginError
from medseg.files import sha256
from medseg.signatures import Declared, is_readable, module_file, scan

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
    """Whether a plugin reference names a file or folder rather than a module."""
    return reference.endswith(".py") or "/" in reference or "\\" in reference


def problem(reference: str) -> str | None:
    """Why a reference leads nowhere, or None."""
    if is_path(reference):
        path = Path(reference)
        if path.suffix != ".py" and not path.is_dir():
            return f"plugin {reference}: no such folder; give a .py file, a folder or a module"
        return None if path.exists() else f"plugin {reference}: no such file"
    if module_file(reference) is None:
        return f"plugin {reference!r}: no such module; write a path with / or .py for a file"
    return None


def provenance(references: Iterable[str] = ()) -> list[dict[str, str]]:
    """Each plugin's reference, file and sha256, as a run records it."""
    places = [(f"{p.name} = {p.value}", module_file(p.value)) for p in _points()]
    places += [(reference, _place(reference)) for reference in references]
    return [
        {"plugin": reference, "file": str(file), "sha256": sha256(file)}
        for reference, place in places
        if place is not None
        for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])
    ]


def _place(reference: str) -> Path | None:
    return Path(reference) if is_path(reference) else module_file(reference)


def _points() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP))


@cache
def _load_installed() -> None:
    for point in _points():
        try:
            point.load()
        except Exception as error:
            raise PluginError(f"plugin {point.name!r} = {point.value}: {error!r}") from error


@cache
def _load_one(reference: str) -> None:
    trouble = problem(reference)
    if trouble:
        raise PluginError(trouble)
    path = Path(reference)
    if not is_path(reference):
        try:
            import_module(reference)
        except Exception as error:
            raise PluginError(f"plugin {reference!r}: {error!r}") from error
    elif path.suffix == ".py":
        _import_file(path)
    elif (path / "__init__.py").exists():
        _import_file(path / "__init__.py")
    else:
        for file in sorted(path.glob("[!_]*.py")):
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
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"plugin {path}: {error!r}") from error
