"""A config as YAML text, every key with its comment. `load` of the text gives the config back."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from medseg.config.fields import ComponentSpec
from medseg.config.schema import Config
from medseg.config.source import Loader

_COMMENT_COLUMN = 44
_WIDTH = 100  # of a comment above a key


def dump(config: Config, why: Mapping[str, str] | None = None) -> str:
    """Write a config out in full: defaults included, each key explained by its description.

    Args:
        config: What to write.
        why: Dotted path of a key, as `train.patch`: why it has its value, for a comment above it.

    Raises:
        ValueError: A path of `why` is none of the config's keys.
    """
    return _Writer(why or {}).text(config)


class _Writer:
    """The lines of one config.

    Args:
        why: Dotted path of a key: the comment above it.
    """

    def __init__(self, why: Mapping[str, str]) -> None:
        self._why = dict(why)

    def text(self, config: Config) -> str:
        lines = list(self._section(config, ()))
        if self._why:
            raise ValueError(f"no key {', '.join(self._why)} in the config to explain")
        return "\n".join(lines) + "\n"

    def _section(
        self, model: BaseModel, where: tuple[str, ...], skip: tuple[str, ...] = ()
    ) -> Iterator[str]:
        for name, field in type(model).model_fields.items():
            if name in skip:
                continue
            value = getattr(model, name)
            if not where and isinstance(value, BaseModel) and not isinstance(value, ComponentSpec):
                yield ""
            yield from self._field((*where, name), value, field.description or "")

    def _field(self, where: tuple[str, ...], value: Any, comment: str) -> Iterator[str]:
        yield from self._above(where)
        if isinstance(value, ComponentSpec):
            yield _line(where, "", comment)
            yield from self._component(value, where)
        elif isinstance(value, BaseModel):
            yield _line(where, "", comment)
            yield from self._section(value, where)
        elif isinstance(value, tuple) and value and isinstance(value[0], ComponentSpec):
            yield _line(where, "", comment)
            for number, item in enumerate(value):
                yield from self._entry(item, (*where, str(number)))
        elif isinstance(value, dict) and value:
            yield _line(where, "", comment)
            indent = _indent(where) + "  "
            yield from (f"{indent}{_flow(k)}: {_flow(v)}" for k, v in value.items())
        else:
            yield _line(where, _flow(value), comment)

    def _component(self, spec: ComponentSpec, where: tuple[str, ...]) -> Iterator[str]:
        for key, value in spec.spec().items():
            yield from self._above((*where, key))
            yield f"{_indent((*where, key))}{key}: {_flow(value)}"
        yield from self._section(spec, where, skip=("name",))

    def _entry(self, spec: ComponentSpec, where: tuple[str, ...]) -> Iterator[str]:
        first, *rest = self._component(spec, where)
        yield f"{_indent(where)}- {first.strip()}"
        yield from rest

    def _above(self, where: tuple[str, ...]) -> Iterator[str]:
        told = "".join(c if c.isprintable() else " " for c in self._why.pop(".".join(where), ""))
        indent = f"{_indent(where)}# "
        yield from textwrap.wrap(
            told, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False
        )


def _line(where: tuple[str, ...], value: str, comment: str) -> str:
    text = f"{_indent(where)}{where[-1]}: {value}".rstrip()
    return f"{text.ljust(_COMMENT_COLUMN)}  # {comment}" if comment else text


def _indent(where: tuple[str, ...]) -> str:
    return "  " * (len(where) - 1)


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
