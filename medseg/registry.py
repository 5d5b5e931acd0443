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
from typing import Any, NotRequired, Required, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from medseg.errors import ConfigError, PluginError

T = TypeVar("T", bound=Callable[..., Any])
_MANY, _NEAREST = 24, 5  # names of one kind that are still told in full; else so many


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
        self.presets: dict[str, str] = {}
        self._components: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds a component under `name` and leaves it unchanged.

        Raises:
            PluginError: The name is taken, or an option cannot be given by its name.
        """

        def add(component: T) -> T:
            self._add(name, component)
            return component

        return add

    def preset(self, name: str, of: str, **options: Any) -> None:
        """Give a component a further name, under which some options have other defaults.

        Args:
            name: The further name.
            of: The component, registered before.
            options: The other defaults: plain values, as a YAML file could hold them. Written as
                literals, they can be read from the source.

        Raises:
            PluginError: The name is taken, or the component has no such option.
        """
        try:
            self.bind({"name": of, **options})
        except ConfigError as error:
            raise PluginError(f"preset {name!r}: {error}") from error
        self._add(name, partial(self.get(of), **options))
        self.presets[name] = of

    def _add(self, name: str, component: Callable[..., Any]) -> None:
        here, there = _home(component), _home(self._components.get(name, component))
        if here != there:  # the same home again is a re-run notebook cell
            raise PluginError(f"{self.kind} {name!r} is defined twice: {there} and {here}")
        for parameter in inspect.signature(component).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise PluginError(
                    f"{self.kind} {name!r} in {here} takes {parameter}: name its options"
                )
            if parameter.name == "name":
                raise PluginError(
                    f"{self.kind} {name!r} in {here} has an option 'name', which says which "
                    "component is meant: call it otherwise"
                )
        self._components[name] = component

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
        values = _schema(signature, self.supplies).validate_json(json.dumps(options))
        return partial(
            component, **values, **{k: v for k, v in given.items() if k in signature.parameters}
        )

    def build(self, spec: Mapping[str, Any], **given: Any) -> Any:
        """`bind`, then make the call.

        Raises:
            ConfigError: As `bind`; or the component refuses a value (its ValueError).
        """
        call = self.bind(spec, **given)
        try:
            return call()
        except ValueError as error:
            raise ConfigError(f"{self.kind} {spec['name']!r}: {error}") from error


def resolved_signature(component: Callable[..., Any]) -> inspect.Signature:
    """A callable's signature with string annotations turned into types, where that is possible."""
    signature = inspect.signature(component)
    component = component.func if isinstance(component, partial) else component
    try:
        hints = get_type_hints(component.__init__ if inspect.isclass(component) else component)
    except (NameError, TypeError):
        hints = {}
    return signature.replace(
        parameters=[
            p.replace(annotation=hints.get(p.name, Any)) for p in signature.parameters.values()
        ]
    )


def _options(
    signature: inspect.Signature, supplies: tuple[str, ...]
) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in signature.parameters.items() if name not in supplies}


def _schema(signature: inspect.Signature, supplies: tuple[str, ...]) -> TypeAdapter[Any]:
    """A strict schema of a component's options, made from its signature."""
    fields: dict[str, Any] = {
        name: (Required if p.default is p.empty else NotRequired)[p.annotation]
        for name, p in _options(signature, supplies).items()
    }
    options = TypedDict("options", fields)  # type: ignore[misc]
    options.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    return TypeAdapter(options)


def option_problems(
    what: str,
    signature: inspect.Signature,
    options: Mapping[str, Any],
    supplies: tuple[str, ...],
) -> list[tuple[tuple[str | int, ...], str]]:
    """All that is wrong with a component's options, as (path within them, message)."""
    try:
        # JSON mode: strict for scalars, yet a YAML list may become a tuple.
        _schema(signature, supplies).validate_json(json.dumps(options))
    except ValidationError as error:
        known = _options(signature, supplies)
        return [_problem(what, known, item) for item in error.errors()]
    return []


def unknown(kind: str, wrong: str, known: Iterable[str]) -> str:
    """The message for an unknown name: the nearest known one, then all, or the nearest of many."""
    known = sorted(known)
    near = difflib.get_close_matches(wrong, known, n=_NEAREST)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if len(known) > _MANY and kind != "key":
        others = f"near: {', '.join(near)}; " if len(near) > 1 else ""
        return f"unknown {kind} {wrong!r}{hint} ({others}{len(known)} known, see `medseg plugins`)"
    return f"unknown {kind} {wrong!r}{hint} (known: {', '.join(known) or 'none'})"


def explain(item: Mapping[str, Any]) -> str:
    """One of pydantic's errors in the words of a YAML file."""
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    for word, ours in (("a valid array", "a list"), ("an object", "a mapping"),
                       ("a valid dictionary", "a mapping")):  # fmt: skip
        message = message.replace(word, ours)
    shown = repr(item["input"])
    return (
        message if item["type"] == "value_error" or len(shown) > 60 else f"{message}, got {shown}"
    )


def _problem(
    what: str, known: Iterable[str], item: Mapping[str, Any]
) -> tuple[tuple[str | int, ...], str]:
    loc = item["loc"]
    if item["type"] == "extra_forbidden":
        return loc, f"{what}: " + unknown("option", str(loc[0]), known)
    if item["type"] == "missing":
        needed = "more values" if len(loc) > 1 else f"the option {loc[0]!r}"
        return loc[:-1], f"{what} needs {needed}"
    return loc, f"{what}: {explain(item)}"


def _home(component: Callable[..., Any]) -> str:
    if isinstance(component, partial):
        return f"{_home(component.func)} with {component.keywords}"
    return f"{component.__module__}.{component.__qualname__}"


ENCODERS = Registry("encoder", supplies=("in_channels",))
DECODERS = Registry("decoder", supplies=("channels", "strides"))
NETWORKS = Registry("network", supplies=("in_channels", "classes"))
LOSSES = Registry("loss", supplies=("classes", "regions"))
SAMPLERS = Registry("sampler", supplies=("classes",))
LOGGERS = Registry("logger")
TRANSFORMS = Registry("transform")
POSTPROCESSORS = Registry("postprocessor", supplies=("classes",))

REGISTRIES = {
    registry.kind: registry
    for registry in (
        ENCODERS,
        DECODERS,
        NETWORKS,
        LOSSES,
        SAMPLERS,
        LOGGERS,
        TRANSFORMS,
        POSTPROCESSORS,
    )
}
