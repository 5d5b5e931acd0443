"""A channel on another grid comes to lie where it lies in the patient."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medseg.errors import DataError
from medseg.volumes.geometry import same_grid
from medseg.volumes.image import Image
from medseg.volumes.nifti import new_header
from medseg.volumes.resample import onto

Affine = np.ndarray[Any, np.dtype[np.float64]]


def volume(data: np.ndarray[Any, Any], affine: Affine, name: str = "t1.nii.gz") -> Image:
    data = data.astype(np.float32)
    i, j, k = data.shape
    return Image(data, affine, new_header((i, j, k), affine), Path(name))


def grid(shape: tuple[int, int, int], affine: Affine) -> Image:
    return volume(np.zeros(shape), affine, "flair.nii.gz")


def scaled(*spacing: float, origin: tuple[float, float, float] = (0, 0, 0)) -> Affine:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def turned(degrees: float) -> Affine:
    """A rotation about an oblique axis."""
    axis = np.array([1, 2, 3]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return affine


def ramp(places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A linear function of the place in mm, which linear interpolation gives back exactly."""
    return places @ np.array([1.0, -2.0, 0.5]) + 7


def places(shape: tuple[int, int, int], affine: Affine) -> np.ndarray[Any, Any]:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
def test_other_orientations_of_the_same_voxels_are_exact(
    axes: tuple[int, int, int], flips: tuple[bool, bool, bool], rng: np.random.Generator
) -> None:
    shape = (5, 6, 7)
    data = rng.normal(size=shape).astype(np.float32)
    affine = turned(20) @ scaled(1, 1.5, 3, origin=(-4, 8, 2))
    old = np.zeros((4, 4))
    old[3, 3] = 1
    for new, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        old[axis, new] = -1 if flip else 1
        old[axis, 3] = shape[axis] - 1 if flip else 0
    stored = data.transpose(axes)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    image = volume(stored, affine @ old)
    result = onto(image, grid(shape, affine), "")
    np.testing.assert_allclose(result.data, data, atol=1e-4)
    assert same_grid(shape, affine, result.shape, result.affine) is None
    assert "corners up to " in result.notes[-1]
    assert "; 0.00% of the new voxels" in result.notes[-1]


@pytest.mark.parametrize("degrees", [0, 10, 45, 200])
def test_a_ramp_in_the_patient_stays_that_ramp(degrees: float) -> None:
    theirs = turned(degrees) @ scaled(1.3, 1.1, 0.9)
    theirs[:3, 3] = -theirs[:3, :3] @ np.array([20, 20, 25])  # centred
    ours = scaled(1, 1, 1.2, origin=(-6, -7, -5))
    image = volume(ramp(places((41, 41, 51), theirs)), theirs)
    result = onto(image, grid((13, 14, 10), ours), "")
    np.testing.assert_allclose(result.data, ramp(places((13, 14, 10), ours)), atol=2e-4)


def test_thin_structures_fade_rather_than_alias() -> None:
    stripes = np.zeros((12, 12, 64))
    stripes[:, :, ::4] = 1
    image = volume(stripes, scaled(1, 1, 1))
    result = onto(image, grid((12, 12, 16), scaled(1, 1, 4)), "")  # would hit each stripe
    assert 0.1 < result.data[:, :, 2:-2].min() <= result.data[:, :, 2:-2].max() < 0.5


def test_a_rotation_alone_does_not_smooth(rng: np.random.Generator) -> None:
    """The new voxels are no larger, whatever their axes."""
    data = rng.normal(size=(15, 15, 15))
    centre = scaled(1, 1, 1, origin=(-7, -7, -7))
    result = onto(volume(data, turned(45) @ centre), grid((15, 15, 15), centre), "")
    assert result.data[7, 7, 7] == pytest.approx(data[7, 7, 7], abs=1e-5)


def test_larger_voxels_smooth_by_their_size_whatever_their_axes(rng: np.random.Generator) -> None:
    data = rng.normal(size=(41, 41, 41))
    theirs = scaled(1, 1, 1, origin=(-20, -20, -20))
    wanted = gaussian_filter(data.astype(np.float32), 0.5)[20, 20, 20]
    for degrees in (0, 30, 45):
        ours = turned(degrees) @ scaled(2, 2, 2, origin=(-8, -8, -8))
        result = onto(volume(data, theirs), grid((9, 9, 9), ours), "")
        assert result.data[4, 4, 4] == pytest.approx(wanted, abs=1e-4)


def test_what_lies_outside_becomes_background_and_is_counted() -> None:
    data = np.full((10, 10, 10), -1000.0)
    data[3:7, 3:7, 3:7] = 50
    data[0, 0, 0] = 900  # one odd corner
    image = volume(data, scaled(1, 1, 1))
    result = onto(image, grid((10, 10, 16), scaled(1, 1, 1, origin=(0, 0, -3))), "")
    assert (result.data[:, :, :3] == -1000).all()
    assert (result.data[:, :, 13:] == -1000).all()
    np.testing.assert_allclose(result.data[:, :, 3:13], data, atol=1e-3)
    assert "37.50% of the new voxels lie outside and take its background, -1000" in result.notes[-1]


def test_half_a_voxel_beyond_the_outermost_centres_is_inside() -> None:
    image = volume(np.ones((4, 4, 4)), scaled(2, 2, 2))
    result = onto(image, grid((8, 8, 8), scaled(1, 1, 1, origin=(-0.5, -0.5, -0.5))), "")
    assert (result.data == 1).all()
    assert "; 0.00% of" in result.notes[-1]


def test_the_note_tells_what_was_done() -> None:
    image = volume(np.ones((8, 8, 4)), scaled(1, 1, 2))
    result = onto(image, grid((8, 8, 8), scaled(1, 1, 1)), "8 x 8 x 8 voxels against 8 x 8 x 4")
    assert result.notes == (
        "resampled onto the grid of flair.nii.gz: 8 x 8 x 8 voxels against 8 x 8 x 4 (tolerance "
        "0.001 mm), corners up to 0.5 mm apart, voxels of 1 x 1 x 2 to 1 x 1 x 1 mm; 0.00% of the "
        "new voxels lie outside and take its background, 1",
    )


def test_another_place_of_the_body_is_refused() -> None:
    image = volume(np.ones((10, 10, 10)), scaled(1, 1, 1, origin=(0, 0, 6)))
    with pytest.raises(DataError) as caught:
        onto(image, grid((10, 10, 10), scaled(1, 1, 1)), "")
    assert str(caught.value) == (
        "t1.nii.gz: covers only 40.0% of the grid of flair.nii.gz, 50% are needed: is it of "
        "another place of the body, or its header wrong? If both are right, name the channel with "
        "the smaller field of view in data.reference"
    )
