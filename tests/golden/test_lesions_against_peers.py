"""Lesions one by one beside SimpleITK's shapes; FROC beside MONAI's and beside matching anew."""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.metrics import compute_froc_score
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medseg.evaluation.froc import RATES, froc
from medseg.evaluation.lesion_records import records
from medseg.evaluation.lesions import Rule, match

SPACING = (0.8, 1.3, 4.0)


def oblique() -> np.ndarray:
    """An affine that is turned about two axes, with one axis flipped."""
    a, b = 0.3, -0.5
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-SPACING[0], SPACING[1], SPACING[2]])
    affine[:3, 3] = (31, -17, 54)
    return affine


def scene(seed, shape=(26, 22, 12)):
    """Prediction, truth and probability of a class, with some twenty lesions."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 1.2, 1.2, 0.7))
    noise /= noise.std()
    truth = noise[0] > 1.5
    evidence = noise[0] + 0.5 * noise[1]
    return evidence > 1.4, truth, 1 / (1 + np.exp(-2 * (evidence - 1.0)))


@pytest.mark.parametrize("connectivity", [6, 26])
def test_centroid_volume_and_extent_equal_simpleitk(connectivity, tmp_path):
    prediction, truth, _ = scene(0)
    affine = oblique()
    nib.save(nib.Nifti1Image(truth.astype(np.uint8), affine), tmp_path / "truth.nii")
    components = sitk.ConnectedComponent(
        sitk.ReadImage(str(tmp_path / "truth.nii")), connectivity == 26
    )
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(components)
    theirs = []
    for label in shapes.GetLabels():
        x, y, z = shapes.GetCentroid(label)
        voxels = np.array(shapes.GetBoundingBox(label)[3:])
        theirs.append((-x, -y, z, shapes.GetPhysicalSize(label), *(voxels * SPACING)))  # LPS
    matching = match(prediction, truth, SPACING, Rule(connectivity, 0, 0.1))
    ours = [
        (*lesion.centroid_mm, lesion.volume_mm3, *lesion.extent_mm)
        for lesion in records(matching, affine)
        if lesion.map == "truth"
    ]
    assert len(ours) == len(theirs) > 10
    np.testing.assert_allclose(sorted(ours), sorted(theirs), rtol=1e-4, atol=1e-4)


def overlaps_by_sets(prediction, truth, probability):
    """Lesions by loops over voxels' sets: sizes, common voxels, mean probabilities."""
    cube = np.ones((3, 3, 3))
    (true, m), (predicted, n) = (ndimage.label(mask, cube) for mask in (truth, prediction))
    common = np.array(
        [[((true == t) & (predicted == p)).sum() for p in range(1, n + 1)]
         for t in range(1, m + 1)]
    ).reshape(m, n)  # fmt: skip
    sizes = [[(labels == n).sum() for n in range(1, count + 1)]
             for labels, count in ((true, m), (predicted, n))]  # fmt: skip
    means = ndimage.mean(probability, predicted, range(1, n + 1))
    return common, np.array(sizes[0]), np.array(sizes[1]), np.array(means)


def matched_anew(common, true, predicted, means, threshold, rule):
    """Found and false lesions when only what reaches the threshold is predicted."""
    kept = means >= threshold
    common, predicted = common[:, kept], predicted[kept]
    if rule.name == "any_overlap":
        found = (common.sum(1) > 0) & (common.sum(1) >= rule.overlap * true)
        hit = (common.sum(0) > 0) & (common.sum(0) >= rule.overlap * predicted)
        return int(found.sum()), int((~hit).sum())
    iou = common / (true[:, None] + predicted[None] - common)
    allowed = csr_array((common > 0) & (iou >= rule.overlap))
    found = int((maximum_bipartite_matching(allowed, perm_type="column") >= 0).sum())
    return found, int(kept.sum()) - found


@pytest.mark.parametrize(
    ("name", "overlap"), list(product(("one_to_one", "any_overlap"), (0.0, 0.1, 0.3)))
)
def test_the_curve_equals_matching_anew_at_every_threshold(name, overlap):
    rule, scenes = Rule(26, 0, overlap, name), [scene(seed) for seed in range(4)]
    lesions = [records(match(p, t, (1, 1, 1), rule, s), np.eye(4)) for p, t, s in scenes]
    curve = froc(lesions)
    tables = [overlaps_by_sets(*one) for one in scenes]
    total = sum(len(table[1]) for table in tables)
    assert len(curve.thresholds) > 10
    for n, threshold in enumerate(curve.thresholds):
        counts = [matched_anew(*table, threshold - 1e-9, rule) for table in tables]
        found, false = np.sum(counts, 0)
        assert curve.sensitivity[n] == pytest.approx(found / total)
        assert curve.false_per_case[n] == pytest.approx(false / len(scenes))


def test_the_score_equals_monai():
    lesions = []
    for seed in range(5):
        p, t, s = scene(seed)
        lesions.append(records(match(p, t, (1, 1, 1), Rule(26, 0, 0.1), s), np.eye(4)))
    curve = froc(lesions)
    every = np.append(0, curve.false_per_case), np.append(0, curve.sensitivity)
    score = compute_froc_score(every[0][::-1], every[1][::-1], RATES)
    assert curve.as_json()["mean"] == pytest.approx(score)
    assert 0.2 < score < 1
