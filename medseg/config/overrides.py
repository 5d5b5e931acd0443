"""Settings on the command line: `train.lr=1e-3` and `--plugin`, merged into what a file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.config.paths import absolute, is_path
from medseg.config.source import Place, Problem, Source, Where, parse

_FILE = "command line"


def override(source: Source, text: str) -> None:
    """Merge one `key.subkey=value` into the values, remembering where it came from."""
    key, equals, value_text = text.partition("=")
    parts: Where = tuple(int(p) if p.isdigit() else p for p in key.strip().split("."))
    if not equals or not key.strip():
        place = Place(_FILE, 1, 1, text)
        source.problems.append(Problem(place, "", "an override has the form key.subkey=value"))
        return
    given = parse(value_text, _FILE)
    holder = source.values if isinstance(source.values, dict) else {}
    source.values = holder
    for depth, part in enumerate(parts[:-1]):
        holder = _step(holder, part, parts[depth + 1])
    for where in [w for w in source.places if w[: len(parts)] == parts]:
        del source.places[where]
    indent = len(key) + 1
    for inner, place in given.places.items():
        where = (*parts, *inner)
        source.places[where] = Place(_FILE, 1, place.column + indent, text)
    for depth in range(1, len(parts)):
        source.places.setdefault(parts[:depth], Place(_FILE, 1, 1, text))
    source.keys[parts] = Place(_FILE, 1, 1, text)
    value = absolute(given.values, Path.cwd(), parts) if is_path(parts) else given.values
    try:
        holder[parts[-1]] = value
    except (IndexError, TypeError):
        source.problems.append(Problem(Place(_FILE, 1, 1, text), key, "there is no such entry"))


def _step(holder: Any, part: str | int, following: str | int) -> Any:
    """One level down, made where it is missing; a component given by name becomes a mapping."""
    if isinstance(holder, list) and isinstance(part, int) and part < len(holder):
        return holder[part]
    if not isinstance(holder, dict):
        return {}
    inner = holder.get(str(part))
    if isinstance(inner, str) and isinstance(following, str):
        holder[str(part)] = {"name": inner}
    elif not isinstance(inner, dict | list):
        holder[str(part)] = {}
    return holder[str(part)]


def add_plugin(source: Source, reference: str) -> None:
    """Add one plugin reference to those of the file."""
    if not isinstance(source.values, dict):
        return
    listed = source.values.setdefault("plugins", [])
    if isinstance(listed, list):
        where: Where = ("plugins", len(listed))
        source.places[where] = Place(_FILE, 1, 1, f"--plugin {reference}")
        listed.append(absolute(reference, Path.cwd(), where))
