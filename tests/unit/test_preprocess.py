"""Preprocessing and its way back: places in mm, labels, probabilities, crops."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.config.schema import ComponentSpec, Preprocess
from medseg.errors import DataError
from medseg.transforms.preprocess import Preprocessor, resample_label
from medseg.transforms.route import Route, resample
from medseg.volumes.geometry import Reorient
from medseg.volumes.image import Image
from medseg.volumes.load import LoadedCase
from medseg.volumes.writer import new_header

CODES = [
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("LR", "PA", "IS"))
    for sides in product((0, 1), repeat=3)
]


def case(image: np.ndarray, affine: np.ndarray, label: Any = None, mask: Any = None) -> LoadedCase:
    image = image.astype(np.float32)
    reference = Image(image[0], affine, new_header(image.shape[1:], affine), Path("x.nii"))
    return LoadedCase(image, label, mask, reference, ())


def prepare(case: LoadedCase, spacing: Any = None, **options: Any) -> Any:
    options.setdefault("normalise", ())
    return Preprocessor(Preprocess(**options), spacing)(case)


def oriented(code: str, spacing: Any, tilt: np.ndarray | None = None) -> np.ndarray:
    """An affine whose axes grow as `code` says, tilted by a rotation."""
    affine = np.eye(4)
    for axis, (letter, size) in enumerate(zip(code, spacing, strict=True)):
        x = next(n for n, ends in enumerate(("LR", "PA", "IS")) if letter in ends)
        affine[:3, axis] = 0
        affine[x, axis] = size if letter in "RAS" else -size
    if tilt is not None:
        affine[:3, :3] = tilt @ affine[:3, :3]
    affine[:3, 3] = (-11, 7, 3)
    return affine


def rotation(x: float, y: float, z: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", (x, y, z)).as_matrix()


def blob(shape: tuple[int, ...], centre: np.ndarray, affine: np.ndarray, width: float) -> Any:
    """A Gaussian of a width in mm about a voxel."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    distance = (grid - centre) @ affine[:3, :3].T
    return np.exp(-((distance**2).sum(-1)) / (2 * width**2)).astype(np.float32)


def middle(volume: np.ndarray) -> np.ndarray:
    """Centre of mass in voxels."""
    return np.array(ndimage.center_of_mass(volume))


@pytest.mark.parametrize("code", CODES)
def test_back_undoes_orientation_and_crop_exactly(code: str, rng: np.random.Generator) -> None:
    affine = oriented(code, (1.0, 1.5, 4.0))
    image = np.zeros((2, 9, 11, 7))
    image[:, 2:7, 3:9, 1:6] = rng.normal(size=(2, 5, 6, 5))
    prepared = prepare(case(image, affine), crop="foreground")
    assert sorted(prepared.image.shape[1:]) == [5, 5, 6]
    back = prepared.route.back(prepared.image)
    np.testing.assert_array_equal(back[1], image[1].astype(np.float32))
    # Outside the crop the background is certain.
    np.testing.assert_array_equal(back[0][image[0] == 0], 1)


