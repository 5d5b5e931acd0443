"""Options of a postprocessor as one would tell them to somebody who has never tuned one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def in_words(name: str, options: Mapping[str, Any]) -> str:
    """What a postprocessor does with its options, in plain sentences.

    Args:
        name: The registered postprocessor.
        options: Its options, defaults included.

    Returns:
        Sentences for the CRF; nothing for others, whose options say it themselves.
    """
    if name != "crf":
        return ""
    told = (_spatial(options), _appearance(options), _temperature(options), _rounds(options))
    return " ".join(filter(None, told))


def value(given: Any) -> str:
    """A value as one writes it: 0.3 (not 0.30000000000000004), `3, 3, 5`, yes, – for none."""
    if given is None:
        return "–"
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, float):
        return f"{given:.4g}"
    if isinstance(given, Sequence) and not isinstance(given, str):
        return ", ".join(map(value, given))
    return str(given)


def signed(change: float) -> str:
    """A change of a score with its sign: +0.0120, −0.0031, 0 for none at all."""
    return f"{change:+.4f}".replace("-", "−") if change else "0"


def _spatial(options: Mapping[str, Any]) -> str:
    weight, distance = options.get("spatial_weight"), options.get("spatial_mm")
    if weight == 0:
        return "Neighbours do not pull on each other merely for being near."
    return (
        f"Every voxel is pulled towards the labels of its neighbours within about "
        f"{value(distance)} mm{_with(weight)}, whatever they look like."
    )


def _appearance(options: Mapping[str, Any]) -> str:
    weight, distance = options.get("appearance_weight"), options.get("appearance_mm")
    if weight == 0:
        return "The image itself is not looked at."
    return (
        f"Voxels within about {value(distance)} mm that look alike (normalised intensities within "
        f"about {value(options.get('appearance_intensity'))}) pull on each other{_with(weight)}."
    )


def _temperature(options: Mapping[str, Any]) -> str:
    temperature = options.get("temperature", 1.0)
    if temperature == 1:
        return ""
    said = "less" if temperature > 1 else "more"
    return (
        f"The network is trusted {said} than it claims: its logits are divided by "
        f"{value(temperature)} first."
    )


def _rounds(options: Mapping[str, Any]) -> str:
    rounds = options.get("iterations")
    if rounds is None:
        return ""
    return f"All voxels make up their minds {value(rounds)} time{'' if rounds == 1 else 's'}."


def _with(weight: Any) -> str:
    return "" if weight is None else f" with weight {value(weight)}"
