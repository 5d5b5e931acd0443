"""The whole road on small heads: YAML -> trained model -> masks -> scores, by the commands."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from medseg.config import load
from medseg.inference.predictor import Predictor
from medseg.volumes import nifti, phantom

pytestmark = pytest.mark.slow
Cli = Callable[..., tuple[int, str]]

RECIPE = """
name: road
data:
  layout: nnunet
  path: heads
  split: {folds: 4}
preprocess:
  spacing: [4, 4, 4]
  normalise: [{name: zscore, region: nonzero}]
model:
  encoder: {name: resnet, widths: [8, 16, 32]}
  decoder: {name: unet}
  deep_supervision: 1
train:
  patch: [24, 24, 24]
  batch: 4
  budget: {steps: 200}
  sampler: {name: balanced, foreground: 0.7}
  lr: 5e-3
  validate_every: 100
  precision: fp32
  threads: 1
augment: {flip: [0, 1, 2]}
inference: {precision: fp32}
evaluation: {lesions: true}
"""

RUN_FOLDER = [
    "config.yaml",
    "environment.json",
    "last.pt",
    "last.safetensors",
    "log.jsonl",
    "model.safetensors",
    "previous.pt",
    "progress.png",
    "report.html",
    "splits.json",
    "validation/scores.csv",
    "validation/summary.json",
]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, recipe, run, masks and scores, made by the commands."""
    from medseg import cli

    folder = tmp_path_factory.mktemp("road")
    phantom.generate(folder / "heads", 12, 5, held_out=3, protocols=((4, 4, 4), (4, 4, 6)))
    (folder / "run.yaml").write_text(RECIPE)
    run, masks = folder / "run", folder / "masks"
    for words in (
        ["train", "-c", folder / "run.yaml", "-o", run],
        ["predict", "-m", run, "-i", folder / "heads" / "imagesTs", "-o", masks],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["medseg", *map(str, words)])
            patch.setattr(cli, "show_warnings_briefly", lambda: None)
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code
    return folder


@pytest.fixture
def scored(road: Path, cli: Cli) -> Path:
    """Scores of the held-out heads."""
    if not (road / "scores").exists():
        test = road / "test"
        shutil.copytree(road / "heads" / "imagesTs", test / "imagesTr")
        shutil.copytree(road / "heads" / "labelsTs", test / "labelsTr")
        manifest = json.loads((road / "heads" / "dataset.json").read_text()) | {"numTraining": 3}
        (test / "dataset.json").write_text(json.dumps(manifest))
        code, said = cli(
            *("evaluate", "-c", road / "run.yaml", "-i", road / "masks", "-o", road / "scores"),
            f"data.path={test}",
        )
        assert code == 0, said
        assert "lesion" in said
    return road / "scores"


def log(road: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (road / "run" / "log.jsonl").read_text().splitlines()]


class Page(HTMLParser):
    """What a page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            is_link = tag == "a" and key == "href"
            if key in ("src", "href", "srcset", "data", "action") and value and not is_link:
                self.fetched.append(value)


def test_the_run_folder_holds_what_it_should(road: Path) -> None:
    run = road / "run"
    there = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert set(RUN_FOLDER) <= there
    splits = json.loads((run / "splits.json").read_text())
    assert (len(splits["train"]), len(splits["validation"])) == (9, 3)
    assert {f"validation/{case}.nii.gz" for case in splits["validation"]} <= there
    assert not [name for name in there if ".partial" in name]
    assert (run / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_the_resolved_config_is_the_run_again(road: Path) -> None:
    stored, given = load(road / "run" / "config.yaml"), load(road / "run.yaml")
    assert stored == given
    plain = yaml.safe_load((road / "run" / "config.yaml").read_text())
    assert plain["train"]["weight_decay"] == 0.01  # defaults are written out
    assert "# " in (road / "run" / "config.yaml").read_text()


def test_the_environment_says_what_it_was_made_with(road: Path) -> None:
    known = json.loads((road / "run" / "environment.json").read_text())
    assert known["packages"]["torch"] == torch.__version__
    assert len(known["inputs"]) == 12 * 3
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in known["inputs"].values())
    assert any("medseg_plugins" in plugin["file"] for plugin in known["plugins"])


def test_the_log_tells_how_it_went(road: Path) -> None:
    records = log(road)
    assert [record["step"] for record in records] == list(range(25, 201, 25))
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]
    assert [r["step"] for r in records if "validation" in r] == [100, 200]
    assert all(0 <= record["outside"] <= 1 for record in records)


def test_it_finds_lesions_in_heads_it_never_saw(road: Path, scored: Path) -> None:
    summary = json.loads((scored / "summary.json").read_text())
    rows = list(csv.DictReader((scored / "scores.csv").read_text().splitlines()))
    assert {row["case"] for row in rows} == {"head_013", "head_014", "head_015"}
    found = dice(road / "masks", road / "heads" / "labelsTs")
    # All voxels of the head would score below .03, the brightest in either channel below .2.
    assert np.mean(list(found.values())) > 0.5
    for row in rows:
        assert float(row["dice"]) == pytest.approx(found[row["case"]], abs=1e-4)
    assert summary["cases"] == 3


def dice(masks: Path, truth: Path) -> dict[str, float]:
    scores = {}
    for file in truth.glob("*.nii.gz"):
        p, t = (nifti.read_label(folder / file.name).data > 0 for folder in (masks, truth))
        scores[file.name.removesuffix(".nii.gz")] = 2 * (p & t).sum() / (p.sum() + t.sum())
    return scores


def test_the_phantom_cannot_be_solved_by_a_threshold(road: Path) -> None:
    """Else the test above would show little."""
    best = 0.0
    truth = [
        nifti.read_label(file).data > 0 for file in sorted((road / "heads/labelsTs").iterdir())
    ]
    for channel in ("0000", "0001"):
        files = sorted((road / "heads" / "imagesTs").glob(f"*_{channel}.nii.gz"))
        images = [nifti.read(file).data for file in files]
        for share in np.linspace(0.5, 0.999, 60):
            scores = []
            for image, lesion in zip(images, truth, strict=True):
                bright = image > np.quantile(image, share)
                scores.append(2 * (bright & lesion).sum() / (bright.sum() + lesion.sum()))
            best = max(best, float(np.mean(scores)))
    assert best < 0.3


@pytest.mark.parametrize("report", ["run/report.html", "scores/report.html"])
def test_reports_need_nothing_from_elsewhere(report: str, road: Path, scored: Path) -> None:
    text = (road / report).read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetched
    assert all(source.startswith(("data:", "#")) for source in page.fetched)
    assert not re.search(r"url\((?!['\"]?(data:|#))|@import|<script[^>]+src", text)


def test_the_api_gives_the_masks_of_the_command(road: Path) -> None:
    predictor = Predictor.load(road / "run", device="cpu")
    files = sorted((road / "heads" / "imagesTs").glob("head_013_*.nii.gz"))
    prediction = predictor.predict(list(files))
    mask = nifti.read_label(road / "masks" / "head_013.nii.gz").data
    np.testing.assert_array_equal(predictor.labels.to_values(prediction.labels), mask)


def test_the_best_model_is_the_one_of_the_best_validation(road: Path) -> None:
    scores = [r["validation"]["lesion"] for r in log(road) if "validation" in r]
    state = torch.load(road / "run" / "last.pt", weights_only=True)
    assert state["best"] == pytest.approx(max(scores))
    is_last_best = scores[-1] == max(scores)
    same = (road / "run" / "model.safetensors").read_bytes() == (
        road / "run" / "last.safetensors"
    ).read_bytes()
    assert same == is_last_best
