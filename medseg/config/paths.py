"""Which values of a config are paths, and where relative ones start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from medseg import plugins
from medseg.config.fields import ComponentSpec, FilePath
from medseg.config.schema import Config
from medseg.config.source import Where


def anchored(values: Any, base: Path, where: Where = ()) -> Any:
    """The values at a place of a config, the paths among them made absolute."""
    if isinstance(values, dict):
        return {key: anchored(value, base, (*where, key)) for key, value in values.items()}
    if isinstance(values, list):
        return [anchored(value, base, (*where, n)) for n, value in enumerate(values)]
    return _absolute(values, base, where) if isinstance(values, str) and is_path(where) else values


def _absolute(value: str, base: Path, where: Where) -> str:
    if where[0] == "plugins" and not plugins.is_path(value):
        return value  # a module
    try:
        return str((base / Path(value).expanduser()).resolve())
    except RuntimeError:  # ~ of someone who has no home here: a name like any other
        return str((base / value).resolve())


def is_path(where: Where) -> bool:
    """Whether the schema marks the value at a path as a file path."""
    model: type[BaseModel] = Config
    for depth, part in enumerate(where):
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            return False
        inner = next(models(field.annotation), None)
        rest = where[depth + 1 :]
        if inner is None or (
            issubclass(inner, ComponentSpec) and rest[:1] not in [(f,) for f in inner.model_fields]
        ):
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


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models(inner)
