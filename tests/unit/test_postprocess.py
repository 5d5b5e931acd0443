"""Postprocessors against SimpleITK and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg import plugins
from medseg.postprocess.prediction import Prediction
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


@pytest.mark.parametrize("name", POSTPROCESSORS.names())
@pytest.mark.parametrize("value", [0, 1])
def test_nothing_and_everything_pass(name: str, value: int) -> None:
    labels = np.full((3, 4, 5), value, np.uint8)
    options = {"mm3": 10.0} if name == "min_volume" else {}
    np.testing.assert_array_equal(run(name, labels, **options), labels)


def test_probabilities_and_place_are_kept() -> None:
    shares = np.zeros((2, 3, 4, 5), np.float32)
    before = Prediction(np.zeros((3, 4, 5), np.uint8), shares[:1], AFFINE, shares)
    after = POSTPROCESSORS.build({"name": "fill_holes"}, classes=2)(before)
    assert after.probabilities is shares
    assert after.affine is AFFINE
