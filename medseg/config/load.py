"""From YAML and overrides to a checked `Config`, with every mistake reported at once.

Nothing here imports torch: component options are checked against signatures read from source.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from medseg import plugins
from medseg.config.fields import Kind
from medseg.config.overrides import add_plugin, override
from medseg.config.paths import anchored, models
from medseg.config.schema import Config
from medseg.config.source import Problem, Source, Where, dotted, parse, read
from medseg.errors import ConfigError, MedsegError
from medseg.registry import REGISTRIES, explain, option_problems, unknown

_OF_TRAINING = ("loss", "augment", "train")  # sections whose components prediction never builds


def load(path: str | Path, overrides: Sequence[str] = (), plugin: Sequence[str] = ()) -> Config:
    """Read, merge and check a run's configuration.

    Relative paths in the file start at the file's folder; those in `overrides` and `plugin` at the
    current one. All are absolute in the result.

    Args:
        path: The YAML file.
        overrides: `key.subkey=value` strings, values in YAML.
        plugin: Further plugin references, as `plugins:` takes them.

    Raises:
        ConfigError: Its text lists every mistake as `file:line:col: path: message` with a caret.
    """
    path = Path(path)
    return _merged(read(path), path.resolve().parent, overrides, plugin)


def loads(
    text: str,
    base: str | Path,
    overrides: Sequence[str] = (),
    plugin: Sequence[str] = (),
    *,
    name: str = "config",
    to_train: bool = True,
) -> Config:
    """Like `load`, for YAML text whose relative paths start at `base`.

    Args:
        text: The YAML.
        base: A folder.
        overrides: As of `load`.
        plugin: As of `load`.
        name: For messages.
        to_train: Whether what serves training alone has to be known: a plugin with a loss, a
            sampler or an augmentation need not be where a model predicts.
    """
    source = parse(text, name)
    return _merged(source, Path(base).resolve(), overrides, plugin, to_train=to_train)


def _merged(
    source: Source,
    base: Path,
    overrides: Sequence[str],
    references: Sequence[str],
    *,
    to_train: bool = True,
) -> Config:
    if not isinstance(source.values, dict):
        expected = Problem(source.place(()), "", "a mapping with name, data, model, ... expected")
        raise ConfigError("\n".join(map(str, source.problems or [expected])))
    source.values = anchored(source.values, base)
    for text in overrides:
        override(source, text)
    for reference in references:
        add_plugin(source, reference)
    return _checked(source, to_train)


def _checked(source: Source, to_train: bool) -> Config:
    problems = list(source.problems)
    config: Config | None = None
    try:
        config = Config.model_validate_json(json.dumps(source.values))
    except ValidationError as error:
        problems += _schema_problems(source, error)
    problems += _plugin_problems(source, () if to_train else _OF_TRAINING)
    if problems:
        problems.sort(key=lambda p: (p.place.file, p.place.line, p.place.column))
        raise ConfigError("\n".join(dict.fromkeys(map(str, problems))))
    assert config is not None
    return config


def _schema_problems(source: Source, error: ValidationError) -> Iterator[Problem]:
    """One problem a place: the branches of a union that all failed are told together."""
    messages: dict[tuple[Where, str], list[str]] = {}
    for item in error.errors():
        where, message = _told(source, item["loc"], item)
        is_branch = not message.startswith(("unknown key", "needs the key"))
        if not (is_branch and _holds_unreadable(source, where)):
            messages.setdefault((where, "" if is_branch else message), []).append(message)
    for (where, whole), told in messages.items():
        text = "; or ".join(dict.fromkeys(told))
        is_key = whole.startswith("unknown")
        yield Problem(source.place(where, key=is_key), dotted(where), text)


def _holds_unreadable(source: Source, where: Where) -> bool:
    """Whether the text itself was wrong here or inside: what follows from that is not told."""
    here = dotted(where)
    return any(p.where == here or p.where.startswith((f"{here}.", f"{here}["))
               for p in source.problems)  # fmt: skip


def _told(source: Source, loc: Where, item: Any) -> tuple[Where, str]:
    known = source.known(loc)
    if item["type"] == "extra_forbidden":
        return known, unknown("key", str(loc[-1]), _field_names(loc[:-1]))
    if item["type"] == "missing":
        is_list = isinstance(loc[-1], int)
        return known, f"needs {'more values' if is_list else f'the key {loc[-1]!r}'}"
    return known, explain(item)


def _field_names(where: Where) -> list[str]:
    model: Any = Config
    for part in where:
        if isinstance(part, str) and part in model.model_fields:
            model = next(models(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _plugin_problems(source: Source, unasked: Collection[str]) -> Iterator[Problem]:
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
    for where, kind, value, fields in _components(Config, source.values, ()):
        if where[0] in unasked:
            continue
        spec = {"name": value} if isinstance(value, str) else value
        if isinstance(spec, dict):
            spec = {key: item for key, item in spec.items() if key == "name" or key not in fields}
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            continue  # the schema has said so
        if (kind, spec["name"]) in declared:
            signature = declared[kind, spec["name"]].signature
        else:
            try:
                signature = _imported(
                    kind, spec["name"], declared, None if complete else references
                )
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
    supplies = REGISTRIES[kind].supplies
    for inner, message in option_problems(what, signature, options, supplies):
        place = source.known((*where, *inner))
        is_key = inner[:1] != () and (inner[0] in supplies or inner[0] not in signature.parameters)
        if is_key or not _holds_unreadable(source, place):
            yield Problem(source.place(place, key=is_key), dotted(place), message)


def _components(
    model: type[BaseModel], values: Any, where: Where
) -> Iterator[tuple[Where, str, Any, Collection[str]]]:
    """Every component in the values, as the schema marks them.

    Each with its path, its kind, and the keys in it that are the schema's and no option.
    """
    if not isinstance(values, dict):
        return
    for name, field in model.model_fields.items():
        value, here = values.get(name), (*where, name)
        kind = next(_kinds([*field.metadata, field.annotation]), None)
        if value is None:
            continue
        if kind is None:
            for inner in models(field.annotation):
                yield from _components(inner, value, here)
            continue
        fields = next(models(field.annotation)).model_fields
        if isinstance(value, list):
            yield from (((*here, n), kind, item, fields) for n, item in enumerate(value))
        else:
            yield here, kind, value, fields


def _kinds(items: Iterable[Any]) -> Iterator[str]:
    for item in items:
        if isinstance(item, Kind):
            yield item.kind
        yield from _kinds([*getattr(item, "__metadata__", ()), *get_args(item)])
