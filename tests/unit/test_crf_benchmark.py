"""What the CRF benchmark measures and tells: peak memory, differences, ratios."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import numpy as np
from worker import serve

def refine(job, image, brain, probabilities):
    is_warm_up = image.size < 100
    held = np.ones(job["options"]["mib"] << (21 if is_warm_up else 20), np.uint8)
    del held
    return 1 - probabilities

serve(refine)
"""


@pytest.fixture
def benchmarks(monkeypatch):
    for folder in (BENCHMARKS, BENCHMARKS / "crf_parts"):
        monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def inputs(benchmarks, tmp_path):
    from crf_parts.data import Volumes

    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(2), (16, 12, 8)).transpose(3, 0, 1, 2).astype(np.float32)
    full = Volumes(np.zeros((2, 16, 12, 8), np.float32), shares[0] > 0.2, {2: shares})
    full.save(tmp_path / "full")
    full.crop((8, 6, 4), 2).save(tmp_path / "warm")
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_is_that_of_the_call(inputs, tmp_path):
    job = {
        "inputs": str(inputs), "part": "full", "classes": 2, "options": {"mib": 96},
        "marginals": str(tmp_path / "marginals.npy"),
    }  # fmt: skip
    told = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(job)],
        env={"PYTHONPATH": str(BENCHMARKS / "crf_parts")},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    result = json.loads(told)
    assert result["peak_mib"] == pytest.approx(96, abs=3)  # the warm-up took twice that
    assert result["cpu_s"] > 0
    assert result["wall_s"] > 0
    shares = np.load(inputs / "full" / "p2.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "marginals.npy"), 1 - shares)


def test_crop_is_cut_where_the_volume_ends(inputs):
    from crf_parts.data import Volumes

    image = np.arange(16 * 12 * 8, dtype=np.float32).reshape(1, 16, 12, 8)
    part = Volumes(image, image[0] > 0, {2: image}).crop((1, 6, 7), 5)
    np.testing.assert_array_equal(part.image[0], image[0, 0:4, 4:9, 5:8])
    np.testing.assert_array_equal(part.probabilities[2], part.image)


def test_made_up_probabilities_follow_the_truth(benchmarks):
    from crf_parts.data import made_up

    truth = np.zeros((40, 36, 32), np.uint8)
    truth[8:32, 8:28, 8:24] = 2
    truth[14:26, 14:22, 12:20] = 4
    brain = np.zeros(truth.shape, bool)
    brain[3:37, 3:33, 3:29] = True
    made = made_up(truth, brain, 0)
    assert sorted(made) == [2, 5]
    for classes, shares in made.items():
        assert shares.dtype == np.float32
        np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
        assert (shares[0][~brain] == 1).all()
        assert (shares > 1e-6)[:, brain].all()
        wanted = truth > 0 if classes == 2 else truth
        agreement = (shares.argmax(0) == wanted)[brain].mean()
        assert 0.8 < agreement < 1  # fair, not perfect
    again, other = made_up(truth, brain, 0), made_up(truth, brain, 1)
    np.testing.assert_array_equal(again[5], made[5])
    assert (other[5] != made[5]).any()


def test_difference_counts_labels_and_averages_over_classes(benchmarks):
    from crf import difference

    truth = np.array([[0.9, 0.4, 0.5001], [0.1, 0.6, 0.4999]])
    found = difference(np.array([[0.9, 0.7, 0.4999], [0.1, 0.3, 0.5001]]), truth)
    assert found["labels"] == 2
    assert found["max"] == pytest.approx(0.3)
    assert found["mean"] == pytest.approx((0.3 * 2 + 0.0002 * 2) / 6)


def test_ratios_are_of_medians_and_of_the_right_clock(benchmarks):
    from crf_parts import jobs, page

    def row(method, cpu, wall, peak=1.0):
        runs = [
            {"cpu_s": c, "wall_s": w, "peak_mib": peak, "first_call_s": 0.0}
            for c, w in zip(cpu, wall, strict=True)
        ]
        return {"method": method.name, "classes": 2, "deviations": "sd 15", "runs": runs}

    results = {
        "speed": [
            row(jobs.PAIR, (1.0, 9.0, 0.5), (5.0, 5.0, 5.0)),
            row(jobs.TWO, (7.0, 7.0, 7.0), (0.5, 0.5, 3.0), peak=None),
            row(jobs.ALL, (10.0, 10.0, 1.0), (1.0, 1.0, 1.0)),
            row(jobs.BRAIN, (2.0, 2.0, 2.0), (1.5, 1.5, 1.5)),
        ],
        "accuracy": [],
        "others": [
            {"machine": "A", "method": "MONAI, cpu", "skipped": "no extension"},
            {"machine": "A", "method": jobs.PAIR.name, "run": {"cpu_s": 1.0, "wall_s": 2.0}},
            {"machine": "B", "method": jobs.PAIR.name, "run": {"cpu_s": 1.0, "wall_s": 4.0}},
            {"machine": "B", "method": "torch", "run": {"cpu_s": 3.0, "wall_s": 1.0}},
        ],
        "compile_s": 13.0,
    }
    lines = page.tables(results)
    assert "| 2 | sd 15 | 1.00 | 0.50 | 10.00 | 2.00 | 10.0x | 2.0x | 3.0x |" in lines
    assert "| 2 | sd 15 | 1 | - | 1 | 1 |" in lines
    assert "| B | torch | 3.00 | 1.00 | 0.2x |" in lines
    assert "| A | MONAI, cpu | - | not measured: no extension | - |" in lines
