"""Which lesion is found: the matching rule, case by case, and against another matcher."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from medseg.evaluation.lesions import LesionScores, Rule, components, match


def line(*runs, length=40):
    """A row of voxels with lesions at the given (start, stop)."""
    mask = np.zeros((length, 1, 1), bool)
    for start, stop in runs:
        mask[start:stop] = True
    return mask


def count(prediction, truth, overlap=0.1, min_mm3=0.0, spacing=(1.0, 1.0, 1.0), rule="one_to_one"):
    return match(prediction, truth, spacing, Rule(26, min_mm3, overlap, rule)).scores


def test_found_missed_and_false_by_volume():
    truth = line((0, 4), (10, 12), (20, 27))
    prediction = line((1, 5), (20, 27), (30, 33))
    found = count(prediction, truth, spacing=(2.0, 1.0, 0.5))
    assert sorted(found.found_mm3) == [4, 7]
    assert found.missed_mm3 == (2,)
    assert found.false_mm3 == (3,)
    assert (found.tp, found.fn, found.fp) == (2, 1, 1)
    assert found.sensitivity == found.precision == found.f1 == 2 / 3


@pytest.mark.parametrize(
    ("overlap", "tp"),
    [(0.0, 1), (0.2, 1), (0.25, 1), (0.26, 0)],
)
def test_the_overlap_is_an_iou_and_its_limit_is_included(overlap, tp):
    assert count(line((3, 8)), line((0, 5)), overlap).tp == tp  # 2 of 8 voxels


def test_one_voxel_is_enough_at_zero_and_touching_is_not():
    assert count(line((4, 30)), line((0, 5)), overlap=0.0).tp == 1
    assert count(line((5, 30)), line((0, 5)), overlap=0.0).tp == 0


def test_one_prediction_finds_one_lesion():
    merged, truth = line((0, 20)), line((0, 8), (10, 20))
    found = count(merged, truth, overlap=0.1)
    assert (found.tp, found.fn, found.fp) == (1, 1, 0)


def test_crumbs_are_one_find_and_false_alarms():
    found = count(line((0, 3), (4, 7), (8, 11)), line((0, 11)), overlap=0.1)
    assert (found.tp, found.fn, found.fp) == (1, 0, 2)


def test_pairs_are_chosen_to_find_most():
    """Greedy by IoU would pair the long prediction with the first lesion and lose the second."""
    truth = line((0, 10), (11, 17))
    prediction = line((0, 2), (3, 15))
    found = count(prediction, truth, overlap=0.1)
    assert (found.tp, found.fn, found.fp) == (2, 0, 0)


def test_the_minimum_size_makes_no_false_alarm():
    truth, prediction = line((0, 2), (10, 20)), line((0, 4), (10, 12), (30, 32))
    found = count(prediction, truth, min_mm3=3.0)
    # (0, 2) is too small to count, so its find (0, 4) is no false alarm; (10, 12) is small but
    # finds a lesion; (30, 32) is too small to be an alarm.
    assert (found.tp, found.fn, found.fp) == (1, 0, 0)
    at_the_limit = count(prediction, truth, min_mm3=2.0)
    assert (at_the_limit.tp, at_the_limit.fn, at_the_limit.fp) == (2, 0, 1)


def test_a_small_true_lesion_takes_no_partner_from_a_counted_one():
    truth, prediction = line((0, 2), (3, 9)), line((0, 9))
    assert count(prediction, truth, min_mm3=3.0).found_mm3 == (6,)


@pytest.mark.parametrize(("connectivity", "lesions"), [(6, 4), (18, 2), (26, 1)])
def test_neighbours(connectivity, lesions):
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1, 1] = mask[1, 2, 2] = True  # an edge in common
    mask[2, 3, 3] = mask[3, 3, 4] = True  # with (1, 2, 2): a corner; with one another: an edge
    assert components(mask, connectivity)[1] == lesions
    found = match(mask, mask, (1, 1, 1), Rule(connectivity, 0, 0.5)).scores
    assert (found.tp, found.fn, found.fp) == (lesions, 0, 0)


def test_empty_masks():
    empty, full = line(), line((3, 5))
    both = count(empty, empty)
    assert both == LesionScores((), (), (), ())
    assert both.f1 == both.sensitivity == both.precision == 1
    for found in (count(empty, full), count(full, empty)):
        assert found.f1 == found.sensitivity == found.precision == 0


def _peer_tp(prediction, truth, overlap):
    """The most pairs by the Hungarian algorithm on a dense matrix of set overlaps."""
    cube = np.ones((3, 3, 3))
    true, m = ndimage.label(truth, cube)
    predicted, n = ndimage.label(prediction, cube)
    allowed = np.zeros((m, n))
    for t in range(m):
        for p in range(n):
            one, other = true == t + 1, predicted == p + 1
            common = (one & other).sum()
            allowed[t, p] = common > 0 and common / (one | other).sum() >= overlap
    rows, columns = linear_sum_assignment(-allowed)
    return int(allowed[rows, columns].sum()), m, n


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.3, 0.5])
def test_counts_equal_the_hungarian_algorithm(overlap):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        noise = ndimage.gaussian_filter(rng.normal(size=(2, 14, 13, 12)), (0, 0.9, 0.9, 0.9))
        truth = noise[0] > 0.35
        prediction = noise[0] + 0.6 * noise[1] > 0.4
        found = count(prediction, truth, overlap)
        tp, m, n = _peer_tp(prediction, truth, overlap)
        assert (found.tp, found.fn, found.fp) == (tp, m - tp, n - tp)


def test_thousands_of_specks_stay_cheap():
    """A noisy prediction: memory follows the pairs, not lesions times predictions."""
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 60, 60, 60)) > 0.96
    found = match(prediction, truth, (1, 1, 1), Rule(6, 0, 0)).scores
    assert found.tp + found.fn == components(truth, 6)[1] > 5000
    assert found.tp + found.fp == components(prediction, 6)[1]
