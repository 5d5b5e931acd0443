"""A lesion phantom: small heads in two modalities, drawn from a seed; no threshold can segment it.

Lesions have the brightness of grey matter in "flair" and of white matter in "t1c". Either image
alone shows them like a tissue of which there is far more; both together tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg import files

Volume = npt.NDArray[np.float32]
Tissue = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]

CHANNELS = ("flair", "t1c")
PROTOCOLS: tuple[Spacing, ...] = ((2, 2, 2), (1.75, 1.75, 1.75), (1.5, 1.5, 3), (1, 1, 3))
"""Voxel sizes in mm that cases take in turn; the last two are anisotropic."""

FIELD = (128.0, 144.0, 112.0)  # mm along (i, j, k)
SKIN = (56.0, 66.0, 60.0)  # semi-axes in mm: a head of about two thirds, so that a demo is quick
LESION_MM3 = (5.0, 5000.0)
MAIN_LESION_MM3 = (
    600.0  # the least size of a case's first lesion, so that every case has one to see
)
NOISE = 0.03  # of the brightest tissue

# Brightness in (flair, t1c). Lesions share grey matter's flair and white matter's t1c.
TISSUES = {
    "air": (0.0, 0.0),
    "scalp": (0.48, 0.95),
    "bone": (0.10, 0.12),
    "fluid": (0.14, 0.20),
    "grey": (0.74, 0.40),
    "white": (0.46, 0.72),
    "lesion": (0.76, 0.72),
}
AIR, SCALP, BONE, FLUID, GREY, WHITE, LESION = range(len(TISSUES))


@dataclass(frozen=True, eq=False)
class Head:
    """One phantom in RAS+ order.

    Args:
        channels: float32 (2, I, J, K), from 0 to about 1000.
        label: uint8 (I, J, K), 1 in lesions.
        spacing: Voxel size in mm along (i, j, k).
    """

    channels: Volume
    label: npt.NDArray[np.uint8]
    spacing: Spacing


def generate(
    folder: Path,
    cases: int,
    seed: int,
    *,
    held_out: int = 0,
    protocols: Sequence[Spacing] = PROTOCOLS,
) -> None:
    """Write phantoms in nnU-Net's raw layout: dataset.json, imagesTr, labelsTr.

    Case n depends on the seed, n and the protocols alone, not on how many there are.

    Args:
        folder: Made if it does not exist.
        cases: How many go to imagesTr and labelsTr.
        seed: Every random draw comes from it.
        held_out: How many more go to imagesTs and labelsTs.
        protocols: Voxel sizes in mm along (i, j, k), which the cases take in turn.

    Raises:
        DataError: The folder cannot be written.
    """
    for number in range(cases + held_out):
        rng = np.random.default_rng([seed, number])
        head = draw(rng, protocols[number % len(protocols)])
        turn = "RAS" if rng.random() < 0.5 else "LPS"
        subset = "Tr" if number < cases else "Ts"
        name = f"head_{number + 1:03d}"
        for channel, volume in enumerate(head.channels):
            path = folder / f"images{subset}" / f"{name}_{channel:04d}.nii.gz"
            _write(path, volume.astype(np.int16), head.spacing, turn)
        _write(folder / f"labels{subset}" / f"{name}.nii.gz", head.label, head.spacing, turn)
    content = {
        "name": "medseg phantom",
        "channel_names": {str(n): name for n, name in enumerate(CHANNELS)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    files.write_json(folder / "dataset.json", content)


def draw(rng: np.random.Generator, spacing: Spacing) -> Head:
    """Draw one head.

    Args:
        rng: Gives every random number.
        spacing: Voxel size in mm along (i, j, k).
    """
    shape = tuple(round(size / step) for size, step in zip(FIELD, spacing, strict=True))
    tissue, depth = _anatomy(rng, shape, spacing)
    lesions = _lesions(rng, tissue, depth, spacing)
    tissue[lesions] = LESION
    channels = np.stack([_image(rng, tissue, spacing, channel) for channel in range(len(CHANNELS))])
    return Head(channels, lesions.astype(np.uint8), spacing)


def _anatomy(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: Spacing
) -> tuple[Tissue, Volume]:
    """Tissue indices, and the depth in mm below the surface of the brain (negative outside)."""
    x, y, z = _places(shape, [size / 2 + rng.uniform(-3, 3) for size in FIELD], spacing)
    a, b, c = (axis * rng.uniform(0.94, 1.04) for axis in SKIN)
    width = a * (1 - 0.10 * np.clip(y / b, -1, 1))  # the back of a head is wider than the brow
    radius = np.sqrt((x / width) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    below = (a + b + c) / 3 * (1 - radius) + 1.5 * _noise(rng, shape, spacing, 28)  # of the skin
    tissue = np.full(shape, AIR, np.uint8)
    for number, start in ((SCALP, 0), (BONE, 3.5), (FLUID, 7.5)):
        tissue[below > start] = number
    folds = _noise(rng, shape, spacing, 9)
    depth = (below - 9.5 - 0.6 * folds).astype(np.float32)
    # Sulci lie where the noise changes sign; cortex is what is near them or near the surface.
    cortex = np.minimum(depth, 6 * np.abs(folds) + np.maximum(0, depth - 9))
    tissue[(depth > 0) & (cortex > 0.9)] = GREY
    tissue[(depth > 0) & (cortex > 3.6)] = WHITE
    midline = (z > 0.3 * c) | (np.abs(y) > 0.62 * b)
    tissue[(np.abs(x + 0.8 * folds) < 1.2) & (depth > 0) & midline] = FLUID
    _deep_structures(rng, tissue, (x, y, z), folds, depth > 4)
    return tissue, depth


def _deep_structures(
    rng: np.random.Generator,
    tissue: Tissue,
    place: tuple[Volume, Volume, Volume],
    folds: Volume,
    inside: Mask,
) -> None:
    """Basal nuclei and ventricles, mirrored left and right, into `tissue`. Lengths are in mm."""
    x, y, z = place
    side = np.abs(x)
    nuclei = ((side - 15) / 5.5) ** 2 + ((y - 6) / 12) ** 2 + ((z + 1) / 9) ** 2
    thalamus = ((side - 7) / 5) ** 2 + ((y + 9) / 9) ** 2 + ((z + 1) / 7) ** 2
    tissue[(np.minimum(nuclei, thalamus) + 0.25 * folds < 1) & inside] = GREY
    swell = rng.uniform(0.8, 1.3)
    bend = side - 5 - 0.006 * (y - 2) ** 2 * (y < 2)  # the horns part towards the back
    horns = (bend / (3.6 * swell)) ** 2 + ((y + 2) / 26) ** 2 + ((z - 9) / (6 * swell)) ** 2
    third = (x / 1.6) ** 2 + ((y + 2) / 9) ** 2 + ((z + 4) / 8) ** 2
    tissue[(np.minimum(horns, third) < 1) & inside] = FLUID


def _lesions(
    rng: np.random.Generator,
    tissue: Tissue,
    depth: Volume,
    spacing: Spacing,
) -> Mask:
    """One to six lesions of log-uniform size in the brain, none touching another."""
    voxel = float(np.prod(spacing))
    low, high = max(LESION_MM3[0], 2 * voxel), LESION_MM3[1]
    count = int(rng.integers(1, 7))
    sizes = np.exp(rng.uniform(np.log(low), np.log(high), count))
    sizes[0] = np.exp(rng.uniform(np.log(MAIN_LESION_MM3), np.log(high)))
    free = (tissue == WHITE) | (tissue == GREY)
    lesions = np.zeros(tissue.shape, bool)
    for size in np.sort(sizes)[::-1]:
        radius = (0.75 * size / np.pi) ** (1 / 3)
        centres = np.flatnonzero(free & (depth > 2 + 0.5 * radius))
        if len(centres):
            centre = np.unravel_index(rng.choice(centres), tissue.shape)
            blob = _blob(rng, centre, max(2, round(size / voxel)), free, spacing)
            lesions |= blob
            free &= ~ndimage.binary_dilation(blob, np.ones((3, 3, 3)), iterations=2)
    return lesions


def _blob(
    rng: np.random.Generator,
    centre: tuple[np.intp, ...],
    voxels: int,
    free: Mask,
    spacing: Spacing,
) -> Mask:
    """A connected, irregular set of about that many free voxels around a centre."""
    radius = (0.75 * voxels * float(np.prod(spacing)) / np.pi) ** (1 / 3)
    reach = [int(2.2 * radius / step) + 2 for step in spacing]
    box = tuple(
        slice(max(0, int(c) - r), min(n, int(c) + r + 1))
        for c, r, n in zip(centre, reach, free.shape, strict=True)
    )
    stretch = rng.uniform(0.75, 1.3, 3)
    inner = tuple(int(c) - part.start for c, part in zip(centre, box, strict=True))
    origin = [n * step for n, step in zip(inner, spacing, strict=True)]
    shape = tuple(part.stop - part.start for part in box)
    x, y, z = (p / s for p, s in zip(_places(shape, origin, spacing), stretch, strict=True))
    distance = np.sqrt(x**2 + y**2 + z**2) / radius
    distance = distance + 0.22 * _noise(rng, shape, spacing, max(3.0, 0.7 * radius))
    distance[~free[box]] = np.inf
    distance[inner] = -np.inf
    limit = np.sort(distance, axis=None)[min(voxels, np.isfinite(distance).sum()) - 1]
    parts, _ = ndimage.label(distance <= limit)
    blob = np.zeros(free.shape, bool)
    blob[box] = parts == parts[inner]
    return blob


def _image(rng: np.random.Generator, tissue: Tissue, spacing: Spacing, channel: int) -> Volume:
    """One modality: brightness, texture, partial volume, bias field, Rician noise, gain."""
    means = np.array([levels[channel] for levels in TISSUES.values()])
    means = means * rng.uniform(0.97, 1.03, len(means))
    clean = means.astype(np.float32)[tissue]
    clean *= 1 + 0.02 * _noise(rng, tissue.shape, spacing, 4)
    clean = ndimage.gaussian_filter(clean, [max(0.6, 0.9 / step) for step in spacing], truncate=3)
    clean *= np.exp(0.08 * _noise(rng, tissue.shape, spacing, 60))
    real, imaginary = NOISE * rng.standard_normal((2, *tissue.shape), np.float32)
    gain = rng.uniform(600, 1400)
    noisy: Volume = np.hypot(clean + real, imaginary)
    return noisy * np.float32(gain)


def _places(
    shape: tuple[int, ...], origin: Sequence[float], spacing: Spacing
) -> tuple[Volume, Volume, Volume]:
    """Distance in mm of each voxel from an origin (mm from the first one), along each axis."""
    axes = [
        (np.arange(n) * step - start).astype(np.float32)
        for n, start, step in zip(shape, origin, spacing, strict=True)
    ]
    return axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]


def _noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: Spacing, grain: float
) -> Volume:
    """Smooth noise of mean 0 and standard deviation 1 whose bumps are about `grain` mm wide.

    It is drawn on a coarse grid and interpolated with cubic splines.
    """
    coarse = [int(np.ceil(n * step / grain)) + 4 for n, step in zip(shape, spacing, strict=True)]
    field = rng.standard_normal(coarse, np.float32)
    start = rng.uniform(1, 2, 3)
    axes = [
        first + np.arange(n) * s / grain for first, n, s in zip(start, shape, spacing, strict=True)
    ]
    for axis, places in enumerate(axes):
        field = _interpolate(field, places, axis)
    return field / np.float32(0.63)


def _interpolate(field: Volume, places: npt.NDArray[np.float64], axis: int) -> Volume:
    """Cubic B-spline smoothing along one axis, as a small matrix product."""
    t = np.abs(places[:, None] - np.arange(field.shape[axis])[None])
    near = 2 / 3 - t**2 + t**3 / 2
    weights = np.where(t < 1, near, np.where(t < 2, (2 - t) ** 3 / 6, 0)).astype(np.float32)
    return np.moveaxis(np.tensordot(weights, field, (1, axis)), 0, axis)


def _write(path: Path, data: npt.NDArray[np.generic], spacing: Spacing, turn: str) -> None:
    """Write a RAS+ array as NIfTI, stored in the order RAS or LPS, centred in the patient."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * step for n, step in zip(data.shape, spacing, strict=True)]
    if turn == "LPS":
        data = data[::-1, ::-1]
        affine[:2] *= -1
    image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    with files.atomic(path) as temporary:
        nib.save(image, temporary)
