"""One case after the other through a model: what every engine of a batch run has in common.

A `Job` says what to do and can be sent to another process or machine. There a `Worker` is made of
it, once, and turns each `Case` into an `Entry`, a line of the ledger. Its three stages, `read`,
`compute` and `write`, can be run in threads of their own (`medseg.batch.pipeline`).
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medseg.batch import outputs
from medseg.batch.entry import Entry, Task, now, told, whoami
from medseg.batch.place import Place, Stopped
from medseg.config.data import Missing
from medseg.errors import DataError, MedsegError, raise_all
from medseg.files import sha256, write_json
from medseg.inference.predictor import Predictor, Ready
from medseg.inference.steps import Crf
from medseg.postprocess.prediction import Prediction
from medseg.volumes.dataset import Case
from medseg.volumes.image import Array, Image
from medseg.volumes.load import absent
from medseg.volumes.stack import Stack
from medseg.volumes.writer import write

__all__ = [
    "Engine", "Entry", "Job", "Stopped", "Task", "Watch", "Worker", "load_predictor", "whoami",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is done to every case. It can be pickled.

    Args:
        models: Run folders or model files; several are an ensemble.
        output: The folder for masks and records.
        inputs: The folder that holds all inputs; None: none does.
        device: "auto", "cpu", "cuda" or "cuda:N".
        plugins: Plugins that the model needs and that are not installed.
        overrides: Settings instead of the model's own.
        crf: Whether the model's CRF runs.
        missing: What becomes of a case that lacks a channel; None: as in training.
        ledger: The file name of the run's ledger in `output`: how a worker elsewhere knows that it
            sees the right folder. Empty: not looked for.
        provenance: Hash of what masks depend on; a worker that finds another refuses to work.
            Empty: not compared.
    """

    models: tuple[Path, ...]
    output: Path
    inputs: Path | None = None
    device: str = "auto"
    plugins: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    crf: Crf = "model"
    missing: Missing | None = None
    ledger: str = ""
    provenance: str = ""


Engine = Callable[[Sequence[Case]], Generator[Entry]]
"""Takes cases and gives an entry for each, as they end. Raises `Stopped` where going on is vain."""

Watch = Callable[[str, str], None]
"""Told of what is waited for: the stage (reading, predicting, writing) and the case."""


