"""Elastic deformation beside rotation: in mm, bounded, without folds, image and label together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from medseg.config.schema import Augment
from medseg.transforms import augment
from medseg.transforms.augment import Draw

SPACING = torch.tensor([[1.0, 1.5, 3.0]])
SHAPE = (36, 30, 16)


def drawn(samples: int = 1, seed: int = 0, **options: Any) -> Draw:
    settings = {"affine": 0.0, "elastic_grid_mm": 12.0, **options}
    return augment.draw(Augment(**settings), samples, 1, torch.Generator().manual_seed(seed))


def ramps(spacing: torch.Tensor, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """(1, 3, I, J, K) the place of each voxel in mm: what is sampled tells where from."""
    axes = [(torch.arange(n) + 0.5) * float(s) for n, s in zip(shape, spacing[0], strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def displacement(change: Draw, spacing: torch.Tensor = SPACING, margin: int = 5) -> torch.Tensor:
    """(3, I, J, K) how far in mm from their own place voxels away from the border are taken."""
    place = ramps(spacing)
    label = torch.zeros(1, *SHAPE, dtype=torch.int64)
    moved, _ = augment.move(change, place, label, spacing)
    inner = slice(margin, -margin)
    return (moved - place)[0][:, inner, inner, inner]


@pytest.mark.parametrize("seed", range(3))
def test_displacements_are_bounded_in_millimetres_along_every_axis(seed: int) -> None:
    change = drawn(seed=seed, elastic=1.0, elastic_mm=4.0)
    change = replace(change, elastic=torch.tensor([4.0]))
    moved = displacement(change)
    assert float(moved.abs().max()) < 4.0
    for axis in range(3):  # and it is mm, not voxels: as far along the thick slices
        assert float(moved[axis].abs().max()) > 0.8


def test_the_deformation_is_scipys_b_spline() -> None:
    change = replace(drawn(elastic=1.0), elastic=torch.tensor([4.0]))
    size = torch.tensor(SHAPE) * SPACING[0]
    counts = [int(n / 12) + 4 for n in size]
    generator = torch.Generator().manual_seed(change.elastic_seed)
    points = (torch.rand(1, 3, *counts, generator=generator) * 2 - 1)[0].double().numpy() * 4.0
    for axis in range(3):  # a spline of degree 3 with knots at whole numbers, along axis after axis
        place = (np.arange(SHAPE[axis]) + 0.5) * float(SPACING[0, axis]) / 12
        knots = np.arange(counts[axis] + 4) - 3.0
        spline = BSpline(knots, np.moveaxis(points, axis + 1, 0), 3)
        points = np.moveaxis(spline(place), 0, axis + 1)
    np.testing.assert_allclose(displacement(change).numpy(), points[:, 5:-5, 5:-5, 5:-5], atol=1e-4)


def test_the_strongest_that_is_allowed_does_not_fold() -> None:
    change = drawn(elastic=1.0, elastic_mm=4.8)  # of a grid of 12 mm
    change = replace(change, elastic=torch.tensor([4.8]))
    field = displacement(change)
    gradients = torch.stack(
        torch.gradient(field, spacing=SPACING[0].tolist(), dim=(1, 2, 3)), 1
    )  # (to, along, I, J, K)
    jacobian = gradients.permute(2, 3, 4, 0, 1) + torch.eye(3)
    assert float(torch.linalg.det(jacobian).min()) > 0
    with pytest.raises(ValueError, match=r"elastic_mm 5 could fold .* so 4\.8"):
        drawn(elastic=1.0, elastic_mm=5.0)
    drawn(elastic=0.0, elastic_mm=5.0)  # not used: not refused


def test_no_strength_is_the_identity() -> None:
    change = replace(drawn(elastic=1.0), elastic=torch.zeros(1), is_moved=torch.tensor([True]))
    assert float(displacement(change).abs().max()) < 1e-4
    place, label = ramps(SPACING), torch.ones(1, *SHAPE, dtype=torch.int64)
    moved, target = augment.move(drawn(elastic=0.0), place, label, SPACING)
    assert torch.equal(moved, place)
    assert torch.equal(target, label)


def test_it_happens_to_the_share_of_samples_that_was_asked() -> None:
    change = drawn(400, elastic=0.25, elastic_mm=3.0)
    assert 0.18 < float((change.elastic > 0).float().mean()) < 0.32
    assert float(change.elastic.max()) <= 3.0


def test_image_and_label_bend_together() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(1, 1, *SHAPE, generator=generator).numpy()
    smooth = ndimage.gaussian_filter(noise, (0, 0, 5, 4, 2))
    image = torch.from_numpy(smooth / smooth.std() - smooth.mean() / smooth.std())
    label = (image[:, 0] > 0).long()
    label[image[:, 0] > 1] = 255  # ignored voxels bend too
    change = replace(drawn(elastic=1.0), elastic=torch.tensor([4.0]))
    moved, target = augment.move(change, image, label, SPACING)
    assert set(target.unique().tolist()) == {0, 1, 255}
    inner = (0, *(slice(5, -5),) * 3)
    value, found = moved[:, 0][inner], target[inner] > 0
    is_clear = value.abs() > 0.4  # nearer to a border, nearest and linear may differ
    assert float(is_clear.float().mean()) > 0.4
    assert torch.equal(found[is_clear], (value > 0)[is_clear])
    still = label[inner] > 0
    assert int((found != still)[is_clear].sum()) > 10  # and it did bend


def test_bending_comes_before_the_affine_map() -> None:
    """The place sampled is matrix times (place + displacement), about the centre, in mm."""
    bent = replace(drawn(elastic=1.0, flip=(0,)), elastic=torch.tensor([3.0]))
    angle = torch.tensor(0.4)
    matrix = torch.eye(3)
    matrix[0, 0] = matrix[1, 1] = angle.cos()
    matrix[0, 1], matrix[1, 0] = -angle.sin(), angle.sin()
    matrix = matrix @ torch.diag(torch.tensor([-1.0, 1.1, 1.1]))
    both = replace(bent, matrix=matrix[None], is_moved=torch.tensor([True]))
    centre = (torch.tensor(SHAPE) * SPACING[0] / 2)[:, None, None, None]
    field = displacement(replace(bent, matrix=torch.eye(3)[None]), margin=7)
    inner = ramps(SPACING)[0, :, 7:-7, 7:-7, 7:-7]
    expected = torch.einsum("xy,yijk->xijk", matrix, inner + field - centre) + centre
    found = displacement(both, margin=7) + inner
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_samples_of_other_spacing_bend_by_the_same_millimetres() -> None:
    """One batch may hold both; a bump is as wide in the patient whatever the voxels are."""
    spacing = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    change = drawn(2, elastic=1.0, elastic_grid_mm=16.0)
    change = replace(change, elastic=torch.tensor([4.0, 4.0]))
    image = torch.cat([ramps(spacing[n : n + 1], (32, 32, 32)) for n in range(2)])
    label = torch.zeros(2, 32, 32, 32, dtype=torch.int64)
    moved, _ = augment.move(change, image, label, spacing)
    field = (moved - image)[:, :, 6:-6, 6:-6, 6:-6]
    fine, coarse = (f.diff(dim=1).abs().mean() for f in field)
    assert 1.4 < float(coarse / fine) < 3  # twice the mm a voxel, twice the change


def test_a_sample_that_does_not_move_is_not_interpolated() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 2, 9, 8, 7, generator=generator)
    label = torch.randint(3, (3, 9, 8, 7), generator=generator)
    change = replace(
        drawn(3), elastic=torch.tensor([2.0, 0.0, 0.0]),
        matrix=torch.stack([torch.eye(3), torch.eye(3), torch.diag(torch.tensor([1.0, -1, -1]))]),
    )  # fmt: skip
    moved, target = augment.move(change, image, label, torch.ones(3, 3))
    assert not torch.equal(moved[0], image[0])
    assert torch.equal(moved[1], image[1])
    assert torch.equal(target[1], label[1])
    assert torch.equal(moved[2], image[2].flip(2, 3))
    assert torch.equal(target[2], label[2].flip(1, 2))
