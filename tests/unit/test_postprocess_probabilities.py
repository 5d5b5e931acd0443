"""Postprocessors that decide from probabilities, against SimpleITK, scipy and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from medseg import plugins
from medseg.errors import ConfigError
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS

plugins.load()

SPACING = (0.5, 0.7, 4.0)
AFFINE = np.diag([*SPACING, 1.0])  # 1.4 mm3
TURNED = AFFINE.copy()
TURNED[:3, :3] = (
    Rotation.from_euler("zyx", (15, 40, -25), degrees=True).as_matrix() @ AFFINE[:3, :3]
)


def prediction(shares: np.ndarray, affine: np.ndarray = AFFINE) -> Prediction:
    labels = shares.argmax(0).astype(np.uint8)
    return Prediction(labels, np.zeros((1, *labels.shape), np.float32), affine, shares)


def run(name: str, shares: np.ndarray, **options: Any) -> Prediction:
    step = POSTPROCESSORS.build({"name": name, **options}, classes=len(shares))
    return step(prediction(shares))


def foreground(values: np.ndarray) -> np.ndarray:
    """Probabilities of two classes, from those of the second."""
    return np.stack([1 - values, values]).astype(np.float32)


def smooth_noise(rng: np.random.Generator, classes: int = 2) -> np.ndarray:
    """Probabilities that hang together, as a network's do."""
    logits = ndimage.gaussian_filter(rng.normal(size=(classes, 24, 20, 18)), (0, 2, 2, 2))
    shares = np.exp(20 * logits)
    return (shares / shares.sum(0)).astype(np.float32)


# Operating point


@pytest.mark.parametrize("connectivity, fully", [(6, False), (26, True)])
def test_the_operating_point_is_itks_threshold_and_size(
    connectivity: int, fully: bool, rng: np.random.Generator
) -> None:
    likely = ndimage.gaussian_filter(rng.random((24, 20, 18)), 0.7)
    likely = (likely - likely.min()) / np.ptp(likely)
    options = {"threshold": 0.7, "min_mm3": 7.0, "connectivity": connectivity}  # 5 of 1.4 mm3
    out = run("operating_point", foreground(likely), **options).labels
    mask = sitk.GetImageFromArray((foreground(likely)[1] >= 0.7).astype(np.uint8))
    found = sitk.RelabelComponent(sitk.ConnectedComponent(mask, fully), minimumObjectSize=5)
    expected = sitk.GetArrayFromImage(found) > 0
    assert 0 < expected.sum() < sitk.GetArrayFromImage(mask).sum()
    np.testing.assert_array_equal(out, expected)


def test_the_operating_point_of_one_half_is_argmax_of_two_classes(
    rng: np.random.Generator,
) -> None:
    shares = smooth_noise(rng)
    np.testing.assert_array_equal(run("operating_point", shares).labels, shares.argmax(0))


def test_the_operating_point_takes_foreground_together_or_each_class_by_itself() -> None:
    shares = np.array([[0.45, 0.3, 0.25], [0.6, 0.3, 0.1], [0.1, 0.5, 0.4]], np.float32)
    shares = shares.T[:, :, None, None]
    assert run("operating_point", shares).labels.ravel().tolist() == [1, 0, 1]
    assert run("operating_point", shares, threshold=0.35).labels.ravel().tolist() == [1, 1, 1]
    each = run("operating_point", shares, threshold=(0.4, 0.2)).labels
    assert each.ravel().tolist() == [2, 0, 2]  # 0.25 / 0.2, nothing, 0.4 / 0.2 above 0.5 / 0.4
    beside = np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], np.float32).T[:, :, None, None]
    volumes = {"threshold": (0.4, 0.2), "min_mm3": 1.5 * 1.4}
    assert not run("operating_point", beside, **volumes).labels.any()  # a component for each class
    volumes["threshold"] = 0.4
    assert run("operating_point", beside, **volumes).labels.ravel().tolist() == [1, 2]
    together = {"threshold": 0.5, "min_mm3": 1.5 * 1.4}
    assert not run("operating_point", shares, **together).labels.any()
    assert run("operating_point", shares, threshold=0.35, min_mm3=1.5 * 1.4).labels.all()


# Hysteresis


