"""`medseg tune` on made-up cases: what helps goes in, what harms stays out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medseg import plugins
from medseg.config import load
from medseg.config.schema import Config, PostprocessorSpec
from medseg.errors import ConfigError, DataError
from medseg.inference.steps import entries
from medseg.networks import checkpoint
from medseg.networks.checkpoint import Checkpoint, Tuned
from medseg.postprocess.prediction import Prediction
from medseg.tuning import report
from medseg.tuning.result import Result
from medseg.tuning.run import HeldOut, Request, tune
from medseg.volumes.dataset import IGNORE_INDEX, Case, Channel, Labels

plugins.load()

SHAPE = (24, 24, 16)
BLOB = (slice(4, 12), slice(4, 12), slice(4, 10))  # 384 voxels of 1 mm3
LABELS = Labels({"core": (1,), "spots": (2,)})


class Stub:
    """Predicts what it is told to."""

    def __init__(
        self,
        config: Config,
        cases: Sequence[tuple[np.ndarray, np.ndarray]],
        tuned: tuple[Tuned, ...],
    ) -> None:
        self.config, self.labels, self._cases = config, LABELS, cases
        self.checkpoint = Checkpoint(config, ("image",), LABELS, None, {}, tuned=tuned)

    def load_case(self, case: Case) -> Any:
        return SimpleNamespace(label=self._cases[int(case.id)][1], number=int(case.id))

    def raw(self, loaded: Any) -> Prediction:
        labels = self._cases[loaded.number][0]
        shares = np.full((3, *labels.shape), 0.1, np.float32)
        np.put_along_axis(shares, labels[None].astype(np.int64), 0.8, 0)
        image = np.zeros((1, *SHAPE), np.float32)
        return Prediction(labels, image, np.eye(4), shares, mask=np.indices(SHAPE)[0] < 13)


@pytest.fixture(scope="module")
def config(recipe: Callable[..., Path]) -> Config:
    return load(recipe())


@pytest.fixture(scope="module")
def untouched(model: Callable[..., Path]) -> Path:
    """A model. Do not change."""
    return model()


@pytest.fixture
def tuned(
    config: Config, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Tune on cases, given as pairs of predicted and true class indices."""
    page = report.write
    monkeypatch.setattr(report, "write", lambda *given: None)  # slow, and not what is tested here

    def run(
        cases: Sequence[tuple[np.ndarray, np.ndarray]],
        name: str = "min_volume",
        before: tuple[Tuned, ...] = (),
        postprocess: tuple[PostprocessorSpec, ...] = (),
        with_page: bool = False,
        roi: bool = False,
        **options: Any,
    ) -> Result:
        if with_page:
            monkeypatch.setattr(report, "write", page)
        model = tmp_path / "model.safetensors"
        shutil.copy(untouched, model)
        there = [Case(str(n), (Channel(Path("x")),), Path("y")) for n in range(len(cases))]
        evaluation = config.evaluation.model_copy(update={"roi": roi})
        changed = config.model_copy(update={"postprocess": postprocess, "evaluation": evaluation})
        request = Request(name, options, quiet=True)
        stub: Any = Stub(changed, cases, before)
        return tune(
            [HeldOut(lambda: stub, there)],
            partial(checkpoint.set_tuned, model),
            tmp_path / "tuning",
            request,
        )

    return run


def stored(folder: Path) -> Tuned:
    (found,) = checkpoint.load(folder / "model.safetensors").tuned
    return found


