"""A worker: what it refuses to begin, what it survives, and how it travels."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medseg.batch import outputs
from medseg.batch.job import Entry, Job, Stopped, Worker
from medseg.errors import DataError, MedsegError
from medseg.inference.predictor import Predictor
from medseg.postprocess.prediction import Prediction
from medseg.volumes.dataset import Case, Channel, Labels


@pytest.fixture(scope="module")
def network(model: Callable[..., Path]) -> Path:
    """A model. Do not change."""
    return model()


@pytest.fixture
def job(network: Path, heads: Path, tmp_path: Path) -> Job:
    output = tmp_path / "out"
    output.mkdir()
    return Job((network,), output, inputs=heads, device="cpu", ledger="")


def case(heads: Path, name: str = "head_001") -> Case:
    files = (heads / "imagesTr" / f"{name}_{channel}.nii.gz" for channel in ("0000", "0001"))
    return Case(name, tuple(Channel(file) for file in files))


def test_a_call_is_its_stages_in_a_row(job: Job, heads: Path) -> None:
    worker = Worker(job)
    entry = worker(case(heads))
    assert (entry.status, [*entry.outputs]) == ("done", ["head_001.nii.gz"])
    assert worker(case(heads)).status == "kept"
    (job.output / "head_001.json").unlink()
    assert worker.write(worker.compute(worker.read(case(heads)))).outputs == entry.outputs


def test_jobs_entries_and_workers_travel(job: Job, heads: Path) -> None:
    worker = pickle.loads(pickle.dumps(Worker(replace(job, crf="off", missing="zero"))))
    assert (worker.predictor.crf, worker.job.output) == ("off", job.output)
    entry = worker(case(heads))
    assert pickle.loads(pickle.dumps(entry)) == entry
    assert pickle.loads(pickle.dumps(Entry.failure("a", "died"))).reason == "died"
    assert len(pickle.dumps(worker)) < 10_000  # no weights


def test_a_worker_of_another_model_is_refused(
    job: Job, model: Callable[..., Path], heads: Path
) -> None:
    sealed = Worker(job).job
    assert Worker(sealed).job == sealed
    for other in (
        replace(sealed, models=(model(seed=7),)),
        replace(sealed, overrides=("inference.overlap=0.25",)),
    ):
        with pytest.raises(MedsegError, match="are not those that the run began with"):
            Worker(other)


def test_a_worker_that_sees_another_folder_is_refused(job: Job) -> None:
    with pytest.raises(DataError, match=r"sees no ledger\.jsonl in it: is the same share mounted"):
        Worker(replace(job, ledger="ledger.jsonl"))
    with pytest.raises(DataError, match="No such file"):
        Worker(replace(job, output=job.output / "none"))


def test_nothing_is_computed_for_a_folder_that_is_gone(
    job: Job, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(job)
    task = worker.read(case(heads))
    monkeypatch.setattr(Predictor, "run", lambda *_, **__: pytest.fail("computed"))
    job.output.rmdir()
    with pytest.raises(Stopped, match="the folder is gone"):
        worker.compute(task)


@pytest.mark.parametrize("stage", ["load_case", "prepare", "run", "postprocess"])
@pytest.mark.parametrize(
    "error", [ValueError("no"), MemoryError(), KeyError("x"), OSError(5, "IO")]
)
def test_whatever_a_stage_raises_fails_its_case(
    stage: str, error: Exception, job: Job, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    worker = Worker(job)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, stage, fail)
        entry = worker(case(heads))
    assert (entry.status, entry.outputs) == ("failed", {})
    on_disk = stage == "run" and isinstance(error, OSError)
    assert entry.reason.startswith(str(job.output) if on_disk else type(error).__name__)
    assert list(job.output.iterdir()) == []
    assert worker(case(heads)).status == "done"


def test_bytes_of_a_name_that_are_no_text_are_escaped(job: Job, heads: Path) -> None:
    """A file system holds any bytes; records, lists and terminals hold text."""
    folder = job.output.parent / b"f\xff".decode("utf-8", "surrogateescape")
    folder.symlink_to(heads / "imagesTr")
    files = (folder / f"head_001_{channel}.nii.gz" for channel in ("0000", "0001"))
    given = Case("a", tuple(Channel(file) for file in files))
    worker = Worker(job)
    entry = worker(given)
    assert entry.status == "done", entry.reason
    assert all("f\\xff" in name for name in entry.inputs)
    gone = Case("b", (Channel(folder / "none.nii.gz"), given.channels[1]))
    worker(gone).reason.encode()


def test_volumes_are_counted_in_little_memory() -> None:
    labels = np.zeros((64, 100, 90), np.uint8)
    labels[:, :10], labels[3, 20:30] = 1, 2
    prediction = Prediction(labels, np.zeros((1, *labels.shape), np.float32), np.diag([2, 5, 1, 1]))
    predictor = SimpleNamespace(labels=Labels({"all": (4, 7), "core": (7,)}))
    reference = SimpleNamespace(shape=labels.shape, spacing=prediction.spacing)
    tracemalloc.start()
    found = outputs.found(predictor, prediction, reference)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["volume_ml"] == {"all": 0.01 * (64 * 10 + 10) * 90, "core": 0.01 * 10 * 90}
    assert peak < labels.size / 2
