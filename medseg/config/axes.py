"""Axes by number or by their anatomical name: LR, AP, IS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medseg.errors import ConfigError

AxisName = Literal["LR", "RL", "AP", "PA", "IS", "SI"]


def numbers(axes: Sequence[int | AxisName], orientation: str | None) -> tuple[int, ...]:
    """The numbers of axes that may be named.

    Args:
        axes: 0, 1, 2, or names: LR (left-right), AP (anterior-posterior), IS (inferior-superior),
            each also the other way round, which means the same.
        orientation: Directions of the axes that the network sees, such as "RAS"; None: as stored,
            so that only the files know.

    Returns:
        Each axis as 0, 1 or 2, in the order given.

    Raises:
        ConfigError: An axis is named and no orientation is set, or one is listed twice.
    """
    found = tuple(axis if isinstance(axis, int) else _number(axis, orientation) for axis in axes)
    if len(set(found)) < len(found):
        seen = f", which is {list(found)} in {orientation}" if found != tuple(axes) else ""
        raise ConfigError(f"each axis once, got {list(axes)}{seen}")
    return found


def _number(name: AxisName, orientation: str | None) -> int:
    if orientation is None:
        raise ConfigError(
            f"{name!r} needs to know where the axes point, and preprocess.orientation is null (as "
            "stored): set it, e.g. to RAS, or give 0, 1 or 2"
        )
    return next(n for n, code in enumerate(orientation) if code in name)
