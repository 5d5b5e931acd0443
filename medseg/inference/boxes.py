"""Boxes in a volume: around a region, grown to a window's size, and cut out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.nn import functional

Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]


def bounds(roi: Tensor) -> Box:
    """The bounding box of a region that is not empty."""
    places = roi.nonzero()
    first, last = places.amin(0).tolist(), places.amax(0).tolist()
    i, j, k = (slice(a, b + 1) for a, b in zip(first, last, strict=True))
    return i, j, k


def size(box: Box) -> Triple:
    """Voxels along each axis."""
    i, j, k = (part.stop - part.start for part in box)
    return i, j, k


def meet(one: Box, other: Box) -> Box | None:
    """What two boxes share; None: nothing."""
    i, j, k = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return (i, j, k) if all(part.start < part.stop for part in (i, j, k)) else None


def around(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of them."""
    i, j, k = (
        slice(min(part.start for part in axis), max(part.stop for part in axis))
        for axis in zip(*boxes, strict=True)
    )
    return i, j, k


def within(box: Box, other: Box) -> Box:
    """A box, counted from the first voxel of another."""
    i, j, k = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, other, strict=True))
    return i, j, k


def everything(image: Tensor) -> Box:
    """All of an image (C, I, J, K)."""
    i, j, k = (slice(0, n) for n in image.shape[1:])
    return i, j, k


def grown(part: slice, n: int, least: int, *, centred: bool) -> slice:
    """A stretch of at least `least` voxels around `part`.

    It stays within the volume's `n` voxels if they suffice, else it overhangs: at both ends if
    `centred`, else at the end.
    """
    if n < least:
        start = -((least - n) // 2) if centred else 0
        return slice(start, start + least)
    missing = max(least - (part.stop - part.start), 0)
    start = min(max(part.start - missing // 2, 0), n - least) if missing else part.start
    return slice(start, max(part.stop, start + least))


def tiled(part: slice, step: int) -> slice:
    """The stretch of whole windows, side by side, that covers `part` from its start.

    Windows of a network with a margin need no overlap, and are not moved back to end with the
    volume: what a voxel gets may depend on its place in the window, as with DeepMedic's blocks.
    """
    return slice(part.start, part.start + -(-(part.stop - part.start) // step) * step)


def starts(n: int, length: int, overlap: float, slack: float = 0.0) -> list[int]:
    """Where windows begin along an axis: evenly spaced, the last moved back to end with it.

    Args:
        n: Voxels of the axis.
        length: Of a window.
        overlap: Of neighbouring windows, as a share of their length.
        slack: How much less overlap may be, where that saves a window; all are then evenly spaced.
    """
    step = max(int(length * (1 - overlap)), 1)
    last = n - length
    fewer = -(-last // step) - 1
    if fewer > 0 and last / fewer <= length * min(1 - overlap + slack, 1):
        return [round(last * window / fewer) for window in range(fewer + 1)]
    return [min(start, last) for start in range(0, max(last, 0) + step, step)]


def cut(volume: Tensor, box: Sequence[slice], margin: Triple) -> Tensor:
    """A box of (C, I, J, K) with a margin; what overhangs repeats the edge."""
    kept, pads = [], []
    for part, n, m in zip(box, volume.shape[1:], margin, strict=True):
        start, stop = part.start - m, part.stop + m
        kept.append(slice(max(start, 0), min(stop, n)))
        pads.append((max(-start, 0), max(stop - n, 0)))
    inner = volume[(slice(None), *kept)]
    if not any(map(any, pads)):
        return inner
    flat = [n for pair in reversed(pads) for n in pair]
    return functional.pad(inner[None], flat, mode="replicate")[0]
