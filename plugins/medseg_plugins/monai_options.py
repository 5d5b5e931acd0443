"""What the wrappers of MONAI's classes share: a class by its name, and options by its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from medseg.errors import ConfigError
from medseg.registry import unknown

T = TypeVar("T")
Filled = Mapping[str, Any]


def signature_of(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name."""
    return {
        name: p
        for name, p in inspect.signature(component).parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def make(
    kind: str, key: str, name: str, classes: Mapping[str, type[T]], options: Filled, filled: Filled
) -> T:
    """Make one of MONAI's classes.

    Args:
        kind: The word used in messages, e.g. "MONAI network".
        key: The option of our component that holds the class's name.
        name: The class.
        classes: Those that may be chosen, by name.
        options: What the user gives.
        filled: What medseg gives where the class takes it.

    Raises:
        ConfigError: The class or an option is unknown, an option is missing or refused.
    """
    if name not in classes:
        raise ConfigError(unknown(kind, name, classes), (key,))
    what = f"{kind} {name!r}"
    arguments = _arguments(what, signature_of(classes[name]), options, filled)
    try:
        return classes[name](**arguments)
    except (ValueError, TypeError, NotImplementedError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]  # a missing package comes with a page of advice
        raise ConfigError(f"{what}: {reason}", ("options",)) from error


def _arguments(
    what: str, parameters: Mapping[str, inspect.Parameter], options: Filled, filled: Filled
) -> dict[str, Any]:
    given = {name: value for name, value in filled.items() if name in parameters}
    known = [name for name in parameters if name not in given]
    for name in options:
        if name in given:
            raise ConfigError(f"{what}: medseg sets {name!r}", ("options", name))
        if name not in known:
            raise ConfigError(f"{what}: {unknown('option', name, known)}", ("options", name))
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            raise ConfigError(f"{what} needs the option {name!r}", ("options",))
    return {**given, **options}
