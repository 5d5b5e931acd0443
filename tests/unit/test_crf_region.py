"""The dense CRF: which voxels take part, and what would break a logarithm, a division or a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from medseg.postprocess.crf import DenseCRF3D

SHAPE = (13, 11, 9)
SPACING = (0.9, 1.0, 2.0)

Scene = tuple[np.ndarray, np.ndarray]


def scene() -> Scene:
    """Probabilities of three classes, and two modalities."""
    rng = np.random.default_rng(0)
    labels = gaussian_filter(rng.normal(size=(3, *SHAPE)), (0, 3, 3, 3)).argmax(0)
    image = np.stack(
        [
            2 * gaussian_filter(((m + 1) * labels % 3).astype(float), 0.7)
            + 0.15 * rng.normal(size=SHAPE)
            for m in range(2)
        ]
    )
    logits = 2 * np.moveaxis(np.eye(3)[labels], 3, 0) + rng.normal(size=(3, *SHAPE))
    return softmax(logits, 0).astype(np.float32), image.astype(np.float32)


def half() -> np.ndarray:
    """A region that is no box and whose box is not the volume."""
    i, j, k = np.indices(SHAPE)
    region: np.ndarray = (i + k > 6) & (j > 1) & (i < 11)
    return region


def test_roi_and_ignore_say_the_same() -> None:
    given, image = scene()
    crf, region, hole = DenseCRF3D(), half(), half()[::-1, ::-1]
    only = crf(given, image, SPACING, roi=region & ~hole)
    np.testing.assert_array_equal(crf(given, image, SPACING, roi=region, ignore=hole), only)
    np.testing.assert_array_equal(crf(given, image, SPACING, ignore=~region | hole), only)
    as_numbers = crf(given, image, SPACING, roi=region.astype(np.uint8), ignore=hole.astype(int))
    np.testing.assert_array_equal(as_numbers, only)


@pytest.mark.parametrize("options", [{}, {"accuracy": "exact"}, {"engine": "torch"}])
def test_voxels_that_take_no_part_stay_and_have_no_influence(options: dict[str, Any]) -> None:
    given, image = scene()
    crf, region = DenseCRF3D(**options), half()
    found = crf(given, image, SPACING, roi=region)
    np.testing.assert_array_equal(found[:, ~region], given[:, ~region])
    assert np.abs(found - given)[:, region].max() > 0.1
    other, seen = given.copy(), image.copy()
    other[:, ~region] = 5
    seen[:, ~region] = np.nan
    changed = crf(other, seen, SPACING, roi=region)
    np.testing.assert_array_equal(changed[:, region], found[:, region])
    np.testing.assert_array_equal(changed[:, ~region], 5)


def test_a_region_is_as_a_volume_of_its_own() -> None:
    given, image = scene()
    box = (slice(2, 11), slice(1, 9), slice(3, 9))
    region = np.zeros(SHAPE, bool)
    region[box] = True
    crf = DenseCRF3D()
    found = crf(given, image, SPACING, roi=region)[:, *box]
    np.testing.assert_array_equal(found, crf(given[:, *box], image[:, *box], SPACING))


@pytest.mark.parametrize("masks", [
    {"roi": np.zeros(SHAPE, bool)},
    {"ignore": np.ones(SHAPE, bool)},
    {"roi": half(), "ignore": half()},
])  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"accuracy": "exact"}, {"engine": "torch"}])
def test_an_empty_region_changes_nothing(masks: dict[str, Any], options: dict[str, Any]) -> None:
    given, image = scene()
    found = DenseCRF3D(**options)(given, image, SPACING, **masks)
    np.testing.assert_array_equal(found, given)
    assert found is not given
    spatial, appearance = DenseCRF3D().messages(given, image, SPACING, roi=np.zeros(SHAPE, bool))
    assert not spatial.any() and not appearance.any()


@pytest.mark.parametrize("options", [{}, {"accuracy": "exact"}, {"engine": "torch"}])
@pytest.mark.parametrize("at", [(0, 0, 0), (12, 10, 8), (5, 5, 5)])
def test_one_voxel_hears_only_itself(at: tuple[int, int, int], options: dict[str, Any]) -> None:
    given, image = scene()
    region = np.zeros(SHAPE, bool)
    region[at] = True
    crf = DenseCRF3D(weights=(1, 2), iterations=1, **options)
    expected = softmax(np.log(given[:, *at]) + 3 * given[:, *at])  # Potts: 3 a share of itself
    np.testing.assert_allclose(crf(given, image, SPACING, roi=region)[:, *at], expected, atol=1e-5)
    alone = DenseCRF3D(exclude_self=True, **options)(given, image, SPACING, roi=region)
    np.testing.assert_allclose(alone, given, atol=1e-6)


# ---- what would break a logarithm, a division or a grid


def extremes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    given, image = scene()
    hard = np.moveaxis(np.eye(3, dtype=np.float32)[given.argmax(0)], 3, 0)
    one = np.zeros_like(given)
    one[1] = 1
    thin = (slice(None), slice(0, 1), slice(None), slice(0, 1))
    far = image.copy()
    far[0, 3, 3, 3], far[1, 4, 4, 4] = 8, -9
    return {
        "certain": (hard, image),
        "one class everywhere": (one, image),
        "first class everywhere": (np.roll(one, -1, 0), image),
        "no class more likely": (np.full_like(given, 1 / 3), image),
        "constant image": (given, np.full_like(image, 7.0)),
        "constant, certain": (hard, np.zeros_like(image)),
        "one constant modality": (given, image * np.array([1, 0], np.float32)[:, None, None, None]),
        "far outliers": (given, far),
        "large offset": (given, image + 1000),
        "a line": (given[thin], image[thin]),
    }


@pytest.mark.parametrize("name", list(extremes()))
@pytest.mark.parametrize("options", [{"exclude_self": True}, {"engine": "torch"}])
def test_extremes_are_finite_and_near_all_pairs(name: str, options: dict[str, Any]) -> None:
    given, image = extremes()[name]
    found = DenseCRF3D(**options)(given, image, SPACING)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    plain = {key: value for key, value in options.items() if key != "engine"}
    expected = DenseCRF3D(**plain, accuracy="exact")(given, image, SPACING)
    assert np.abs(found - expected).mean() < 3e-3


def test_a_certain_network_can_be_convinced() -> None:
    """Of one voxel, if all of its like around it are against it."""
    given = np.zeros((2, *SHAPE), np.float32)
    given[0] = 1
    given[:, 6, 5, 4] = 0, 1
    image = np.zeros((1, *SHAPE), np.float32)
    found = DenseCRF3D(weights=(10, 10))(given, image, SPACING)
    assert (found.argmax(0) == 0).all()
    np.testing.assert_array_less(0.5, DenseCRF3D(weights=(1, 1))(given, image, SPACING)[1, 6, 5, 4])


def test_messages_add_up_to_an_update() -> None:
    """One mean-field update, from the two messages."""
    given, image = scene()
    crf = DenseCRF3D(weights=(1.5, 2.5), iterations=1, tolerance=0)
    spatial, appearance = crf.messages(given, image, SPACING, roi=half())
    assert not spatial[:, ~half()].any() and not appearance[:, ~half()].any()
    expected = softmax(np.log(given) + 1.5 * spatial + 2.5 * appearance, 0)
    found = crf(given, image, SPACING, roi=half())
    np.testing.assert_allclose(found[:, half()], expected[:, half()], atol=1e-5)
