"""Checks of options that several postprocessors have."""

from __future__ import annotations

import math

from medseg.errors import ConfigError


def check_range(option: str, value: float, least: float = 0.0, most: float = math.inf) -> None:
    """Refuse a value outside a range; both ends belong to it.

    Raises:
        ConfigError: It lies outside, or is NaN.
    """
    if not least <= value <= most:
        allowed = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
        raise ConfigError(f"{option} must be {allowed}, got {value:g}", (option,))
