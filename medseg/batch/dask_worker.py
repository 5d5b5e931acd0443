"""What runs in a worker of dask: the model is loaded once a process, then comes case after case."""

from __future__ import annotations

from medseg import plugins
from medseg.batch.entry import Entry, whoami
from medseg.batch.job import Job, Worker
from medseg.batch.pool_worker import load
from medseg.errors import MedsegError
from medseg.version import VERSION
from medseg.volumes.dataset import Case

_loaded: dict[Job, Worker] = {}
_plugins: dict[str, list[str]] = {}  # what was imported, by reference


def version() -> str:
    """The version of medseg here."""
    return VERSION


def prepare(job: Job, threads: int) -> str:
    """Load the model, and see that it and the output folder are those of the run.

    Returns:
        Who this is: host-pid.

    Raises:
        MedsegError: The model is not here or is another, or the output folder is, or a plugin has
            changed since it was imported.
    """
    _worker(job, threads)
    return whoami()


def predict(job: Job, threads: int, case: Case) -> Entry:
    """Do a case.

    Raises:
        Stopped: This worker can do no other either: it has lost a folder.
    """
    return _worker(job, threads)(case)


def _worker(job: Job, threads: int) -> Worker:
    import torch

    torch.set_num_threads(threads)  # for this thread of dask's; another may have the next case
    if job not in _loaded:
        _loaded.clear()
        worker = load(job, threads)
        for reference in worker.predictor.config.plugins:
            _refuse_changed(reference)
        _loaded[job] = worker
    return _loaded[job]


def _refuse_changed(reference: str) -> None:
    """A process imports a plugin once, and a cluster may outlive many edits of it."""
    now = plugins.fingerprint([reference])
    if _plugins.setdefault(reference, now) != now:
        raise MedsegError(
            f"plugin {reference} has changed since this worker imported it: restart the workers"
        )