def blob_with_specks(
    n: int, specks: int, *, spots: int = 0, truly: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth: a blob and specks (true or not) of class 1, spots of class 2."""
    rng = np.random.default_rng(n)
    truth = np.zeros(SHAPE, np.uint8)
    truth[BLOB] = 1
    prediction = truth.copy()
    free = np.argwhere(np.ones((5, 5, 3), bool)) * 2 + (14, 14, 10)  # apart from each other
    places = rng.permutation(free)[: specks + spots]
    for place in places[:specks]:
        prediction[tuple(place)] = 1
        truth[tuple(place)] = int(truly)
    for place in places[specks:]:
        prediction[tuple(place)] = truth[tuple(place)] = 2
    return prediction, truth


def test_a_step_that_helps_becomes_part_of_the_model(
    tuned: Callable[..., Result], tmp_path: Path
) -> None:
    cases = [blob_with_specks(n, 10 + 5 * n) for n in range(6)]
    result = tuned(cases, with_page=True)
    assert result.accepted
    assert result.options == {"mm3": 3.0}  # the least of those that remove single voxels
    assert result.protect == ("spots",)  # nothing is known of what no case has
    before = [2 * 384 / (2 * 384 + 10 + 5 * n) for n in range(6)]
    assert [case.before["core"] for case in result.cases] == pytest.approx(before)
    assert [case.after["core"] for case in result.cases] == [1.0] * 6
    assert all(case.before["spots"] is None for case in result.cases)
    assert "spots" not in result.intervals
    entry = stored(tmp_path)
    assert (entry.name, entry.accepted, entry.options) == ("min_volume", True, {"mm3": 3.0})
    assert entry.figures["intervals"]["mean"][1] > 0
    assert json.loads((tmp_path / "tuning" / "min_volume.json").read_text())["accepted"] is True
    assert (tmp_path / "tuning" / "min_volume.html").stat().st_size > 1000
    assert not (tmp_path / "tuning" / "cache").exists()


def test_a_step_that_harms_is_stored_as_rejected_and_changes_nothing(
    tuned: Callable[..., Result], tmp_path: Path
) -> None:
    result = tuned([blob_with_specks(n, 20, truly=True) for n in range(6)])
    assert not result.accepted
    assert result.intervals["mean"] == (0, 0, 0)
    assert all(case.chosen is None for case in result.cases)
    assert "rejected" in result.verdict
    entry = stored(tmp_path)
    assert not entry.accepted
    assert entry.options["mm3"] in {0.0, 3.0}  # the best of what does something or nothing
    assert entries(checkpoint.load(tmp_path / "model.safetensors")) == []


def test_a_class_that_loses_is_protected(tuned: Callable[..., Result], tmp_path: Path) -> None:
    cases = [blob_with_specks(n, 55, spots=2) for n in range(6)]
    for pair in cases:
        for labels in pair:
            labels[1:4, 16:19, 2:5] = 2  # beside two spots, which are true but as small as specks
    result = tuned(cases, together=False)
    assert result.accepted
    assert result.protect == ("spots",)
    assert result.intervals["core"][1] > 0
    assert result.intervals["spots"][1] < 0
    assert [c.before["spots"] for c in result.cases] == [c.after["spots"] for c in result.cases]
    assert all((c.after["core"] or 0) > (c.before["core"] or 0) for c in result.cases)
    entry = stored(tmp_path)
    assert (entry.protect, entry.options) == (("spots",), {"mm3": 3.0, "together": False})


def test_five_cases_are_never_enough(tuned: Callable[..., Result]) -> None:
    result = tuned([blob_with_specks(n, 30) for n in range(5)])
    assert not result.accepted
    assert result.intervals["core"][1] > 0
    assert "6 cases are needed" in result.verdict


def test_ignored_voxels_do_not_count(tuned: Callable[..., Result]) -> None:
    cases = [blob_with_specks(n, 30) for n in range(3)]
    cases = [(p, np.where((p == 1) & (t == 0), IGNORE_INDEX, t)) for p, t in cases]
    result = tuned([(p, t.astype(np.uint8)) for p, t in cases])
    assert [case.before["core"] for case in result.cases] == [1.0] * 3
    assert not result.accepted


def test_outside_the_region_nothing_counts_where_it_is_not_scored(
    tuned: Callable[..., Result],
) -> None:
    cases = [blob_with_specks(n, 30) for n in range(3)]  # the blob lies inside, specks outside
    assert all(case.before["core"] < 1 for case in tuned(cases).cases)
    result = tuned(cases, roi=True)
    assert [case.before["core"] for case in result.cases] == [1.0] * 3


def test_false_alarms_in_healthy_cases_count(tuned: Callable[..., Result]) -> None:
    """A class that the truth lacks: to lose its false alarm is to go from 0 to 1."""
    cases = [blob_with_specks(n, 5) for n in range(6)]
    cases = [(np.where(t == 1, 0, p).astype(np.uint8), np.zeros_like(t)) for p, t in cases]
    result = tuned(cases)
    assert [(case.before["core"], case.after["core"]) for case in result.cases] == [(0, 1)] * 6
    assert result.accepted


def test_what_the_model_does_already_is_part_of_both_sides(tuned: Callable[..., Result]) -> None:
    """The specks are gone before the step that is tuned: nothing is left for it to gain."""
    cases = [blob_with_specks(n, 30) for n in range(6)]
    before = Tuned("min_volume", {"mm3": 10.0}, (), True, {})
    result = tuned(cases, "largest_component", (before,))
    assert [case.before["core"] for case in result.cases] == [1.0] * 6
    assert not result.accepted
    assert tuned(cases, "largest_component").accepted
    later = (PostprocessorSpec(name="min_volume"), PostprocessorSpec(name="largest_component"))
    assert [case.before["core"] for case in tuned(cases, postprocess=later).cases] == [1.0] * 6
    rejected = replace(before, accepted=False)
    assert tuned(cases, "largest_component", (rejected,)).accepted


def test_the_configs_own_options_are_where_the_search_starts(tuned: Callable[..., Result]) -> None:
    cases = [blob_with_specks(n, 30) for n in range(6)]
    given = PostprocessorSpec(name="min_volume", protect=("spots",), mm3=30.0, connectivity=6)
    result = tuned(cases, postprocess=(given,))
    assert result.candidates[0][0] is None
    assert result.candidates[1][0] == {"mm3": 30.0, "connectivity": 6}
    assert result.options == {"mm3": 30.0, "connectivity": 6}
    assert result.protect == ("spots",)
    assert result.cases[0].before["core"] != 1  # without the step, though the config has it
    assert not result.still_runs


HARMED = [blob_with_specks(n, 20, truly=True) for n in range(6)]


def test_a_rejected_step_of_the_config_is_told_to_run_on(
    tuned: Callable[..., Result], tmp_path: Path
) -> None:
    given = PostprocessorSpec(name="min_volume", mm3=30.0)
    result = tuned(HARMED, postprocess=(given,))
    assert (result.accepted, result.still_runs) == (False, True)
    told = "The config's own min_volume still runs; take it out of `postprocess` to switch it off."
    assert result.verdict.endswith(told)
    assert json.loads((tmp_path / "tuning" / "min_volume.json").read_text())["still_runs"] is True
    other = PostprocessorSpec(name="largest_component")
    assert not tuned(HARMED, postprocess=(other,)).still_runs


def test_what_was_accepted_earlier_is_told_to_be_taken_out(
    tuned: Callable[..., Result], tmp_path: Path
) -> None:
    earlier = Tuned("min_volume", {"mm3": 10.0}, (), True, {})
    verdict = tuned(HARMED, before=(earlier,)).verdict
    assert verdict.endswith("The min_volume that was accepted earlier was taken out of the model.")
    assert "as before" not in verdict
    assert not stored(tmp_path).accepted
    for before in (replace(earlier, accepted=False), Tuned("fill_holes", {}, (), True, {})):
        assert tuned(HARMED, before=(before,)).verdict.endswith("The model predicts as before.")


def test_the_page_never_tells_of_what_the_model_does_not_hold(
    tuned: Callable[..., Result], untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise DataError("model", "cannot be written")

    monkeypatch.setattr(checkpoint, "set_tuned", broken)
    with pytest.raises(DataError, match="cannot be written"):
        tuned([blob_with_specks(n, 30) for n in range(6)], with_page=True)
    assert (tmp_path / "model.safetensors").read_bytes() == untouched.read_bytes()
    assert list((tmp_path / "tuning").iterdir()) == []


def test_an_older_page_goes_when_the_new_one_cannot_be_written(
    tuned: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(HARMED, with_page=True)
    page = tmp_path / "tuning" / "min_volume.html"
    assert page.exists()

    def broken(*given: object) -> None:
        raise DataError("page", "cannot be written")

    monkeypatch.setattr(report, "write", broken)
    with pytest.raises(DataError, match="cannot be written"):
        tuned([blob_with_specks(n, 30) for n in range(6)])
    assert stored(tmp_path).accepted
    assert not page.exists()
    assert not (tmp_path / "tuning" / "cache").exists()


def test_what_cannot_be_tuned(tuned: Callable[..., Result], tmp_path: Path) -> None:
    cases = [blob_with_specks(n, 30) for n in range(3)]
    with pytest.raises(DataError, match=r"1 validation cases with labels; .* at least 2"):
        tuned(cases[:1])
    with pytest.raises(ConfigError, match="did you mean 'min_volume'"):
        tuned(cases, "min_volum")
    with pytest.raises(ConfigError, match="unknown option 'mm'; did you mean 'mm3'"):
        tuned(cases, mm=3)
    with pytest.raises(ConfigError, match=r"protect a class .* in the config's `postprocess`"):
        tuned(cases, protect=["core"])
    with pytest.raises(ConfigError, match="should be 6, 18 or 26, got 7"):
        tuned(cases, connectivity=7)
    assert not (tmp_path / "tuning").exists()
