"""Out-of-fold predictions: each case by the models of a study that have not seen it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.batch import outputs
from medseg.batch.job import Job as Prediction
from medseg.config.schema import Config
from medseg.evaluation.evaluate import Job
from medseg.files import atomic, read_json, sha256
from medseg.inference.predictor import Predictor
from medseg.study import one
from medseg.study.folder import Place, Study
from medseg.training.run import RunFolder
from medseg.volumes import cases


def gather(
    study: Study,
    config: Config,
    runs: Mapping[Place, RunFolder],
    *,
    device: str,
    quiet: bool,
) -> dict[str, Any]:
    """Put the prediction of every case that validates into one folder, and score them together.

    What a run predicted of its validation cases is taken over as it is; of several seeds the
    ensemble predicts. What is there and up to date is kept.

    Returns:
        The summary, as in `oof/summary.json`.

    Raises:
        MedsegError: A case cannot be predicted or scored.
    """
    by_fold: dict[int | None, list[RunFolder]] = {}
    for place, run in runs.items():
        by_fold.setdefault(place.fold, []).append(run)
    dataset, ids = cases.find(config.data), list[str]()
    for members in by_fold.values():
        validation = dataset.only(members[0].split().validation).cases
        ids += [case.id for case in validation]
        models = tuple(run.model for run in members)
        if len(members) == 1:
            _take(members[0], study.oof, [case.id for case in validation])
        predictor = Predictor.load(models, device=device, plugins=config.plugins)
        job = Prediction(models, study.oof, device=device, plugins=config.plugins)
        one.predict(job, predictor, validation, quiet=quiet)
    everyone = dataset.only(ids)
    title = f"{config.name}: out of fold" if len(by_fold) > 1 else f"{config.name}: validation"
    region = one.region(config, everyone)
    scored = Job(everyone, config.evaluation, title, facts=_facts(study, runs), region=region)
    return one.score(study.oof, scored, study.report, quiet=quiet)


def _take(run: RunFolder, target: Path, ids: Sequence[str]) -> None:
    """Copy what the run's present model predicted; the batch run sees whether it is up to date."""
    model = sha256(run.model)
    for case in ids:
        record = outputs.sidecar(run.validation, case)
        if not record.is_file() or read_json(record).get("model") != model:
            continue  # a step has been tuned since
        for file in (*outputs.volumes(run.validation, case), record):
            copy = target / file.relative_to(run.validation)
            if file.is_file() and not (copy.is_file() and sha256(copy) == sha256(file)):
                with atomic(copy) as temporary:
                    shutil.copyfile(file, temporary)


def _facts(study: Study, runs: Mapping[Place, RunFolder]) -> dict[str, Any]:
    each = [run.facts() for run in runs.values()]
    shared = {key: each[0][key] for key in ("medseg", "Packages", "Platform")}
    return {
        "Study": str(study.path.resolve()),
        "Runs": ", ".join(place.name for place in runs),
        "Steps": sum(facts["Steps"] for facts in each),
        "Seconds": sum(facts["Seconds"] for facts in each),
        **shared,
        "Config": study.config.read_text(encoding="utf-8"),
    }
