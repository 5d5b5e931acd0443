"""Options with one value per stage or level: defaults, checks and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, TWO, Triple


def halving(levels: int, first: Triple = ONE) -> tuple[Triple, ...]:
    """Strides of stages that halve every axis, but for the first stage."""
    return (first, *[TWO] * (levels - 1))


def cumulative(strides: Sequence[Triple]) -> tuple[Triple, ...]:
    """Each stage's stride against the input, from each stage's own stride."""
    totals, total = [], ONE
    for stride in strides:
        total = (total[0] * stride[0], total[1] * stride[1], total[2] * stride[2])
        totals.append(total)
    return tuple(totals)


def scaled(widths: Iterable[int], width: float) -> tuple[int, ...]:
    """Every width multiplied by a factor, at least 1.

    Raises:
        ConfigError: The factor is not above 0.
    """
    if width <= 0:
        raise ConfigError(f"width must be above 0, got {width:g}", ("width",))
    return tuple(max(1, round(width * number)) for number in widths)


def flatten(kernel: Triple, wanted: int | Triple) -> Triple:
    """A kernel of the wanted length, or lengths, that is 1 long where `kernel` is."""
    lengths = (wanted, wanted, wanted) if isinstance(wanted, int) else wanted
    i, j, k = (length if n > 1 else 1 for n, length in zip(kernel, lengths, strict=True))
    return i, j, k


def per_stage(
    option: str, given: Sequence[Triple] | None, default: Sequence[Triple]
) -> tuple[Triple, ...]:
    """An option with one triple per level: what was given, checked, or else the default.

    Raises:
        ConfigError: The number of triples is not the number of stages, or a number is below 1.
    """
    if given is None:
        return tuple(default)
    if len(given) != len(default):
        raise ConfigError(
            f"{option} needs one triple per level: {len(default)}, got {len(given)}", (option,)
        )
    if any(number < 1 for triple in given for number in triple):
        raise ConfigError(f"{option} must be positive, got {given}", (option,))
    return tuple(given)


def same_length(option: str, given: Sequence[int], widths: Sequence[int]) -> None:
    """Refuse an option that does not have one positive number per stage.

    Raises:
        ConfigError: Lengths differ, nothing is given or a number is below 1.
    """
    if len(given) != len(widths) or not given or min(given) < 1:
        raise ConfigError(
            f"{option} needs one positive number per stage: {len(widths)}, got {tuple(given)}",
            (option,),
        )


def check_positive(option: str, *numbers: int) -> None:
    """Refuse an option with a number below 1.

    Raises:
        ConfigError: It has one.
    """
    if any(number < 1 for number in numbers):
        raise ConfigError(f"{option} must be at least 1, got {min(numbers)}", (option,))


def check_levels(levels: int, least: int, most: int) -> None:
    """Refuse a number of levels that the network does not have.

    Raises:
        ConfigError: It is out of range.
    """
    if not least <= levels <= most:
        raise ConfigError(f"there are {least} to {most} levels, got {levels}", ("levels",))
