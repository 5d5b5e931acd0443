"""Which windows run before which block of a volume, and what has to be held meanwhile.

The edges of the windows cut the room into cells, columns along its shortest axis. A cell is summed
up from its first window to its last, and forgotten after the last block that needs it. Whoever asks
for blocks along the longest axis holds about one layer of cells.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

from torch import Tensor

from medseg.inference.boxes import Box, Triple, meet, size
from medseg.inference.plan import Plan


@dataclass(eq=False)
class Cell:
    """A column of the room that the same windows cover, but for where these lie along it.

    Args:
        box: In the room.
        windows: The numbers of those that cover some of it.
        last: The number of the last block that needs it.
        total: (classes, *box) float32: the weighted sum, in the end the logits.
        is_finished: Whether it is the logits.
    """

    box: Box
    windows: list[int] = field(default_factory=list)
    last: int = -1
    total: Tensor | None = None
    is_finished: bool = False

    @property
    def voxels(self) -> int:
        """How many it holds."""
        return prod(size(self.box))


@dataclass(frozen=True, eq=False)
class Step:
    """What one block takes: windows to run first, and the cells that it is made of."""

    block: Box
    windows: list[int]
    cells: list[Cell]


class Schedule:
    """Which windows run before which block.

    Args:
        plan: The windows.
        blocks: Boxes in the room, in the order in which they are wanted.
        halo: Rows that neighbouring blocks may share.
    """

    def __init__(self, plan: Plan, blocks: Sequence[Box], halo: int = 0) -> None:
        self.plan = plan
        self.axes = longest_first(plan.size)
        self._cuts = [self._cut(axis, blocks, halo) for axis in range(3)]
        self._cells: dict[Triple, Cell] = {}
        needed = [self._needed(block) for block in blocks]
        for n, cells in enumerate(needed):
            for cell in cells:
                cell.last = n
        self.of_window: list[list[Cell]] = [[] for _ in plan.places]
        for number, place in enumerate(plan.places):
            for cell in self._within(plan.covered(place)):
                cell.windows.append(number)
                self.of_window[number].append(cell)
        self.steps: list[Step] = []
        run: set[int] = set()
        for block, cells in zip(blocks, needed, strict=True):
            new = sorted({number for cell in cells for number in cell.windows} - run)
            run.update(new)
            self.steps.append(Step(block, new, cells))
        self.runs = len(run)

    @property
    def peak(self) -> int:
        """The most voxels of cells that are held at once."""
        held, most, live = 0, 0, set[int]()
        for n, step in enumerate(self.steps):
            for number in step.windows:
                new = [cell for cell in self.of_window[number] if id(cell) not in live]
                live.update(map(id, new))
                held += sum(cell.voxels for cell in new)
            most = max(most, held)
            gone = [cell for cell in step.cells if cell.last == n and id(cell) in live]
            live.difference_update(map(id, gone))
            held -= sum(cell.voxels for cell in gone)
        return most

    def _cut(self, axis: int, blocks: Sequence[Box], halo: int) -> list[int]:
        """Where cells end along an axis; along the shortest they are not cut."""
        low = min(block[axis].start for block in blocks)
        high = max(block[axis].stop for block in blocks)
        if axis == self.axes[2]:
            return [low, high]
        edges = self.plan.edges(axis)
        cuts = {*edges, *(edge - halo for edge in edges), *(edge + halo for edge in edges)}
        return sorted({low, high, *(cut for cut in cuts if low < cut < high)})

    def _needed(self, block: Box) -> list[Cell]:
        spans = []
        for cuts, part in zip(self._cuts, block, strict=True):
            first, stop = bisect_right(cuts, part.start) - 1, bisect_left(cuts, part.stop)
            spans.append(range(first, stop))
        return [self._cell((i, j, k)) for i, j, k in product(*spans)]

    def _cell(self, key: Triple) -> Cell:
        if key not in self._cells:
            i, j, k = (slice(c[n], c[n + 1]) for c, n in zip(self._cuts, key, strict=True))
            self._cells[key] = Cell((i, j, k))
        return self._cells[key]

    def _within(self, window: Box) -> Iterator[Cell]:
        """The cells that are needed and meet a window."""
        spans = []
        for cuts, part in zip(self._cuts, window, strict=True):
            first = max(bisect_right(cuts, part.start) - 1, 0)
            spans.append(range(first, min(bisect_left(cuts, part.stop), len(cuts) - 1)))
        for i, j, k in product(*spans):
            cell = self._cells.get((i, j, k))
            if cell is not None and meet(cell.box, window):
                yield cell


def longest_first(shape: Sequence[int]) -> Triple:
    """The axes of a room, the longest first: layers across it are the smallest."""
    a, b, c = sorted(range(3), key=lambda axis: -shape[axis])
    return a, b, c
