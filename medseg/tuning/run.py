"""`medseg tune`: predict, try, choose, judge, and write down what came of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.console import track
from medseg.errors import DataError
from medseg.evaluation.overlay import CaseView
from medseg.files import check_writable, write_json
from medseg.inference.ensembles import check_alike
from medseg.inference.predictor import Predictor
from medseg.inference.steps import component
from medseg.networks.checkpoint import Tuned
from medseg.postprocess.crf_step import CRF
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.tuning import report
from medseg.tuning.candidates import defaults, grid
from medseg.tuning.crf_fit import CrfFit
from medseg.tuning.gate import Judgement, judge
from medseg.tuning.operating import along, has_points, points
from medseg.tuning.place import Place, around
from medseg.tuning.result import Candidate, CaseResult, Options, Point, Result
from medseg.tuning.scoring import Scorer
from medseg.tuning.select import Propose, choose, leave_one_out
from medseg.tuning.store import Store
from medseg.tuning.summary import verdict
from medseg.tuning.trials import Trials, known_mean
from medseg.volumes.dataset import IGNORE_INDEX, Case, natural
from medseg.volumes.image import Array

_FEWEST = 2
_OF_THE_MACHINE = {"device", "memory_gib"}  # of the CRF: the next machine has its own
Tried = tuple[tuple[Candidate, float], ...]


@dataclass(frozen=True)
class Request:
    """What is to be tuned.

    Args:
        name: A registered postprocessor.
        options: Options of it that are not varied.
        score: One of `scoring.SCORES`.
        quiet: Show no progress.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    score: str = "dice"
    quiet: bool = False


