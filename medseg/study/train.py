"""Train the runs of a study, one after the other, and say what they are worth together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.config.schema import Config
from medseg.console import console
from medseg.errors import ConfigError, DataError
from medseg.inference.ensembles import Ensemble, Member, weights_sha256, write
from medseg.study import one, oof
from medseg.study.folder import Place, Study
from medseg.study.spread import Spread, spreads
from medseg.training.run import Part, RunFolder, refuse_other_settings
from medseg.training.world import refuse_several, told_once_a_machine


@dataclass(frozen=True)
class Outcome:
    """What became of a study.

    Args:
        summary: Of the predictions of cases by models that have not seen them; None: some runs
            are not trained yet.
        spreads: Of the scores over folds and over seeds, as far as there are several.
        missing: The runs that are not trained yet, by folder name.
    """

    summary: dict[str, Any] | None
    spreads: tuple[Spread, ...] = ()
    missing: tuple[str, ...] = ()


def train_study(
    config: Config,
    output: str | Path,
    *,
    fold: int | None = None,
    all_folds: bool = False,
    seeds: int | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Outcome:
    """Train runs of a study, as far as they are not trained yet; evaluate once all of them are.

    A study is begun by the first call. Later ones go on with it: with what was interrupted,
    bit-exactly as one run does, and with what is missing. See docs/cross_validation.md.

    Args:
        config: Of all runs.
        output: The study's folder.
        fold: Only this fold, from 0.
        all_folds: All of them.
        seeds: So many seeds, from the config's on; None: its own alone.
        device: "auto", "cpu", "cuda" or "cuda:N".
        quiet: Show no progress.

    Raises:
        ConfigError: There is no such fold, or the study was begun with another config.
        MedsegError: As of `study.one.train`.
    """
    with told_once_a_machine():
        refuse_several("a study's runs")
    start_up, study, has_folds = time.process_time(), Study(output), all_folds or fold is not None
    if config.data.split.file is None:  # told before all cases are read
        _refuse_no_fold(fold, config.data.split.folds, study)
    study.begin(config, has_folds=has_folds, seeds=seeds, quiet=quiet)
    places = study.places()
    _refuse_no_fold(fold, 1 + max(place.fold or 0 for place in places), study)
    wanted = [place for place in places if all_folds or place.fold == fold]
    for place in wanted:
        spent = time.process_time() - start_up  # each run is charged for starting up, as if alone
        _train(study, config, place, spent, device, quiet)
    missing = tuple(place.name for place in places if not study.run(place).report.exists())
    if missing:
        return Outcome(None, missing=missing)
    with study.lock():
        return _together(study, config, places, device, quiet)


def _refuse_no_fold(fold: int | None, folds: int, study: Study) -> None:
    """Refuse a fold that there is not."""
    if fold is not None and fold >= folds:
        raise ConfigError(
            f"--fold {fold}: {study.path} has {folds} folds, counted from 0", ("data", "split")
        )


def _train(
    study: Study, config: Config, place: Place, spent: float, device: str, quiet: bool
) -> None:
    """Train one run, or go on with it, or see that it is whole."""
    run, mine = study.run(place), study.config_of(config, place)
    part = Part(study.ids(place), study.cache, spent)
    if not run.config.exists() or not run.last_model.exists():
        if not quiet:
            console.rule(f"[bold]{place.name}")
        resume = run.config.exists()
        one.train(mine, run.path, device=device, resume=resume, quiet=quiet, part=part)
        return
    refuse_other_settings(mine, run.config)
    run.refuse_other_split(study.ids(place))
    _refuse_lost(run)
    if not run.report.exists():
        one.finish(run, mine, device=device, quiet=quiet)
    elif not quiet:
        console.print(f"{place.name}: is trained")


def _refuse_lost(run: RunFolder) -> None:
    """Refuse a run that was trained and whose model is gone or damaged."""
    try:
        weights_sha256(run.model)
    except DataError as error:
        raise DataError(
            run.model,
            f"{error.reason}; the run was trained: restore the file, or remove {run.path} and run "
            "the same command again to train it anew",
        ) from error


def _together(
    study: Study, config: Config, places: Sequence[Place], device: str, quiet: bool
) -> Outcome:
    runs = {place: study.run(place) for place in places}
    _refuse_other_inputs(list(runs.values()))
    members = [
        Member(run.model, 1 / len(runs), weights_sha256(run.model), ".") for run in runs.values()
    ]
    found = spreads(study, runs)
    summary = oof.gather(study, config, runs, device=device, quiet=quiet)
    write(study.ensemble, Ensemble(tuple(members)))
    return Outcome(summary, found)


def _refuse_other_inputs(runs: Sequence[RunFolder]) -> None:
    """Refuse runs that began with other files under the same names."""
    first, *others = runs
    then = first.inputs()
    for run in others:
        for file, digest in run.inputs().items():
            if then.get(file, digest) != digest:
                raise DataError(
                    file,
                    f"was another file when {first.path} was trained than when {run.path} was: "
                    "train one of them anew, or their scores mean nothing together",
                )
