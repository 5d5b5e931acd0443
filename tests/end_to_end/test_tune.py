"""`medseg tune` and `medseg predict --crf` by the commands, on a run that learned something."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

import medseg
from medseg.errors import DataError
from medseg.networks import checkpoint
from medseg.volumes import phantom

pytestmark = pytest.mark.slow
Cli = Callable[..., tuple[int, str]]

RECIPE: dict[str, Any] = {
    "name": "tune",
    "data": {"layout": "nnunet", "path": "heads", "split": {"folds": 3}},
    "preprocess": {"spacing": [4, 4, 4], "normalise": [{"name": "zscore", "region": "nonzero"}]},
    "model": {
        "encoder": {"name": "resnet", "widths": [8, 16, 32]},
        "decoder": {"name": "unet"},
        "deep_supervision": 1,
    },
    "train": {
        "patch": [24, 24, 24],
        "batch": 4,
        "budget": {"steps": 160},
        "sampler": {"name": "balanced", "foreground": 0.7},
        "lr": 5e-3,
        "validate_every": 160,
        "precision": "fp32",
        "threads": 1,
    },
    "inference": {"precision": "fp32"},
    "evaluation": {"lesions": True},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with heads and a run. Do not change."""
    folder = tmp_path_factory.mktemp("tune")
    phantom.generate(folder / "heads", 12, 5, held_out=1, protocols=((4, 4, 4),))
    (folder / "run.yaml").write_text(yaml.safe_dump(RECIPE))
    medseg.train(medseg.load_config(folder / "run.yaml"), folder / "run", device="cpu", quiet=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained / "run", tmp_path / "run")


def test_tune_min_volume(trained: Path, run: Path, tmp_path: Path, cli: Cli) -> None:
    code, said = cli("tune", "min_volume", "-m", run, "--device", "cpu", "connectivity=6")
    assert code == 0, said
    found = json.loads((run / "tuning" / "min_volume.json").read_text())
    assert " ".join(found["verdict"].split()) in " ".join(said.split())
    assert (run / "tuning" / "min_volume.html").exists()
    assert not (run / "tuning" / "cache").exists()
    splits = json.loads((run / "splits.json").read_text())
    assert sorted(case["case_id"] for case in found["cases"]) == sorted(splits["validation"])
    assert found["options"]["connectivity"] == 6
    scores = json.loads((run / "validation" / "summary.json").read_text())["classes"]["lesion"]
    before = [case["before"]["lesion"] for case in found["cases"]]
    assert np.mean(before) == pytest.approx(scores["dice"]["mean"], abs=1e-6)
    (tuned,) = checkpoint.load(run / "model.safetensors").tuned
    assert (tuned.name, tuned.accepted) == ("min_volume", found["accepted"])
    assert tuned.options == found["options"]
    weights = checkpoint.load(trained / "run" / "model.safetensors").weights
    for name, tensor in checkpoint.load(run / "model.safetensors").weights.items():
        assert tensor.equal(weights[name])


def masks(run: Path, trained: Path, output: Path, cli: Cli, *words: str) -> list[np.ndarray]:
    code, said = cli("predict", "-m", run, "-i", trained / "heads/imagesTs", "-o", output, *words)
    assert code == 0, said
    return [np.asarray(nib.load(file).dataobj) for file in sorted(output.glob("*.nii.gz"))]


def test_an_accepted_step_is_taken_and_a_rejected_one_is_not(
    trained: Path, run: Path, tmp_path: Path, cli: Cli
) -> None:
    (before,) = masks(run, trained, tmp_path / "before", cli)
    assert before.any()
    entry = checkpoint.Tuned("min_volume", {"mm3": 1e9}, (), False, {})
    checkpoint.set_tuned(run / "model.safetensors", entry)
    (rejected,) = masks(run, trained, tmp_path / "rejected", cli)
    np.testing.assert_array_equal(rejected, before)
    entry = checkpoint.Tuned("min_volume", {"mm3": 1e9}, (), True, {})
    checkpoint.set_tuned(run / "model.safetensors", entry)
    (accepted,) = masks(run, trained, tmp_path / "accepted", cli)
    assert not accepted.any()


def test_the_crf_can_be_switched(trained: Path, run: Path, tmp_path: Path, cli: Cli) -> None:
    (off,) = masks(run, trained, tmp_path / "off", cli, "--crf", "off")
    (model,) = masks(run, trained, tmp_path / "model", cli)
    np.testing.assert_array_equal(off, model)
    (on,) = masks(run, trained, tmp_path / "on", cli, "--crf", "on")
    assert (on != off).any()
    (again,) = masks(run, trained, tmp_path / "on", cli, "--crf", "off")  # not taken for current
    np.testing.assert_array_equal(again, off)
    code, said = cli("predict", "-m", run, "-i", "x", "-o", "y", "--crf", "maybe")
    assert (code, "'maybe' is not one of" in said) == (2, True)


