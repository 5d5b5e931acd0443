"""What a draw does to intensities, in a scanner's order: field, blur, voxels, tone, noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseg.transforms.augment.drawing import DEGREE, Draw


def intensities(change: Draw, image: Tensor, spacing: Tensor) -> Tensor:
    """The intensity part of a draw.

    Args:
        change: The draw.
        image: (N, C, I, J, K) float.
        spacing: (N, 3) voxel size in mm.
    """
    image = _biased(change, image)
    image = _blurred(change, image, spacing)
    image = _coarsened(change, image, spacing)
    image = _toned(change, image)
    if bool((change.noise > 0).any()):
        generator = torch.Generator(image.device).manual_seed(change.noise_seed)
        field = torch.empty_like(image).normal_(generator=generator)
        image = torch.addcmul(image, field, change.noise.to(image.device))
    return image


def _toned(change: Draw, image: Tensor) -> Tensor:
    """Gamma within the range of each channel, then contrast and brightness."""
    gain, shift, gamma = (t.to(image.device) for t in (change.gain, change.shift, change.gamma))
    if bool((change.gamma != 1).any()):
        low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
        span = (high - low).clamp_min(1e-6)
        image = (image - low).div_(span).clamp_(0, 1).pow_(gamma).mul_(span).add_(low)
    if bool((change.gain != 1).any() or (change.shift != 0).any()):
        image = torch.addcmul(shift, image, gain)
    return image


def _biased(change: Draw, image: Tensor) -> Tensor:
    """Multiply by a smooth field: the exponential of a polynomial over the patch.

    Normalised intensities have no true zero, so the channel's lowest value in the patch stands in
    for it: darkest stays darkest, and the field bends what is above.

    Source: Van Leemput et al. 1999, doi:10.1109/42.811270 (polynomials of low order); to augment
    with, Sudre et al. 2017, Medical Image Analysis 38.
    """
    rows = _rows(change.bias_strength > 0)
    if not len(rows):
        return image
    polynomials = [_legendre(n).to(image.device) for n in image.shape[2:]]
    field = change.bias.flatten(0, 1)[rows].to(image.device)
    field = torch.einsum("mabc,ia,jb,kc->mijk", field, *polynomials)
    strength = change.bias_strength.flatten()[rows].to(image.device)
    reach = torch.linalg.vector_norm(field, torch.inf, (1, 2, 3)).clamp_min(1e-6)
    gain = field.mul_((strength / reach)[:, None, None, None]).exp_()
    rows = rows.to(image.device)
    chosen = image.flatten(0, 1)[rows]
    low = chosen.amin((1, 2, 3), keepdim=True)
    return _with(image, rows, (chosen - low).mul_(gain).add_(low))


def _blurred(change: Draw, image: Tensor, spacing: Tensor) -> Tensor:
    """Gaussian blur, its deviation in mm.

    It is linear along each axis, so that it is one matrix an axis, made for each channel: channels
    of different strengths go through together, and products of matrices are fast on any device.
    """
    rows = _rows(change.blur > 0)
    if not len(rows):
        return image
    sigma = change.blur.flatten()[rows, None] / _per_channel(spacing, image)[rows]
    sigma, rows = sigma.to(image.device), rows.to(image.device)
    chosen = image.flatten(0, 1)[rows]
    for axis, length in enumerate(image.shape[2:]):
        chosen = _along(blurring(sigma[:, axis], length), chosen, axis)
    return _with(image, rows, chosen)


def _coarsened(change: Draw, image: Tensor, spacing: Tensor) -> Tensor:
    """Average over larger voxels, and interpolate linearly back.

    All axes get the same size in mm; those that are coarser already stay as they are. nnU-Net
    (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) takes the nearest voxel instead of the
    mean: small lesions would go while their labels stay, and a thick slice is a mean.
    """
    rows = _rows(change.coarseness > 1)
    if not len(rows):
        return image
    sizes = _per_channel(spacing, image)[rows]
    wanted = change.coarseness.flatten()[rows, None] * sizes.amin(1, keepdim=True)
    shape = torch.tensor(image.shape[2:])
    counts = (shape * sizes / wanted.maximum(sizes)).round().clamp_min(1).int().tolist()
    channels, result = image.flatten(0, 1), image.flatten(0, 1).clone()
    for row, count in zip(rows.tolist(), counts, strict=True):  # sizes differ: one by one
        small = functional.interpolate(channels[row][None, None], count, mode="area")
        result[row] = functional.interpolate(
            small, image.shape[2:], mode="trilinear", align_corners=False
        )[0, 0]
    return result.view(image.shape)


def blurring(sigma: Tensor, length: int) -> Tensor:
    """(M, L, L) matrices of Gaussian blurs along an axis; the border repeats without end.

    The weight of a voxel is the Gaussian's integral over it, so that any sigma is right.

    Args:
        sigma: (M,) standard deviation in voxels; 0 gives the identity.
        length: L, voxels along the axis.
    """
    place = torch.arange(length, dtype=torch.float32, device=sigma.device)
    edge = place[1:] - 0.5 - place[:, None]  # from each output to the faces between voxels
    below = torch.special.ndtr(edge / sigma.clamp_min(1e-3)[:, None, None])
    return functional.pad(functional.pad(below, (1, 0)), (0, 1), value=1).diff(dim=2)


def _along(matrix: Tensor, image: Tensor, axis: int) -> Tensor:
    """(M, L, L) matrices times (M, I, J, K) along one axis."""
    if axis == 0:
        return (matrix @ image.flatten(2)).view_as(image)
    if axis == 1:
        return matrix[:, None] @ image
    return (image.flatten(1, 2) @ matrix.mT).view_as(image)


def _legendre(length: int) -> Tensor:
    """(L, 4) Legendre polynomials of degree 0 to 3 at the voxels' centres, from -1 to 1."""
    x = (2 * torch.arange(length, dtype=torch.float32) + 1) / length - 1
    columns = [torch.ones_like(x), x]
    for n in range(1, DEGREE):
        columns.append(((2 * n + 1) * x * columns[n] - n * columns[n - 1]) / (n + 1))
    return torch.stack(columns, 1)


def _per_channel(spacing: Tensor, image: Tensor) -> Tensor:
    """(N * C, 3) voxel size in mm of each channel, on the CPU."""
    return spacing.cpu().float().repeat_interleave(image.shape[1], 0)


def _rows(is_on: Tensor) -> Tensor:
    """Which of the N * C channels are on."""
    return is_on.flatten().nonzero()[:, 0]


def _with(image: Tensor, rows: Tensor, channels: Tensor) -> Tensor:
    """The batch with some of its N * C channels replaced."""
    if len(rows) == image.shape[0] * image.shape[1]:
        return channels.view(image.shape)
    return image.flatten(0, 1).index_copy(0, rows, channels).view(image.shape)
