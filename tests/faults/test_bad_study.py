"""Studies and ensembles that must not be used as they are: each says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import medseg
from medseg import api
from medseg.config import load
from medseg.errors import ConfigError, DataError
from medseg.inference.ensembles import Ensemble, Member, find, read, together, weights_sha256, write
from medseg.inference.predictor import Predictor
from medseg.networks import checkpoint
from medseg.networks.checkpoint import Tuned, set_tuned
from medseg.study.folder import Study
from medseg.training.run import RunFolder
from medseg.volumes.dataset import Labels

pytestmark = pytest.mark.slow
Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    """The study, to be harmed."""
    return Path(shutil.copytree(study, tmp_path / "study"))


@pytest.fixture
def again(copied: Path, study: Path) -> Callable[..., Any]:
    """Train the study again, with other settings."""

    def train(*overrides: str, folder: Path = copied, **options: Any) -> Any:
        config = load(study.with_name("run.yaml"), overrides)
        wanted = options or {"all_folds": True}
        return api.train_study(config, folder, device="cpu", quiet=True, **wanted)

    return train


Again = Callable[..., Any]


def change(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_another_config_in_the_same_folder(again: Again) -> None:
    with pytest.raises(ConfigError, match=r"was started with another config:\n.*lr: 0\.0025"):
        again("train.lr=1e-4")
    with pytest.raises(ConfigError, match="another config"):
        again("seed=5")


def test_the_fold_of_the_config_is_no_matter(again: Again) -> None:
    assert again("data.split.fold=1", fold=0).summary["cases"] == 6


def test_another_kind_of_study(again: Again) -> None:
    with pytest.raises(DataError, match="holds a study of folds: ask for the same again"):
        again(all_folds=True, seeds=2)
    with pytest.raises(DataError, match="holds a study of folds"):
        again(seeds=2)


def test_a_fold_that_is_none(again: Again) -> None:
    with pytest.raises(ConfigError, match=r"--fold 3: .* has 3 folds, counted from 0"):
        again(fold=3)


def test_a_fold_that_is_none_is_told_before_the_cases_are_read(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--fold 3: .* has 3 folds, counted from 0"):
        api.train_study(load(recipe()), tmp_path / "new", fold=3, device="cpu", quiet=True)
    assert not (tmp_path / "new").exists()


def test_a_study_whose_first_run_could_not_begin_takes_a_mended_config(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    new, file = tmp_path / "new", recipe()
    config = load(file, ["model.deep_supervision=5"])
    with pytest.raises(ConfigError, match="deep_supervision 5 needs"):
        api.train_study(config, new, fold=0, device="cpu", quiet=True)
    assert not (new / "fold_0" / "config.yaml").exists()
    mended = load(file, ["data.split.folds=2"])
    Study(new).begin(mended, has_folds=True, seeds=2, quiet=True)
    assert len(Study(new).places()) == 4
    assert load(new / "config.yaml").data.split.folds == 2


def test_a_file_of_train_and_validation_has_no_folds(again: Again, tmp_path: Path) -> None:
    ids = [f"head_{n:03d}" for n in range(1, 7)]
    split = tmp_path / "s.json"
    split.write_text(json.dumps({"train": ids[:4], "validation": ids[4:]}))
    with pytest.raises(ConfigError, match="says who trains and who validates, and so there are no"):
        again(f"data.split.file={split}", folder=tmp_path / "new", fold=0)
    assert not (tmp_path / "new" / "study.json").exists()


@pytest.mark.parametrize("kind", ["gone", "damaged"])
def test_a_model_of_a_fold_is_lost(again: Again, copied: Path, kind: str) -> None:
    model = copied / "fold_1" / "model.safetensors"
    if kind == "gone":
        model.unlink()
    else:
        model.write_bytes(b"\xff" * 100)
    with pytest.raises(
        DataError, match=r"fold_1/model\.safetensors: .*restore the file, or remove"
    ):
        again()
    with pytest.raises(DataError, match=r"fold_1/model\.safetensors"):
        Predictor.load(copied)


def test_a_fold_that_was_removed_is_trained_anew(again: Again, copied: Path) -> None:
    before = weights_sha256(copied / "fold_1" / "model.safetensors")
    shutil.rmtree(copied / "fold_1")
    again()
    assert weights_sha256(copied / "fold_1" / "model.safetensors") == before


def test_other_weights_in_a_fold(copied: Path) -> None:
    shutil.copy(copied / "fold_0" / "model.safetensors", copied / "fold_1" / "model.safetensors")
    with pytest.raises(DataError, match=r"fold_1/model\.safetensors: has other weights than when"):
        Predictor.load(copied)


def test_what_is_tuned_is_no_other_weight(copied: Path) -> None:
    set_tuned(copied / "fold_1" / "model.safetensors", Tuned("min_volume", {}, (), False, {}))
    assert len(find(copied).models) == 3


def test_a_split_that_has_changed(again: Again, copied: Path) -> None:
    def swap(content: Any) -> None:
        first, second = content["folds"][:2]
        first[0], second[0] = second[0], first[0]

    change(copied / "splits.json", swap)
    with pytest.raises(DataError, match=r"fold_0/splits\.json: the split has changed since"):
        again()


def test_cases_that_have_changed(again: Again, copied: Path) -> None:
    change(copied / "splits.json", lambda content: content["folds"][0].pop())
    with pytest.raises(
        DataError, match="the cases or the split have changed since the study began"
    ):
        again()


def test_a_file_that_was_another_in_another_fold(again: Again, copied: Path) -> None:
    def forge(content: Any) -> None:
        content["inputs"] = dict.fromkeys(content["inputs"], "0" * 64)

    change(copied / "fold_2" / "environment.json", forge)
    with pytest.raises(DataError, match=r"was another file when .*fold_0 was trained than when"):
        again()
    with pytest.raises(DataError, match=r"case 'head_00\d' is another than that which .*fold_2"):
        medseg.tune(copied, "min_volume", device="cpu", quiet=True)


def test_a_run_in_a_study_and_a_study_in_a_run(again: Again, copied: Path, study: Path) -> None:
    config = load(study.with_name("run.yaml"))
    for resume in (False, True):
        with pytest.raises(DataError, match="holds a study, not a run"):
            medseg.train(config, copied, device="cpu", resume=resume, quiet=True)
    with pytest.raises(DataError, match="holds a run, and a study needs a folder of its own"):
        again(folder=copied / "fold_0")


def test_a_split_of_a_run_that_has_changed(copied: Path, tmp_path: Path, study: Path) -> None:
    run = RunFolder(copied / "fold_0")

    def swap(content: Any) -> None:
        content["train"][0], content["validation"][0] = (
            content["validation"][0], content["train"][0],
        )  # fmt: skip

    change(run.splits, swap)
    config = load(run.config)
    with pytest.raises(DataError, match="the split has changed since the run was started"):
        medseg.train(config, run.path, device="cpu", resume=True, quiet=True)


def test_flags_that_exclude_each_other(cli: Cli, study: Path, tmp_path: Path) -> None:
    words = ["train", "-c", study.with_name("run.yaml"), "-o", tmp_path / "x"]
    assert cli(*words, "--fold", "0", "--all-folds")[0] == 2
    assert cli(*words, "--seeds", "1")[0] == 2
    assert not (tmp_path / "x").exists()


def ensemble(*runs: Path, output: Path) -> Any:
    return medseg.ensemble(runs, output, device="cpu", quiet=True)


def test_nothing_is_chosen_on_what_a_run_has_trained_on(copied: Path, tmp_path: Path) -> None:
    output = tmp_path / "e.json"
    with pytest.raises(DataError, match="of 4 cases that validate somewhere 0 are left"):
        ensemble(copied / "fold_0", copied / "fold_1", output=output)
    assert not output.exists()


def test_a_case_under_another_name_counts_as_seen(copied: Path, tmp_path: Path) -> None:
    """The run knows the files, and so it may have trained on them."""
    other = Path(shutil.copytree(copied / "fold_1", tmp_path / "other"))
    ids = RunFolder(other).split().validation
    change(other / "splits.json", lambda content: content.update(validation=["renamed"]))
    with pytest.raises(DataError, match="0 are left that no run has trained on"):
        ensemble(copied, other, output=tmp_path / "e.json")
    assert len(ids) == 2


def test_a_run_of_another_label_set(copied: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copied / "fold_0", tmp_path / "other"))
    model = other / "model.safetensors"
    found = checkpoint.load(model)
    checkpoint.save(model, replace(found, labels=Labels({"tumour": (1,)})))
    with pytest.raises(DataError, match=r"other/model\.safetensors: its labels are .*no ensemble"):
        ensemble(copied, other, output=tmp_path / "e.json")


def test_what_no_ensemble_is_made_of(copied: Path, tmp_path: Path) -> None:
    for runs, output, told in (
        ([copied, copied], "e.json", "is given twice"),
        ([copied], "e.yaml", r"ends in \.json"),
        ([copied / "fold_0" / "model.safetensors"], "e.json", "run or study folder is needed"),
    ):
        with pytest.raises(DataError, match=told):
            ensemble(*runs, output=tmp_path / output)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda content: content.update(format=2), "not an ensemble of medseg"),
        (lambda content: content.pop("members"), "not a readable ensemble"),
        (lambda content: content.update(members=[]), "weights must be above 0 and sum to 1"),
        (lambda content: content["members"][0].update(weight=2), "weights must be above 0"),
        (lambda content: content["members"][0].update(weight="x"), "not a readable ensemble"),
        (lambda content: content["members"][0].update(model="gone"), "gone: No such file"),
        (lambda content: content.update(tuned=[{"name": 3}]), "not a readable ensemble"),
    ],
)
def test_a_damaged_ensemble(copied: Path, harm: Callable[[Any], None], told: str) -> None:
    change(copied / "ensemble.json", harm)
    with pytest.raises(DataError, match=told):
        Predictor.load(copied)


def test_an_ensemble_reads_back_and_each_source_counts_the_same(copied: Path) -> None:
    model = copied / "fold_0" / "model.safetensors"
    tuned = (Tuned("min_volume", {"mm3": 3.0}, ("lesion",), True, {}),)
    made = Ensemble((Member(model, 1.0, weights_sha256(model), "a"),), tuned, {"score": "dice"})
    write(copied / "one.json", made)
    assert read(copied / "one.json") == made
    assert together([find(copied), find(copied / "one.json")]) == pytest.approx(
        (1 / 6,) * 3 + (0.5,)
    )
    assert together([find(copied)]) is None
    assert Predictor.load(copied / "one.json", device="cpu").checkpoint.tuned == tuned
