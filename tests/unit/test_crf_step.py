"""The dense CRF as a postprocessor: what it sees, and where it acts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from medseg import plugins
from medseg.postprocess.crf import DenseCRF3D
from medseg.postprocess.crf_step import inside
from medseg.postprocess.deepmedic import preset
from medseg.postprocess.prediction import Prediction, needs_probabilities
from medseg.registry import POSTPROCESSORS
from medseg.testing import check_postprocessor

plugins.load()

SHAPE = (13, 11, 9)
SPACING = (0.9, 1.0, 2.0)
NAMES = ["crf", "crf_deepmedic_example", "crf_deepmedic_default"]


def head() -> np.ndarray:
    """Within a box that does not reach the corners."""
    i, j, k = np.indices(SHAPE)
    filled: np.ndarray = (abs(i - 6) < 5) & (abs(j - 5) < 4) & (k > 1)
    return filled


def prediction(mask: np.ndarray | None = None, air: float = -30.0) -> Prediction:
    """Two channels as a scanner gives them: means and deviations far from 0 and 1, air around."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.normal(size=(3, *SHAPE)), (0, 3, 3, 3)).argmax(0)
    noise = rng.normal(size=(2, *SHAPE))
    image = np.stack([500 + 80 * truth + 15 * noise[0], 0.02 - 0.001 * truth + 2e-4 * noise[1]])
    image[:, ~head()] = air
    logits = 2 * np.moveaxis(np.eye(3)[truth], 3, 0) + rng.normal(size=(3, *SHAPE))
    shares = softmax(logits, 0).astype(np.float32)
    affine = np.diag([-SPACING[0], SPACING[1], SPACING[2], 1.0])
    return Prediction(
        shares.argmax(0).astype(np.uint8), image.astype(np.float32), affine, shares, mask
    )


def build(name: str = "crf", **options: Any) -> Any:
    return POSTPROCESSORS.build({"name": name, **options}, classes=3)


def zscores(given: Prediction, region: np.ndarray, clip: float = 3.1) -> np.ndarray:
    """As it is written in words, one channel after the other."""
    channels = given.image.astype(np.float64)
    made = [(x - x[region].mean()) / (x[region].std() or 1) for x in channels]
    return np.clip(made, -clip, clip).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mask", [None, head(), np.zeros(SHAPE, bool)])
def test_keeps_the_contract(name: str, mask: np.ndarray | None) -> None:
    step = build(name)
    assert needs_probabilities(step)
    check_postprocessor(step, prediction(mask))


@pytest.mark.parametrize("masked", [False, True])
def test_is_the_crf_of_normalised_intensities(masked: bool) -> None:
    """Over the mask; without one, over what is not air."""
    region = head()[::-1] & head() if masked else head()
    given = prediction(region if masked else None)
    found = build(spatial_weight=1.5, appearance_weight=2.5, temperature=1.2)(given)
    crf = DenseCRF3D(weights=(1.5, 2.5), temperature=1.2)
    expected = crf(given.probabilities, zscores(given, region), SPACING, roi=region)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-3)
    assert np.abs(expected - given.probabilities)[:, region].mean() > 0.1
    np.testing.assert_array_equal(found.probabilities[:, ~region], given.probabilities[:, ~region])
    np.testing.assert_array_equal(found.labels, found.probabilities.argmax(0))
    assert found.image is given.image and found.mask is given.mask


def test_units_of_the_image_do_not_matter() -> None:
    given = prediction(head())
    other = prediction(head())
    factors = np.array([0.01, 5000], np.float32)[:, None, None, None]
    changed = Prediction(other.labels, other.image * factors + 3, other.affine,
                         other.probabilities, other.mask)  # fmt: skip
    one, two = build()(given), build()(changed)
    np.testing.assert_allclose(two.probabilities, one.probabilities, atol=2e-3)


def test_voxels_outside_the_region_do_not_count() -> None:
    """Neither for the means and deviations, nor as neighbours."""
    one = build()(prediction(head()))
    two = build()(prediction(head(), air=np.nan))
    np.testing.assert_array_equal(two.probabilities, one.probabilities)


def test_intensities_are_cut() -> None:
    """One voxel of metal does not make a grid that is mostly empty."""
    given = prediction(head())
    given.image[0, 6, 5, 4] = 1e5
    region, image = build(clip=2.0).features(given)
    np.testing.assert_array_equal(region, head())
    np.testing.assert_allclose(image[:, region], zscores(given, region, 2.0)[:, region], atol=1e-3)
    assert image[0, 6, 5, 4] == 2


def test_intensities_may_stay_as_they_are() -> None:
    given = prediction(head())
    _, image = build(normalise=False).features(given)
    np.testing.assert_array_equal(image, given.image)
    deviations = (60.0, 0.001)
    found = build(normalise=False, appearance_intensity=list(deviations))(given)
    crf = DenseCRF3D(appearance_intensity=deviations)
    expected = crf(given.probabilities, given.image, SPACING, roi=head())
    np.testing.assert_array_equal(found.probabilities, expected)


def test_one_value_everywhere_is_no_division_by_zero() -> None:
    given = prediction(head())
    given.image[1] = 7
    _, image = build().features(given)
    assert not image[1].any()
    assert np.isfinite(build()(given).probabilities).all()


@pytest.mark.parametrize("name", NAMES[1:])
def test_presets_are_the_converted_parameters(name: str) -> None:
    expected = preset(name.removeprefix("crf_"))
    options = {key: p.default for key, p in POSTPROCESSORS.signature(name).parameters.items()}
    for ours in ("spatial_mm", "appearance_mm", "appearance_intensity"):
        theirs = np.array(expected[ours])
        np.testing.assert_allclose(options[ours] * np.ones_like(theirs), theirs, rtol=1e-6)
    assert (options["spatial_weight"], options["appearance_weight"]) == expected["weights"]
    assert options["iterations"] == expected["iterations"]
    assert (options["normalise"], options["clip"]) == (True, 3.1)


# ---- the region, where no mask is given


def test_air_around_is_left_out() -> None:
    given = prediction()
    np.testing.assert_array_equal(inside(given.image), head())
    np.testing.assert_array_equal(inside(given.image[:1]), head())


def test_only_the_value_of_air_is_air() -> None:
    """Not what is below it."""
    image = prediction(air=0).image
    image[:, 6, 5, 4] = -1
    np.testing.assert_array_equal(inside(image), head())


def test_each_channel_has_an_air_of_its_own() -> None:
    image = prediction().image
    image[1, ~head()] = 4
    np.testing.assert_array_equal(inside(image), head())


def test_a_voxel_counts_if_one_channel_has_it() -> None:
    image = prediction().image
    image[1] = image[1, 0, 0, 0]
    np.testing.assert_array_equal(inside(image), head())


@pytest.mark.parametrize("corner", [(0, 0, 0), (-1, 0, 0), (0, -1, 0), (-1, -1, -1)])
def test_without_air_in_all_corners_all_voxels_count(corner: tuple[int, int, int]) -> None:
    image = prediction().image
    image[:, *corner] = 1
    assert inside(image).all()


def test_one_value_everywhere_has_no_inside_and_changes_nothing() -> None:
    given = prediction()
    given.image[:] = 5
    assert not inside(given.image).any()
    found = build()(given)
    np.testing.assert_array_equal(found.probabilities, given.probabilities)
    np.testing.assert_array_equal(found.labels, given.labels)
