"""`medseg tune operating_point` on made-up cases: threshold and size chosen, judged and drawn."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medseg import plugins
from medseg.config import load
from medseg.config.schema import Config
from medseg.inference.steps import entries
from medseg.networks import checkpoint
from medseg.networks.checkpoint import Checkpoint
from medseg.postprocess.prediction import Prediction
from medseg.tuning import report, report_curves
from medseg.tuning.candidates import MOST, grid
from medseg.tuning.result import Result
from medseg.tuning.run import HeldOut, Request, tune
from medseg.volumes.dataset import Case, Channel, Labels

plugins.load()

SHAPE = (20, 18, 12)
LABELS = Labels({"lesion": (1,)})
Made = tuple[np.ndarray, np.ndarray]


class Stub:
    """Predicts the probabilities that it is told to."""

    def __init__(self, config: Config, cases: list[Made]) -> None:
        self.config, self.labels, self._cases = config, LABELS, cases
        self.checkpoint = Checkpoint(config, ("image",), LABELS, None, {})

    def load_case(self, case: Case) -> Any:
        return SimpleNamespace(label=self._cases[int(case.id)][1], number=int(case.id))

    def raw(self, loaded: Any) -> Prediction:
        likely = self._cases[loaded.number][0]
        shares = np.stack([1 - likely, likely]).astype(np.float32)
        labels = shares.argmax(0).astype(np.uint8)
        return Prediction(labels, np.zeros((1, *SHAPE), np.float32), np.eye(4), shares)


@pytest.fixture(scope="module")
def untouched(model: Callable[..., Path]) -> Path:
    """A model. Do not change."""
    return model()


@pytest.fixture
def tuned(
    recipe: Callable[..., Path],
    untouched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Tune on cases, given as pairs of probabilities and true class indices."""
    page = report.write
    monkeypatch.setattr(report, "write", lambda *given: None)  # slow
    settings = {"evaluation.lesions": True, "evaluation.connectivity": 6}

    def run(cases: list[Made], with_page: bool = False, **options: Any) -> Result:
        if with_page:
            monkeypatch.setattr(report, "write", page)
        shutil.copy(untouched, tmp_path / "model.safetensors")
        there = [Case(str(n), (Channel(Path("x")),), Path("y")) for n in range(len(cases))]
        stub: Any = Stub(load(recipe(**settings)), cases)
        request = Request("operating_point", options, "lesion_f1", quiet=True)
        return tune(
            [HeldOut(lambda: stub, there)],
            partial(checkpoint.set_tuned, tmp_path / "model.safetensors"),
            tmp_path / "tuning",
            request,
        )

    return run


