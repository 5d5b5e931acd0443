"""A model where channels are missing: in training, in prediction, and in the scores."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg import api, tables
from medseg.batch import run as batch
from medseg.batch.job import Job
from medseg.config import load
from medseg.config.schema import Evaluation
from medseg.console import Tick, console
from medseg.errors import DataError
from medseg.evaluation import subsets
from medseg.evaluation.scores import CaseScores, score_case
from medseg.evaluation.subsets import Subset, dice, gathered
from medseg.inference.predictor import Predictor, Ready
from medseg.inference.subsets import score_subsets
from medseg.training.step import augmented
from medseg.transforms import augment
from medseg.volumes import cases, nifti
from medseg.volumes.dataset import Case, Channel, Dataset, Labels

Model = Callable[..., Path]
UNTESTED = "trained with all of them"


@pytest.fixture(scope="module")
def network(model: Model) -> Path:
    """A model of flair and t1c. Do not change."""
    return model()


@pytest.fixture
def files(heads: Path) -> list[Path]:
    return [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]


# Training


def test_what_is_missing_stays_0_through_the_augmentation(recipe: Callable[..., Path]) -> None:
    config = load(recipe())
    image = torch.rand(2, 2, 4, 4, 4)
    image[0, 1] = 0
    given = {
        "image": image,
        "label": torch.zeros(2, 4, 4, 4, dtype=torch.int64),
        "spacing": torch.ones(2, 3),
        "present": torch.tensor([[True, False], [True, True]]),
    }
    changed, _ = augmented(given, config, 0, torch.device("cpu"))
    assert not changed[0, 1].any()
    assert changed[0, 0].any()
    assert changed[1].abs().amin() > 0  # shifted and noisy all over
    given["present"] = torch.ones(2, 2, dtype=torch.bool)
    changed, _ = augmented(given, config, 0, torch.device("cpu"))
    assert changed[0, 1].any()


def test_a_draw_never_drops_all_that_is_there(recipe: Callable[..., Path]) -> None:
    settings = load(recipe(**{"augment.channel_dropout": 0.5})).numbered.augment
    change = augment.draw(settings, 200, 3, torch.Generator().manual_seed(0))
    present = torch.tensor([[True, False, True]]).expand(200, 3)
    kept = augment.keep_present(change, present).is_kept
    assert kept.any(1).all()
    assert not kept[:, 1].any()
    assert 0 < kept[:, 0].float().mean() < 1
    alone = torch.tensor([[False, True, False]]).expand(200, 3)
    assert torch.equal(augment.keep_present(change, alone).is_kept, alone)
    whole = torch.ones(200, 3, dtype=torch.bool)
    assert torch.equal(augment.keep_present(change, whole).is_kept, change.is_kept)


# Prediction


def test_a_missing_channel_is_refused_unless_allowed(network: Path, files: list[Path]) -> None:
    predictor = Predictor.load(network)
    with pytest.raises(DataError, match=r"no file for channel t1c: add it, or allow it to be miss"):
        predictor.predict([files[0], None])
    allowing = Predictor.load(network, missing="zero")
    with pytest.raises(DataError, match=r"no file for channel flair, t1c: one channel at least"):
        allowing.predict([None, None])


def test_it_is_as_if_the_network_saw_zeros(network: Path, files: list[Path]) -> None:
    predictor = Predictor.load(network, missing="zero")
    with pytest.warns(UserWarning, match=UNTESTED):
        found = predictor.predict([files[0], None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        second = predictor.predict([None, files[1]])
    whole = predictor.load_case(Case("a", tuple(map(Channel, files))))
    ((prepared,),) = predictor.prepare(whole).prepared
    for lacking, prediction in ((1, found), (0, second)):
        blank = prepared.image.copy()
        blank[lacking] = 0
        expected = predictor.run(Ready(whole, ((replace(prepared, image=blank),),)))
        np.testing.assert_array_equal(expected.labels, prediction.labels)
        assert prediction.labels.any()
    assert (found.labels != second.labels).any()


@pytest.mark.slow
def test_a_model_that_trained_without_some_does_not_warn(model: Model, files: list[Path]) -> None:
    dropping = Predictor.load(model(**{"augment.channel_dropout": 0.2}), missing="zero")
    dropping.predict([files[0], None])
    predictor = Predictor.load(model(**{"data.missing": "zero"}))
    prediction = predictor.predict([files[0], None])
    assert prediction.labels.shape == nifti.read_header(files[0]).shape
    refusing = Predictor(predictor.checkpoint, predictor.device, missing="refuse")
    with pytest.raises(DataError, match="no file for channel t1c"):
        refusing.predict([files[0], None])


@pytest.fixture
def inputs(heads: Path, tmp_path: Path) -> Path:
    """Two heads, the second without t1c."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    for name in ("head_001_0000", "head_001_0001", "head_002_0000"):
        shutil.copy(heads / "imagesTr" / f"{name}.nii.gz", folder)
    return folder


