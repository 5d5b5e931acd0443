"""Times and sizes as people write them: 15m, 8GB."""

from __future__ import annotations

import re

from medseg.errors import ConfigError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NUMBER = r"(?P<number>\d+(?:\.\d+)?)\s*"
_LONGEST = 366 * 86400.0  # seconds; more is a slip of the unit
GIB, MIB = 1 << 30, 1 << 20


def seconds(text: str) -> float:
    """A time in seconds: 90s, 15m, 2h, 1d.

    Raises:
        ConfigError: It is none, or no time that a training takes.
    """
    hit = re.fullmatch(_NUMBER + r"(?P<unit>[smhd])", text.strip())
    value = float(hit["number"]) * _SECONDS[hit["unit"]] if hit else 0.0
    if not 0 < value <= _LONGEST:
        raise ConfigError(
            f"a budget is a time above 0 and of at most a year, as 90s, 15m, 2h or 1d, got {text!r}"
        )
    return value


def size(text: str) -> int:
    """A size in bytes: 800MB, 8GB; K, M, G and T count in 1024s, with or without B or iB.

    Raises:
        ConfigError: It is none.
    """
    hit = re.fullmatch(_NUMBER + r"(?P<unit>[KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    value = int(float(hit["number"]) * _BYTES[hit["unit"].upper()]) if hit else 0
    if not value:
        raise ConfigError(f"memory is a size above 0, as 800MB or 8GB, got {text!r}")
    return value


def told(duration: float) -> str:
    """Seconds as people say them: 90 s, 15 min, 2 h."""
    for name, unit, most in (("s", 1.0, 120.0), ("min", 60.0, 7200.0)):
        if duration < most:
            return f"{duration / unit:.3g} {name}"
    return f"{duration / 3600:.3g} h"


def in_mib(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / MIB:,.0f} MiB"
