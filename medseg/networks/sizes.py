"""Sizes that a network takes: divisible by its strides, and with a margin of context around."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, Triple

_LARGEST_DIVISOR = 64


def within(size: Sequence[int], margin: Triple) -> Triple:
    """What a margin on both sides leaves of a size.

    Raises:
        ConfigError: Nothing is left.
    """
    i, j, k = (n - 2 * m for n, m in zip(size, margin, strict=True))
    if min(i, j, k) < 1:
        raise ConfigError(
            f"a size of {tuple(size)} voxels is too small: this network needs {margin} of context "
            "on each side"
        )
    return i, j, k


def beyond(size: Sequence[int], margin: Triple) -> Triple:
    """A size with a margin on both sides."""
    i, j, k = (n + 2 * m for n, m in zip(size, margin, strict=True))
    return i, j, k


def check_size(size: Sequence[int], divisor: Triple) -> None:
    """Refuse a size that is not a multiple of the divisor.

    Raises:
        ConfigError: It names both, and the next size that fits.
    """
    if any(n % d for n, d in zip(size, divisor, strict=True)):
        fits = tuple(math.ceil(n / d) * d for n, d in zip(size, divisor, strict=True))
        raise ConfigError(
            f"a size of {tuple(size)} voxels does not suit this network: each axis must be a "
            f"multiple of {divisor}; the next size that fits is {fits}"
        )


def try_divisors(network: nn.Module, in_channels: int, margin: Triple) -> Triple:
    """The smallest power of two, per axis, whose multiples come back at their own size."""
    trial = copy.deepcopy(network).to("meta").eval()  # shapes only: no memory, no arithmetic
    found = []
    for axis in range(3):
        divisor = 1
        while not _keeps_size(trial, in_channels, axis, divisor, margin):
            divisor *= 2
            if divisor > _LARGEST_DIVISOR:
                return ONE
        found.append(divisor)
    return found[0], found[1], found[2]


def _keeps_size(
    network: nn.Module, in_channels: int, axis: int, divisor: int, margin: Triple
) -> bool:
    size = [_LARGEST_DIVISOR] * 3
    size[axis] += divisor
    try:
        with torch.no_grad():
            out = network(torch.empty(1, in_channels, *beyond(size, margin), device="meta"))
    except (RuntimeError, ValueError, IndexError, AssertionError, NotImplementedError):
        return False
    first = out if isinstance(out, Tensor) else out[0]
    return isinstance(first, Tensor) and list(first.shape[2:]) == size
