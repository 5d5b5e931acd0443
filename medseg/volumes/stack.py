"""Volumes of one grid, made one at a time: what is too large to be in memory all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from medseg.volumes.image import Array


@runtime_checkable
class Stack(Protocol):
    """As much of an array (C, I, J, K) of floats as writing needs; such an array is one.

    `nifti.write` goes through it once, and is done with a volume before it asks for the next.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, I, J, K)."""

    def __len__(self) -> int:
        """The number of volumes, C."""

    def __iter__(self) -> Iterator[Array]:
        """Each volume (I, J, K), in order."""
