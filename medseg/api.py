"""The main jobs as functions: what the command line does, for use from Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.batch import engines
from medseg.batch import run as batch
from medseg.batch.job import Entry, load_predictor
from medseg.batch.job import Job as Prediction
from medseg.batch.shard import Shard
from medseg.config.data import Missing
from medseg.config.schema import Config
from medseg.console import track
from medseg.errors import DataError
from medseg.evaluation.evaluate import Job
from medseg.evaluation.evaluate import evaluate as score
from medseg.inference.inputs import needed
from medseg.inference.steps import Crf
from medseg.networks.checkpoint import save
from medseg.networks.importing import import_network
from medseg.networks.load_report import LoadReport
from medseg.study import one
from medseg.study import tune as tuning
from medseg.study.ensemble import ensemble
from medseg.study.train import train_study
from medseg.tuning.result import Result
from medseg.tuning.run import Request
from medseg.volumes import cases
from medseg.volumes.dataset import Dataset

__all__ = ["ensemble", "evaluate", "import_model", "masked", "predict", "train", "train_study",
           "tune"]  # fmt: skip


def train(
    config: Config,
    output: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a model, predict the validation cases with it, score them and write the report.

    Args:
        config: What to do; see `load_config`.
        output: The run folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        resume: Go on with the run in `output`.
        quiet: Show no progress.

    Returns:
        The summary of the validation, as in `validation/summary.json`; nothing in torchrun's
        processes but the first.

    Raises:
        MedsegError: Config, data or plugins are wrong (before the first step), or training failed.
    """
    return one.train(config, output, device=device, resume=resume, quiet=quiet)


def predict(  # noqa: PLR0913  (what the command line has)
    model: str | Path | Sequence[str | Path],
    inputs: str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    plugins: Sequence[str] = (),
    overrides: Sequence[str] = (),
    crf: Crf = "model",
    missing: Missing | None = None,
    shard: str = "1/1",
    engine: engines.Name = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    tell: Callable[[Entry], None] | None = None,
    quiet: bool = False,
) -> batch.Outcome:
    """Predict a folder, a list of files or a CSV.

    Args:
        model: A run folder or a .safetensors file, the folder of a study (then all its runs
            predict together), an `ensemble.json`, or several of these.
        inputs: A folder whose files are named as in training, a .nii.gz file, a .csv with the
            channels as columns, or a .txt with one case a line.
        output: Folder for the masks `ID.nii.gz`, their records `ID.json`, and `ledger.jsonl`.
        device: "auto", "cpu", "cuda" or "cuda:N"; several of these with commas between, or
            "cuda:all", for a process each.
        plugins: Plugins that the model needs and that are not installed.
        overrides: Settings instead of the model's own, e.g. `inference.overlap=0.25`.
        crf: "model": a CRF runs if the model has one that was found to help (see `tune`); "on": it
            runs; "off": it does not.
        missing: "refuse": a case that lacks a channel fails; "zero": the channel is taken as 0
            after normalisation; None: as the model was trained.
        shard: "K/N": only the K-th of N parts of the cases, while other processes, on whatever
            machine, do the others into the same folder.
        engine: "pipeline": this process does all; "pool": several of this machine; "dask": workers
            of dask; "auto": what the other options tell.
        workers: How many processes; None: one for each device. A script that asks for them does so
            under `if __name__ == "__main__":`.
        scheduler: The address of a scheduler of dask, whose workers see the same files.
        tell: Called with what became of each case, as it ends.
        quiet: Show no progress.

    Returns:
        Which cases were predicted, kept as they were, failed and why, or left, and why the run
        stopped.

    Raises:
        MedsegError: Nothing could start: the model, the inputs or the output folder cannot be used
            at all, or another process does the same. A bad case is no error.
    """
    part, source = Shard.parse(shard), Path(inputs)
    choice = engines.choose(device, name=engine, workers=workers, scheduler=scheduler)
    models = (model,) if isinstance(model, str | Path) else tuple(model)
    job = Prediction(
        tuple(map(Path, models)), Path(output), device=device, plugins=tuple(plugins),
        overrides=tuple(overrides), crf=crf, missing=missing,
    )  # fmt: skip
    predictor = load_predictor(replace(job, device=choice.device))
    found = cases.find_inputs(source, needed(predictor.config))
    with track("Predict", len(part.take(found)), quiet=quiet) as tick:
        return batch.predict_cases(
            job, predictor, found, tick, source=source, shard=part, start=choice.start, tell=tell
        )


