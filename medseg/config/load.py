"""From YAML and overrides to a checked `Config`, with every mistake reported at once.

Nothing here imports torch: component options are checked against signatures read from source.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from medseg import plugins
from medseg.config.schema import ComponentSpec, Config, FilePath, Kind
from medseg.config.source import Place, Problem, Source, Where, dotted, parse, read
from medseg.errors import ConfigError, MedsegError
from medseg.registry import REGISTRIES, option_problems, unknown


def load(
    path: str | Path, overrides: Sequence[str] = (), extra_plugins: Sequence[str] = ()
) -> Config:
    """Read, merge and check a run's configuration.

    Relative paths in the file start at the file's folder; those in `overrides` and
    `extra_plugins` at the current one. All are absolute in the result.

    Args:
        path: The YAML file.
        overrides: `key.subkey=value` strings, values in YAML.
        extra_plugins: Further plugin references, as `plugins:` takes them.

    Raises:
        ConfigError: Its text lists every mistake as `file:line:col: path: message` with a caret.
    """
    path = Path(path)
    source = read(path)
    _anchor(source, path.resolve().parent)
    for text in overrides:
        _override(source, text)
    for reference in extra_plugins:
        _add_plugin(source, reference)
    return _checked(source)


def loads(
    text: str, base: str | Path, name: str = "config", references: Sequence[str] | None = None
) -> Config:
    """Like `load`, for YAML text.

    Args:
        text: The YAML.
        base: The folder where its relative paths start.
        name: How messages call it.
        references: Absolute plugin references that take the place of `plugins:` in the text.
    """
    source = parse(text, name)
    if references is not None and isinstance(source.values, dict):
        source.values["plugins"] = list(references)
        for where in [w for w in source.places if w[:1] == ("plugins",)]:
            del source.places[where]
    _anchor(source, Path(base).resolve())
    return _checked(source)


def _checked(source: Source) -> Config:
    problems = list(source.problems)
    if not isinstance(source.values, dict):
        problems.append(Problem(source.place(()), "", "a mapping with name, data, model, ... expected"))
        raise ConfigError("\n".join(map(str, problems)))
    config: Config | None = None
    try:
        config = Config.model_validate_json(json.dumps(source.values))
    except ValidationError as error:
        problems += _schema_problems(source, error)
    problems += _plugin_problems(source)
    if problems:
        problems.sort(key=lambda p: (p.place.file, p.place.line, p.place.column))
        raise ConfigError("\n".join(dict.fromkeys(map(str, problems))))
    assert config is not None
    return config


def _schema_problems(source: Source, error: ValidationError) -> Iterator[Problem]:
    """One problem a place: the branches of a union that all failed are told together."""
    messages: dict[tuple[Where, bool], list[str]] = {}
    for item in error.errors():
        is_key = item["type"] == "extra_forbidden"
        where, message = _told(source, item["loc"], item)
        messages.setdefault((where, is_key), []).append(message)
    for (where, is_key), told in messages.items():
        text = "; or ".join(dict.fromkeys(told))
        yield Problem(source.place(where, key=is_key), dotted(where), text)


def _told(source: Source, loc: Where, item: Any) -> tuple[Where, str]:
    known = source.known(loc)
    if item["type"] == "extra_forbidden":
        return known, unknown("key", str(loc[-1]), _field_names(loc[:-1]))
    if item["type"] == "missing":
        return known, f"needs {'more values' if isinstance(loc[-1], int) else f'the key {loc[-1]!r}'}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    shown = repr(item["input"])
    if item["type"] == "value_error" or len(shown) > 60:
        return known, message
    return known, f"{message}, got {shown}"


def _field_names(where: Where) -> list[str]:
    model: Any = Config
    for part in where:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _plugin_problems(source: Source) -> Iterator[Problem]:
    """Plugins that lead nowhere, unknown components, and options that a component does not take."""
    references = []
    listed = source.values.get("plugins")
    for n, reference in enumerate(listed if isinstance(listed, list) else []):
        trouble = plugins.problem(reference) if isinstance(reference, str) else None
        if trouble:
            yield Problem(source.place(("plugins", n)), f"plugins[{n}]", trouble)
        elif isinstance(reference, str):
            references.append(reference)
    declared, complete = plugins.declared(references)
    for where, kind, value in _components(Config, source.values, ()):
        spec = {"name": value} if isinstance(value, str) else value
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            continue  # the schema has said so
        if (kind, spec["name"]) in declared:
            signature = declared[kind, spec["name"]].signature
        else:
            try:
                signature = _imported(kind, spec["name"], declared, None if complete else references)
            except MedsegError as error:
                at = source.known((*where, "name"))
                yield Problem(source.place(at), dotted(at), str(error))
                continue
        yield from _option_problems(source, where, kind, spec, signature)


def _imported(
    kind: str,
    name: str,
    declared: Iterable[tuple[str, str]],
    references: Sequence[str] | None,
) -> inspect.Signature:
    """The signature of a component that no source shows: its plugins are imported to know.

    With `references` None every source was read whole, so that the component cannot exist.
    """
    known = {other for of, other in declared if of == kind}
    if references is not None:
        plugins.load(references)
        known |= set(REGISTRIES[kind].names())
    if references is None or name not in known:
        raise ConfigError(unknown(kind, name, known))
    return REGISTRIES[kind].signature(name)


def _option_problems(
    source: Source, where: Where, kind: str, spec: Mapping[str, Any], signature: inspect.Signature
) -> Iterator[Problem]:
    what, options = f"{kind} {spec['name']!r}", {k: v for k, v in spec.items() if k != "name"}
    for inner, message in option_problems(what, signature, options, REGISTRIES[kind].supplies):
        place = source.known((*where, *inner))
        yield Problem(source.place(place, key=len(inner) == 1), dotted(place), message)


def _components(
    model: type[BaseModel], values: Any, where: Where
) -> Iterator[tuple[Where, str, Any]]:
    """Every component in the values, with its path and kind, as the schema marks them."""
    if not isinstance(values, dict):
        return
    for name, field in model.model_fields.items():
        value, here = values.get(name), (*where, name)
        kind = next(_kinds([*field.metadata, field.annotation]), None)
        if value is None:
            continue
        if kind is None:
            for inner in _models(field.annotation):
                yield from _components(inner, value, here)
        elif isinstance(value, list):
            yield from (((*here, n), kind, item) for n, item in enumerate(value))
        else:
            yield here, kind, value


def _kinds(items: Iterable[Any]) -> Iterator[str]:
    for item in items:
        if isinstance(item, Kind):
            yield item.kind
        yield from _kinds([*getattr(item, "__metadata__", ()), *get_args(item)])


def _anchor(source: Source, base: Path) -> None:
    """Make the paths of the file absolute."""
    for where in list(source.places):
        if where and _is_path(where):
            holder = source.values
            for part in where[:-1]:
                holder = holder[part]
            holder[where[-1]] = _absolute(holder[where[-1]], base, where)


def _absolute(value: Any, base: Path, where: Where) -> Any:
    if not isinstance(value, str):
        return value
    if where[0] == "plugins" and not plugins.is_path(value) and not (base / value).exists():
        return value  # a module
    return str((base / Path(value).expanduser()).resolve())


def _is_path(where: Where) -> bool:
    """Whether the schema marks the value at a path as a file path."""
    model: type[BaseModel] = Config
    for depth, part in enumerate(where):
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            return False
        inner = next(_models(field.annotation), None)
        if inner is None or issubclass(inner, ComponentSpec):
            rest = where[depth + 1 :]
            is_list = get_args(field.annotation)[-1:] == (...,)
            return _marks_path([*field.metadata, field.annotation]) and len(rest) == int(is_list)
        model = inner
    return False


def _marks_path(items: Iterable[Any]) -> bool:
    return any(
        isinstance(item, FilePath)
        or _marks_path([*getattr(item, "__metadata__", ()), *get_args(item)])
        for item in items
    )


def _override(source: Source, text: str) -> None:
    """Merge one `key.subkey=value` into the values, remembering where it came from."""
    key, equals, value_text = text.partition("=")
    file = "command line"
    parts: Where = tuple(int(p) if p.isdigit() else p for p in key.strip().split("."))
    if not equals or not key.strip():
        place = Place(file, 1, 1, text)
        source.problems.append(Problem(place, "", "an override has the form key.subkey=value"))
        return
    given = parse(value_text, file)
    holder = source.values if isinstance(source.values, dict) else {}
    source.values = holder
    for depth, part in enumerate(parts[:-1]):
        holder = _step(holder, part, parts[depth + 1])
    for where in [w for w in source.places if w[: len(parts)] == parts]:
        del source.places[where]
    indent = len(key) + 1
    for inner, place in given.places.items():
        where = (*parts, *inner)
        source.places[where] = Place(file, 1, place.column + indent, text)
    for depth in range(1, len(parts)):
        source.places.setdefault(parts[:depth], Place(file, 1, 1, text))
    source.keys[parts] = Place(file, 1, 1, text)
    value = _absolute(given.values, Path.cwd(), parts) if _is_path(parts) else given.values
    try:
        holder[parts[-1]] = value
    except (IndexError, TypeError):
        source.problems.append(Problem(Place(file, 1, 1, text), key, "there is no such entry"))


def _step(holder: Any, part: str | int, following: str | int) -> Any:
    """One level down, making the mapping on the way; a component given by name becomes a mapping."""
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


def _add_plugin(source: Source, reference: str) -> None:
    if not isinstance(source.values, dict):
        return
    listed = source.values.setdefault("plugins", [])
    if isinstance(listed, list):
        where: Where = ("plugins", len(listed))
        source.places[where] = Place("command line", 1, 1, f"--plugin {reference}")
        listed.append(_absolute(reference, Path.cwd(), where))
