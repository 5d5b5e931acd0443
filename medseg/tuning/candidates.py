"""The options that are tried: all combinations of what a postprocessor calls tunable."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import Parameter
from itertools import product
from typing import Any

from medseg.errors import ConfigError
from medseg.inference.steps import component
from medseg.registry import POSTPROCESSORS
from medseg.tuning.result import Candidate, Options

MOST = 64
Values = tuple[Any, ...]


def grid(name: str, given: Options, fixed: Options, classes: int) -> list[Candidate]:
    """All combinations of the tunable values, simplest first.

    A component says in its class attribute `tunable`, option name to values, what to try. The order
    is that of the distance from the defaults, in places of those lists; of more than `MOST`
    combinations the nearest are tried. Combinations that the component refuses are left out.

    Args:
        name: The postprocessor.
        given: Its options in the config; they take the place of the defaults.
        fixed: Options that are not varied.
        classes: Of the model, background included.

    Raises:
        ConfigError: It is unknown, refuses every combination, or what is fixed is none of its
            options but of its entry in the config.
    """
    _refuse_keys(name, fixed)
    base = {**defaults(name), **given, **fixed}
    rows = {
        option: _row(values, base.get(option))
        for option, values in tunable(name).items()
        if option not in fixed
    }
    combinations = [
        (sum(place for place, _ in picked), {**given, **fixed, **_named(rows, picked)})
        for picked in product(*rows.values())
    ]
    found = [options for _, options in sorted(combinations, key=lambda item: item[0])]
    accepted = _buildable(name, found, classes)
    if len(accepted) > MOST:
        told = f"{name}: {len(accepted)} combinations; the {MOST} nearest to the defaults are tried"
        warnings.warn(f"{told}. Fix an option, as in option=value, to try others", stacklevel=2)
    return [None, *accepted[:MOST]]


def defaults(name: str) -> dict[str, Any]:
    """The options of a postprocessor that have a default, with it."""
    parameters = POSTPROCESSORS.signature(name).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.default is not Parameter.empty and p.name not in POSTPROCESSORS.supplies
    }


def tunable(name: str) -> Mapping[str, Values]:
    """What a postprocessor wants tried, option name to values; also for a preset of it."""
    values: Mapping[str, Values] = getattr(component(name), "tunable", {})
    return values


def _refuse_keys(name: str, fixed: Options) -> None:
    """Keys of an entry in `postprocess` that are not the postprocessor's own options."""
    if "name" in fixed:
        raise ConfigError(
            f"'name' is no option of {name}: what is tuned is the word after `medseg tune`",
            ("name",),
        )
    if "protect" in fixed:
        raise ConfigError(
            f"'protect' is no option of {name}: the gate protects what does not surely improve; "
            f"to protect a class in any case, name it in the entry of {name} in the config's "
            f"`postprocess`, as in `- {{name: {name}, protect: [CLASS]}}`",
            ("protect",),
        )


def _row(values: Values, base: Any) -> list[tuple[int, Any]]:
    """Each value with its distance from the default; without a default, from the first."""
    if base is not None and base not in values:
        values = (base, *values)
    start = values.index(base) if base in values else 0
    return [(abs(place - start), value) for place, value in enumerate(values)]


def _named(rows: Mapping[str, Any], picked: tuple[tuple[int, Any], ...]) -> dict[str, Any]:
    return {option: value for option, (_, value) in zip(rows, picked, strict=True)}


def _buildable(name: str, found: list[dict[str, Any]], classes: int) -> list[Options]:
    accepted: list[Options] = []
    problems: list[ConfigError] = []
    for options in found:
        try:
            POSTPROCESSORS.build({"name": name, **options}, classes=classes)
            accepted.append(options)
        except ConfigError as error:
            problems.append(error)
    if not accepted:
        raise problems[0]
    return accepted
