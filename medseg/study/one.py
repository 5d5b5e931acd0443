"""One run from its first step to its report: train, settle, predict who validates, score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medseg.batch import run as batch
from medseg.batch.job import Job as Prediction
from medseg.config.schema import Config
from medseg.console import track
from medseg.errors import DataError, MedsegError
from medseg.evaluation.evaluate import Job, evaluate
from medseg.evaluation.subsets import Subset
from medseg.inference.predictor import Predictor
from medseg.inference.settle import settle
from medseg.inference.subsets import score_subsets
from medseg.training import loop
from medseg.training.run import ALONE, Part, RunFolder
from medseg.transforms.foreground import with_mask
from medseg.volumes import cases
from medseg.volumes.dataset import Case, Dataset
from medseg.volumes.image import Array
from medseg.volumes.load import load_case


def train(
    config: Config,
    output: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    quiet: bool = False,
    part: Part = ALONE,
) -> dict[str, Any]:
    """Train a model, predict the validation cases with it, score them and write the report.

    Args:
        config: What to do.
        output: The run folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        resume: Go on with the run in `output`.
        quiet: Show no progress.
        part: What it has from a study.

    Returns:
        The summary of the validation; nothing in torchrun's processes but the first.

    Raises:
        MedsegError: As of `loop.train` and `finish`.
    """
    run = loop.train(config, output, device=device, resume=resume, quiet=quiet, part=part)
    return finish(run, config, device=device, quiet=quiet) if run else {}


def finish(run: RunFolder, config: Config, *, device: str, quiet: bool) -> dict[str, Any]:
    """What comes after a run's last step. What is there and up to date is kept.

    Raises:
        MedsegError: A validation case cannot be predicted or scored.
    """
    predictor = Predictor.load(run.path, device=device, plugins=config.plugins)
    validation = cases.find(config.data).only(run.split().validation)
    settle(run.model, predictor, validation.cases)
    job = Prediction((run.model,), run.validation, device=device, plugins=config.plugins)
    predict(job, predictor, validation.cases, quiet=quiet)
    every_subset: tuple[Subset, ...] = ()
    if config.evaluation.subsets:
        with track("Subsets", len(validation.cases), quiet=quiet) as tick:
            every_subset = score_subsets(predictor, validation, tick)
    title = f"{config.name}: validation"
    scored = Job(
        validation, config.evaluation, title, run.records(), run.facts(), every_subset,
        region(config, validation),
    )  # fmt: skip
    return score(run.validation, scored, run.report, quiet=quiet)


def predict(job: Prediction, predictor: Predictor, found: Sequence[Case], *, quiet: bool) -> None:
    """Predict cases, all of which are needed.

    Raises:
        MedsegError: One failed.
    """
    with track("Predict", len(found), quiet=quiet) as tick:
        outcome = batch.predict_cases(job, predictor, found, tick)
    if not outcome.is_complete:
        raise MedsegError(
            outcome.stopped
            or f"{len(outcome.failed)} validation cases failed; see {job.output / batch.FAILURES}"
        )


def score(masks: Path, job: Job, report: Path, *, quiet: bool) -> dict[str, Any]:
    """Score a folder of masks into the same folder, and put the report into its place, last."""
    with track("Evaluate", len(job.dataset.cases), quiet=quiet) as tick:
        summary = evaluate(masks, job, masks, tick)
    (masks / "report.html").replace(report)
    return summary


def region(config: Config, dataset: Dataset) -> Callable[[Case], Array] | None:
    """How to find the region of interest of a case, where only that is to be scored."""
    if not config.evaluation.roi:
        return None

    def find(case: Case) -> Array:
        mask = with_mask(load_case(case, dataset), config.preprocess.mask).mask
        if mask is None:
            raise DataError(
                case.files[0],
                f"case {case.id!r} has no mask, and evaluation.roi scores inside one: give it, set "
                "preprocess.mask to have it computed, or evaluation.roi to false",
            )
        return mask

    return find
