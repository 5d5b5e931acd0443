"""Numbers that can be worked out on paper, and the rules for empty masks."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from medseg.config.schema import Evaluation
from medseg.errors import DataError
from medseg.evaluation.metrics import MEASURES, bounding_box, measure
from medseg.evaluation.scores import CaseScores, score_case, summarise, write
from medseg.evaluation.surfaces import surface_distances

CLASSES = {"whole": (1, 2), "core": (2,)}


def box(*sides, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def labels(seed, shape=(10, 9, 8)):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def test_two_shifted_boxes_by_hand():
    truth = box((2, 6), (2, 6), (2, 6))
    prediction = box((3, 7), (2, 6), (2, 6))
    found = measure(prediction, truth, (2.0, 1.0, 1.0), tolerance_mm=1.0)
    assert found.dice == 2 * 48 / 128
    assert found.iou == 48 / 80
    assert found.precision == found.recall == 48 / 64
    assert found.volume_ml == found.truth_ml == 0.128
    assert found.volume_error_ml == found.relative_volume_error == 0
    # Each box has 56 surface voxels: 16 of its outer face lie a step of 2 mm off, 4 within the
    # other face lie 1 mm off the rim of the other box, and the rest coincide.
    assert found.hd95_mm == 2
    assert found.assd_mm == pytest.approx((16 * 2 + 4 * 1) / 56)
    assert found.nsd == 40 / 56
    assert measure(prediction, truth, (2.0, 1.0, 1.0), tolerance_mm=0.5).nsd == 36 / 56


def _brute(prediction, truth, spacing):
    """All surface distances by comparing every pair of surface voxels, without scipy."""

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = np.ones_like(mask)
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inner) * np.array(spacing)

    here, there = surface(prediction), surface(truth)
    every = np.sqrt(((here[:, None] - there[None]) ** 2).sum(axis=2))
    return np.concatenate((every.min(axis=1), every.min(axis=0)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.0, 3.7)])
def test_surface_distances_equal_brute_force(spacing):
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((2, 7, 6, 5)) > 0.5
    found = surface_distances(prediction, truth, spacing)
    ours = np.concatenate((found.to_truth, found.to_prediction))
    np.testing.assert_allclose(ours, _brute(prediction, truth, spacing))


def test_hd95_is_the_larger_directed_percentile():
    """A bulky truth with one far false voxel: the directed percentile of one side alone is far."""
    truth = box((0, 10), (0, 10), (0, 1), shape=(10, 10, 40))
    prediction = truth.copy()
    prediction[0, 0, 30] = True
    assert measure(prediction, truth, (1, 1, 1), 1.0).hd95_mm == 0  # 1 of 101: under 5 %
    small = box((0, 3), (0, 3), (0, 1), shape=(10, 10, 40))
    false = small.copy()
    false[0, 0, 30] = True
    # Directed: 9 zeros and one 30, so the 95th percentile is 0.55 x 30; the other side is 0. The
    # percentile of both sides together would be 0.
    assert measure(false, small, (1, 1, 1), 1.0).hd95_mm == pytest.approx(16.5)
    assert measure(small, false, (1, 1, 1), 1.0).hd95_mm == pytest.approx(16.5)


def test_tolerance_survives_rounding():
    """Ten steps of 0.1 mm are 1 mm, though 12 x 0.1 - 2 x 0.1 is a trifle more in 64-bit floats."""
    truth, prediction = np.zeros((2, 13, 1, 1), bool)
    truth[[0, 2]] = prediction[12] = True
    assert 12 * 0.1 - 2 * 0.1 > 1
    assert measure(prediction, truth, (0.1, 1.0, 1.0), 1.0).nsd == 2 / 3
    assert measure(prediction, truth, (0.1, 1.0, 1.0), 0.999).nsd == 0


def test_a_volume_border_is_a_surface():
    """A mask that fills the volume has a surface; without it every distance would be lost."""
    whole = np.ones((5, 5, 5), bool)
    centre = box((2, 3), (2, 3), (2, 3), shape=(5, 5, 5))
    assert measure(whole, centre, (1, 1, 1), 1.0).hd95_mm == pytest.approx(np.sqrt(12), rel=0.05)


def test_both_empty_is_agreement():
    empty = np.zeros((4, 4, 4), bool)
    found = measure(empty, empty, (1, 1, 1), 1.0)
    assert [found.dice, found.iou, found.precision, found.recall, found.nsd] == [1] * 5
    assert [found.hd95_mm, found.assd_mm, found.volume_ml, found.volume_error_ml] == [0] * 4
    assert found.relative_volume_error == 0


def test_one_empty_is_the_worst():
    empty, full = np.zeros((4, 4, 4), bool), box((1, 2), (1, 2), (1, 2), shape=(4, 4, 4))
    for prediction, truth in ((empty, full), (full, empty)):
        found = measure(prediction, truth, (1, 1, 1), 1.0)
        assert [found.dice, found.iou, found.precision, found.recall, found.nsd] == [0] * 5
        assert math.isinf(found.hd95_mm)
        assert math.isinf(found.assd_mm)
    assert math.isinf(measure(full, empty, (1, 1, 1), 1.0).relative_volume_error)
    assert measure(empty, full, (1, 1, 1), 1.0).relative_volume_error == -1


def test_cropping_changes_nothing():
    rng = np.random.default_rng(1)
    small = rng.random((2, 5, 6, 7)) > 0.6
    large = np.zeros((2, 30, 40, 50), bool)
    large[:, 11:16, 0:6, 43:50] = small
    # Corners of a box that is cut to its masks: rows of zeros beside them may go too.
    assert bounding_box(large[0] | large[1])[0].start >= 11
    assert measure(*large, (1, 2, 3), 1.0) == measure(*small, (1, 2, 3), 1.0)


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*\(2, 2, 3\)"):
        measure(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), (1, 1, 1), 1.0)


def test_classes_may_overlap_and_ignored_voxels_do_not_count():
    prediction, truth = labels(0), labels(1)
    settings = Evaluation()
    found = score_case("a", prediction, truth, (1, 1, 1), CLASSES, settings)
    assert found.measures["whole"] == measure(prediction > 0, truth > 0, (1, 1, 1), 1.0)
    assert found.measures["core"] == measure(prediction == 2, truth == 2, (1, 1, 1), 1.0)
    assert found.dice == (found.measures["whole"].dice + found.measures["core"].dice) / 2
    assert found.lesions == {}

    truth[:, :, :4] = 255
    ignoring = score_case("a", prediction, truth, (1, 1, 1), CLASSES, settings, ignore=255)
    here = (slice(None), slice(None), slice(4, None))
    assert ignoring.measures["core"] == measure(
        prediction[here] == 2, truth[here] == 2, (1, 1, 1), 1.0
    )


def test_a_prediction_on_another_grid_is_refused():
    with pytest.raises(DataError, match=r"case_7: .*\(2, 2, 2\).*\(3, 2, 2\)"):
        score_case(
            "case_7", np.zeros((2, 2, 2), int), np.zeros((3, 2, 2), int), (1, 1, 1), CLASSES,
            Evaluation(),
        )  # fmt: skip
    with pytest.raises(DataError, match="no classes"):
        score_case("case_7", labels(0), labels(0), (1, 1, 1), {}, Evaluation())


@pytest.fixture
def cases():
    settings = Evaluation(lesions=True)
    found = [
        score_case(f"case_{n}", labels(n), labels(n + 50), (1, 1, 2), CLASSES, settings)
        for n in range(4)
    ]
    missed = score_case("missed", labels(0) * 0, labels(9), (1, 1, 2), CLASSES, settings)
    return [*found, missed]


def test_a_summary_leaves_out_the_infinite_and_says_so(cases):
    summary = summarise(cases)
    dice = [case.measures["core"].dice for case in cases]
    hd95 = [case.measures["core"].hd95_mm for case in cases[:-1]]
    found = summary["classes"]["core"]
    assert found["dice"] == {
        "mean": pytest.approx(np.mean(dice)),
        "median": pytest.approx(np.median(dice)),
        "sd": pytest.approx(np.std(dice, ddof=1)),
        "min": 0,
        "max": max(dice),
        "count": 5,
        "left_out": 0,
    }
    assert (found["hd95_mm"]["count"], found["hd95_mm"]["left_out"]) == (4, 1)
    assert found["hd95_mm"]["mean"] == pytest.approx(np.mean(hd95))
    both = [summary["classes"][name]["dice"]["mean"] for name in CLASSES]
    assert summary["mean_dice"] == pytest.approx(np.mean(both))
    assert set(MEASURES) <= set(found)
    json.dumps(summary, allow_nan=False)


def test_lesions_are_pooled_over_cases(cases):
    pooled = summarise(cases)["classes"]["whole"]["pooled"]
    lesions = [case.lesions["whole"] for case in cases]
    assert pooled["tp"] == sum(found.tp for found in lesions)
    assert pooled["fn"] == sum(found.fn for found in lesions) > 0
    assert pooled["false_per_case"] == sum(found.fp for found in lesions) / 5


def test_summaries_of_one_case_and_of_none(cases):
    one = summarise(cases[-1:])
    assert one["classes"]["core"]["dice"]["sd"] is None
    assert one["classes"]["core"]["hd95_mm"]["mean"] is None
    assert summarise([]) == {"cases": 0, "mean_dice": None, "classes": {}}


def test_files_hold_every_number(cases, tmp_path):
    settings = Evaluation(lesions=True, tolerance_mm=2.5)
    awkward = CaseScores('a,"b"\n', cases[0].measures, cases[0].lesions)
    returned = write(tmp_path, [awkward, *cases[1:]], settings)
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored == returned
    assert stored["settings"]["tolerance_mm"] == 2.5
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 2
    assert rows[0]["case"] == 'a,"b"\n'
    assert float(rows[0]["dice"]) == cases[0].measures["whole"].dice
    assert rows[-1]["hd95_mm"] == "inf"
    assert int(rows[-1]["lesion_fn"]) == cases[-1].lesions["core"].fn
    names = ["lesions.csv", "scores.csv", "summary.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
