"""What a CRF refuses: options out of range, and arrays that do not fit each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medseg.errors import ConfigError, DataError
from medseg.volumes.image import Array

MOST_MODALITIES = 5
_SUM_TOLERANCE = 0.01  # probabilities may come from half precision
_NAME = "CRF"


def positive(option: str, values: float | Sequence[float]) -> tuple[float, ...]:
    """One number or several, each finite and above 0.

    Raises:
        ConfigError: One is not.
    """
    several = tuple(values) if isinstance(values, Sequence | np.ndarray) else (values,)
    if not several or not all(math.isfinite(value) and value > 0 for value in several):
        raise ConfigError(f"{option} must be finite and above 0, got {values}", (option,))
    return tuple(float(value) for value in several)


def one(option: str, value: float) -> float:
    """One number, finite and above 0.

    Raises:
        ConfigError: It is not one.
    """
    found = positive(option, value)
    if len(found) != 1:
        raise ConfigError(f"{option} must be one number, got {value}", (option,))
    return found[0]


def weights(pair: Sequence[float]) -> tuple[float, float]:
    """The weights of the two kernels.

    Raises:
        ConfigError: They are not two, not finite, or below 0.
    """
    found = tuple(pair) if isinstance(pair, Sequence | np.ndarray) else (pair,)
    if len(found) != 2:
        raise ConfigError(f"weights must be two, spatial and appearance, got {pair}", ("weights",))
    for weight in found:
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weights must be finite and at least 0, got {weight}", ("weights",))
    return float(found[0]), float(found[1])


def for_each(option: str, values: tuple[float, ...], number: int, what: str) -> tuple[float, ...]:
    """One value for each axis or modality, from one or as many.

    Raises:
        ConfigError: There are neither one nor as many.
    """
    if len(values) not in (1, number):
        raise ConfigError(
            f"{option} has {len(values)} values for {number} {what}; give one, or {number}",
            (option,),
        )
    return values if len(values) == number else values * number


def known(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse what is no choice.

    Raises:
        ConfigError: It is none.
    """
    if value not in choices:
        raise ConfigError(f"{option} must be one of {', '.join(choices)}, got {value!r}", (option,))


def compatibility(matrix: Sequence[Sequence[float]] | Array | None) -> Array | None:
    """The costs of two labels beside each other.

    Raises:
        ConfigError: They are no symmetric, finite matrix.
    """
    if matrix is None:
        return None
    costs = np.asarray(matrix, np.float32)
    if costs.ndim != 2 or not np.isfinite(costs).all() or not np.array_equal(costs, costs.T):
        raise ConfigError(
            f"compatibility must be a finite, symmetric (classes, classes) matrix, got shape "
            f"{costs.shape}",
            ("compatibility",),
        )
    return costs


def shapes(
    probabilities: Array,
    image: Array,
    spacing: Sequence[float],
    masks: dict[str, Array | None],
    costs: Array | None,
) -> None:
    """Refuse arrays that are not on one grid.

    Raises:
        DataError: They are not, or there are too many modalities or too few classes.
    """
    if probabilities.ndim != 4 or len(probabilities) < 2:
        raise DataError(
            _NAME, f"probabilities must be (classes >= 2, I, J, K), got {probabilities.shape}"
        )
    if image.ndim != 4 or not 1 <= len(image) <= MOST_MODALITIES:
        raise DataError(
            _NAME, f"image must be (1 to {MOST_MODALITIES} modalities, I, J, K), got {image.shape}"
        )
    grid = probabilities.shape[1:]
    for name, array in {"image": image[0], **masks}.items():
        if array is not None and array.shape != grid:
            raise DataError(_NAME, f"{name} has the grid {array.shape}, probabilities have {grid}")
    if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        raise DataError(_NAME, f"spacing must be three lengths in mm, got {tuple(spacing)}")
    if costs is not None and len(costs) != len(probabilities):
        raise DataError(
            _NAME, f"compatibility is for {len(costs)} classes, got {len(probabilities)}"
        )


def probabilities(values: Array) -> None:
    """Refuse (C, N) values that are no probabilities.

    Raises:
        DataError: Some are NaN, negative, or do not sum to 1.
    """
    if not np.isfinite(values).all():
        raise DataError(_NAME, f"{int((~np.isfinite(values)).sum())} probabilities are not finite")
    total = values.sum(0)
    wrong = np.abs(total - 1) > _SUM_TOLERANCE
    if values.min() < 0 or wrong.any():
        raise DataError(
            _NAME,
            f"probabilities must be at least 0 and sum to 1: the least is {values.min():.3g}, sums "
            f"are {total.min():.3g} to {total.max():.3g}; for logits, say logits=True",
        )


def finite(name: str, values: Array) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataError: There are some.
    """
    if not np.isfinite(values).all():
        raise DataError(_NAME, f"{name} has NaN or infinite values in the region")
