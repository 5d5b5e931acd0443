"""Class probabilities on disk: blocks come with all classes, and leave a class at a time."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medseg.inference.boxes import Box, size
from medseg.volumes.image import Array


class Spool:
    """A temporary file, gone with the object or the process.

    Args:
        folder: Where it lies.
        shape: (classes, I, J, K).
        stored: "float32", or "uint16" or "uint8" for steps of 1/65535 or 1/255.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int], stored: str) -> None:
        self.shape, self._dtype = shape, np.dtype(stored)
        self._steps = 0 if self._dtype.kind == "f" else int(np.iinfo(self._dtype).max)
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".partial-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._blocks: list[tuple[Box, int]] = []

    def add(self, block: Box, shares: Array) -> None:
        """Put the probabilities (classes, *block) of a block."""
        if self._steps:
            shares = np.rint(shares * self._steps)
        self._blocks.append((block, self._file.tell()))
        self._file.write(np.ascontiguousarray(shares, dtype=self._dtype).data)

    def __len__(self) -> int:
        """How many classes there are."""
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        """Each class's probabilities, (I, J, K) float32; where no block came, of background."""
        for number in range(len(self)):
            volume = np.full(self.shape[1:], float(number == 0), dtype=np.float32)
            for block, start in self._blocks:
                volume[block] = self._read(number, block, start)
            yield volume

    def _read(self, number: int, block: Box, start: int) -> Array:
        length = int(np.prod(size(block))) * self._dtype.itemsize
        self._file.seek(start + number * length)
        values: Array = np.frombuffer(self._file.read(length), self._dtype)
        values = values.reshape(size(block)).astype(np.float32)
        return values / np.float32(self._steps) if self._steps else values
