"""Orientation, turning axes and comparing grids, cross-checked against nibabel."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from scipy.spatial.transform import Rotation

from medseg.volumes.geometry import (
    Reorient,
    corner_distance,
    orientation,
    same_grid,
    voxel_size,
)

CODES = ["".join(ends) for axes in permutations(("LR", "PA", "IS")) for ends in product(*axes)]
SHAPE = (4, 5, 6)


def affine_of(codes: str, size=(1.0, 1.0, 1.0), turn=(0.0, 0.0, 0.0), origin=(0.0, 0.0, 0.0)):
    """An affine whose axes grow towards `codes`, then turned by Euler angles in degrees."""
    unit = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        x, sign = unit[code]
        affine[:3, axis] = 0
        affine[x, axis] = sign * size[axis]
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = origin
    return affine


obliques = st.tuples(*[st.floats(-20, 20)] * 3)
sizes = st.tuples(*[st.floats(0.3, 6)] * 3)


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", CODES)
def test_straight_axes_are_named(codes):
    assert orientation(affine_of(codes, size=(0.5, 3, 1))) == codes


@given(codes=st.sampled_from(CODES), size=sizes, turn=obliques)
def test_oblique_axes_are_named_as_nibabel_names_them(codes, size, turn):
    affine = affine_of(codes, size, turn)
    assert orientation(affine) == codes == "".join(aff2axcodes(affine))
    assert voxel_size(affine) == pytest.approx(size)


def test_strong_obliques_use_each_axis_once():
    for seed in range(200):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
        assert orientation(affine) in CODES


@settings(deadline=None)
@given(
    codes=st.sampled_from(CODES), to=st.sampled_from(CODES), size=sizes, turn=obliques,
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
)  # fmt: skip
def test_turning_equals_nibabel_and_comes_back(codes, to, size, turn, origin):
    affine = affine_of(codes, size, turn, origin)
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turn_axes = Reorient.to(affine, to)
    turned, turned_affine = turn_axes.apply(array), turn_axes.affine(affine, SHAPE)
    ornt = ornt_transform(io_orientation(affine), axcodes2ornt(to))
    np.testing.assert_array_equal(turned, apply_orientation(array, ornt))
    np.testing.assert_allclose(turned_affine, affine @ inv_ornt_aff(ornt, SHAPE), atol=1e-9)
    assert orientation(turned_affine) == to
    assert turned.shape == turn_axes.shape(SHAPE)
    np.testing.assert_array_equal(turn_axes.undo(turned), array)


def test_leading_axes_stay():
    turn_axes = Reorient.to(affine_of("PIL"), "RAS")
    array = np.random.default_rng(0).random((2, 3, *SHAPE))
    turned = turn_axes.apply(array)
    np.testing.assert_array_equal(turned[1, 2], turn_axes.apply(array[1, 2]))
    np.testing.assert_array_equal(turn_axes.undo(turned), array)


def test_no_codes_leaves_all_as_stored():
    turn_axes = Reorient.to(affine_of("PIL"), None)
    assert turn_axes == Reorient((0, 1, 2), (False, False, False))
    assert Reorient.to(affine_of("PIL"), "PIL") == turn_axes


@pytest.mark.parametrize("codes", ["RAR", "RA", "RASS", "xyz", "RLS", ""])
def test_codes_that_are_no_orientation_are_refused(codes):
    with pytest.raises(ValueError, match="name one of each"):
        Reorient.to(np.eye(4), codes)


def test_equal_grids_agree_within_the_tolerance():
    near = np.eye(4)
    near[0, 3] = 9e-4
    assert same_grid(SHAPE, np.eye(4), SHAPE, near) is None
    assert same_grid(SHAPE, np.eye(4), SHAPE, near, tolerance_mm=1e-4) is not None


def test_shapes_that_differ_are_told():
    assert same_grid((4, 5, 6), np.eye(4), (4, 5, 7), np.eye(4)) == (
        "4 x 5 x 6 voxels against 4 x 5 x 7"
    )


def test_the_distance_is_that_of_the_worst_corner():
    wider = np.diag([1.5, 1, 1, 1])  # the last of 4 voxels moves by 3 * 0.5 mm
    assert corner_distance(SHAPE, np.eye(4), wider) == pytest.approx(1.5)
    assert same_grid(SHAPE, np.eye(4), SHAPE, wider) == "the grids lie up to 1.5 mm apart"


def test_mirrored_grids_name_their_orientations():
    text = same_grid(SHAPE, affine_of("RAS"), SHAPE, affine_of("LPS"))
    assert text is not None
    assert "(RAS against LPS)" in text