def record(folder: Path, case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{case}.json").read_text())
    return found


def test_a_batch_by_policy(network: Path, inputs: Path, heads: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    outcome = api.predict(network, inputs, masks, quiet=True)
    assert outcome.done == ["head_001"]
    assert "head_002_0001.nii.gz: no such file" in outcome.failed["head_002"]
    with pytest.warns(UserWarning, match=UNTESTED):
        outcome = api.predict(network, inputs, masks, missing="zero", quiet=True)
    assert (outcome.kept, outcome.done) == (["head_001"], ["head_002"])
    assert (record(masks, "head_001")["missing"], record(masks, "head_002")["missing"]) == (
        [],
        ["t1c"],
    )
    assert record(masks, "head_002")["channels"] == ["flair", "t1c"]
    assert "no channel t1c" in record(masks, "head_002")["notes"][-1]
    mask = nifti.read_label(masks / "head_002.nii.gz")
    assert mask.shape == nifti.read_header(inputs / "head_002_0000.nii.gz").shape
    shutil.copy(heads / "imagesTr" / "head_002_0001.nii.gz", inputs)  # it has come
    outcome = api.predict(network, inputs, masks, missing="zero", quiet=True)
    assert (outcome.kept, outcome.done) == (["head_001"], ["head_002"])


def test_the_same_file_as_another_channel_is_another_prediction(
    network: Path, inputs: Path, tmp_path: Path
) -> None:
    predictor = Predictor.load(network, missing="zero")
    file = Channel(inputs / "head_002_0000.nii.gz")
    for channels in ((file, None), (None, file)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            job = Job((network,), tmp_path / "masks")
            outcome = batch.predict_cases(job, predictor, [Case("a", channels)], Tick(1))
        assert outcome.done == ["a"]


# Scores

LABELS = Labels({"core": (1,), "whole": (1, 2)})


def scores(case: str, hit: int, size: int = 10) -> CaseScores:
    truth, prediction = np.zeros((2, 4, 5, 6), np.uint8)
    truth.ravel()[:size] = 1
    prediction.ravel()[size - hit : 2 * size - hit] = 1
    return score_case(case, prediction, truth, (1, 1, 1), LABELS.classes, Evaluation())


def write_record(folder: Path, case: str, *missing: str) -> None:
    known = {"channels": ["flair", "t1", "t2"], "missing": list(missing)}
    (folder / f"{case}.json").write_text(json.dumps(known))


def test_cases_are_grouped_by_what_their_records_say(tmp_path: Path) -> None:
    write_record(tmp_path, "a")
    write_record(tmp_path, "b", "t1")
    write_record(tmp_path, "c", "t1")
    (tmp_path / "d.json").write_text("no record")
    whole, lacking = (
        Case(name, tuple(Channel(Path("x")) if there else None for there in channels))
        for name, channels in (("a", (1, 1, 1)), ("d", (1, 0, 0)))
    )
    others = [Case(name, whole.channels) for name in ("b", "c")]
    dataset = Dataset((whole, *others, lacking), ("flair", "t1", "t2"), LABELS)
    found = subsets.observed(
        tmp_path, dataset, [scores("a", 10), scores("b", 6), scores("c", 2), scores("d", 5)]
    )
    assert [(s.channels, s.missing, s.cases) for s in found] == [
        (("flair",), ("t1", "t2"), 1),
        (("flair", "t2"), ("t1",), 2),
        (("flair", "t1", "t2"), (), 1),
    ]
    assert [s.dice["core"] for s in found] == pytest.approx([0.5, 0.4, 1])
    assert found[1].mean_dice == pytest.approx(0.4)


@pytest.mark.parametrize(
    "known",
    [{}, [], {"channels": "t1", "missing": ["flair"]}, {"channels": [1], "missing": []}],
)
def test_a_file_that_is_no_record_of_ours_says_nothing(tmp_path: Path, known: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(known))
    dataset = Dataset((Case("a", (Channel(Path("x")),)),), ("t1",), LABELS)
    (found,) = subsets.observed(tmp_path, dataset, [scores("a", 10)])
    assert (found.channels, found.missing) == (("t1",), ())


def test_dice_counts_what_is_known() -> None:
    truth = np.array([0, 1, 2, 9, 1]).reshape(1, 1, 5)
    prediction = np.array([1, 1, 1, 1, 0]).reshape(1, 1, 5)
    found = dice(prediction, truth, LABELS.classes, ignore=9)
    assert found == {"core": pytest.approx(2 / 5), "whole": pytest.approx(4 / 6)}
    region = np.array([0, 1, 1, 1, 1], bool).reshape(1, 1, 5)
    assert dice(prediction, truth, LABELS.classes, 9, region)["core"] == pytest.approx(2 / 4)
    empty = np.zeros_like(truth)
    assert dice(empty, empty, LABELS.classes) == {"core": 1, "whole": 1}


def made() -> tuple[Subset, ...]:
    channels = ("flair", "<t1>")
    return gathered(
        [
            ((channels, ()), {"core": 0.9, "whole": 0.8}),
            ((channels, ("flair",)), {"core": 0.25, "whole": 0.75}),
            ((channels, ()), {"core": 0.7, "whole": 0.8}),
        ]
    )


def test_subsets_are_written_as_json_and_csv(tmp_path: Path) -> None:
    subsets.write(tmp_path, made())
    small, full = json.loads((tmp_path / "subsets.json").read_text())
    assert small["channels"] == ["<t1>"]
    assert full["dice"] == {"core": pytest.approx(0.8), "whole": pytest.approx(0.8)}
    rows = list(csv.DictReader((tmp_path / "subsets.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert rows[0] == {
        "channels": "<t1>", "missing": "flair", "cases": "1", "class": "core", "dice": "0.25",
    }  # fmt: skip


def test_subsets_are_shown_where_there_are_several() -> None:
    text = subsets.html(made())
    assert "<td>○</td><td>●</td><td>1</td><td>0.250</td><td>0.750</td><td>0.500</td>" in text
    assert "&lt;t1&gt;" in text
    assert "<t1>" not in text
    assert subsets.html(made()[:1]) == subsets.html(()) == ""
    with console.capture() as capture:
        console.print(tables.subsets([s.as_json() for s in made()], "By channels"))
    row = capture.get().splitlines()[4].split("│")
    assert [cell.strip() for cell in row[1:-1]] == ["-", "x", "1", "0.250", "0.750", "0.500"]


def test_every_subset_of_the_channels_is_scored(network: Path, heads: Path, recipe: Any) -> None:
    predictor = Predictor.load(network, missing="zero")
    dataset = cases.find(load(recipe()).data).only(["head_001", "head_002"])
    first, second = dataset.cases
    lacking = Case(second.id, (second.channels[0], None), second.label)
    dataset = Dataset((first, lacking), dataset.channels, dataset.labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = score_subsets(predictor, dataset, Tick(2))
    assert [(s.channels, s.cases) for s in found] == [
        (("flair",), 2),
        (("t1c",), 1),
        (("flair", "t1c"), 1),
    ]
    prediction = predictor.predict_case(predictor.load_case(first))
    assert first.label is not None
    truth = nifti.read_label(first.label).data
    assert found[2].dice == dice(prediction.labels, truth, dataset.labels.classes)
    assert len({s.mean_dice for s in found}) == 3
