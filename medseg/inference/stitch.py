"""Overlapping windows put together block by block, in memory for what is unfinished alone.

The edges of the windows cut the room into cells, columns along its shortest axis. A cell is summed
up from its first window to its last, divided by the sum of their weights, and forgotten after the
last block that needs it. Whoever asks for blocks along the longest axis holds about one layer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

import torch
from torch import Tensor

from medseg.inference.boxes import Box, Triple, size, within
from medseg.inference.plan import Plan
from medseg.inference.runner import OutOfMemoryError, Runner, free_memory, is_out_of_memory


@dataclass(eq=False)
class Cell:
    """A column of the room that the same windows cover, but for where these lie along it.

    Args:
        box: In the room.
        windows: The numbers of those that cover some of it.
        left: How many of them are still to come.
        last: The number of the last block that needs it.
        total: (classes, *box) float32: the weighted sum, in the end the logits.
    """

    box: Box
    windows: list[int] = field(default_factory=list)
    left: int = 0
    last: int = -1
    total: Tensor | None = None

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
            stop = (at + w for at, w in zip(place, plan.window, strict=True))
            for cell in self._within(place, tuple(stop)):
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

    def _within(self, start: Sequence[int], stop: Sequence[int]) -> Iterator[Cell]:
        """The cells that are needed and touch a window."""
        spans = []
        for cuts, low, high in zip(self._cuts, start, stop, strict=True):
            first = max(bisect_right(cuts, low) - 1, 0)
            spans.append(range(first, min(bisect_left(cuts, high), len(cuts) - 1)))
        for key in product(*spans):
            cell = self._cells.get((key[0], key[1], key[2]))
            if cell is not None and _meet(cell.box, start, stop):
                yield cell


def longest_first(shape: Sequence[int]) -> Triple:
    """The axes of a room, the longest first: layers across it are the smallest."""
    a, b, c = sorted(range(3), key=lambda axis: -shape[axis])
    return a, b, c


def _meet(box: Box, start: Sequence[int], stop: Sequence[int]) -> bool:
    """Whether a box and a window share a voxel."""
    return all(p.start < b and p.stop > a for p, a, b in zip(box, start, stop, strict=True))


class Stitcher:
    """Runs windows when a block needs them.

    When memory runs out, fewer windows are run at once, then sums are kept on the host.

    Args:
        run: The network.
        classes: How many logits a voxel has.
        batch: Windows of one pass.
    """

    def __init__(self, run: Runner, classes: int, batch: int) -> None:
        self._run, self._classes, self._batch = run, classes, batch
        self._home = run.device  # where sums are kept
        self._weights: Tensor | None = None
        self._spare: dict[int, list[Tensor]] = {}  # memory of cells that are done, by its length

    @torch.inference_mode()
    def __call__(self, schedule: Schedule) -> Iterator[Tensor]:
        """Give the logits (classes, *block) of each block; without any window, of background.

        Raises:
            OutOfMemoryError: There is not enough memory for one window at a time.
            NonFiniteError: A logit is not finite.
        """
        for cell in {cell for step in schedule.steps for cell in step.cells}:
            cell.left, cell.total = len(cell.windows), None
        queue = [number for step in schedule.steps for number in step.windows]
        done = due = 0
        for n, step in enumerate(schedule.steps):
            due += len(step.windows)
            while done < due:  # a batch may hold windows of blocks to come
                some = queue[done : done + self._batch]
                logits = self._attempt(schedule, some)
                if logits is not None:
                    done += len(some)
                    for n_th, number in enumerate(some):
                        self._add(schedule, number, logits[n_th])
                del logits  # not to be held while the next ones are made
            yield _assembled(step, self._classes, self._home)
            for cell in step.cells:
                if cell.last == n:
                    self._forget(cell)

    def _attempt(self, schedule: Schedule, some: list[int]) -> Tensor | None:
        """The logits of some windows, with room for them; None: try again with less."""
        plan = schedule.plan
        try:
            logits = self._run(plan, [plan.places[number] for number in some]).to(self._home)
            for number, window in zip(some, logits, strict=True):
                self._make_room(schedule, number, window)
            return logits
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(some) == 1 and self._home.type == "cpu":
                window = " x ".join(map(str, plan.window))
                raise OutOfMemoryError(
                    f"out of memory with one window of {window} voxels on {self._run.device}: set "
                    f"inference.patch or inference.memory lower ({error})"
                ) from error
        # Outside of `except`, whose error keeps the failed pass's tensors alive.
        if len(some) > 1:
            self._batch = len(some) // 2
        else:
            self._home = torch.device("cpu")
            self._spare.clear()
            for cells in schedule.of_window:
                for cell in cells:
                    cell.total = None if cell.total is None else cell.total.cpu()
        free_memory(self._run.device)
        return None

    def _make_room(self, schedule: Schedule, number: int, logits: Tensor) -> None:
        for cell in schedule.of_window[number]:
            if cell.total is None and len(schedule.plan.places) > 1:
                spare = self._spare.get(cell.voxels * len(logits))
                cell.total = _zeros(cell.box, logits, spare.pop() if spare else None)

    def _add(self, schedule: Schedule, number: int, logits: Tensor) -> None:
        """Add a window to its cells: in place, so that it cannot fail halfway."""
        plan = schedule.plan
        for cell in schedule.of_window[number]:
            here, there = _shared(cell.box, plan.places[number], plan.window)
            part = logits[(slice(None), *there)]
            if len(plan.places) == 1:
                cell.total = part
                continue
            assert cell.total is not None
            cell.total[(slice(None), *here)].addcmul_(part, self._weight(plan)[there])
            cell.left -= 1
            if not cell.left:
                self._finish(cell, plan)

    def _finish(self, cell: Cell, plan: Plan) -> None:
        """Divide by the weights; where no window came it is background."""
        assert cell.total is not None
        weights = torch.zeros(cell.total.shape[1:], device=self._home)
        for number in cell.windows:
            here, there = _shared(cell.box, plan.places[number], plan.window)
            weights[here] += self._weight(plan)[there]
        cell.total.div_(weights.clamp_min(torch.finfo(weights.dtype).tiny))
        if float(weights.min()) == 0:
            cell.total[1:, weights == 0] = -torch.inf

    def _forget(self, cell: Cell) -> None:
        if cell.total is not None and cell.left == 0 and len(cell.windows) > 1:
            memory = cell.total.as_strided((cell.total.numel(),), (1,))
            self._spare.setdefault(len(memory), []).append(memory)
        cell.total = None

    def _weight(self, plan: Plan) -> Tensor:
        if self._weights is None or self._weights.device != self._home:
            self._weights = plan.weight.to(self._home)
        return self._weights


def _zeros(box: Box, like: Tensor, memory: Tensor | None = None) -> Tensor:
    """Zeros (classes, *box) whose classes are innermost where those of `like` are.

    Args:
        box: For its size.
        like: (classes, i, j, k).
        memory: As many values, to be used again; None: new ones.
    """
    i, j, k = size(box)
    if memory is None:
        memory = torch.zeros(len(like) * i * j * k, device=like.device)
    else:
        memory.zero_()
    if like.stride(0) == 1:
        return memory.view(i, j, k, len(like)).permute(3, 0, 1, 2)
    return memory.view(len(like), i, j, k)


def _shared(box: Box, place: Triple, window: Triple) -> tuple[Box, Box]:
    """What a box and a window share: in the box, and in the window."""
    here, there = [], []
    for part, at, w in zip(box, place, window, strict=True):
        start, stop = max(part.start, at), min(part.stop, at + w)
        here.append(slice(start - part.start, stop - part.start))
        there.append(slice(start - at, stop - at))
    return (here[0], here[1], here[2]), (there[0], there[1], there[2])


def _assembled(step: Step, classes: int, device: torch.device) -> Tensor:
    """The logits (classes, *block) of its cells."""
    if len(step.cells) == 1 and (cell := step.cells[0]).total is not None:
        return cell.total[(slice(None), *within(step.block, cell.box))]
    found = next((cell.total for cell in step.cells if cell.total is not None), None)
    out = _zeros(step.block, torch.zeros(classes, device=device) if found is None else found)
    corner = tuple(part.start for part in step.block)
    size = tuple(part.stop - part.start for part in step.block)
    for cell in step.cells:
        here, there = _shared(
            cell.box, (corner[0], corner[1], corner[2]), (size[0], size[1], size[2])
        )
        if cell.total is None:
            out[(slice(1, None), *there)] = -torch.inf
        else:
            out[(slice(None), *there)] = cell.total[(slice(None), *here)]
    return out
