"""Planned values, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medseg.config.schema import Config
from medseg.config.write import dump


@dataclass(frozen=True)
class Choice:
    """A value and why it was chosen; an empty reason is none."""

    value: Any
    why: str = ""


Choices = dict[str, Choice]
"""Dotted path in the config: what was chosen for it."""


def config_of(choices: Mapping[str, Choice]) -> Config:
    """The config that choices make, the rest at its defaults. Paths stay as they are."""
    values: dict[str, Any] = {}
    for path, choice in choices.items():
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = choice.value
    return Config.model_validate_json(json.dumps(values))


def text_of(choices: Mapping[str, Choice]) -> str:
    """The config as YAML, each reason above its key."""
    return dump(config_of(choices), {path: c.why for path, c in choices.items() if c.why})


def by(values: tuple[float, ...], digits: int = 4) -> str:
    """Numbers along the axes, as 1 x 1 x 3.5."""
    return " x ".join(f"{value:.{digits}g}" for value in values)
