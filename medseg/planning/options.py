"""What a user may say of a data set and of the training that is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medseg.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What is known of a data set before it is looked at.

    Args:
        layout: How its files are arranged; None: found.
        channels: Name of a channel: its pattern or column; none: found.
        label: Pattern or column of the label; None: found.
        mask: Pattern or column of a region of interest; None: found, if there is one.
        classes: Name of a class: its label value, or several; none: found.
        split: File of a split; None: `split.json` beside the cases, if there is one.
    """

    layout: Literal["folder", "csv", "msd", "nnunet"] | None = None
    channels: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    mask: str | None = None
    classes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    split: Path | None = None


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE as given on the command line.

    Raises:
        ConfigError: One has no name or no value, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value:
            raise ConfigError(f"{option} is NAME=VALUE, got {text!r}")
        if name in found:
            raise ConfigError(f"{option} {name} is given twice")
        found[name] = value
    return found


def label_values(texts: Sequence[str]) -> dict[str, int | tuple[int, ...]]:
    """Classes as given on the command line: `core=1` or, of several label values, `core=1,3`.

    Raises:
        ConfigError: One has no name, or its values are no numbers from 1.
    """
    classes: dict[str, int | tuple[int, ...]] = {}
    for name, text in pairs(texts, "--class").items():
        values = [part.strip() for part in text.split(",")]
        if not all(value.isdecimal() and int(value) > 0 for value in values):
            raise ConfigError(f"--class {name}: label values are numbers from 1, got {text!r}")
        numbers = tuple(int(value) for value in values)
        classes[name] = numbers[0] if len(numbers) == 1 else numbers
    return classes
