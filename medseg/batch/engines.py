"""Which engine does a batch: one process, several on this machine, or workers of dask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medseg.batch.dask_cluster import Cluster
from medseg.batch.dask_engine import on_dask
from medseg.batch.pipeline import pipelined
from medseg.batch.pool import pooled
from medseg.batch.run import Start
from medseg.batch.seats import seats
from medseg.errors import MedsegError

Name = Literal["auto", "pipeline", "pool", "dask"]


@dataclass(frozen=True)
class Choice:
    """An engine.

    Args:
        start: Makes it.
        device: Where this process loads the model: where it predicts, or else only looks at it.
    """

    start: Start
    device: str


def choose(
    device: str, *, name: Name = "auto", workers: int | None = None, scheduler: str | None = None
) -> Choice:
    """Choose an engine.

    Args:
        device: As for `seats`; for dask, what each worker calls its device.
        name: "pipeline": this process; "pool": `workers` processes of this machine; "dask":
            `workers` processes, or those of `scheduler`; "auto": dask if there is a scheduler, the
            pool if there are workers or several devices, else the pipeline.
        workers: How many processes; None: one for each device.
        scheduler: The address of a scheduler of dask.

    Raises:
        MedsegError: The options do not go together, or there is no such device.
    """
    if workers is not None and workers < 1:
        raise MedsegError(f"--workers {workers}: 1 or more expected")
    several = "," in device or device == "cuda:all"
    if name == "auto":
        name = "pool" if several or workers is not None else "pipeline"
        name = name if scheduler is None else "dask"
    if name != "dask" and scheduler is not None:
        raise MedsegError(f"--scheduler is for --engine dask, not for {name}: leave one out")
    if name == "dask":
        return _dask(device, several, Cluster(scheduler, workers))
    if name == "pool":
        places = seats(device, workers)
        return Choice(pooled(places), places[0].device)
    if workers is not None or several:
        raise MedsegError(
            "--engine pipeline is one process with one device: leave out --workers and further "
            "devices, or take --engine pool"
        )
    return Choice(pipelined, device)


def _dask(device: str, several: bool, cluster: Cluster) -> Choice:
    if several:
        raise MedsegError(
            f"--device {device}: a worker of dask has one device; start each with its own "
            "CUDA_VISIBLE_DEVICES and say --device cuda, or use the pool, without --engine dask"
        )
    cluster.check()
    # A scheduler is often talked to from a machine without a GPU.
    return Choice(on_dask(cluster), device if cluster.scheduler is None else "cpu")
