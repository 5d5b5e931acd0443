"""Where windows lie in a volume: which part of it they cover, and which of them hold anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

from medseg.config.schema import Inference
from medseg.inference.boxes import Box, Triple, bounds, cut, everything, grown, size, starts, tiled
from medseg.networks.blocks import ZERO

# Gaussian weights (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): deviation in windows.
_SIGMA, _LEAST_WEIGHT = 1 / 8, 1e-3
_SLACK = 0.05  # less overlap than asked for, where that saves a row of windows
_SPARSE = slice(None, None, 8)  # a glance at a window; one that varies is hardly ever missed by it


@dataclass(frozen=True, eq=False)
class Plan:
    """The windows of a volume.

    Args:
        image: (C, I, J, K) float32, the room with a margin around it.
        box: What is predicted, in the volume.
        room: The same in whole windows; it may overhang the volume, whose edge is then repeated.
        window: Voxels (i, j, k) of a window, without the margin.
        margin: Voxels of context (i, j, k) at each side of a window that the network takes.
        places: The first voxel of each window, in the room, in the order of the axes.
    """

    image: Tensor
    box: Box
    room: Box
    window: Triple
    margin: Triple
    places: tuple[Triple, ...]

    @property
    def size(self) -> Triple:
        """Voxels of the room."""
        return size(self.room)

    @cached_property
    def weight(self) -> Tensor:
        """(i, j, k) weights of a window's voxels where windows overlap."""
        weight: Tensor = compute_importance_map(self.window, mode="gaussian", sigma_scale=_SIGMA)
        return weight.clamp_min(_LEAST_WEIGHT)

    def edges(self, axis: int) -> list[int]:
        """Where windows begin and end along an axis of the room, and where it ends itself."""
        begins = {place[axis] for place in self.places}
        ends = {start + self.window[axis] for start in begins}
        return sorted({0, self.size[axis], *begins, *ends})

    def covered(self, place: Triple) -> Box:
        """The box of the room that the window at a place covers."""
        i, j, k = (slice(at, at + w) for at, w in zip(place, self.window, strict=True))
        return i, j, k

    def middle(self, divisor: Sequence[int]) -> Plan:
        """Two windows about the middle, half as long as this plan's along each axis.

        Two, for torch's convolutions of a single small one are slow in float32.
        """
        i, j, k = (
            min(max(w // 2 // d, 2) * d, w) for w, d in zip(self.window, divisor, strict=True)
        )
        x, y, z = (max(n - w, 0) // 2 for n, w in zip(self.size, (i, j, k), strict=True))
        before, after = max(x - i // 2, 0), min(x + i // 2, max(self.size[0] - i, 0))
        places = ((before, y, z), (after, y, z))
        return replace(self, window=(i, j, k), places=places)

    def windows(self, places: Sequence[Triple]) -> Tensor:
        """(N, C, i, j, k): windows of the image with their margins."""
        i, j, k = (w + 2 * m for w, m in zip(self.window, self.margin, strict=True))
        return torch.stack([self.image[:, a : a + i, b : b + j, c : c + k] for a, b, c in places])


def plan(
    image: Tensor,
    settings: Inference,
    divisor: Sequence[int],
    margin: Triple = ZERO,
    roi: Tensor | None = None,
) -> Plan:
    """Lay windows over a volume.

    With a region of interest they cover its bounding box; those without any of its voxels are left
    out, and so are, with `skip_constant`, those in which no channel varies.

    Args:
        image: (C, I, J, K) float32.
        settings: Mode ("resize" is one pass over a volume that has been resized), patch (not None),
            overlap, skip_constant.
        divisor: What a window's size must be divisible by, per axis.
        margin: Of the network.
        roi: (I, J, K) bool, not empty; None: everywhere.
    """
    box = everything(image) if roi is None else bounds(roi)
    window, is_whole = settings.patch or ZERO, _is_whole(settings, size(box))
    if is_whole:
        i, j, k = (-(-n // d) * d for n, d in zip(size(box), divisor, strict=True))
        lone = (i, j, k) == tuple(divisor)  # a voxel at the coarsest level, which no norm can take
        window = (2 * i if lone else i, j, k)
    beside = any(margin) and not settings.overlap and not is_whole
    x, y, z = (
        tiled(part, least) if beside else grown(part, n, least, centred=not is_whole)
        for part, n, least in zip(box, image.shape[1:], window, strict=True)
    )
    room = (x, y, z)
    image = cut(image, room, margin)
    whole = Plan(image, box, room, window, margin, (ZERO,))
    if is_whole:
        return whole
    slack = 0.0 if roi is None else _SLACK  # without a region the windows are MONAI's
    a, b, c = (
        starts(n, w, settings.overlap, slack) for n, w in zip(whole.size, window, strict=True)
    )
    inside = None if roi is None else cut(roi[None].float(), room, ZERO)[0] > 0
    places: list[Triple] = [
        place
        for place in product(a, b, c)
        if inside is None or bool(inside[whole.covered(place)].any())
    ]
    if settings.skip_constant:
        places = [place for place in places if _varies(whole, place)]
    return Plan(image, box, room, window, margin, tuple(places))


def _is_whole(settings: Inference, shape: Sequence[int]) -> bool:
    if settings.mode == "auto":
        return torch.Size(shape).numel() <= settings.whole_voxels
    return settings.mode in ("whole", "resize")


def _varies(whole: Plan, place: Triple) -> bool:
    """Whether a channel has different values in a window, its margin included."""
    (window,) = whole.windows([place])
    for values in (window[:, _SPARSE, _SPARSE, _SPARSE], window):
        flat = values.flatten(1)
        if bool((flat.amin(1) < flat.amax(1)).any()):
            return True
    return False
