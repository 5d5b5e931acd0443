"""What is drawn for a batch, before anything is applied."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from medseg.config.axes import numbers
from medseg.config.schema import Augment

DEGREE = 3  # of the bias field's polynomial, as in NiftyNet and MONAI


@dataclass(frozen=True)
class Draw:
    """One draw for a batch of N samples with C channels, on the CPU.

    Args:
        matrix: (N, 3, 3), from output to input position in mm, axes (i, j, k); includes flips.
        is_moved: (N,) whether the matrix is other than a flip.
        gain: (N, C, 1, 1, 1) contrast factor.
        shift: (N, C, 1, 1, 1) brightness, in standard deviations.
        gamma: (N, C, 1, 1, 1) exponent.
        noise: (N, 1, 1, 1, 1) standard deviation of the noise; 0 for none.
        noise_seed: Seed of the noise field.
        elastic: (N,) largest displacement along each axis in mm; 0 for none.
        elastic_grid: Distance of the control points in mm.
        elastic_seed: Seed of the control points' displacements.
        bias: (N, C, 4, 4, 4) coefficients of the log field in Legendre polynomials of (i, j, k).
        bias_strength: (N, C) largest logarithm of the field in the patch; 0 for none.
        blur: (N, C) standard deviation in mm; 0 for none.
        coarseness: (N, C) voxel size simulated, over the shortest edge of the voxels; 1 for none.
        partner: (N,) the sample that a box is taken from; the sample itself for none.
        box: (N, 3, 2) where the box begins and ends, as shares of the patch along (i, j, k).
        is_kept: (N, C) whether a channel stays; one of each sample does.
    """

    matrix: Tensor
    is_moved: Tensor
    gain: Tensor
    shift: Tensor
    gamma: Tensor
    noise: Tensor
    noise_seed: int
    elastic: Tensor
    elastic_grid: float
    elastic_seed: int
    bias: Tensor
    bias_strength: Tensor
    blur: Tensor
    coarseness: Tensor
    partner: Tensor
    box: Tensor
    is_kept: Tensor


def draw(settings: Augment, samples: int, channels: int, generator: torch.Generator) -> Draw:
    """Draw the changes of a batch from a seeded CPU generator.

    Everything is drawn in one fixed order, also what is switched off: switching one thing on
    leaves the draws of all others as they were. What is new is therefore drawn last.

    Raises:
        ConfigError: `settings.flip` names an axis: take `config.numbered.augment`.
    """

    def share(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def uniform(*shape: int, reach: float = 1.0) -> Tensor:
        return (share(*shape) * 2 - 1) * reach

    def some(probability: float, most: float, *shape: int) -> Tensor:
        return (share(*shape) < probability) * (share(*shape) * most)

    def seed() -> int:
        return int(torch.randint(2**62, (1,), generator=generator))

    is_moved = share(samples) < settings.affine
    angles = uniform(samples, 3, reach=torch.pi / 180 * settings.rotate) * is_moved[:, None]
    scale = 1 + uniform(samples, 1, 1, reach=settings.scale) * is_moved[:, None, None]
    mirror = torch.ones(samples, 3)
    for axis in numbers(settings.flip, None):
        mirror[:, axis] = torch.where(share(samples) < 0.5, -1.0, 1.0)
    per_channel = (samples, channels, 1, 1, 1)
    is_noisy = share(samples, 1, 1, 1, 1) < settings.noise_probability
    strength = share(samples, 1, 1, 1, 1) * settings.noise
    return Draw(
        matrix=_rotation(angles) * scale * mirror[:, None, :],
        is_moved=is_moved,
        gain=1 + uniform(*per_channel, reach=settings.contrast),
        shift=uniform(*per_channel, reach=settings.brightness),
        gamma=1 + uniform(*per_channel, reach=settings.gamma),
        noise=strength * is_noisy,
        noise_seed=seed(),
        elastic=some(settings.elastic, settings.elastic_mm, samples),
        elastic_grid=settings.elastic_grid_mm,
        elastic_seed=seed(),
        bias=uniform(samples, channels, *(DEGREE + 1,) * 3) * _of_degree(),
        bias_strength=some(settings.bias_field, settings.bias_field_strength, samples, channels),
        blur=some(settings.blur, settings.blur_mm, samples, channels),
        coarseness=1
        + some(settings.low_resolution, settings.low_resolution_factor - 1, samples, channels),
        partner=_partner(share(samples) < settings.mix, share(samples)),
        box=_box(share(samples, 1) * settings.mix_share, share(samples, 3)),
        is_kept=_kept(share(samples, channels), settings.channel_dropout),
    )


def _rotation(angles: Tensor) -> Tensor:
    """(N, 3, 3) rotations about i, then j, then k by (N, 3) radians."""
    matrix = torch.eye(3).repeat(len(angles), 1, 1)
    if not bool(angles.any()):
        return matrix
    for axis in range(3):
        p, q = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, p, p], turn[:, q, q] = cosine, cosine
        turn[:, p, q], turn[:, q, p] = -sine, sine
        matrix = turn @ matrix
    return matrix


@cache
def _of_degree() -> Tensor:
    """(4, 4, 4): 1 where the powers of (i, j, k) sum up to 1, 2 or 3; a constant is no field."""
    power = torch.arange(DEGREE + 1)
    total = power[:, None, None] + power[:, None] + power
    return ((total > 0) & (total <= DEGREE)).float()


def _partner(is_mixed: Tensor, place: Tensor) -> Tensor:
    """(N,) another sample, drawn evenly, for those that are mixed; the sample itself for others."""
    samples = len(place)
    further = (1 + (place * (samples - 1)).long().clamp_max(max(samples - 2, 0))) * is_mixed
    return (torch.arange(samples) + further) % samples


def _box(share: Tensor, place: Tensor) -> Tensor:
    """(N, 3, 2) boxes of a share of the patch and of its shape, somewhere inside it."""
    edge = share ** (1 / 3)
    begin = place * (1 - edge)
    return torch.stack([begin, begin + edge], dim=2)


def _kept(share: Tensor, probability: float) -> Tensor:
    """(N, C) which channels are not dropped; where all would be, one drawn evenly is kept."""
    return (share >= probability) | (share == share.amax(1, keepdim=True))
