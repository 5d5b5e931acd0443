"""Overlapping windows put together block by block, in memory for what is unfinished alone.

Windows are added to cells (see `medseg.inference.schedule`); a cell that is complete is divided by
the sum of the weights, and blocks are made of cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

import torch
from torch import Tensor

from medseg.inference.boxes import Box, meet, size, within
from medseg.inference.plan import Plan
from medseg.inference.runner import OutOfMemoryError, Runner, free_memory, is_out_of_memory
from medseg.inference.schedule import Cell, Schedule, Step

_FEW_CLASSES = 8
_LARGE = 1 << 18  # values


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
        self._taken = self._most = 0  # values of cells, spare ones included; as many as may be

    @torch.inference_mode()
    def __call__(self, schedule: Schedule) -> Iterator[Tensor]:
        """Give the logits (classes, *block) of each block; without any window, of background.

        Raises:
            OutOfMemoryError: There is not enough memory for one window at a time.
            NonFiniteError: A logit is not finite.
        """
        for cell in {cell for step in schedule.steps for cell in step.cells}:
            cell.total, cell.is_finished = None, False
        self._most = self._classes * schedule.peak
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
            yield self._block(schedule, step)
            for cell in step.cells:
                if cell.last == n:
                    self._forget(cell, schedule.plan)

    def _attempt(self, schedule: Schedule, some: list[int]) -> Tensor | None:
        """The logits of some windows, with room for them; None: try again with less."""
        plan = schedule.plan
        try:
            logits = self._run(plan, [plan.places[number] for number in some]).to(self._home)
            for number, window in zip(some, logits, strict=True):
                self._make_room(schedule, number, window)
            return logits
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error, plan, can_retry=len(some) > 1)
        # Outside of `except`, whose error keeps the failed pass's tensors alive.
        if len(some) > 1:
            self._batch = len(some) // 2
            free_memory(self._run.device)
        else:
            self._move_to_host(schedule)
        return None

    def _block(self, schedule: Schedule, step: Step) -> Tensor:
        """The logits of a block, all of whose windows have been added."""
        try:
            for cell in step.cells:
                self._finish(cell, schedule.plan)
            return _assembled(step, self._classes, self._home)
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error, schedule.plan)
        self._move_to_host(schedule)
        return self._block(schedule, step)

    def _check_memory(self, error: Exception, plan: Plan, *, can_retry: bool = False) -> None:
        """Raise an error again unless less memory will do.

        Raises:
            OutOfMemoryError: It will not.
        """
        if not is_out_of_memory(error):
            raise error
        if not can_retry and self._home.type == "cpu":
            window = " x ".join(map(str, plan.window))
            raise OutOfMemoryError(
                f"out of memory with one window of {window} voxels on {self._run.device}: set "
                f"inference.patch or inference.memory lower ({error})"
            ) from error

    def _move_to_host(self, schedule: Schedule) -> None:
        self._home = torch.device("cpu")
        self._spare.clear()
        cells = {cell for cells in schedule.of_window for cell in cells if cell.total is not None}
        for cell in cells:
            cell.total = None if cell.total is None else cell.total.cpu()
        self._taken = self._classes * sum(cell.voxels for cell in cells)
        free_memory(self._run.device)

    def _make_room(self, schedule: Schedule, number: int, logits: Tensor) -> None:
        if len(schedule.plan.places) == 1:
            return  # its logits are the sum
        self._weight(schedule.plan)
        for cell in schedule.of_window[number]:
            if cell.total is None:
                memory = self._reused(cell.voxels * self._classes)
                cell.total = _zeros(cell.box, logits, memory)
                self._taken += 0 if memory is not None else cell.total.numel()

    def _reused(self, values: int) -> Tensor | None:
        """Memory to spare of just this length; None: there is none, and room for it is made.

        Cells come in several sizes. What is kept of those that are done would add up, so only as
        much is as the schedule needs at its fullest anyway.
        """
        if self._spare.get(values):
            return self._spare[values].pop()
        for length, memories in self._spare.items():
            while memories and self._taken + values > self._most:
                memories.pop()
                self._taken -= length
        return None

    def _add(self, schedule: Schedule, number: int, logits: Tensor) -> None:
        """Add a window to its cells: in place, so that it cannot fail halfway."""
        plan = schedule.plan
        for cell in schedule.of_window[number]:
            here, there = _shared(cell.box, plan.covered(plan.places[number]))
            part = logits[(slice(None), *there)]
            if len(plan.places) == 1:
                cell.total = part
                continue
            assert cell.total is not None
            cell.total[(slice(None), *here)].addcmul_(part, self._weight(plan)[there])

    def _finish(self, cell: Cell, plan: Plan) -> None:
        """Divide by the weights, once; where no window came it is background.

        What may fail for want of memory comes before anything that must not be done twice.
        """
        if cell.total is None or cell.is_finished or len(plan.places) == 1:
            return
        weights = torch.zeros(cell.total.shape[1:], device=self._home)
        for number in cell.windows:
            here, there = _shared(cell.box, plan.covered(plan.places[number]))
            weights[here] += self._weight(plan)[there]
        if float(weights.min()) == 0:
            cell.total[1:, weights == 0] = -torch.inf
        cell.total.div_(weights.clamp_min_(torch.finfo(weights.dtype).tiny))
        cell.is_finished = True

    def _forget(self, cell: Cell, plan: Plan) -> None:
        if cell.total is not None and len(plan.places) > 1:
            memory = cell.total.as_strided((cell.total.numel(),), (1,))
            self._spare.setdefault(len(memory), []).append(memory)
        cell.total = None

    def _weight(self, plan: Plan) -> Tensor:
        if self._weights is None or self._weights.device != self._home:
            self._weights = plan.weight.to(self._home)
        return self._weights


def likeliest(scores: Tensor) -> Tensor:
    """The class of the largest score (classes, ...) of each voxel, the first of equals, as uint8.

    Torch's argmax over the first axis is many times slower where there are few classes.
    """
    if len(scores) > _FEW_CLASSES:
        return scores.argmax(0).to(torch.uint8)
    best = scores[0]
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=scores.device)
    for number in range(1, len(scores)):
        labels.masked_fill_(scores[number] > best, number)
        best = torch.maximum(best, scores[number])
    return labels


def _zeros(box: Box, like: Tensor, memory: Tensor | None = None) -> Tensor:
    """Zeros (classes, *box) whose classes are innermost where those of `like` are.

    Args:
        box: For its size.
        like: (classes, i, j, k).
        memory: As many values, to be used again; None: new ones.
    """
    i, j, k = size(box)
    if memory is None:
        memory = _new(len(like) * i * j * k, like.device)
    else:
        memory.zero_()
    if like.stride(0) == 1:
        return memory.view(i, j, k, len(like)).permute(3, 0, 1, 2)
    return memory.view(len(like), i, j, k)


def _new(values: int, device: torch.device) -> Tensor:
    """Zeros; large ones of the host lie outside of the heap, where they would leave holes."""
    if device.type != "cpu" or values < _LARGE:
        return torch.zeros(values, device=device)
    return torch.frombuffer(mmap(-1, 4 * values), dtype=torch.float32)


def _shared(box: Box, other: Box) -> tuple[Box, Box]:
    """What two boxes that meet share: in the one, and in the other."""
    met = meet(box, other)
    assert met is not None
    return within(met, box), within(met, other)


def _assembled(step: Step, classes: int, device: torch.device) -> Tensor:
    """The logits (classes, *block) of its cells."""
    if len(step.cells) == 1 and (cell := step.cells[0]).total is not None:
        return cell.total[(slice(None), *within(step.block, cell.box))]
    found = next((cell.total for cell in step.cells if cell.total is not None), None)
    out = _zeros(step.block, torch.zeros(classes, device=device) if found is None else found)
    for cell in step.cells:
        here, there = _shared(cell.box, step.block)
        if cell.total is None:
            out[(slice(1, None), *there)] = -torch.inf
        else:
            out[(slice(None), *there)] = cell.total[(slice(None), *here)]
    return out
