"""Our measures beside those of MONAI and SimpleITK; where a definition differs, a test says how."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.metrics import (
    DiceMetric,
    MeanIoU,
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy import ndimage

from medseg.evaluation.lesions import components
from medseg.evaluation.metrics import measure
from medseg.evaluation.surfaces import surface_distances

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*always_return_as_numpy.*:FutureWarning",  # MONAI's own call of its own old argument
)

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (4.07, 4.07, 3.27), (0.1, 0.3, 0.9)]
FLOAT32 = 2e-6  # MONAI works in single precision


def blobs(seed, shape=(20, 17, 13), smooth=2.0, share=0.25):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), smooth)
    return noise > np.quantile(noise, 1 - share)


def pairs():
    for seed in range(6):
        smooth = (0.0, 1.0, 2.0)[seed % 3]
        truth = blobs(seed, smooth=smooth)
        yield f"blobs{seed}", np.roll(truth, (1, -2, seed % 3), (0, 1, 2)), truth
    one, corner = np.zeros((9, 8, 7), bool), np.zeros((9, 8, 7), bool)
    one[4, 4, 3] = corner[0, 0, 0] = True
    yield "voxels", one, corner
    yield "whole volume", np.ones((6, 5, 4), bool), blobs(1, (6, 5, 4), 1.0)
    yield "identical", blobs(2), blobs(2)
    plane = np.zeros((9, 8, 7), bool)
    plane[:, :, 6] = True
    yield "plane at the border", plane, one
    yield "one slice", blobs(3, (24, 20, 1), 1.5), blobs(4, (24, 20, 1), 1.5)


PAIRS = [pytest.param(p, t, id=name) for name, p, t in pairs()]


def batch(mask):
    return torch.from_numpy(mask[None, None].astype(np.float32))


def image(mask, spacing):
    """A SimpleITK image of a mask, a voxel of background around it: ITK sees no outside."""
    volume = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).transpose(2, 1, 0))
    volume.SetSpacing(spacing)
    return volume


@pytest.mark.parametrize(("prediction", "truth"), PAIRS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_surface_measures_equal_monai(prediction, truth, spacing):
    ours = measure(prediction, truth, spacing, tolerance_mm=1.5)
    p, t = batch(prediction), batch(truth)
    hd95 = compute_hausdorff_distance(
        p, t, include_background=True, percentile=95, spacing=spacing
    ).item()
    assd = compute_average_surface_distance(
        p, t, include_background=True, symmetric=True, spacing=spacing
    ).item()
    nsd = compute_surface_dice(p, t, [1.5], include_background=True, spacing=spacing).item()
    assert ours.hd95_mm == pytest.approx(hd95, rel=FLOAT32, abs=FLOAT32)
    assert ours.assd_mm == pytest.approx(assd, rel=FLOAT32, abs=FLOAT32)
    assert ours.nsd == pytest.approx(nsd, abs=FLOAT32)


@pytest.mark.parametrize(("prediction", "truth"), PAIRS)
def test_overlap_measures_equal_monai_and_simpleitk(prediction, truth):
    ours = measure(prediction, truth, (1.0, 1.0, 1.0), tolerance_mm=1.0)
    p, t = batch(prediction), batch(truth)
    assert ours.dice == pytest.approx(DiceMetric()(p, t).item(), abs=FLOAT32)
    assert ours.iou == pytest.approx(MeanIoU()(p, t).item(), abs=FLOAT32)
    peer = sitk.LabelOverlapMeasuresImageFilter()
    peer.Execute(image(prediction, (1.0, 1.0, 1.0)), image(truth, (1.0, 1.0, 1.0)))
    assert ours.dice == pytest.approx(peer.GetDiceCoefficient(1))
    assert ours.iou == pytest.approx(peer.GetJaccardCoefficient(1))
    assert ours.precision == pytest.approx(1 - peer.GetFalseDiscoveryRate(1))
    assert ours.recall == pytest.approx(1 - peer.GetFalseNegativeError(1))
    # ITK's volume similarity 2 (S - T) / (S + T) takes the mean volume as the reference.
    similarity = 2 * ours.volume_error_ml / (ours.volume_ml + ours.truth_ml)
    assert abs(similarity) == pytest.approx(abs(peer.GetVolumeSimilarity(1)))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_volumes_equal_simpleitk(spacing):
    prediction, truth = blobs(5, share=0.3), blobs(6, share=0.2)
    ours = measure(prediction, truth, spacing, tolerance_mm=1.0)
    peer = sitk.LabelShapeStatisticsImageFilter()
    sizes = []
    for mask in (prediction, truth):
        peer.Execute(image(mask, spacing))
        sizes.append(peer.GetPhysicalSize(1) / 1000)
    assert [ours.volume_ml, ours.truth_ml] == pytest.approx(sizes)
    assert ours.volume_error_ml == pytest.approx(sizes[0] - sizes[1])
    assert ours.relative_volume_error == pytest.approx((sizes[0] - sizes[1]) / sizes[1])


@pytest.mark.parametrize(("prediction", "truth"), PAIRS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_surface_distance_equals_simpleitk(prediction, truth, spacing):
    """By another road: ITK's contours, and its exact distance maps instead of a k-d tree."""
    ours = surface_distances(prediction, truth, spacing)
    contours = [sitk.LabelContour(image(m, spacing), False) for m in (prediction, truth)]
    maps = [
        sitk.SignedMaurerDistanceMap(contour, squaredDistance=False, useImageSpacing=True)
        for contour in contours
    ]
    here, there = (sitk.GetArrayFromImage(contour) > 0 for contour in contours)
    to_prediction, to_truth = (np.maximum(sitk.GetArrayFromImage(m), 0) for m in maps)
    for mine, peer in ((ours.to_truth, to_truth[here]), (ours.to_prediction, to_prediction[there])):
        np.testing.assert_allclose(np.sort(mine), np.sort(peer), rtol=1e-5, atol=1e-6)


