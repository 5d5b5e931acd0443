"""Named components: how `name: vgg` in a YAML file becomes a Python object.

A component is a callable whose signature names all its options with types and defaults, so that
every option a user writes can be checked before the call. There is one `Registry` per kind.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from medseg.errors import ConfigError, PluginError

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Components of one kind, by name.

    Args:
        kind: The word used in messages, e.g. "encoder".
        supplies: Arguments that medseg gives and no user may set, e.g. `("in_channels",)`. A
            component takes those it names.
    """

    def __init__(self, kind: str, supplies: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.supplies = supplies
        self._components: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds a component under `name` and leaves it unchanged.

        Raises:
            PluginError: The name is taken, or options hide in *args or **kwargs.
        """

        def add(component: T) -> T:
            here, there = _home(component), _home(self._components.get(name, component))
            if here != there:  # the same home again is a re-run notebook cell
                raise PluginError(f"{self.kind} {name!r} is defined twice: {there} and {here}")
            for parameter in inspect.signature(component).parameters.values():
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    raise PluginError(
                        f"{self.kind} {name!r} in {here} takes {parameter}: name its options"
                    )
            self._components[name] = component
            return component

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._components

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._components)

    def get(self, name: str) -> Callable[..., Any]:
        """Look a component up.

        Raises:
            ConfigError: No component has this name.
        """
        if name not in self._components:
            raise ConfigError(unknown(self.kind, name, self._components), ("name",))
        return self._components[name]

    def signature(self, name: str) -> inspect.Signature:
        """A component's signature, annotations resolved to types."""
        return resolved_signature(self.get(name))

    def bind(self, spec: Mapping[str, Any], **given: Any) -> partial[Any]:
        """Check a component's options and return the call, ready but not made.

        Args:
            spec: One mapping of the config, e.g. `{"name": "vgg", "widths": [16, 32]}`.
            given: Values for what this registry supplies.

        Raises:
            ConfigError: The name or an option is unknown, has the wrong type or is missing.
        """
        options = dict(spec)
        name = options.pop("name", "")
        component = self.get(name)
        signature = self.signature(name)
        problems = option_problems(f"{self.kind} {name!r}", signature, options, self.supplies)
        if problems:
            raise ConfigError("; ".join(message for _, message in problems), problems[0][0])
        model = options_model(name, signature, self.supplies)
        checked = model.model_validate_json(json.dumps(options))
        values = {key: getattr(checked, key) for key in options}
        return partial(
            component, **values, **{k: v for k, v in given.items() if k in signature.parameters}
        )

    def build(self, spec: Mapping[str, Any], **given: Any) -> Any:
        """`bind`, then make the call."""
        return self.bind(spec, **given)()


def resolved_signature(component: Callable[..., Any]) -> inspect.Signature:
    """A callable's signature with string annotations turned into types, where that is possible."""
    signature = inspect.signature(component)
    try:
        hints = get_type_hints(component.__init__ if inspect.isclass(component) else component)
    except (NameError, TypeError):
        hints = {}
    return signature.replace(
        parameters=[
            p.replace(annotation=hints.get(p.name, Any)) for p in signature.parameters.values()
        ]
    )


def options_model(
    name: str, signature: inspect.Signature, supplies: tuple[str, ...]
) -> type[BaseModel]:
    """The schema of a component's options: a strict pydantic model made from its signature."""
    fields: dict[str, Any] = {
        p.name: (p.annotation, ... if p.default is p.empty else p.default)
        for p in signature.parameters.values()
        if p.name not in supplies
    }
    forbid = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )
    return create_model(name or "component", __config__=forbid, **fields)


def option_problems(
    what: str,
    signature: inspect.Signature,
    options: Mapping[str, Any],
    supplies: tuple[str, ...],
) -> list[tuple[tuple[str | int, ...], str]]:
    """All that is wrong with a component's options, as (path within them, message)."""
    model = options_model(what, signature, supplies)
    try:
        # JSON mode: strict for scalars, yet a YAML list may become a tuple.
        model.model_validate_json(json.dumps(options))
    except ValidationError as error:
        return [_problem(what, model, item) for item in error.errors()]
    return []


def unknown(kind: str, wrong: str, known: Iterable[str]) -> str:
    """The message for an unknown name: the nearest known one, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(wrong, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {wrong!r}; {hint}(known: {', '.join(known) or 'none'})"


def _problem(
    what: str, model: type[BaseModel], item: Mapping[str, Any]
) -> tuple[tuple[str | int, ...], str]:
    loc = item["loc"]
    if item["type"] == "extra_forbidden":
        return loc, f"{what}: " + unknown("option", str(loc[0]), model.model_fields)
    if item["type"] == "missing" and len(loc) == 1:
        return (), f"{what} needs the option {loc[0]!r}"
    return loc, f"{what}: {item['msg'].lower()}, got {item['input']!r}"


def _home(component: Callable[..., Any]) -> str:
    return f"{component.__module__}.{component.__qualname__}"


ENCODERS = Registry("encoder", supplies=("in_channels",))
DECODERS = Registry("decoder", supplies=("channels", "strides"))
NETWORKS = Registry("network", supplies=("in_channels", "classes"))
LOSSES = Registry("loss", supplies=("classes",))
TRANSFORMS = Registry("transform")
POSTPROCESSORS = Registry("postprocessor", supplies=("classes",))

REGISTRIES = {
    registry.kind: registry
    for registry in (ENCODERS, DECODERS, NETWORKS, LOSSES, TRANSFORMS, POSTPROCESSORS)
}
