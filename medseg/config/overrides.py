"""Settings on the command line: `train.lr=1e-3` and `--plugin`, merged into what a file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.config.paths import anchored
from medseg.config.source import Place, Problem, Source, Where, dotted, parse

_FILE = "command line"


def override(source: Source, text: str) -> None:
    """Merge one `key.subkey=value` into the values, remembering where it came from."""
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        problem = "an override has the form key.subkey=value"
        source.problems.append(Problem(Place(_FILE, 1, 1, text), "", problem))
        return
    where: Where = ()
    holder, place = source.values, Place(_FILE, 1, 1, text)
    for part in parts:
        if where:
            holder = _inside(holder, where[-1])
            source.places.setdefault(where, place)
            place = Place(_FILE, 1, place.column + len(str(where[-1])) + 1, text)
        entry = _entry(holder, part)
        where = (*where, part if entry is None else entry)
        if entry is None:
            problem = "there is no such entry; give the whole list or section instead"
            source.problems.append(Problem(place, dotted(where), problem))
            return
    given = parse(value_text, _FILE)
    holder[where[-1]] = anchored(given.values, Path.cwd(), where)
    _note(source, where, given, Place(_FILE, 1, len(key) + 2, text))
    source.keys[where] = place


def add_plugin(source: Source, reference: str) -> None:
    """Add one plugin reference to those of the file."""
    listed = source.values.setdefault("plugins", [])
    if isinstance(listed, list):
        where: Where = ("plugins", len(listed))
        source.places[where] = Place(_FILE, 1, len("--plugin ") + 1, f"--plugin {reference}")
        listed.append(anchored(reference, Path.cwd(), where))


def _entry(holder: Any, part: str) -> str | int | None:
    """The key or index that a part of a dotted path stands for, if the holder can have it."""
    if isinstance(holder, dict):
        return part
    if isinstance(holder, list) and part in map(str, range(len(holder))):
        return int(part)
    return None


def _inside(holder: Any, entry: str | int) -> Any:
    """One level down, made where it is missing; a component given by name becomes a mapping."""
    inner = holder.get(entry) if isinstance(holder, dict) else holder[entry]
    if inner is None or isinstance(inner, str):
        holder[entry] = inner = {} if inner is None else {"name": inner}
    return inner


def _note(source: Source, where: Where, given: Source, start: Place) -> None:
    """Forget the places of what was replaced, and note those of what was given."""

    def moved(place: Place) -> Place:
        return Place(_FILE, 1, place.column + start.column - 1, start.text)

    for ours, theirs in ((source.places, given.places), (source.keys, given.keys)):
        for old in [w for w in ours if w[: len(where)] == where]:
            del ours[old]
        ours.update({(*where, *inner): moved(place) for inner, place in theirs.items()})
    for problem in given.problems:
        dot = "." if problem.where and not problem.where.startswith("[") else ""
        told = f"{dotted(where)}{dot}{problem.where}"
        source.problems.append(Problem(moved(problem.place), told, problem.message))
