"""Channels brought onto another grid agree with SimpleITK's resampling of the same files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from medseg.volumes import nifti
from medseg.volumes.resample import onto


def oblique(degrees: tuple[float, float, float], spacing: tuple[float, float, float]) -> np.ndarray:
    """Rotations about x, y, z, in turn, of voxels whose second axis runs backwards."""
    affine = np.diag([spacing[0], -spacing[1], spacing[2], 1.0])
    for axis, angle in enumerate(np.deg2rad(degrees)):
        p, q = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(4)
        turn[[p, q], [p, q]] = np.cos(angle)
        turn[p, q], turn[q, p] = -np.sin(angle), np.sin(angle)
        affine = turn @ affine
    return affine


def saved(path: Path, data: np.ndarray, affine: np.ndarray, centre: np.ndarray) -> Path:
    affine = affine.copy()
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(data.shape) - 1) / 2)
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -7, 25), (90, 5, 180), (-40, 33, 61)])
def test_oblique_anisotropic_grids(
    degrees: tuple[float, float, float], tmp_path: Path, rng: np.random.Generator
) -> None:
    data = ndimage.gaussian_filter(rng.normal(size=(36, 40, 18)), 1.5)
    centre = np.array([-11.0, 23.0, 5.0])
    moving = saved(tmp_path / "t1.nii.gz", data, oblique(degrees, (1.1, 0.9, 2.5)), centre)
    wanted = oblique((3, 8, -4), (0.9, 0.8, 0.7))
    shift = np.array([1.3, -0.6, 2.1])
    noise = rng.normal(size=(30, 33, 38))
    fixed = saved(tmp_path / "flair.nii.gz", noise, wanted, centre + shift)
    ours = onto(nifti.read(moving), nifti.read(fixed), "")
    outside = -77.0
    theirs = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(
            SimpleITK.ReadImage(str(moving)),
            SimpleITK.ReadImage(str(fixed)),
            SimpleITK.Transform(),
            SimpleITK.sitkLinear,
            outside,
        )
    ).T
    inside = theirs != outside
    assert inside.mean() > 0.5
    share = float(ours.notes[-1].split("; ")[1].split("%")[0]) / 100
    assert 1 - inside.mean() == pytest.approx(share, abs=1e-3)
    np.testing.assert_allclose(ours.data[inside], theirs[inside], atol=1e-3 * float(np.ptp(data)))