@pytest.mark.parametrize("connectivity, fully", [(6, False), (26, True)])
def test_hysteresis_is_itks_double_threshold(
    connectivity: int, fully: bool, rng: np.random.Generator
) -> None:
    likely = ndimage.gaussian_filter(rng.random((24, 20, 18)), 0.7)
    likely = (likely - likely.min()) / np.ptp(likely)
    shares = foreground(likely)
    out = run("hysteresis", shares, low=0.6, high=0.85, connectivity=connectivity).labels
    image = sitk.GetImageFromArray(1 - shares[0])
    itk = sitk.DoubleThreshold(image, 0.6, 0.85, 2, 2, 1, 0, fully)
    np.testing.assert_array_equal(out, sitk.GetArrayFromImage(itk))
    assert 0 < out.sum() < (shares[1] >= 0.6).sum()


def test_hysteresis_takes_the_likeliest_of_the_classes_that_are_likely_together() -> None:
    shares = np.zeros((3, 5, 1, 1), np.float32)
    shares[1:, :, 0, 0] = [[0.3, 0.5, 0.1, 0.3, 0.0], [0.2, 0.4, 0.4, 0.0, 0.0]]
    shares[0] = 1 - shares[1:].sum(0)
    assert run("hysteresis", shares, low=0.4, high=0.8).labels.ravel().tolist() == [1, 1, 2, 0, 0]
    assert not run("hysteresis", shares, low=0.4, high=0.95).labels.any()


def test_hysteresis_wants_a_sure_volume_in_mm3() -> None:
    values = np.zeros((12, 3, 3))
    values[0:4, 0, 0] = 0.5, 0.9, 0.9, 0.9  # 4.2 mm3 of it sure
    values[6:9, 0, 0] = 0.5, 0.9, 0.9  # 2.8 mm3
    kept = {mm3: run("hysteresis", foreground(values), low=0.4, high=0.8, high_mm3=mm3).labels.sum()
            for mm3 in (0.0, 2.8, 4.2, 4.3)}  # fmt: skip
    assert kept == {0.0: 7, 2.8: 7, 4.2: 4, 4.3: 0}


# Prior correction


def test_factors_are_the_ratios_of_priors(rng: np.random.Generator) -> None:
    """Two Gaussians: the corrected posterior is Bayes' with the true priors."""
    x = rng.normal(size=(6, 5, 4)) * 2
    densities = np.stack([stats.norm.pdf(x, m, s) for m, s in ((0, 1), (2, 0.7), (-1, 2))])
    trained, true = np.array([0.4, 0.4, 0.2]), np.array([0.9, 0.02, 0.08])

    def posterior(priors: np.ndarray) -> np.ndarray:
        joint = densities * priors.reshape(3, 1, 1, 1)
        return joint / joint.sum(0)

    factors = (true / trained).tolist()
    out = run("prior_correction", posterior(trained).astype(np.float32), factors=factors)
    np.testing.assert_allclose(out.probabilities, posterior(true), atol=1e-6)
    np.testing.assert_array_equal(out.labels, posterior(true).argmax(0))
    assert (out.labels != posterior(trained).argmax(0)).any()


def test_log_odds_move_the_threshold(rng: np.random.Generator) -> None:
    shares = foreground(rng.random((9, 8, 7)))
    for shift in (-2.0, 0.0, 1.5):
        out = run("prior_correction", shares, log_odds=shift).labels
        np.testing.assert_array_equal(out, shares[1] > 1 / (1 + math.exp(shift)))


def test_sure_voxels_stay_sure_whatever_the_shift() -> None:
    shares = foreground(np.array([0.0, 1.0]).reshape(1, 1, 2))
    for shift in (-20.0, 20.0):
        out = run("prior_correction", shares, log_odds=shift).probabilities
        np.testing.assert_array_equal(out, shares)


# Regions

BRATS = [[1, 2, 3], [1, 3], [3]]  # 1 core, 2 oedema, 3 enhancing


def test_regions_are_painted_outermost_first(rng: np.random.Generator) -> None:
    shares = smooth_noise(rng, 4)
    out = run("regions", shares, regions=BRATS, threshold=[0.5, 0.4, 0.3]).labels
    expected = np.zeros_like(out)
    expected[1 - shares[0] >= 0.5] = 2
    expected[shares[1] + shares[3] >= 0.4] = 1
    expected[shares[3] >= 0.3] = 3
    np.testing.assert_array_equal(out, expected)
    assert set(np.unique(out)) == {0, 1, 2, 3}


