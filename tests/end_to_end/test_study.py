"""Folds, seeds and ensembles on small heads: models are judged on cases that they do not know."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import medseg
from medseg import api
from medseg.config import load
from medseg.files import sha256
from medseg.inference import ensembles
from medseg.inference.predictor import Predictor
from medseg.training import loop
from medseg.training.run import Part, RunFolder
from medseg.training.setup import set_up
from medseg.training.state import State

pytestmark = pytest.mark.slow
Cli = Callable[..., tuple[int, str]]
FOLDS = range(3)


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    """The study, to be changed."""
    shutil.copy(study.with_name("run.yaml"), tmp_path / "run.yaml")
    return Path(shutil.copytree(study, tmp_path / "study"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_each_case_is_predicted_once_and_by_the_model_that_has_not_seen_it(study: Path) -> None:
    owner = {sha256(study / f"fold_{k}" / "model.safetensors"): k for k in FOLDS}
    masks = sorted(path.name.removesuffix(".nii.gz") for path in (study / "oof").glob("*.nii.gz"))
    assert masks == [f"head_{n:03d}" for n in range(1, 7)]
    validated = []
    for case in masks:
        fold = owner[read(study / "oof" / f"{case}.json")["model"]]
        ids = RunFolder(study / f"fold_{fold}").split()
        assert case in ids.validation
        assert case not in ids.train
        validated.append(case)
    assert len(set(validated)) == 6
    assert read(study / "oof" / "summary.json")["cases"] == 6
    assert "out of fold" in (study / "report.html").read_text()


def test_all_runs_share_the_split_and_the_cache(study: Path) -> None:
    folds = read(study / "splits.json")["folds"]
    for k in FOLDS:
        ids = RunFolder(study / f"fold_{k}").split()
        assert list(ids.validation) == folds[k]
        assert sorted(ids.train) == sorted(i for n in FOLDS if n != k for i in folds[n])
        assert not (study / f"fold_{k}" / "cache").exists()
    assert len(list((study / "cache").iterdir())) == 6


def test_the_spread_over_folds_is_that_of_their_own_summaries(study: Path) -> None:
    told = read(study / "folds.json")
    each = [read(study / f"fold_{k}" / "validation" / "summary.json") for k in FOLDS]
    dice = [summary["mean_dice"] for summary in each]
    assert told["mean_dice"]["values"] == pytest.approx(dice)
    assert told["mean_dice"]["sd"] == pytest.approx(np.std(dice, ddof=1))
    assert (told["mean_dice"]["min"], told["mean_dice"]["max"]) == (min(dice), max(dice))
    found = told["classes"]["lesion"]["recall"]["values"]
    assert found == pytest.approx([s["classes"]["lesion"]["recall"]["mean"] for s in each])


def test_a_study_predicts_as_the_mean_of_its_folds(study: Path, heads: Path) -> None:
    files = [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]
    alone = [Predictor.load(study / f"fold_{k}", device="cpu") for k in FOLDS]
    mean = np.mean([p.predict(files, probabilities=True).need_probabilities() for p in alone], 0)
    found = Predictor.load(study, device="cpu").predict(files, probabilities=True)
    np.testing.assert_allclose(found.need_probabilities(), mean, atol=2e-6)


def test_what_was_killed_goes_on_to_the_same_weights(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = load(study.with_name("run.yaml")), tmp_path / "study"
    save, saved = State.save, list[Path]()

    def killed(state: State, path: Path) -> None:
        save(state, path)
        saved.append(path)
        if path.parent.name == "fold_1" and state.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        api.train_study(config, folder, all_folds=True, device="cpu", quiet=True)
    assert not (folder / "fold_2").exists()
    assert not (folder / "ensemble.json").exists()
    monkeypatch.setattr(State, "save", save)
    first = (folder / "fold_0" / "log.jsonl").read_bytes()
    found = api.train_study(config, folder, all_folds=True, device="cpu", quiet=True)
    assert found.summary is not None
    assert (folder / "fold_0" / "log.jsonl").read_bytes() == first
    for k in FOLDS:
        for name in ("model", "last"):
            here, there = (load_file(f / f"fold_{k}" / f"{name}.safetensors")
                           for f in (folder, study))  # fmt: skip
            assert here.keys() == there.keys()
            assert all(bool((here[key] == there[key]).all()) for key in here), (k, name)


def test_folds_one_by_one_and_seeds_beside_them(study: Path, tmp_path: Path, cli: Cli) -> None:
    """The last of them gathers; of several seeds the ensemble predicts who validates."""
    words = ["train", "-c", study.with_name("run.yaml"), "-o", tmp_path / "s", "--device", "cpu",
             "--seeds", "2", "train.budget.steps=1", "data.split.folds=2"]  # fmt: skip
    code, said = cli(*words, "--fold", "1")
    assert (code, "Not trained yet: fold_0/seed_0, fold_0/seed_1" in said) == (0, True), said
    with pytest.raises(medseg.DataError, match="not all runs are trained"):
        Predictor.load(tmp_path / "s")
    code, said = cli(*words, "--fold", "0")
    assert (code, "Over 2 seeds" in said, "Over 2 folds" in said) == (0, True, True), said
    models = [tmp_path / "s" / f"fold_{k}" / f"seed_{n}" for k in (0, 1) for n in (0, 1)]
    assert len({path.joinpath("model.safetensors").read_bytes() for path in models}) == 4
    assert RunFolder(models[0]).split() == RunFolder(models[1]).split()
    for case in RunFolder(models[0]).split().validation:
        hashes = "+".join(sha256(path / "model.safetensors") for path in models[:2])
        assert read(tmp_path / "s" / "oof" / f"{case}.json")["model"] == hashes
    told, dice = read(tmp_path / "s" / "seeds.json"), []
    for seed in (0, 1):
        rows = [read(path / "validation" / "summary.json") for path in models[seed::2]]
        dice.append(np.mean([row["mean_dice"] for row in rows]))  # folds are even: three each
    assert told["seeds"] == [0, 1]
    assert told["mean_dice"]["values"] == pytest.approx(dice)


def test_a_step_is_tuned_by_models_that_have_not_seen_the_cases(
    copied: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    seen = dict[str, Path]()
    raw = Predictor.raw

    def recording(predictor: Predictor, case: Any) -> Any:
        name = case.reference.path.name.removesuffix("_0000.nii.gz")
        seen[name] = predictor.members[0].checkpoint.source.parent
        assert len(predictor.members) == 1
        return raw(predictor, case)

    monkeypatch.setattr(Predictor, "raw", recording)
    code, said = cli("tune", "min_volume", "-m", copied, "--device", "cpu", "mm3=100")
    assert code == 0, said
    assert sorted(seen) == [f"head_{n:03d}" for n in range(1, 7)]
    for case, run in seen.items():
        assert case in RunFolder(run).split().validation
    told = read(copied / "tuning" / "min_volume.json")
    assert [case["case_id"] for case in told["cases"]] == sorted(seen)
    for k in FOLDS:
        model = Predictor.load(copied / f"fold_{k}", device="cpu").checkpoint
        assert [tuned.name for tuned in model.tuned] == ["min_volume"]
    assert Predictor.load(copied, device="cpu").passes == 3  # what was tuned is no other weight
    config = load(copied.with_name("run.yaml"))
    for _ in range(2):
        api.train_study(config, copied, all_folds=True, device="cpu", quiet=True)
        for case, run in seen.items():
            model = sha256(run / "model.safetensors")
            assert read(copied / "oof" / f"{case}.json")["model"] == model
    last = [json.loads(line) for line in (copied / "oof" / "ledger.jsonl").read_text().splitlines()]
    assert {entry["status"] for entry in last[-7:] if entry["event"] == "case"} == {"kept"}


def test_an_ensemble_is_chosen_on_what_no_run_has_seen(copied: Path, heads: Path, cli: Cli) -> None:
    """A study and one of another's folds: two cases are left, and the table says so."""
    output = copied.with_name("ensemble.json")
    other = Path(shutil.copytree(copied / "fold_1", copied.with_name("other")))
    code, said = cli("ensemble", copied, other, "-o", output, "--device", "cpu")
    told_of = "2 cases by models that have not seen them, 4 left out that a run has trained on"
    assert (code, told_of in " ".join(said.split())) == (0, True), said
    told = read(output)
    assert sorted(told["figures"]["cases"]) == sorted(RunFolder(other).split().validation)
    assert set(told["figures"]["seen"].values()) == {"other"}
    assert sum(member["weight"] for member in told["members"]) == pytest.approx(1)
    assert not list(copied.parent.glob(".ensemble*"))

    members = [*(copied / f"fold_{k}" for k in FOLDS), other]
    weights = (0.1, 0.1, 0.2, 0.6)
    made = tuple(
        ensembles.Member(
            run / "model.safetensors", weight, ensembles.weights_sha256(run / "model.safetensors")
        )
        for run, weight in zip(members, weights, strict=True)
    )
    ensembles.write(output, ensembles.Ensemble(made, ()))
    moved = copied.parent.rename(copied.parent.with_name("elsewhere"))
    files = [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]
    alone = [Predictor.load(moved / run.relative_to(copied.parent)) for run in members]
    each = [p.predict(files, probabilities=True).need_probabilities() for p in alone]
    mean = np.tensordot(weights, each, 1)
    found = Predictor.load(moved / "ensemble.json").predict(files, probabilities=True)
    np.testing.assert_allclose(found.need_probabilities(), mean, atol=2e-6)
    outcome = medseg.predict(moved / "ensemble.json", heads / "imagesTr", moved / "masks",
                             device="cpu", quiet=True)  # fmt: skip
    assert len(outcome.done) == 6


def test_a_run_of_its_own_draws_the_split_of_the_study(study: Path) -> None:
    for k in FOLDS:
        config = load(study.with_name("run.yaml"), [f"data.split.fold={k}"])
        assert set_up(config).ids == RunFolder(study / f"fold_{k}").split()


def test_cpu_seconds_are_those_of_the_run(study: Path, tmp_path: Path) -> None:
    """Not those of the folds before it, which would leave it none."""
    config = load(study.with_name("run.yaml"), ["train.budget={cpu_seconds: 2}"])
    part = Part(RunFolder(study / "fold_0").split(), study / "cache", time.process_time())
    assert time.process_time() > 2
    run = loop.train(config, tmp_path / "run", device="cpu", quiet=True, part=part)
    assert run.records()[-1]["step"] > 0
    assert 2 <= run.records()[-1]["seconds"] < 10
