"""Pictures of a case: the right way round, in proportion, through the largest error."""

from __future__ import annotations

import io
import itertools

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medseg.evaluation.overlay import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    CaseView,
    draw,
    largest_error,
    upright,
)


def scene():
    """A volume in RAS+ with a bright spot right, front, top of the middle, and a mask around it."""
    image, truth = np.zeros((30, 24, 20)), np.zeros((30, 24, 20), np.uint8)
    image[20:23, 16:19, 14:17] = 100
    truth[6:25, 6:20, 4:18] = 1
    return CaseView("scene", image, truth.copy(), truth, np.diag([1.5, 2.0, 2.5, 1.0]))


def pixels(view):
    return np.asarray(Image.open(io.BytesIO(draw(view))).convert("RGB")).astype(int)


def near(picture, colour, distance):
    """Where a picture has about a colour."""
    return np.abs(picture - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).max(axis=2) < distance


def test_right_is_on_the_left_and_front_and_top_are_up():
    """The spot lies right, front and top of the box: upper left in all three planes."""
    volume = scene()
    volume.prediction[20:23, 16:19, 14:17] = 0  # an error, so that the planes cut the spot
    picture = pixels(volume)
    solid = ndimage.uniform_filter((picture.min(axis=2) > 245).astype(float), 9) > 0.95
    spots, count = ndimage.label(solid)
    boxes, _ = ndimage.label(ndimage.binary_dilation(near(picture, TRUTH_COLOUR, 40), iterations=9))
    boxes = ndimage.find_objects(boxes)
    assert count == len(boxes) == 3
    for row, column in ndimage.center_of_mass(solid, spots, range(1, 4)):
        rows, columns = next(box for box in boxes if box[1].start < column < box[1].stop)
        assert row < (rows.start + rows.stop) / 2
        assert column < (columns.start + columns.stop) / 2


def test_one_scene_stored_in_any_orientation_gives_one_picture():
    """All 48 ways to store a volume show the same patient."""
    upright_scene = scene()
    expected = draw(upright_scene)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turn = np.array(list(zip(order, flips, strict=True)))
            volumes = [
                nib.orientations.apply_orientation(v, turn)
                for v in (upright_scene.image, upright_scene.prediction, upright_scene.truth)
            ]
            affine = upright_scene.affine @ nib.orientations.inv_ornt_aff(turn, (30, 24, 20))
            stored = CaseView("scene", *volumes, affine)
            back, spacing = upright(stored)
            np.testing.assert_array_equal(back.image, upright_scene.image)
            np.testing.assert_allclose(spacing, (1.5, 2.0, 2.5))
    assert draw(stored) == expected


def test_both_outlines_are_drawn_in_their_colours():
    volume = scene()
    shifted = CaseView(
        "s", volume.image * 0, np.roll(volume.truth, 4, axis=2), volume.truth, volume.affine
    )
    picture = pixels(shifted)
    for colour in (TRUTH_COLOUR, PREDICTION_COLOUR):
        assert near(picture, colour, 40).sum() > 200


def test_proportions_are_those_of_the_patient():
    """A ball stays round in every plane whatever its voxels are."""
    spacing = np.array([0.8, 1.6, 4.0])
    size = (80, 40, 16)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) * spacing
    ball = (np.linalg.norm(grid - (32, 32, 32), axis=-1) < 20).astype(np.uint8)
    volume = CaseView("ball", ball * 0.0, ball * 0, ball, np.diag([*spacing, 1.0]))
    outline = near(pixels(volume), TRUTH_COLOUR, 60)
    found = ndimage.find_objects(ndimage.label(outline, np.ones((3, 3)))[0])
    large = [box for box in found if box[0].stop - box[0].start > 60]
    assert len(large) == 3
    for rows, columns in large:
        ratio = (columns.stop - columns.start) / (rows.stop - rows.start)
        assert ratio == pytest.approx(1, abs=0.2)  # within half a thick slice


def test_the_largest_error_is_shown():
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[1:4, 1:4, 1:4] = 1
    prediction = truth.copy()
    assert largest_error(prediction, truth) == (1, 1, 1)  # no error: the truth
    prediction[8:11, 9, 10] = 2
    prediction[9, 8:11, 10] = 2
    prediction[2, 2, 2] = 0
    assert largest_error(prediction, truth) == (9, 9, 10)
    assert largest_error(truth * 0, truth * 0) == (6, 6, 6)


def test_odd_volumes_are_drawn():
    """One slice, a constant or broken image, masks at the border, nothing at all."""
    rng = np.random.default_rng(0)
    for shape in ((9, 8, 1), (1, 1, 1), (2, 40, 3)):
        for image in (np.zeros(shape), np.full(shape, np.nan), rng.normal(size=shape)):
            mask = rng.integers(0, 2, shape).astype(np.uint8)
            for truth in (mask, mask * 0, mask * 0 + 1):
                png = draw(CaseView("odd", image, mask, truth, np.eye(4)))
                assert png.startswith(b"\x89PNG")