@dataclass(frozen=True)
class HeldOut:
    """Cases, and a model that has not seen them.

    Args:
        load: Gives the model.
        cases: Those without a label are passed over.
    """

    load: Callable[[], Predictor]
    cases: Sequence[Case]

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The cases that can be scored."""
        return tuple(case for case in self.cases if case.label is not None)


def tune(
    parts: Sequence[HeldOut], keep: Callable[[Tuned], None], folder: Path, request: Request
) -> Result:
    """Tune a postprocessor on cases that did not train, and put it into the model if it helps.

    Keeps the result, accepted or not, in place of an earlier one of the same name; then writes
    `NAME.json` and `NAME.html` into the folder, which never tell of what the model does not hold. A
    failure before leaves model and folder as they are.

    Args:
        parts: The cases, each by a model that has not seen it. The models take the same steps
            around the one that is tuned.
        keep: Puts the result into the model, or into all of them.
        folder: For the results; beside them the cases are kept while it works.
        request: What to tune.

    Raises:
        ConfigError: There is no such postprocessor, option or score.
        DataError: Fewer than 2 cases have a label, the models take other steps, or the folder
            cannot be written.
    """
    start = time.monotonic()
    tuning = _Tuning(parts[0].load(), folder / "cache", request)
    labelled = sum(len(part.labelled) for part in parts)
    if labelled < _FEWEST:
        raise DataError(
            folder.parent,
            f"{labelled} validation cases with labels; tuning holds out one after the other, "
            f"and needs at least {_FEWEST} (data.split says which cases validate)",
        )
    check_writable(folder)
    try:
        tuning.predict(parts)
        result = replace(tuning.result(), seconds=time.monotonic() - start)
        keep(_entry(result))
        about, page = (folder / f"{request.name}.{kind}" for kind in ("json", "html"))
        with suppress(OSError):  # what cannot be removed cannot be replaced: that says why
            about.unlink(missing_ok=True)
            page.unlink(missing_ok=True)
        write_json(about, asdict(result))
        report.write(page, result, tuning.view(result))
    finally:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return result


class _Tuning:
    """What one tuning works with."""

    def __init__(self, predictor: Predictor, cache: Path, request: Request) -> None:
        self._predictor, self._request = predictor, request
        self._seed, self._labels = predictor.config.seed, predictor.labels
        POSTPROCESSORS.get(request.name)  # refuses a name that is none
        self._place = Place.find(predictor.checkpoint, request.name)
        self._search = (
            request.name,
            self._place.given,
            request.options,
            len(self._labels.values) + 1,
        )
        self._grid = grid(*self._search)
        self._store = Store(cache)
        self._scorer = Scorer(request.score, self._labels, predictor.config.evaluation)
        self._trials = Trials(self._store, self._scorer, self._place.onwards, quiet=request.quiet)

    def predict(self, parts: Sequence[HeldOut]) -> None:
        """Predict the cases up to the step that is tuned, and keep them on disk."""
        total = sum(len(part.labelled) for part in parts)
        with track("Predict", total, quiet=self._request.quiet) as tick:
            for n, part in enumerate(parts):
                predictor = part.load() if n else self._predictor
                self._refuse_others(predictor)
                for case in part.labelled:
                    loaded = predictor.load_case(case)
                    assert loaded.label is not None
                    prediction = self._place.before(predictor.raw(loaded))
                    self._store.add(case.id, prediction, self._counted(loaded.label, prediction))
                    tick(case.id)

    def _refuse_others(self, predictor: Predictor) -> None:
        """Refuse a model around whose step others are taken than around the first one's."""
        mine, its = self._predictor.checkpoint, predictor.checkpoint
        check_alike([mine, its])
        if around(mine, self._request.name) != around(its, self._request.name):
            raise DataError(
                its.source,
                f"takes other steps than {mine.source} beside {self._request.name}: tune those for "
                "all models at once first",
            )

    def _counted(self, truth: Array, prediction: Prediction) -> Array:
        """The truth of what is scored: with `evaluation.roi`, the region of interest alone."""
        if not self._predictor.config.evaluation.roi or prediction.mask is None:
            return truth
        return np.where(prediction.mask, truth, np.uint8(IGNORE_INDEX))

    def result(self) -> Result:
        """Try, choose and judge."""
        request, classes = self._request, tuple(self._labels.classes)
        propose = self._proposer()
        is_silent = request.quiet or not isinstance(propose, CrfFit)
        chosen = leave_one_out(propose, self._trials, quiet=is_silent)

        def held_out(protect: Sequence[str]) -> Array:
            return self._trials.pairs(list(enumerate(chosen)), protect)

        found = judge(held_out, classes, self._place.protect, self._seed)
        final, tried = self._choose(propose)
        accepted = found.accepted and final is not None
        options = final if final is not None else _best(tried)
        return Result(
            name=request.name,
            options=options,
            default_options=defaults(request.name),
            protect=found.protect,
            accepted=accepted,
            still_runs=not accepted and self._place.in_config is not None,
            verdict=verdict(self._place, request.score, found, accepted),
            score_name=request.score,
            classes=classes,
            cases=_cases(self._store.ids, classes, found, chosen),
            intervals=found.intervals,
            candidates=tried,
            seconds=0.0,
            points=self._points(options, tried),
        )

    def _choose(self, propose: Propose) -> tuple[Candidate, Tried]:
        """The choice on all cases, and what it was among."""
        every = range(len(self._store))
        offered = propose(every)
        scores = self._trials.means(offered, every)
        means = known_mean(scores).tolist()
        return offered[choose(scores)], tuple(zip(offered, means, strict=True))

    def _points(self, options: Options, tried: Tried) -> tuple[Point, ...]:
        if not has_points(component(self._request.name)):
            return ()
        candidates = along([candidate for candidate, _ in tried], options)
        settings = self._predictor.config.evaluation
        return points(self._store, self._place, self._scorer, settings, candidates)

    def _proposer(self) -> Propose:
        kind = component(self._request.name)
        if not (isinstance(kind, type) and issubclass(kind, CRF)):
            return lambda cases: self._grid  # noqa: ARG005  (the same for all)
        return CrfFit(self._store, *self._search, seed=self._seed, quiet=self._request.quiet)

    def view(self, result: Result) -> Callable[[str], CaseView]:
        """How to see a case before and after."""
        options_of = {case.case_id: case.chosen for case in result.cases}

        def see(case_id: str) -> CaseView:
            number = self._store.ids.index(case_id)
            truth, chosen = self._store.truth(number), options_of[case_id]
            known = truth != IGNORE_INDEX
            shown = self._store.prediction(number)
            before, after = (
                self._place.onwards(options, result.protect)(shown).labels
                for options in (None, chosen)
            )
            after, true, before = (
                self._labels.to_values(labels) * known for labels in (after, truth, before)
            )
            return CaseView(case_id, shown.image[0], after, true, shown.affine, before)

        return see


def _best(tried: Tried) -> Options:
    """The best of what does something; to leave the step out comes first."""
    found = [(options, mean) for options, mean in tried if options is not None]
    return max(found, key=lambda item: -1 if np.isnan(item[1]) else item[1])[0]


def _cases(
    ids: Sequence[str], classes: Sequence[str], found: Judgement, chosen: Sequence[Candidate]
) -> tuple[CaseResult, ...]:
    def named(scores: Array) -> dict[str, float | None]:
        return {
            name: None if np.isnan(score) else float(score)
            for name, score in zip(classes, scores, strict=True)
        }

    rows = zip(ids, found.before, found.after, chosen, strict=True)
    each = [
        CaseResult(case_id, named(before), named(after), options)
        for case_id, before, after, options in rows
    ]
    return tuple(sorted(each, key=lambda case: natural(case.case_id)))


def _entry(result: Result) -> Tuned:
    figures = {
        "score": result.score_name,
        "cases": len(result.cases),
        "intervals": {name: list(values) for name, values in result.intervals.items()},
        "verdict": result.verdict,
        "curve": [
            [options, None if np.isnan(mean) else mean] for options, mean in result.candidates
        ],
        "froc": [asdict(point) for point in result.points],
    }
    options = {key: value for key, value in result.options.items() if key not in _OF_THE_MACHINE}
    return Tuned(result.name, options, result.protect, result.accepted, figures)