class Worker:
    """Turns cases into entries. Made once a process: it loads the model.

    A case may fail in whatever way: its entry says so. What leaves a call as an exception is
    `KeyboardInterrupt`, or `Stopped`: going on would be in vain.

    Args:
        job: What to do.
        predictor: The model, where it has been loaded already.

    Raises:
        MedsegError: The model cannot be loaded or is not that of the job, or the output folder is
            not there.
    """

    def __init__(self, job: Job, predictor: Predictor | None = None) -> None:
        self.predictor = load_predictor(job) if predictor is None else predictor
        self.made_with = outputs.provenance(self.predictor, job.models)
        found = digest(self.made_with)
        if job.provenance not in ("", found):
            raise MedsegError(
                f"{', '.join(map(str, job.models))}: model, settings or versions on {whoami()} are "
                "not those that the run began with; give all workers the same"
            )
        self.job = replace(job, provenance=found)
        self._output = Place.of(job.output, job.ledger)
        if job.ledger and not (job.output / job.ledger).exists():
            raise DataError(
                job.output,
                f"{whoami()} sees no {job.ledger} in it: is the same share mounted there?",
            )
        self._inputs = None if job.inputs is None else Place.of(job.inputs)

    def __reduce__(self) -> tuple[type[Worker], tuple[Job]]:
        """Pickle by the job: the model is loaded again where it arrives."""
        return Worker, (self.job,)

    def __call__(self, case: Case) -> Entry:
        """Do all of a case."""
        return self.write(self.compute(self.read(case)))

    def read(self, case: Case) -> Task:
        """Find out whether a case is up to date; if not, read it and prepare it.

        Raises:
            Stopped: The folder of the inputs is gone.
        """
        task = Task(case)
        with self._isolated(task):
            with task.timed("read"):
                outputs.check_names(self.job.output, case.id)
                raise_all(absent(case))
                task.record = {**self.made_with, **outputs.inputs_of(case, self.predictor)}
                known = outputs.outputs_if_current(self.job.output, case.id, task.record)
                if known is not None:
                    task.is_kept, task.record["outputs"] = True, known
                    return task
                task.loaded = self.predictor.load_case(case)
            with task.timed("prepare"):
                task.ready = self.predictor.prepare(task.loaded)
        return task

    def compute(self, task: Task) -> Task:
        """Run the network over a case.

        Raises:
            Stopped: The output folder is gone: the work would be for nothing.
        """
        if task.ready is not None:
            self._output.check()
            with self._isolated(task), task.timed("predict"):
                task.prediction = self._run(task.ready)
            task.ready = None
        return task

    def write(self, task: Task) -> Entry:
        """Postprocess a prediction and write it, and beside it the record.

        Raises:
            Stopped: The output folder is gone, or nothing can be written any more.
        """
        with self._isolated(task):
            if task.prediction is not None:
                self._write(task, task.prediction)
                self._output.check()
        if task.reason:
            self._output.check()
            self._discard(task)
        return self._entry(task)

    def _run(self, ready: Ready) -> Prediction:
        output = self.job.output
        try:
            return self.predictor.run(ready, probabilities=self._wants_shares, spool=output)
        except OSError as error:  # all that goes to a disk here are probabilities, for a while
            reason = f"class probabilities cannot be kept there: {error.strerror or error}"
            raise DataError(output, reason) from error

    def _write(self, task: Task, prediction: Prediction) -> None:
        assert task.loaded is not None
        predictor, output, case = self.predictor, self.job.output, task.case.id
        with task.timed("postprocess"):
            prediction = predictor.postprocess(prediction, probabilities=self._wants_shares)
        with task.timed("write"):
            written = task.record.setdefault("outputs", {})
            for path, volume in self._volumes(case, prediction):
                self._output.check()  # writing would make a folder anew that has gone
                self._write_volume(path, volume, task.loaded.reference, prediction)
                written[path.relative_to(output).as_posix()] = sha256(path)
        if outputs.is_ours(outputs.sidecar(output, case)):  # its other volumes are stale
            for file in outputs.volumes(output, case):
                if file.relative_to(output).as_posix() not in written:
                    file.unlink(missing_ok=True)
        found = outputs.found(predictor, prediction, task.loaded.reference)
        made = {"notes": task.loaded.notes, "seconds": task.seconds, "time": now(),
                "worker": whoami()}  # fmt: skip
        self._output.check()
        write_json(outputs.sidecar(output, case), {**task.record, **found, **made})

    def _volumes(self, case: str, prediction: Prediction) -> Iterator[tuple[Path, Array | Stack]]:
        """What is to be written of a case, the mask last."""
        output = self.job.output
        shares = prediction.probabilities if prediction.stack is None else prediction.stack
        if shares is not None and self.predictor.config.inference.probabilities:
            yield outputs.probabilities(output, case), shares
        elif shares is not None:
            yield outputs.confidence(output, case), outputs.Inside(shares, prediction.labels > 0)
        if prediction.uncertainty is not None:
            yield outputs.uncertainty(output, case), prediction.uncertainty
        yield outputs.mask(output, case), self.predictor.labels.to_values(prediction.labels)

    def _write_volume(
        self, path: Path, volume: Array | Stack, reference: Image, prediction: Prediction
    ) -> None:
        settings = self.predictor.config.inference
        write(
            path, volume, reference, affine=prediction.affine, compression=settings.compression,
            stored=settings.probability_type,
        )  # fmt: skip

    @property
    def _wants_shares(self) -> bool:
        """Whether class probabilities are written, be it inside the lesions alone."""
        config = self.predictor.config
        return config.inference.probabilities or config.evaluation.lesions

    def _discard(self, task: Task) -> None:
        try:
            outputs.discard(self.job.output, task.case.id, list(task.record.get("outputs", ())))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return  # so it is not there
            task.reason += f" (and what is stale cannot be removed: {error.strerror or error})"

    def _entry(self, task: Task) -> Entry:
        record = task.record
        return Entry(
            id=task.case.id,
            status="failed" if task.reason else "kept" if task.is_kept else "done",
            reason=task.reason,
            time=now(),
            seconds=task.seconds,
            inputs=record.get("inputs", {}),
            model=self.made_with["model"],
            settings=self.made_with["settings"],
            outputs={} if task.reason else record.get("outputs", {}),
            notes=() if task.loaded is None else task.loaded.notes,
            worker=whoami(),
        )

    @contextmanager
    def _isolated(self, task: Task) -> Iterator[None]:
        """One bad case costs one case, unless it is not the case that is bad."""
        try:
            yield
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001
            if self._inputs is not None:
                self._inputs.check()
            self._output.check_writing(error)
            task.reason, task.ready, task.prediction = told(error), None, None
        if task.reason and torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_predictor(job: Job) -> Predictor:
    """Load the model of a job.

    Raises:
        MedsegError: It cannot be loaded.
    """
    return Predictor.load(
        job.models, device=job.device, plugins=job.plugins, overrides=job.overrides,
        crf=job.crf, missing=job.missing,
    )  # fmt: skip


def digest(made_with: dict[str, Any]) -> str:
    """One hash of what masks depend on beside their inputs; not of the device."""
    parts = [made_with[key] for key in ("medseg", "model", "settings")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
