"""FROC by hand, and recall by size."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.config import load
from medseg.config.schema import Evaluation
from medseg.errors import ConfigError
from medseg.evaluation.froc import MOST_POINTS, RATES, by_size, froc
from medseg.evaluation.lesion_records import Lesion
from medseg.evaluation.lesions import LesionScores
from medseg.evaluation.scores import score_case, summarise


def lesion(of, kind, confidence=None):
    place = (0.0, 0.0, 0.0)
    return Lesion(of, 1, kind, place, 1.0, place, None, None, None, confidence, 0)


def case(hits=(), missed=0, alarms=()):
    return [
        *(lesion("truth", "found", c) for c in hits),
        *(lesion("prediction", "found", c) for c in hits),
        *(lesion("truth", "missed") for _ in range(missed)),
        *(lesion("prediction", "false", c) for c in alarms),
        lesion("truth", "not counted"),
        lesion("prediction", "not counted"),  # of no known confidence, and it does not matter
    ]


def test_a_curve_by_hand():
    found = froc([case((0.9, 0.5), 1, (0.7,)), case((0.6,), 0, (0.7, 0.2))])
    assert found.thresholds.tolist() == [0.9, 0.7, 0.6, 0.5, 0.2]
    assert found.sensitivity.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert found.false_per_case.tolist() == [0, 1, 1, 1, 1.5]
    # 1/8 to 1/2 lie on the level piece from (0, 1/4) to (1, 1/4); 1 takes the best reached there.
    told = found.as_json()
    assert list(told["sensitivity"]) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert list(told["sensitivity"].values()) == [0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 0.75]
    assert told["mean"] == pytest.approx((3 * 0.25 + 4 * 0.75) / 7)
    assert told["curve"][1] == [1, 0.25]


def test_between_two_thresholds_it_is_linear():
    found = froc([case((0.9,), 1, ()), case((), 0, ()), case((0.5,), 0, (0.5, 0.5, 0.5))])
    assert found.at(0) == pytest.approx(1 / 3)
    assert found.at(0.25) == pytest.approx(1 / 3 + 0.25 / 3)
    assert found.at(1) == found.at(8) == pytest.approx(2 / 3)


def test_where_there_is_no_curve():
    assert froc([case((), 0, (0.5,))]) is None  # nothing to find
    assert froc([case((0.5,), 0, ()), case((), 0, (None,))]) is None  # how sure was the false one?
    nothing = froc([case((), 2, ())])
    assert nothing.as_json()["curve"] == []
    assert set(nothing.as_json()["sensitivity"].values()) == {0}


def test_a_perfect_prediction():
    told = froc([case((0.9, 0.8), 0, ())]).as_json()
    assert told["mean"] == 1
    assert len(told["sensitivity"]) == len(RATES)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    hits = np.linspace(0.1, 0.9, 3 * MOST_POINTS).tolist()
    told = froc([case(hits, 0, (0.05,))]).as_json()
    assert len(told["curve"]) == len(told["thresholds"]) == MOST_POINTS
    assert (told["thresholds"][0], told["thresholds"][-1]) == (0.9, 0.05)
    assert told["curve"][-1] == [1, 1]


def test_recall_by_size_with_the_bound_in_the_upper_bin():
    lesions = LesionScores((5.0, 10.0, 50.0), (9.0, 99.0, 2000.0), (1.0,), (5.0,))
    assert by_size(lesions, (10, 100, 1000)) == [
        {"from_mm3": 0, "below_mm3": 10, "found": 1, "missed": 1, "recall": 1 / 2},
        {"from_mm3": 10, "below_mm3": 100, "found": 2, "missed": 1, "recall": 2 / 3},
        {"from_mm3": 100, "below_mm3": 1000, "found": 0, "missed": 0, "recall": None},
        {"from_mm3": 1000, "below_mm3": None, "found": 0, "missed": 1, "recall": 0},
    ]
    assert by_size(lesions, ())[0] == {
        "from_mm3": 0, "below_mm3": None, "found": 3, "missed": 3, "recall": 1 / 2,
    }  # fmt: skip


def test_the_summary_pools_split_and_merged():
    truth, prediction = np.zeros((2, 30, 1, 1), np.uint8)
    truth[0:9], truth[12:15], truth[16:20] = 1, 1, 1
    prediction[0:3], prediction[4:9], prediction[12:20] = 1, 1, 1
    settings = Evaluation(lesions=True, lesion_bins_mm3=(5.0,))
    cases = [score_case(n, prediction, truth, (1, 1, 1), {"l": (1,)}, settings) for n in "ab"]
    found = summarise(cases, settings)["classes"]["l"]
    assert (found["pooled"]["split"], found["pooled"]["merged"]) == (2, 2)
    assert (found["pooled"]["tp"], found["pooled"]["fn"], found["pooled"]["fp"]) == (4, 2, 2)
    assert found["by_size"][1] == {
        "from_mm3": 5.0, "below_mm3": None, "found": 2, "missed": 0, "recall": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("bins", [[10.0, 10.0], [100.0, 10.0], [0.0, 10.0]])
def test_bins_must_ascend(recipe, bins):
    with pytest.raises(ConfigError, match="lesion_bins_mm3"):
        load(recipe(**{"evaluation.lesion_bins_mm3": bins}))