def evaluate(
    predictions: str | Path,
    config: Config,
    output: str | Path,
    *,
    ids: Sequence[str] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a folder of masks against the labels of a config's data.

    Args:
        predictions: Folder of `ID.nii.gz` masks of label values.
        config: Names data, classes and what to measure.
        output: Folder for `scores.csv`, `summary.json` and `report.html`.
        ids: Cases to score; None for all that have a mask.
        quiet: Show no progress.

    Returns:
        The summary.

    Raises:
        DataErrors: Masks of `ids` are missing, or on another grid than the truth. Without `ids`,
            a warning says how many cases have no mask.
    """
    dataset = cases.find(config.data)
    found = masked(predictions, dataset) if ids is None else ids
    left_out = len(dataset.cases) - len(found)
    dataset = dataset.only(found)
    if left_out and ids is None:
        warnings.warn(
            f"{predictions}: {left_out} cases have no mask and are not scored", stacklevel=2
        )
    title = f"Evaluation of {predictions}"
    job = Job(dataset, config.evaluation, title, region=one.region(config, dataset))
    with track("Evaluate", len(dataset.cases), quiet=quiet) as tick:
        return score(Path(predictions), job, Path(output), tick)


def tune(
    run: str | Path,
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    score: str = "dice",
    device: str = "auto",
    plugins: Sequence[str] = (),
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Result:
    """Tune a postprocessor on the validation cases, and put it into the model only if it helps.

    Each case is judged with options that were chosen on the other cases. The result, accepted or
    not, goes into the model file and into `tuning/NAME.json` and `.html` of the run. Of a study
    or an ensemble each case is predicted by the models that have not seen it, and the result goes
    into all models of the study, or into `ensemble.json`.

    Args:
        run: The folder that `train` or `train_study` wrote, or an `ensemble.json`.
        name: A registered postprocessor, such as "crf".
        options: Options of it that are not to be varied.
        score: What is to rise: "dice", "iou", "nsd" or "lesion_f1".
        device: "auto", "cpu", "cuda" or "cuda:N".
        plugins: Plugins that the model needs and that are not installed.
        overrides: Settings instead of the model's own, e.g. `data.path=elsewhere`.
        quiet: Show no progress.

    Returns:
        What was chosen, what it changed, and whether it is part of the model now.

    Raises:
        MedsegError: There is no such run, postprocessor, option or score, or fewer than 2
            validation cases have labels.
    """
    request = Request(name, options or {}, score, quiet)
    return tuning.tune(run, request, device=device, plugins=plugins, overrides=overrides)


def import_model(
    name: str,
    weights: str | Path,
    output: str | Path,
    *,
    plugins: Sequence[str] = (),
    overrides: Sequence[str] | None = None,
) -> LoadReport:
    """Make a model of weights that another program trained, such as DeepMedic's checkpoints.

    Args:
        name: The network, as registered: "deepmedic".
        weights: The file, e.g. `model.ckpt.index` of TensorFlow, beside its data files.
        output: The model file, *.safetensors.
        plugins: Plugins that the network may come from.
        overrides: Settings of the model's config, e.g. `model.network.dropout=[0, 0.3, 0.3]`.

    Returns:
        What became of each weight, with notes on what the file does not tell and was assumed.

    Raises:
        MedsegError: The file cannot be used, or a setting is wrong.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise DataError(output, "a model's name ends in .safetensors")
    checkpoint, report = import_network(name, Path(weights), overrides or (), plugins)
    save(output, checkpoint)
    return report


def masked(predictions: str | Path, dataset: Dataset) -> list[str]:
    """Which cases have a mask in a folder.

    Raises:
        DataError: None has.
    """
    folder = Path(predictions)
    there = {path.name.removesuffix(".gz").removesuffix(".nii") for path in folder.glob("*.nii*")}
    ids = [case.id for case in dataset.cases if case.id in there]
    if not ids:
        example = dataset.cases[0].id
        raise DataError(folder, f"holds no mask of a case, such as {example}.nii.gz")
    return ids
