"""Image and label at any places: linear and nearest, in one pass over the places.

The same as `grid_sample` twice, which on a CPU goes voxel by voxel; here each operation runs over
all voxels at once, and the places are worked out once for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional


def interpolate(image: Tensor, label: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The image (C, i, j, k), linear, and the label (i, j, k), of the nearest voxel, at places.

    Beyond the outermost voxels the image repeats them, and the label is 0.

    Args:
        image: (C, I, J, K) float.
        label: (I, J, K).
        places: (3, i, j, k) in voxels (i, j, k); is used up.
    """
    if image.device.type != "cpu":
        return _by_grid(image, label, places)
    labels = _nearest(label, places.round())
    shape = image.shape[1:]
    for rows, length in zip(places, shape, strict=True):
        rows.clamp_(0, length - 1)
    low = places.floor()
    for rows, length in zip(low, shape, strict=True):
        rows.clamp_(max=max(length - 2, 0))  # so that there is a next voxel, of weight 1 at the end
    weights = places.sub_(low).flatten(1)
    base = _flat(low, shape).long()
    steps = [stride if n > 1 else 0 for stride, n in zip(_strides(shape), shape, strict=True)]
    channels = [_linear(channel, base, steps, weights) for channel in image.flatten(1)]
    return torch.stack(channels).view(-1, *places.shape[1:]), labels


def _nearest(label: Tensor, places: Tensor) -> Tensor:
    """The label at whole places; around it lie zeros."""
    around = functional.pad(label, (1, 1) * 3)
    for rows, length in zip(places, label.shape, strict=True):
        rows.clamp_(-1, length).add_(1)
    return around.flatten().index_select(0, _flat(places, around.shape)).view(places.shape[1:])


def _linear(values: Tensor, base: Tensor, steps: Sequence[int], weights: Tensor) -> Tensor:
    """Between the 8 voxels of a cell: along the last axis, then the one before, then the first."""
    if not steps:
        return values.index_select(0, base)
    here = _linear(values, base, steps[:-1], weights[:-1])
    if not steps[-1]:
        return here
    return here.lerp_(_linear(values[steps[-1] :], base, steps[:-1], weights[:-1]), weights[-1])


def _flat(places: Tensor, shape: Sequence[int]) -> Tensor:
    """Flat indices (V,) of whole places (3, i, j, k); int32, which torch is faster at."""
    first, second, _ = _strides(shape)
    i, j, k = places.int().flatten(1).unbind()
    return k.add_(j, alpha=second).add_(i, alpha=first)


def _strides(shape: Sequence[int]) -> tuple[int, int, int]:
    return prod(shape[1:]), shape[2], 1


def _by_grid(image: Tensor, label: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """By `grid_sample`, whose places go from -1 to 1 along each axis, in the order (k, j, i)."""
    size = torch.tensor(image.shape[1:], device=image.device)[:, None, None, None]
    grid = ((2 * places + 1) / size - 1).flip(0).movedim(0, -1)[None]
    images = functional.grid_sample(
        image[None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    labels = functional.grid_sample(
        label[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return images[0], labels[0, 0].to(label.dtype)
