"""Postprocessors against SimpleITK and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from medseg import plugins
from medseg.errors import ConfigError, DataError
from medseg.postprocess.prediction import Prediction, needs_probabilities
from medseg.registry import POSTPROCESSORS

plugins.load()

AFFINE = np.array([[0, -1.5, 0, 3], [1.0, 0, 0, -2], [0, 0, 2.0, 1], [0, 0, 0, 1]])  # 3 mm3


def prediction(labels: np.ndarray) -> Prediction:
    return Prediction(labels, np.zeros((1, *labels.shape), np.float32), AFFINE)


def run(name: str, labels: np.ndarray, classes: int = 3, **options: Any) -> np.ndarray:
    before = labels.copy()
    out = POSTPROCESSORS.build({"name": name, **options}, classes=classes)(prediction(labels))
    np.testing.assert_array_equal(labels, before)
    assert out.labels.dtype == np.uint8
    return out.labels


def speckles(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((20, 18, 16)) < 0.12).astype(np.uint8)


def test_the_volume_of_a_voxel_is_that_of_the_affine() -> None:
    assert prediction(speckles()).voxel_mm3 == pytest.approx(3)


@pytest.mark.parametrize("connectivity, fully", [(6, False), (26, True)])
def test_small_components_go_as_in_itk(connectivity: int, fully: bool) -> None:
    labels = speckles()
    components = sitk.ConnectedComponent(sitk.GetImageFromArray(labels), fully)
    kept = sitk.RelabelComponent(components, minimumObjectSize=4)  # 4 voxels are 12 mm3
    expected = sitk.GetArrayFromImage(kept) > 0
    out = run("min_volume", labels, mm3=12.0, connectivity=connectivity)
    np.testing.assert_array_equal(out > 0, expected)
    assert 0 < expected.sum() < labels.sum()


def test_eighteen_neighbours_share_an_edge() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 0] = 1
    kept = {c: int(run("min_volume", labels, mm3=6.0, connectivity=c).sum()) for c in (6, 18, 26)}
    assert kept == {6: 0, 18: 2, 26: 2}
    labels[1, 1, 0], labels[1, 1, 1] = 0, 1
    kept = {c: int(run("min_volume", labels, mm3=6.0, connectivity=c).sum()) for c in (6, 18, 26)}
    assert kept == {6: 0, 18: 0, 26: 2}


def test_the_least_volume_itself_stays() -> None:
    labels = np.zeros((6, 4, 4), np.uint8)
    labels[:2, 0, 0], labels[4, 0, 0] = 1, 1
    assert run("min_volume", labels, mm3=6.0).sum() == 2
    assert run("min_volume", labels, mm3=6.01).sum() == 0
    assert run("min_volume", labels, mm3=0.0).sum() == 3


def test_classes_form_components_together_or_apart() -> None:
    labels = np.zeros((6, 4, 4), np.uint8)
    labels[:3, 0, 0], labels[3, 0, 0] = 1, 2
    together = run("min_volume", labels, mm3=6.0)
    np.testing.assert_array_equal(together, labels)
    apart = run("min_volume", labels, mm3=6.0, together=False)
    assert apart[:4, 0, 0].tolist() == [1, 1, 1, 0]


def test_the_largest_component_is_itks() -> None:
    labels = speckles(3)
    components = sitk.ConnectedComponent(sitk.GetImageFromArray(labels), True)
    expected = sitk.GetArrayFromImage(sitk.RelabelComponent(components)) == 1
    out = run("largest_component", labels)
    np.testing.assert_array_equal(out > 0, expected)


def test_each_class_keeps_its_largest_component_or_all_share_one() -> None:
    labels = np.zeros((12, 3, 3), np.uint8)
    labels[0:4, 0, 0], labels[5, 0, 0] = 1, 1
    labels[7:9, 0, 0], labels[10, 0, 0] = 2, 2
    apart = run("largest_component", labels)[:, 0, 0]
    assert apart.tolist() == [1, 1, 1, 1, 0, 0, 0, 2, 2, 0, 0, 0]
    together = run("largest_component", labels, together=True)[:, 0, 0]
    assert together.tolist() == [1, 1, 1, 1] + [0] * 8


def test_holes_are_filled_as_in_itk() -> None:
    labels = (speckles(5) == 0).astype(np.uint8)
    expected = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(labels)))
    out = run("fill_holes", labels)
    np.testing.assert_array_equal(out, expected)
    assert out.sum() > labels.sum()


def test_a_hole_that_another_class_fills_stays_that_class() -> None:
    labels = np.zeros((7, 7, 7), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[3, 3, 3], labels[2, 2, 2] = 2, 0
    out = run("fill_holes", labels)
    assert (out[3, 3, 3], out[2, 2, 2]) == (2, 1)


def test_only_small_holes_are_filled() -> None:
    labels = np.zeros((14, 7, 7), np.uint8)
    labels[1:6, 1:6, 1:6] = labels[7:13, 1:6, 1:6] = 1
    labels[2, 2, 2] = 0  # 3 mm3
    labels[8:10, 2:4, 2] = 0  # 12 mm3
    labels[11, 3, 3:5] = 2, 0  # 6 mm3, half of it another class's
    filled = {mm3: run("fill_holes", labels, max_mm3=mm3) for mm3 in (2.9, 3.0, 5.9, 6.0, 12.0)}
    counts = {mm3: int((out > 0).sum() - (labels > 0).sum()) for mm3, out in filled.items()}
    assert counts == {2.9: 0, 3.0: 1, 5.9: 1, 6.0: 2, 12.0: 6}
    np.testing.assert_array_equal(filled[12.0], run("fill_holes", labels))
    assert filled[12.0][11, 3, 3] == 2


def test_background_that_reaches_the_border_is_no_hole() -> None:
    labels = np.ones((5, 5, 5), np.uint8)
    for corner in ((0, 2, 2), (4, 1, 2), (2, 0, 2), (3, 4, 2), (2, 2, 0), (1, 2, 4)):
        labels[corner] = 0
    np.testing.assert_array_equal(run("fill_holes", labels), labels)


@pytest.mark.parametrize(
    "spec, path",
    [
        ({"name": "min_volume", "mm3": -1.0}, ("mm3",)),
        ({"name": "fill_holes", "max_mm3": -0.5}, ("max_mm3",)),
        ({"name": "min_volume", "mm3": 1.0, "connectivity": 8}, ("connectivity",)),
    ],
)
def test_impossible_options_are_refused(spec: dict[str, Any], path: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"must be at least 0|6, 18 or 26") as caught:
        POSTPROCESSORS.build(spec, classes=3)
    assert caught.value.path == path


OPTIONS: dict[str, dict[str, Any]] = {"min_volume": {"mm3": 10.0}, "regions": {"regions": [[1, 2]]}}


@pytest.mark.parametrize("name", POSTPROCESSORS.names())
@pytest.mark.parametrize("value", [0, 1])
def test_nothing_and_everything_pass(name: str, value: int) -> None:
    labels = np.full((3, 4, 5), value, np.uint8)
    shares = (labels == np.arange(3).reshape(3, 1, 1, 1)).astype(np.float32)
    step = POSTPROCESSORS.build({"name": name, **OPTIONS.get(name, {})}, classes=3)
    out = step(replace(prediction(labels), probabilities=shares))
    np.testing.assert_array_equal(out.labels, labels)


TUNABLE = [name for name in POSTPROCESSORS.names() if hasattr(POSTPROCESSORS.get(name), "tunable")]


@pytest.mark.parametrize("name", TUNABLE)
def test_what_is_tried_in_tuning_can_be_built(name: str) -> None:
    component = POSTPROCESSORS.get(name)
    defaults = POSTPROCESSORS.signature(name).parameters
    for option, values in component.tunable.items():
        assert len(set(values)) == len(values) > 1
        assert defaults[option].default in (*values, defaults[option].empty)
        for value in values:
            spec = {"name": name, **OPTIONS.get(name, {}), option: value}
            POSTPROCESSORS.build(spec, classes=3)


@pytest.mark.parametrize("name", POSTPROCESSORS.names())
def test_a_step_that_needs_probabilities_says_that_there_are_none(name: str) -> None:
    step = POSTPROCESSORS.build({"name": name, **OPTIONS.get(name, {})}, classes=3)
    given = prediction(speckles())
    if needs_probabilities(step):
        with pytest.raises(DataError, match="has no class probabilities"):
            step(given)
    else:
        assert step(given).probabilities is None


def test_probabilities_and_place_are_kept() -> None:
    shares = np.zeros((2, 3, 4, 5), np.float32)
    mask = np.ones((3, 4, 5), bool)
    before = Prediction(np.zeros((3, 4, 5), np.uint8), shares[:1], AFFINE, shares, mask)
    after = POSTPROCESSORS.build({"name": "fill_holes"}, classes=2)(before)
    assert after.probabilities is shares
    assert after.affine is AFFINE
    assert after.mask is mask
    assert before.spacing == (1.0, 1.5, 2.0)


def test_new_probabilities_bring_their_labels() -> None:
    before = prediction(np.ones((1, 1, 2), np.uint8))
    shares = np.array([[0.6, 0.1], [0.3, 0.1], [0.1, 0.8]], np.float32).reshape(3, 1, 1, 2)
    after = before.with_probabilities(shares)
    assert after.labels.tolist() == [[[0, 2]]]
    assert after.labels.dtype == np.uint8
    assert after.probabilities is shares
    assert before.labels.all()


# Voxels of 1.4 mm3, in a box, mirrored and turned: what counts is their volume in mm3.
SIZES = np.diag([0.5, 0.7, 4.0, 1.0])
OBLIQUE = SIZES.copy()
OBLIQUE[:3, :3] = (
    Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix() @ SIZES[:3, :3]
)


@pytest.mark.parametrize("affine", [SIZES, OBLIQUE, OBLIQUE * [-1, 1, 1, 1]])
@pytest.mark.parametrize("name, option", [("min_volume", "mm3"), ("fill_holes", "max_mm3")])
def test_volumes_are_those_in_the_patient(affine: np.ndarray, name: str, option: str) -> None:
    labels = np.zeros((9, 5, 5), np.uint8)
    labels[1:4, 2, 2] = 1  # 3 voxels are 4.2 mm3
    labels = labels if name == "min_volume" else 1 - labels
    given = Prediction(labels, np.zeros((1, *labels.shape), np.float32), affine)
    assert given.voxel_mm3 == pytest.approx(1.4)
    assert given.spacing == pytest.approx((0.5, 0.7, 4.0))
    changed = {
        mm3: not np.array_equal(
            POSTPROCESSORS.build({"name": name, option: mm3}, classes=2)(given).labels, labels
        )
        for mm3 in (4.19, 4.2, 4.21)
    }
    at_most = {"min_volume": (False, False, True), "fill_holes": (False, True, True)}
    assert tuple(changed.values()) == at_most[name]
