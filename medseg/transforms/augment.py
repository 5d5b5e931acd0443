"""Random changes of a whole training batch, on the device where it lies.

Drawing (`draw`) is apart from applying (`apply`): the same draw may be applied twice, or to image
and label alone. Rotation and scaling are one affine map about the centre, in millimetres, so that
anisotropic voxels are not sheared; flips are part of the same map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medseg.config.schema import Augment


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
    """

    matrix: Tensor
    is_moved: Tensor
    gain: Tensor
    shift: Tensor
    gamma: Tensor
    noise: Tensor
    noise_seed: int


def draw(settings: Augment, samples: int, channels: int, generator: torch.Generator) -> Draw:
    """Draw the changes of a batch from a seeded CPU generator."""

    def uniform(*shape: int, reach: float = 1.0) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 2 - 1) * reach

    is_moved = torch.rand(samples, generator=generator) < settings.affine
    angles = uniform(samples, 3, reach=torch.pi / 180 * settings.rotate) * is_moved[:, None]
    scale = 1 + uniform(samples, 1, 1, reach=settings.scale) * is_moved[:, None, None]
    mirror = torch.ones(samples, 3)
    for axis in settings.flip:
        mirror[:, axis] = torch.where(torch.rand(samples, generator=generator) < 0.5, -1.0, 1.0)
    per_channel = (samples, channels, 1, 1, 1)
    is_noisy = torch.rand(samples, 1, 1, 1, 1, generator=generator) < settings.noise_probability
    strength = torch.rand(samples, 1, 1, 1, 1, generator=generator) * settings.noise
    return Draw(
        matrix=_rotation(angles) * scale * mirror[:, None, :],
        is_moved=is_moved,
        gain=1 + uniform(*per_channel, reach=settings.contrast),
        shift=uniform(*per_channel, reach=settings.brightness),
        gamma=1 + uniform(*per_channel, reach=settings.gamma),
        noise=strength * is_noisy,
        noise_seed=int(torch.randint(2**62, (1,), generator=generator)),
    )


def apply(change: Draw, image: Tensor, label: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a draw to a batch.

    Args:
        change: What to do.
        image: (N, C, I, J, K) float.
        label: (N, I, J, K) class indices.
        spacing: (N, 3) voxel size in mm.

    Returns:
        The changed image, and the label moved with it (nearest voxel).
    """
    image, label = move(change, image, label, spacing)
    return intensities(change, image), label


def move(change: Draw, image: Tensor, label: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
    """The spatial part of a draw. What comes from outside repeats the border; its label is 0."""
    identity = torch.eye(3).expand_as(change.matrix)
    if torch.equal(change.matrix, identity):
        return image, label
    if not bool(change.is_moved.any()):
        return _mirrored(change, image, label)
    size = torch.tensor(image.shape[2:], dtype=torch.float32) * spacing.cpu().float()
    # grid_sample counts from -1 to 1 along each axis, and names the axes k, j, i.
    matrix = change.matrix * size[:, None, :] / size[:, :, None]
    theta = torch.cat([matrix.flip(1, 2), torch.zeros(len(matrix), 3, 1)], dim=2).to(image.device)
    grid = _grid(theta, image.shape[2:])
    moved = functional.grid_sample(
        image, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    nearest = functional.grid_sample(
        label[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return moved, nearest[:, 0].to(label.dtype)


def intensities(change: Draw, image: Tensor) -> Tensor:
    """The intensity part of a draw."""
    gain, shift, gamma = (t.to(image.device) for t in (change.gain, change.shift, change.gamma))
    if bool((change.gamma != 1).any()):
        low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
        span = (high - low).clamp_min(1e-6)
        image = ((image - low) / span).clamp(0, 1) ** gamma * span + low
    image = torch.addcmul(shift, image, gain)
    if bool((change.noise > 0).any()):
        generator = torch.Generator(image.device).manual_seed(change.noise_seed)
        field = torch.empty_like(image).normal_(generator=generator)
        image = torch.addcmul(image, field, change.noise.to(image.device))
    return image


def _grid(theta: Tensor, shape: Sequence[int]) -> Tensor:
    """`affine_grid` without corners, (N, I, J, K, 3), as a sum of one term an axis: much faster."""
    grid = theta[:, None, None, None, :, 3]
    for axis, length in enumerate(shape):
        places = (2 * torch.arange(length, device=theta.device) + 1) / length - 1
        column = theta[:, None, None, None, :, 2 - axis]
        grid = grid + column * places.view([-1 if a == axis else 1 for a in range(3)] + [1])
    return grid


def _mirrored(change: Draw, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Flips alone are exact and need no interpolation."""
    signs = change.matrix.diagonal(dim1=1, dim2=2)
    images, labels = [], []
    for sample, target, sign in zip(image, label, signs, strict=True):
        axes = [axis for axis in range(3) if sign[axis] < 0]
        images.append(sample.flip([axis + 1 for axis in axes]))
        labels.append(target.flip(axes))
    return torch.stack(images), torch.stack(labels)


def _rotation(angles: Tensor) -> Tensor:
    """(N, 3, 3) rotations about i, then j, then k by (N, 3) radians."""
    matrix = torch.eye(3).repeat(len(angles), 1, 1)
    for axis in range(3):
        p, q = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, p, p], turn[:, q, q] = cosine, cosine
        turn[:, p, q], turn[:, q, p] = -sine, sine
        matrix = turn @ matrix
    return matrix
