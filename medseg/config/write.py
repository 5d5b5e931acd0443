"""A config as YAML text, every key with its comment. `load` of the text gives the config back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from medseg.config.fields import ComponentSpec
from medseg.config.schema import Config
from medseg.config.source import Loader

_COMMENT_COLUMN = 44


def dump(config: Config) -> str:
    """Write a config out in full: defaults included, each key explained by its description."""
    return "\n".join(_section(config, 0)) + "\n"


def _section(model: BaseModel, depth: int, skip: tuple[str, ...] = ()) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        if name in skip:
            continue
        value, comment = getattr(model, name), field.description or ""
        if depth == 0 and isinstance(value, BaseModel) and not isinstance(value, ComponentSpec):
            yield ""
        if isinstance(value, ComponentSpec):
            yield _line(name, depth, "", comment)
            yield from _component(value, depth + 1)
        elif isinstance(value, BaseModel):
            yield _line(name, depth, "", comment)
            yield from _section(value, depth + 1)
        elif isinstance(value, tuple) and value and isinstance(value[0], ComponentSpec):
            yield _line(name, depth, "", comment)
            for item in value:
                yield from _entry(item, depth + 1)
        elif isinstance(value, dict) and value:
            yield _line(name, depth, "", comment)
            yield from (f"{_indent(depth + 1)}{_flow(k)}: {_flow(v)}" for k, v in value.items())
        else:
            yield _line(name, depth, _flow(value), comment)


def _component(spec: ComponentSpec, depth: int) -> Iterator[str]:
    yield from (f"{_indent(depth)}{key}: {_flow(value)}" for key, value in spec.spec().items())
    yield from _section(spec, depth, skip=("name",))


def _entry(spec: ComponentSpec, depth: int) -> Iterator[str]:
    first, *rest = _component(spec, depth + 1)
    yield f"{_indent(depth)}- {first.strip()}"
    yield from rest


def _line(name: str, depth: int, value: str, comment: str) -> str:
    text = f"{_indent(depth)}{name}: {value}".rstrip()
    return f"{text.ljust(_COMMENT_COLUMN)}  # {comment}" if comment else text


def _indent(depth: int) -> str:
    return "  " * depth


def _flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=1 << 30, allow_unicode=True,
        sort_keys=False,
    )  # fmt: skip
    return text.removesuffix("\n").removesuffix("\n...")


class _Dumper(yaml.SafeDumper):
    """Plain values only; floats as short as they read back, tuples as lists, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


# A text is quoted where our own reader or one of YAML 1.1 would take it for something else.
_theirs, _ours = _Dumper.yaml_implicit_resolvers, Loader.yaml_implicit_resolvers
_Dumper.yaml_implicit_resolvers = {
    first: [*_theirs.get(first, ()), *_ours.get(first, ())] for first in (*_theirs, *_ours)
}


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:  # YAML 1.1 readers want the point: 1.0e-07
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = None if value.isprintable() else '"'  # else a line break would stay one
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(list(value)))