def test_nsd_against_surface_areas():
    """MONAI with `use_subvoxels` (DeepMind's way) weighs by area and places the surface between
    voxels; we count voxels. On smooth shapes the two stay close, and both are 1 at a perfect match.
    """
    spacing = (0.9, 0.9, 3.0)
    for seed in range(4):
        truth = blobs(seed, (30, 30, 16), 3.0, 0.15)
        prediction = np.roll(truth, 2, axis=0)
        ours = measure(prediction, truth, spacing, tolerance_mm=1.0).nsd
        peer = compute_surface_dice(
            batch(prediction), batch(truth), [1.0], include_background=True,
            spacing=spacing, use_subvoxels=True,
        ).item()  # fmt: skip
        assert ours == pytest.approx(peer, abs=0.15)
        assert measure(truth, truth, spacing, tolerance_mm=1.0).nsd == 1


@pytest.mark.filterwarnings("ignore:.*is all 0.*:UserWarning")
def test_empty_masks_where_peers_differ():
    """Both empty: MONAI says nan (or 1 when told); we say 1 and 0 mm, as agreement is no failure.

    One empty: MONAI's HD95 is infinite or nan by the side that is empty; ours is always infinite.
    """
    empty, full = np.zeros((6, 5, 4), bool), blobs(1, (6, 5, 4), 1.0)
    ours = measure(empty, empty, (1, 1, 1), tolerance_mm=1.0)
    assert math.isnan(DiceMetric()(batch(empty), batch(empty)).item())
    assert DiceMetric(ignore_empty=False)(batch(empty), batch(empty)).item() == ours.dice == 1
    for prediction, truth in ((empty, full), (full, empty)):
        ours = measure(prediction, truth, (1, 1, 1), tolerance_mm=1.0)
        dice = DiceMetric(ignore_empty=False)(batch(prediction), batch(truth)).item()
        hd95 = compute_hausdorff_distance(
            batch(prediction), batch(truth), include_background=True, percentile=95
        ).item()
        nsd = compute_surface_dice(
            batch(prediction), batch(truth), [1.0], include_background=True
        ).item()
        assert ours.dice == dice == 0
        assert ours.nsd == nsd == 0
        assert math.isinf(ours.hd95_mm)
        assert not math.isfinite(hd95)


@pytest.mark.parametrize(("connectivity", "fully"), [(6, False), (26, True)])
def test_components_equal_simpleitk(connectivity, fully):
    """SimpleITK knows no 18 neighbours; `test_lesions.py` shows that case by hand."""
    for seed in range(5):
        mask = blobs(seed, smooth=0.0, share=0.15)
        labels, count = components(mask, connectivity)
        peer = sitk.GetArrayFromImage(sitk.ConnectedComponent(image(mask, (1, 1, 1)), fully))
        peer = peer.transpose(2, 1, 0)[1:-1, 1:-1, 1:-1]
        assert count == peer.max()
        together = {*zip(labels[mask].tolist(), peer[mask].tolist(), strict=True)}
        assert len(together) == count  # one to one
