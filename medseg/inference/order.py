"""In which order a volume is asked for, so that little of it is unfinished at any time.

Blocks follow each other along the longest axis, a layer of windows at a time, each layer in strips
along the second axis. Where the sums of one layer would still be too large, the volume is divided
into parts, one after the other; windows on the border of two parts run twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby, pairwise, product
from math import prod

from medseg.inference.boxes import Box, meet, size, within
from medseg.inference.plan import Plan
from medseg.inference.schedule import Schedule, longest_first
from medseg.transforms.route import Route

Way = tuple[Plan, Route, Box]

BLOCK_BYTES = 8 << 20
_MOST_PARTS, _TRIES = 16, 24  # along the shortest axis; divisions looked at


def seen(plan: Plan, route: Route) -> Box:
    """The box of the input's grid on which the windows have a say."""
    found = list(route.kept)
    for axis, (taps, part) in enumerate(zip(route.taps, plan.box, strict=True)):
        rows = ((taps.index >= part.start) & (taps.index < part.stop)).any(1).nonzero()
        x = route.reorient.axes[axis]
        start = route.kept[x].start
        found[x] = slice(start + int(rows[0]), start + int(rows[-1]) + 1)
    i, j, k = found
    return i, j, k


def in_room(plan: Plan, route: Route, box: Box) -> Box:
    """The box of the room that a box of the input is made from, within what is predicted."""
    met = meet(route.source(box), plan.box)
    assert met is not None  # as for any box in `seen`
    return within(met, plan.room)


def schedule(plan: Plan, route: Route, blocks: Sequence[Box]) -> Schedule:
    """Which windows run before which block of the input."""
    halo = 0 if route.is_plain else max(taps.reach for taps in route.taps)
    return Schedule(plan, [in_room(plan, route, block) for block in blocks], halo)


def parts(ways: Sequence[Way], box: Box, classes: int, most: int) -> list[list[Box]]:
    """The blocks of a box of the input, in order, in as few parts as memory allows.

    What suits one network may have another hold nearly all of its volume, so with several each is
    tried as the one whose windows give the order.

    Args:
        ways: Of each network that is asked for the blocks: its windows, its route to the input's
            grid, and what it has `seen`.
        box: Of the input's grid; it holds what they all have seen.
        classes: Of the networks.
        most: Bytes that the sums of windows of all of them together may take, if they can do with
            that.

    Returns:
        The blocks of each part; together they cover the box, each voxel once.
    """
    found: list[tuple[float, list[list[Box]]]] = []
    for way in ways:
        peak, blocks = _parts(way, ways, box, classes, most)
        if len(blocks) == 1 and peak <= most:
            return blocks
        found.append((peak, blocks))
    return min(found, key=lambda pair: (max(pair[0], most), len(pair[1])))[1]


def _parts(
    way: Way, ways: Sequence[Way], box: Box, classes: int, most: int
) -> tuple[float, list[list[Box]]]:
    """The bytes that sums take at most, and the parts, in the order of one network."""
    plan, route, _ = way
    a, b, c = longest_first(plan.size)
    layers, strips = _grouped(plan, route, box, a), _grouped(plan, route, box, b)
    third = box[route.reorient.axes[c]]

    def divided(along: int, across: int) -> tuple[float, list[list[Box]]]:
        blocks = [
            [
                _box({a: layer, b: strip, c: rows}, route)
                for layer, segment in product(layers, some)
                for strip in _split(segment, _pieces(classes, layer, segment, rows))
            ]
            for some in _shared_out(strips, along)
            for rows in _split(third, across)
        ]
        return 4 * classes * max(sum(_peak(*way, part) for way in ways) for part in blocks), blocks

    peak, best = divided(1, 1)
    counts = product(range(1, len(strips) + 1), range(1, _MOST_PARTS + 1))
    by_cost = sorted(counts, key=lambda pair: (pair[1], pair[0]))
    enough = [pair for pair in by_cost if pair[0] * pair[1] * most >= peak]
    for along, across in (enough[:_TRIES] or by_cost[-1:]) if peak > most else ():
        found, blocks = divided(along, across)
        if found < peak:
            peak, best = found, blocks
        if peak <= most:
            break
    return peak, best


def _peak(plan: Plan, route: Route, known: Box, blocks: Sequence[Box]) -> int:
    """The most voxels of cells that a network holds at once for some blocks."""
    inner = [met for block in blocks if (met := meet(block, known))]
    return schedule(plan, route, inner).peak if inner else 0


def _grouped(plan: Plan, route: Route, box: Box, axis: int) -> list[slice]:
    """The box's rows along an axis of the network, by the windows that finish them, in order."""
    x, taps = route.reorient.axes[axis], route.taps[axis]
    edges, shift = plan.edges(axis), plan.room[axis].start
    highest = taps.index.amax(1).clamp(max=plan.box[axis].stop - 1).sub(shift).tolist()
    rows = range(box[x].start, box[x].stop)
    first, last = route.kept[x].start, route.kept[x].stop - 1

    def finished(row: int) -> int:
        return bisect_right(edges, highest[min(max(row, first), last) - first])

    groups = groupby(sorted(rows, key=finished), finished)
    spans = ([*group] for _, group in groups)
    return [slice(min(span), max(span) + 1) for span in spans]


def _box(rows: dict[int, slice], route: Route) -> Box:
    """A box of the input from its rows along each axis of the network's grid."""
    i, j, k = (rows[route.reorient.axes.index(x)] for x in range(3))
    return i, j, k


def _pieces(classes: int, *rows: slice) -> int:
    """Into how many strips a block is cut."""
    a, b, c = rows
    voxels = prod(size((a, b, c)))
    return -(-4 * classes * voxels // BLOCK_BYTES)


def _split(rows: slice, pieces: int) -> list[slice]:
    """Rows in pieces of about the same length, each of one row or more."""
    n = rows.stop - rows.start
    pieces = min(pieces, n)
    ends = [rows.start + n * piece // pieces for piece in range(pieces + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _shared_out(groups: list[slice], parts: int) -> list[list[slice]]:
    """The groups in so many runs."""
    return [groups[part.start : part.stop] for part in _split(slice(0, len(groups)), parts)]