def case(n: int, specks: float = 0.65, small: float = 0.75) -> Made:
    """Two true lesions, of 64 and 2 voxels, and 3 + n false ones of a voxel each."""
    likely, truth = np.full(SHAPE, 0.02), np.zeros(SHAPE, np.uint8)
    truth[2:6, 2:6, 2:6] = truth[2:4, 10, 2] = 1
    likely[2:6, 2:6, 2:6], likely[2:4, 10, 2] = 0.95, small
    for place in range(3 + n):
        likely[10 + place % 8, 2 + 3 * (place // 8), 8] = 0.02
        likely[(10 + 2 * place) % 20, 4 * (place // 5), 9] = specks
    return likely, truth


def stored(folder: Path) -> checkpoint.Tuned:
    (found,) = checkpoint.load(folder / "model.safetensors").tuned
    return found


def test_a_threshold_that_helps_is_stored_with_its_curve(tuned: Any, tmp_path: Path) -> None:
    result = tuned([case(n) for n in range(6)])
    assert result.accepted
    assert result.options == {"threshold": 0.7, "min_mm3": 0.0}  # above the specks, below the small
    assert all(c.after["lesion"] == 1 > c.before["lesion"] for c in result.cases)
    entry = stored(tmp_path)
    assert (entry.name, entry.accepted, entry.options) == (
        "operating_point", True, result.options,
    )  # fmt: skip
    curve = {tuple(options.values()): score for options, score in entry.figures["curve"] if options}
    assert len(curve) == 63
    assert curve[0.7, 0.0] == 1
    assert curve[0.5, 0.0] == pytest.approx(np.mean([c.before["lesion"] for c in result.cases]))
    assert curve[0.8, 0.0] == pytest.approx(2 / 3)  # the small lesion is lost, no false one is left
    assert curve[0.7, 3.0] == pytest.approx(2 / 3)
    left_out = [score for options, score in entry.figures["curve"] if options is None]
    assert left_out == pytest.approx([curve[0.5, 0.0]])
    froc = {(p["options"] or {}).get("threshold"): p for p in entry.figures["froc"]}
    assert sorted(t for t in froc if t) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert (froc[0.7]["sensitivity"], froc[0.7]["false_per_case"]) == (1, 0)
    assert (froc[0.8]["sensitivity"], froc[0.8]["false_per_case"]) == (0.5, 0)
    false = np.mean([3 + n for n in range(6)])
    assert (froc[0.5]["sensitivity"], froc[0.5]["false_per_case"]) == (1, pytest.approx(false))
    assert froc[None]["false_per_case"] == froc[0.5]["false_per_case"]
    (step,) = entries(checkpoint.load(tmp_path / "model.safetensors"))
    assert (step.name, step.model_extra) == ("operating_point", result.options)
    told = json.loads((tmp_path / "tuning" / "operating_point.json").read_text())
    assert len(told["points"]) == 10


def test_the_page_draws_the_curve(tuned: Any, tmp_path: Path) -> None:
    tuned([case(n) for n in range(6)], with_page=True, connectivity=6, min_mm3=0.0)
    page = (tmp_path / "tuning" / "operating_point.html").read_text()
    for words in ("The curve", "Lesions found and false", ">threshold<", ">left out<",
                  ">false lesions per case<", ">0.9, 0.8<"):  # fmt: skip
        assert words in page


def test_what_does_not_help_is_off(tuned: Any, tmp_path: Path) -> None:
    """Specks as likely as the small lesion, and true: every threshold below loses nothing."""
    result = tuned([case(n, specks=0.02, small=0.9) for n in range(6)])
    assert not result.accepted
    assert all(found.chosen is None for found in result.cases)
    assert entries(checkpoint.load(tmp_path / "model.safetensors")) == []
    assert stored(tmp_path).figures["curve"]  # to see what was tried


def test_chance_gains_do_not_pass(tuned: Any) -> None:
    """In half the cases the specks are true: no threshold helps in all."""
    cases = [case(n) for n in range(6)]
    cases[1::2] = [(p, ((p > 0.5) | (t > 0)).astype(np.uint8)) for p, t in cases[1::2]]
    assert not tuned(cases).accepted


def test_all_combinations_are_tried() -> None:
    assert len(grid("operating_point", {}, {}, 2)) == 1 + 63 <= 1 + MOST
    fixed = grid("operating_point", {}, {"threshold": (0.3, 0.4)}, 3)
    assert [options["min_mm3"] for options in fixed[1:]] == [0, 3, 10, 30, 100, 300, 1000]


RESULT = Result(
    name="x", options={"a": 2.0, "b": 10}, default_options={}, protect=(), accepted=True,
    still_runs=False, verdict="", score_name="dice", classes=("lesion",), cases=(), intervals={},
    candidates=((None, 0.5), *(({"a": a, "b": b}, 0.1 * a + 0.01 * b) for a in (1.0, 2.0, 4.0)
                               for b in (10, 20))), seconds=0.0,
)  # fmt: skip


def test_the_curve_has_a_line_for_each_value_and_a_ring() -> None:
    svg = report_curves.curve(RESULT)
    for words in (">a<", ">b 10<", ">b 20<", ">left out<", ">4<"):
        assert words in svg
    assert svg.count("stroke-dasharray: 1.4") >= 1  # the dotted line of the step left out
    assert "b 30" not in svg


@pytest.mark.parametrize(
    "candidates",
    [
        ((None, 0.5),),
        ((None, 0.5), ({"a": 1.0}, 0.5), ({"a": 2.0}, 0.6)),  # two points are no curve
        ((None, 0.5), *(({"a": a, "b": a}, 0.1) for a in (1, 2, 3))),  # not all combinations
        ((None, 0.5), *(({"a": name}, 0.1) for name in "xyz")),
        ((None, 0.5), *(({"a": [[n]]}, 0.1) for n in range(4))),
    ],
)
def test_other_searches_have_no_curve(candidates: Any) -> None:
    assert report_curves.curve(replace(RESULT, candidates=candidates)) == ""
    assert report_curves.rates(RESULT) == ""


def test_one_option_gives_one_line() -> None:
    tried = ((None, float("nan")), *(({"mm3": v, "c": 26}, v / 10) for v in (0.0, 3.0, 10.0)))
    svg = report_curves.curve(replace(RESULT, candidates=tried, options={"mm3": 3.0, "c": 26}))
    assert ">mm3<" in svg
    assert "left out" not in svg  # it says nothing
    assert not re.search(r">c \d+<", svg)