@pytest.mark.parametrize("code", CODES)
def test_the_network_sees_ras_axes(code: str, rng: np.random.Generator) -> None:
    import nibabel as nib

    affine = oriented(code, (1.0, 1.5, 4.0), rotation(0.2, -0.1, 0.15))
    image = rng.normal(size=(1, 5, 6, 7))
    prepared = prepare(case(image, affine), orientation="RAS")
    peer = nib.as_closest_canonical(nib.Nifti1Image(image[0], affine))
    np.testing.assert_array_equal(prepared.image[0], peer.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(prepared.spacing, peer.header.get_zooms(), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    code=st.sampled_from(CODES),
    old=st.tuples(*[st.floats(0.8, 3.0)] * 2, st.floats(0.8, 6.0)),
    new=st.floats(1.0, 4.0),
    angles=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    place=st.tuples(*[st.floats(0.35, 0.65)] * 3),
)
def test_a_blob_stays_within_half_a_voxel_there_and_back(
    code: str, old: Any, new: float, angles: Any, place: Any
) -> None:
    affine = oriented(code, old, rotation(*angles))
    shape = tuple(int(60 / size) for size in old)
    centre = np.array([p * (n - 1) for p, n in zip(place, shape, strict=True)])
    target = blob(shape, centre, affine, 6.0)
    prepared = prepare(case(target[None], affine), (new, new, new))
    # There: the centre in mm, by the grid's own geometry (same edges, other voxels).
    route = prepared.route
    turned = route.reorient.affine(affine, shape)
    before = np.array(route.reorient.shape(shape))
    step = before / np.array(route.resampled)
    there = (middle(prepared.image[0]) + 0.5) * step - 0.5
    wanted = affine[:3, :3] @ centre + affine[:3, 3]
    moved = np.linalg.inv(turned[:3, :3]) @ (turned[:3, :3] @ there + turned[:3, 3] - wanted)
    assert np.abs(moved).max() < 0.5
    # And back: the thresholded probability lies where the blob was.
    share = route.back(np.stack([1 - prepared.image[0], prepared.image[0]]))[1]
    assert np.abs(middle(share) - middle(target)).max() < 0.5


def test_resampling_agrees_with_itk_inside(rng: np.random.Generator) -> None:
    import SimpleITK as sitk  # noqa: N813

    volume = ndimage.gaussian_filter(rng.normal(size=(20, 18, 16)), 2).astype(np.float32)
    shape = (30, 27, 16)
    mine = resample(volume[None], shape)[0]
    image = sitk.GetImageFromArray(volume.transpose(2, 1, 0))
    grid = sitk.Image(shape, sitk.sitkFloat32)
    step = [n / m for n, m in zip(volume.shape, shape, strict=True)]
    grid.SetSpacing(step)
    grid.SetOrigin([(s - 1) / 2 for s in step])  # voxel edges aligned
    peer = sitk.GetArrayFromImage(sitk.Resample(image, grid)).transpose(2, 1, 0)
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(mine[inner], peer[inner], atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 20, 30), (9, 14, 6), (12, 12, 12)])
def test_labels_are_resampled_as_the_argmax_of_one_hot(
    shape: Any, rng: np.random.Generator
) -> None:
    label = (ndimage.gaussian_filter(rng.normal(size=(12, 13, 11)), 1.5) * 20).clip(0, 3)
    label = label.astype(np.uint8)
    one_hot = (np.arange(4)[:, None, None, None] == label).astype(np.float32)
    expected = resample(one_hot, shape).argmax(0)
    np.testing.assert_array_equal(resample_label(label, shape), expected)
    if all(m >= n for m, n in zip(shape, label.shape, strict=True)):
        zoom = [m / n for m, n in zip(shape, label.shape, strict=True)]
        peer = [ndimage.zoom(c, zoom, order=1, mode="nearest", grid_mode=True) for c in one_hot]
        np.testing.assert_array_equal(expected, np.argmax(peer, 0))


def test_ignored_voxels_stay_ignored() -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[:4] = 255
    assert set(np.unique(resample_label(label, (12, 12, 12)))) == {0, 255}


def test_label_and_image_are_prepared_alike(rng: np.random.Generator) -> None:
    affine = oriented("PIR", (1.0, 2.0, 3.0))
    label = np.zeros((20, 16, 12), np.uint8)
    label[5:13, 6:11, 3:8] = 1
    prepared = prepare(
        case(label[None] * 7.0, affine, label, label > 0), (1.5, 1.5, 1.5), crop="foreground"
    )
    assert prepared.label.dtype == np.uint8
    assert (prepared.label == 1).all()  # cropped to the mask, which is the label here
    assert np.allclose(prepared.image, 7)
    whole = prepare(case(label[None] * 7.0, affine, label), (1.5, 1.5, 1.5))
    np.testing.assert_array_equal(whole.image[0] > 3.5, whole.label == 1)


def test_shrinking_smooths_before_it_picks() -> None:
    stripes = np.zeros((1, 32, 8, 8), np.float32)
    stripes[:, ::4] = 4  # every fourth plane: picking alone would keep all or nothing
    small = resample(stripes, (8, 8, 8))
    assert small[:, 1:-1].min() > 0.5
    assert small[:, 1:-1].max() < 1.5