def test_tune_crf(run: Path, cli: Cli) -> None:
    code, said = cli("tune", "crf", "-m", run, "--device", "cpu", "iterations=2")
    assert code == 0, said
    found = json.loads((run / "tuning" / "crf.json").read_text())
    assert found["candidates"][0][0] is None
    assert found["candidates"][1][0] == {"iterations": 2}
    assert all(options["iterations"] == 2 for options, _ in found["candidates"][1:])
    (tuned,) = checkpoint.load(run / "model.safetensors").tuned
    assert (tuned.name, tuned.accepted) == ("crf", found["accepted"])


def test_tune_the_operating_point(run: Path, cli: Cli) -> None:
    code, said = cli("tune", "operating_point", "-m", run, "--device", "cpu", "--score",
                     "lesion_f1", "connectivity=6")  # fmt: skip
    assert code == 0, said
    assert "mean lesion F1 of 4 held-out cases" in said
    (tuned,) = checkpoint.load(run / "model.safetensors").tuned
    assert (tuned.name, tuned.accepted) == ("operating_point", False)  # of 4 cases nothing passes
    assert len(tuned.figures["curve"]) == 64
    at = {p["options"]["threshold"]: p for p in tuned.figures["froc"] if p["options"]}
    false = [at[threshold]["false_per_case"] for threshold in sorted(at)]
    assert len(false) == 9
    assert false[0] > false[-1]
    assert "The curve" in (run / "tuning" / "operating_point.html").read_text()


def test_training_leaves_lesions_with_their_confidence(trained: Path, tmp_path: Path) -> None:
    folder = trained / "run" / "validation"
    summary = json.loads((folder / "summary.json").read_text())["classes"]["lesion"]
    with (folder / "lesions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [row for row in rows if (row["map"], row["kind"]) == ("truth", "found")]
    assert len(found) == summary["pooled"]["tp"] > 0
    assert sum(row["kind"] == "false" for row in rows) == summary["pooled"]["fp"]
    assert all(0.5 < float(r["confidence"]) <= 1 for r in rows if r["map"] == "prediction")
    assert 0 < summary["froc"]["mean"] <= summary["pooled"]["sensitivity"] + 1e-9
    assert "mean of the circles" in (trained / "run" / "report.html").read_text()
    for mask in folder.glob("*.nii.gz"):
        painted = np.asarray(nib.load(folder / "lesions" / mask.name).dataobj)
        predicted = np.asarray(nib.load(mask).dataobj) > 0
        assert painted[predicted].all()
    # `medseg evaluate` of the same masks elsewhere says the same
    config = medseg.load_config(trained / "run.yaml")
    ids = sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))
    again = medseg.evaluate(folder, config, tmp_path / "scores", ids=ids, quiet=True)
    assert again["classes"]["lesion"]["froc"] == summary["froc"]


def test_what_cannot_be_tuned(run: Path, tmp_path: Path, cli: Cli) -> None:
    before = (run / "model.safetensors").read_bytes()
    for words, told in (
        (("min_volum", "-m", run), "did you mean 'min_volume'"),
        (("min_volume", "-m", run, "--score", "dise"), "did you mean 'dice'"),
        (("min_volume", "-m", run, "mm=3"), "did you mean 'mm3'"),
        (("min_volume", "-m", run, "name=fill_holes"), "'name' is no option of min_volume"),
        (("min_volume", "-m", run, "protect=[lesion]"), "'protect' is no option of min_volume"),
        (("min_volume", "-m", run, "data.pat=3"), "did you mean 'path'"),
        (("min_volume", "-m", run, "mm3=[1"), "not valid YAML"),
        (("min_volume", "-m", tmp_path / "gone"), "not a readable model"),
    ):
        code, said = cli("tune", *words)
        assert (code, told in said) == (2, True), said
    with pytest.raises(DataError, match="a run folder is needed"):
        medseg.tune(run / "model.safetensors", "min_volume")
    assert (run / "model.safetensors").read_bytes() == before
    assert not (run / "tuning").exists()


def test_too_few_cases_to_hold_one_out(run: Path, cli: Cli) -> None:
    splits = json.loads((run / "splits.json").read_text())
    splits["validation"] = splits["validation"][:1]
    (run / "splits.json").write_text(json.dumps(splits))
    code, said = cli("tune", "min_volume", "-m", run)
    assert (code, "1 validation cases with labels" in said) == (2, True)