def test_a_region_may_be_likely_while_none_of_its_classes_is() -> None:
    shares = np.array([0.34, 0.33, 0.03, 0.3], np.float32).reshape(4, 1, 1, 1)
    assert prediction(shares).labels.item() == 0
    assert run("regions", shares, regions=BRATS).labels.item() == 1
    assert run("regions", shares, regions=[[1, 2, 3], [3]]).labels.item() == 1  # likelier than 2
    assert run("regions", shares, regions=[[2, 1, 3]], threshold=0.7).labels.item() == 0


def test_regions_of_one_class_each_are_thresholds(rng: np.random.Generator) -> None:
    shares = smooth_noise(rng, 3)
    out = run("regions", shares, regions=[[2], [1]]).labels
    np.testing.assert_array_equal(out == 1, shares[1] >= 0.5)
    np.testing.assert_array_equal(out == 2, (shares[2] >= 0.5) & (shares[1] < 0.5))


# Smooth surfaces


def ball(radius: float, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Voxels whose centres are within a radius in mm of the middle of the grid."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    away = (index - (np.array(shape) - 1) / 2) @ affine[:3, :3].T
    return (np.linalg.norm(away, axis=-1) <= radius).astype(np.float64)


def test_smoothing_is_itks_in_millimetres(rng: np.random.Generator) -> None:
    shares = smooth_noise(rng, 3)
    out = run("smooth_surface", shares, mm=0.9, keep_small=False)
    for given, smooth in zip(shares, out.probabilities, strict=True):
        image = sitk.GetImageFromArray(given)
        image.SetSpacing(SPACING[::-1])
        itk = sitk.DiscreteGaussian(image, 0.81, 64, 1e-4, True)
        # ITK's kernel is another discretisation (Bessel functions): close to ours, not equal.
        np.testing.assert_allclose(smooth, sitk.GetArrayFromImage(itk), atol=0.03)
        assert np.abs(smooth - given).max() > 0.25
    np.testing.assert_allclose(out.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(out.labels, out.probabilities.argmax(0))


@pytest.mark.parametrize("affine", [AFFINE, TURNED, np.diag([1.0, 1.0, 1.0, 1.0])])
def test_a_surface_moves_by_its_curvature(affine: np.ndarray) -> None:
    """A ball of 16 mm shrinks by mm^2 / r = 1 mm, on any grid."""
    shape = tuple(int(48 / size) for size in prediction(np.zeros((2, 1, 1, 1)), affine).spacing)
    given = prediction(foreground(ball(16, shape, affine)), affine)
    smooth = POSTPROCESSORS.build({"name": "smooth_surface", "mm": 4.0}, classes=2)(given)
    radii = [(p.labels.sum() * p.voxel_mm3 * 3 / (4 * math.pi)) ** (1 / 3) for p in (given, smooth)]
    assert radii[0] - radii[1] == pytest.approx(1.0, abs=0.12)


def test_small_balls_vanish_where_they_are_said_to() -> None:
    affine = np.diag([0.25, 0.25, 0.25, 1])
    left = {}
    for radius in (1.4, 1.7):
        given = prediction(foreground(ball(radius, (33, 33, 33), affine)), affine)
        spec = {"name": "smooth_surface", "mm": 1.0, "keep_small": False}
        left[radius] = int(POSTPROCESSORS.build(spec, classes=2)(given).labels.sum())
    assert left[1.4] == 0 < left[1.7]


def test_lesions_that_would_vanish_stay_as_they_were(rng: np.random.Generator) -> None:
    values = ball(8, (40, 40, 9), AFFINE) * 0.9
    values[1, 1, 1] = values[2, 2, 1] = 0.8
    shares = foreground(values)
    gone = run("smooth_surface", shares, keep_small=False)
    kept = run("smooth_surface", shares)
    assert not gone.labels[:4, :4, :3].any()
    assert kept.labels[:4, :4, :3].sum() == 2
    assert kept.probabilities[1, 1, 1, 1] == np.float32(0.8)
    np.testing.assert_array_equal(kept.labels[6:], gone.labels[6:])
    np.testing.assert_array_equal(kept.labels, kept.probabilities.argmax(0))


def test_labels_can_be_smoothed_instead() -> None:
    given = prediction(foreground(np.full((20, 20, 8), 0.3)))
    labels = ball(5, (20, 20, 8), AFFINE).astype(np.uint8)
    labels[10, 10, 4] = 0
    step = POSTPROCESSORS.build({"name": "smooth_surface", "of": "labels"}, classes=2)
    out = step(given.with_labels(labels))
    assert out.labels[10, 10, 4] == 1
    assert out.labels.dtype == np.uint8
    assert out.probabilities is given.probabilities
    assert not step(given).labels.any()


@pytest.mark.parametrize("mm, changes", [(0.02, False), (1.0, True)])
def test_next_to_no_smoothing_changes_nothing(
    mm: float, changes: bool, rng: np.random.Generator
) -> None:
    shares = smooth_noise(rng, 3)
    out = run("smooth_surface", shares, mm=mm)
    assert np.array_equal(out.labels, shares.argmax(0)) is not changes


# What is refused


@pytest.mark.parametrize(
    "spec, path",
    [
        ({"name": "hysteresis", "low": -0.1}, ("low",)),
        ({"name": "hysteresis", "high": 1.1}, ("high",)),
        ({"name": "hysteresis", "low": 0.8, "high": 0.6}, ("low",)),
        ({"name": "hysteresis", "high_mm3": -1.0}, ("high_mm3",)),
        ({"name": "operating_point", "threshold": 0.0}, ("threshold",)),
        ({"name": "operating_point", "threshold": 1.1}, ("threshold",)),
        ({"name": "operating_point", "threshold": (0.5, 0.5, 0.5)}, ("threshold",)),
        ({"name": "operating_point", "min_mm3": -1.0}, ("min_mm3",)),
        ({"name": "prior_correction", "log_odds": 1000.0}, ("log_odds",)),
        ({"name": "prior_correction", "factors": [1.0, 2.0]}, ("factors",)),
        ({"name": "prior_correction", "factors": [1.0, 0.0, 1.0]}, ("factors",)),
        ({"name": "prior_correction", "factors": [1.0, -1.0, 1.0]}, ("factors",)),
        ({"name": "prior_correction", "factors": [1.0] * 3, "log_odds": 1.0}, ("factors",)),
        ({"name": "regions", "regions": [[1, 2, 3]]}, ("regions",)),
        ({"name": "regions", "regions": [[0, 1], [2]]}, ("regions",)),
        ({"name": "regions", "regions": [[1]]}, ("regions",)),
        ({"name": "regions", "regions": []}, ("regions",)),
        ({"name": "regions", "regions": [[1], [1, 2]]}, ("regions", 0)),
        ({"name": "regions", "regions": [[1, 1, 2]]}, ("regions", 0)),
        ({"name": "regions", "regions": [[1, 2], []]}, ("regions", 1)),
        ({"name": "regions", "regions": [[1, 2]], "threshold": 1.5}, ("threshold",)),
        ({"name": "regions", "regions": [[1, 2]], "threshold": [0.5, 0.5]}, ("threshold",)),
        ({"name": "smooth_surface", "mm": 0.0}, ("mm",)),
        ({"name": "smooth_surface", "mm": -1.0}, ("mm",)),
        ({"name": "smooth_surface", "of": "image"}, ("of",)),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(spec: dict[str, Any], path: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        POSTPROCESSORS.build(spec, classes=3)
    assert caught.value.path == path


# What they say of themselves


@pytest.mark.parametrize(
    "name, options",
    [
        ("crf", {}),
        ("prior_correction", {"log_odds": 1.0}),
        ("smooth_surface", {}),
        ("hysteresis", {}),
        ("operating_point", {}),
        ("regions", {"regions": ((1, 2),)}),
        ("min_volume", {"mm3": 10.0}),
        ("largest_component", {}),
        ("fill_holes", {}),
    ],
)
def test_steps_say_whether_they_give_probabilities(
    name: str, options: dict[str, Any], rng: np.random.Generator
) -> None:
    given = prediction(smooth_noise(rng, 3))
    step = POSTPROCESSORS.build({"name": name, **options}, classes=3)
    gives = step(given).probabilities is not given.probabilities
    assert getattr(step, "gives_probabilities", False) is gives
