"""What the benchmarks of prediction measure and tell: memory, agreement, Dice, the archive."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import sys
import numpy as np
from inference_parts.process import measured, told

def take(mib):
    held = np.ones(mib << 20, np.uint8)
    return held[:1].copy()

take(200)  # a warm-up that took more
_, cost = measured(lambda: take(96))
print("what a tool prints")
told(cost)
"""


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_is_that_of_the_call(benchmarks, tmp_path):
    from inference_parts.process import spawn

    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    told = spawn(script, {})
    assert told["peak_mb"] == pytest.approx(96 * 2**20 / 1e6, abs=3)
    assert told["wall_s"] > 0


def test_a_worker_that_fails_says_why(benchmarks, tmp_path):
    from inference_parts.process import spawn

    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit('no such run')")
    with pytest.raises(RuntimeError, match="no such run"):
        spawn(script, {"method": "medseg"})


def test_every_method_is_held_against_fp32_of_the_same_windows(benchmarks):
    from inference_parts.methods import FP32, METHODS

    by_name = {method.name: method for method in METHODS}
    assert len(by_name) == len(METHODS)
    for method in METHODS:
        assert bool(method.overrides) != bool(method.peer)
        if not method.fp32:
            assert FP32 in method.overrides
            continue
        reference = by_name[method.fp32]
        assert not reference.fp32
        if not method.peer:
            windows = {key for key in method.overrides if "precision" not in key}
            extra = windows.symmetric_difference(reference.overrides) - {FP32}
            assert extra <= {
                "inference.batch=2", "inference.skip_constant=true",
                "inference.skip_constant=false",
            }  # fmt: skip


def test_scores_are_those_of_the_brain_and_the_regions(benchmarks):
    from inference import agreement, dice

    brain = np.array([True, True, True, True, False])
    case = SimpleNamespace(mask=brain, label=np.array([0, 1, 2, 2, 0]))
    labels = np.array([0, 1, 1, 2, 4])
    assert agreement(labels, np.array([0, 1, 2, 2, 0]), case) == "75.000"
    assert agreement(labels, None, case) == "-"
    assert dice(labels, case, [1, 2]) == pytest.approx(1)
    assert dice(labels, case, [1]) == pytest.approx(2 / 3)


def test_logits_of_the_voxelwise_network_are_largest_at_the_nearest_class(benchmarks):
    import torch
    from inference_parts.memory_worker import nearest, volume
    from inference_parts.voxelwise import Voxelwise

    image = volume([20, 18, 17], 7)
    assert image.shape == (1, 20, 18, 17)
    labels = nearest(image, {"kind": "linear", "classes": 7})
    np.testing.assert_array_equal(labels, np.rint(image[0]))
    assert len(np.unique(labels)) > 3
    logits = Voxelwise(1, 7)(torch.from_numpy(image)[None])
    np.testing.assert_array_equal(logits.argmax(1)[0], labels)
    view = Voxelwise(1, 7, kind="view")(torch.from_numpy(image)[None])
    assert view.shape == logits.shape
    assert view.stride(1) == 0


def test_the_archive_repeats_cases_under_new_names(benchmarks, tmp_path):
    from batch_parts import archive

    data = tmp_path / "data"
    for folder in ("images", "labels"):
        (data / folder).mkdir(parents=True)
        for n in range(2):
            (data / folder / f"case{n}.nii.gz").write_text(f"{folder} {n}")
    (data / "split.json").write_text(json.dumps({"validation": ["case0", "case1"]}))
    made = archive.hippocampus(data, tmp_path / "run", tmp_path / "archive", 5)
    assert len(made.images) == len(made.truth) == 5
    assert [path.read_text() for path in made.images.values()] == [
        f"images {n}" for n in (0, 1, 0, 1, 0)
    ]
    assert [path.read_text() for path in made.truth.values()] == [
        f"labels {n}" for n in (0, 1, 0, 1, 0)
    ]


@pytest.mark.parametrize("script", ["inference.py", "memory.py", "batch.py"])
def test_benchmarks_tell_how_they_are_called(script):
    told = subprocess.run(
        [sys.executable, BENCHMARKS / script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert script in told
