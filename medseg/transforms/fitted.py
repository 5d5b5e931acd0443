"""Transforms of `preprocess.normalise` that learn from the training cases, and what they learnt.

A transform that learns has `fit(samples)`, which goes once over the training cases as the transform
will see them and returns plain JSON values, and `use(values)`, which returns the transform ready
to apply. The values are kept in the run's `fitted.json` and in the model file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.config.schema import ComponentSpec
from medseg.errors import ConfigError, DataError, PluginError
from medseg.registry import TRANSFORMS
from medseg.transforms.intensity.region import check_channels


@dataclass(frozen=True)
class Fitted:
    """What was learnt.

    Args:
        channels: Names of the channels of the training cases, in order.
        cases: How many they were.
        transforms: What each transform learnt, by its place in the list and its name.
        source: The file it was read from; for messages.
    """

    channels: tuple[str, ...]
    cases: int = 0
    transforms: Mapping[str, Any] = field(default_factory=dict)
    source: Path = Path("model")

    @classmethod
    def of(cls, stored: Any, channels: Sequence[str], source: Path) -> Fitted:
        """Read what `as_json` gave; nothing, where no transform learns.

        Raises:
            DataError: It is something else.
        """
        if not stored:
            return cls(tuple(channels), source=source)
        try:
            names, transforms = tuple(stored["channels"]), dict(stored["transforms"])
            return cls(names, int(stored["cases"]), transforms, source)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"what its transforms learnt cannot be read ({error!r})"
            raise DataError(source, reason) from error

    def as_json(self) -> dict[str, Any]:
        """Plain values; empty, where no transform learns."""
        if not self.transforms:
            return {}
        about = {"channels": list(self.channels), "cases": self.cases}
        return {**about, "transforms": dict(self.transforms)}


def key(place: int, name: str) -> str:
    """What a transform's values go by: "0 histogram_landmarks"."""
    return f"{place} {name}"


def learns(transform: object) -> bool:
    """Whether a transform learns from the training cases."""
    return hasattr(transform, "fit")


def build(
    specs: Sequence[ComponentSpec], channels: Sequence[str] = (), fitted: Fitted | None = None
) -> list[Any]:
    """Build the transforms of `preprocess.normalise`.

    Args:
        specs: The list.
        channels: Names of the channels that they will see; empty: not known.
        fitted: What was learnt; None: nothing yet, and what learns cannot be applied.

    Raises:
        ConfigError: A component refuses its options, or names a channel that is not there.
        DataError: What was learnt is of other channels or options, or is missing.
    """
    built = []
    for place, spec in enumerate(specs):
        transform = TRANSFORMS.build(spec.spec())
        if channels:
            with _told(place, spec.name):
                check_channels(getattr(transform, "channels", None), len(channels))
        if fitted is not None and learns(transform):
            transform = _used(transform, place, spec.name, channels, fitted)
        built.append(transform)
    return built


def fit(transform: Any, place: int, name: str, samples: Iterator[dict[str, Any]]) -> Any:
    """Let a transform learn, and return its values as JSON would give them back.

    Raises:
        ConfigError: It cannot learn from these cases.
        PluginError: What it gives is not plain JSON.
    """
    with _told(place, name):
        values = transform.fit(samples)
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PluginError(f"transform {name!r}: fit gave what is no plain JSON: {error}") from error


def _used(transform: Any, place: int, name: str, channels: Sequence[str], fitted: Fitted) -> Any:
    where = f"preprocess.normalise.{place}: {name}"
    if channels and tuple(channels) != fitted.channels:
        raise DataError(
            fitted.source,
            f"{where} was trained on the channels {', '.join(fitted.channels)}, and this model has "
            f"{', '.join(channels)}: train it on these",
        )
    if key(place, name) not in fitted.transforms:
        known = ", ".join(map(repr, fitted.transforms)) or "nothing"
        raise DataError(
            fitted.source,
            f"{where} learns from the training cases, and what was learnt is {known}: leave out "
            "overrides of preprocess, or train anew",
        )
    try:
        return transform.use(fitted.transforms[key(place, name)])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{where} cannot use what was learnt ({error}); leave out overrides of preprocess"
        raise DataError(fitted.source, reason) from error


@contextmanager
def _told(place: int, name: str) -> Iterator[None]:
    """Say where in the config a transform stands that cannot do with what it gets."""
    try:
        yield
    except (ConfigError, ValueError) as error:
        where = ("preprocess", "normalise", place)
        message = f"preprocess.normalise.{place}: {name}: {error}"
        raise ConfigError(message, where) from error