@settings(max_examples=15, deadline=None)
@given(
    code=st.sampled_from(CODES),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 3)] * 3),
    seed=st.integers(0, 99),
)
def test_probabilities_still_sum_to_one_after_the_way_back(
    code: str, shape: Any, spacing: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    affine = oriented(code, (1.0, 1.3, 2.0))
    image = np.zeros((1, *shape))
    image[0, shape[0] // 2 :] = 1 + rng.random(image[0, shape[0] // 2 :].shape)
    route = prepare(case(image, affine), spacing, crop="foreground").route
    shares = rng.dirichlet(np.ones(3), size=route.resampled).astype(np.float32)
    back = route.back(np.moveaxis(shares, -1, 0))
    assert back.shape == (3, *shape)
    np.testing.assert_allclose(back.sum(0), 1, atol=1e-5)
    assert back.min() >= -1e-6


def test_crop_falls_back_to_the_whole_of_a_constant_volume() -> None:
    prepared = prepare(case(np.full((1, 4, 5, 6), 3.0), np.eye(4)), crop="foreground")
    assert prepared.image.shape == (1, 4, 5, 6)


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAL"])
@pytest.mark.parametrize("spacing", [(0.8, 1.0, 1.5), (2.5, 3.0, 2.0)])
def test_a_large_background_is_cropped_before_it_costs_anything(
    code: str, spacing: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is resampled is the box alone, and the same as if the file held nothing else."""
    part = (slice(9, 19), slice(30, 46), slice(3, 15))
    inner = rng.normal(5, 1, size=(2, 10, 16, 12))
    image, label = np.zeros((2, 40, 60, 50)), np.zeros((40, 60, 50), np.uint8)
    image[:, *part], label[part] = inner, rng.integers(0, 3, size=(10, 16, 12))
    affine = oriented(code, (1.0, 1.2, 1.4))
    alone = prepare(case(inner, affine, label[part]), spacing)
    seen: list[tuple[int, ...]] = []

    def watched(volume: np.ndarray, shape: Any) -> np.ndarray:
        seen.append(volume.shape[1:])
        return resample(volume, shape)

    monkeypatch.setattr("medseg.transforms.preprocess.resample", watched)
    cropped = prepare(case(image, affine, label), spacing, crop="foreground")
    assert {tuple(sorted(shape)) for shape in seen} == {(10, 12, 16)}
    np.testing.assert_array_equal(cropped.image, alone.image)
    np.testing.assert_array_equal(cropped.label, alone.label)
    scores = rng.random((3, *cropped.image.shape[1:])).astype(np.float32)
    back, without = cropped.route.back(scores), alone.route.back(scores)
    np.testing.assert_array_equal(back[:, *part], without)
    outside = np.ones(label.shape, bool)
    outside[part] = False
    assert (back[0][outside] == 1).all()
    assert (back[1:, outside] == 0).all()


def test_intensities_are_normalised_after_the_crop_within_the_mask(
    rng: np.random.Generator,
) -> None:
    image = rng.normal(5, 3, size=(1, 10, 10, 10))
    mask = np.zeros((10, 10, 10), bool)
    mask[2:8, 2:8, 2:8] = True
    spec = ComponentSpec(name="zscore", region="mask")
    prepared = prepare(case(image, np.eye(4), mask=mask), crop="foreground", normalise=(spec,))
    assert prepared.image.shape == (1, 6, 6, 6)
    assert abs(float(prepared.image.mean())) < 1e-5
    assert float(prepared.image.std()) == pytest.approx(1, abs=1e-4)


def test_a_route_without_changes_gives_back_what_it_got(rng: np.random.Generator) -> None:
    everything = (slice(0, 3), slice(0, 4), slice(0, 5))
    route = Route((3, 4, 5), Reorient((0, 1, 2), (False,) * 3), everything, (3, 4, 5))
    shares = rng.random((2, 3, 4, 5))
    np.testing.assert_array_equal(route.back(shares), shares)


def head(rng: np.random.Generator) -> np.ndarray:
    """A bright cube of 8 voxels in the middle of dark noise."""
    image = rng.uniform(0, 1, size=(1, 16, 16, 16))
    image[:, 4:12, 4:12, 4:12] += 50
    return image


def test_a_computed_region_is_what_later_steps_go_by(rng: np.random.Generator) -> None:
    spec = ComponentSpec(name="zscore", region="mask")
    prepared = prepare(
        case(head(rng), oriented("LPS", (1, 1, 2))),
        (2, 2, 2),
        mask="otsu_plus",
        crop="foreground",
        normalise=(spec,),
    )
    assert prepared.region.shape == (16, 16, 16)  # on the input's grid
    assert prepared.region[2:14, 4:12, 4:12].any()
    assert prepared.image.shape[1:] == prepared.mask.shape == (6, 6, 12)  # 12 voxels: cube and 2
    assert (prepared.image[0][~prepared.mask] == 0).all()
    assert abs(float(prepared.image[0][prepared.mask].mean())) < 1e-5


def test_a_region_lies_where_the_image_lies(rng: np.random.Generator) -> None:
    mask = rng.random((9, 8, 7)) < 0.3
    prepared = prepare(case(mask[None] * 5.0, oriented("PIR", (1, 2, 3)), mask=mask))
    np.testing.assert_array_equal(prepared.mask, prepared.image[0] > 0)
    np.testing.assert_array_equal(prepared.region, mask)


def test_without_a_region_there_is_none(rng: np.random.Generator) -> None:
    prepared = prepare(case(head(rng), np.eye(4)))
    assert prepared.mask is None
    assert prepared.region is None


def test_a_region_that_the_networks_grid_cannot_show_is_an_error(
    rng: np.random.Generator,
) -> None:
    mask = np.zeros((16, 16, 16), bool)
    mask[8, 8, 8] = True
    with pytest.raises(DataError, match=r"x\.nii: .*1 voxels.*\(4, 4, 4\).*preprocess\.spacing"):
        prepare(case(head(rng), np.eye(4), mask=mask), (4, 4, 4))
