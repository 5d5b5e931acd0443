"""A cluster of dask's: an existing one at its scheduler's address, or one made on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from medseg.errors import MedsegError

CONNECT_S = 15.0
"""How long a scheduler may take to answer, at first and after a loss of connection."""


@dataclass(frozen=True)
class Cluster:
    """Where the workers are.

    Args:
        scheduler: The address of a scheduler, as "tcp://host:8786"; None: a cluster is made here.
        workers: How many processes are made here; None: one.
    """

    scheduler: str | None = None
    workers: int | None = None

    def check(self) -> None:
        """Refuse what cannot work, before a model is loaded.

        Raises:
            MedsegError: dask is not installed, or there are both a scheduler and workers.
        """
        if self.scheduler is not None and self.workers is not None:
            raise MedsegError(
                "--workers and --scheduler: a scheduler has the workers it has; leave one out"
            )
        imported()

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Connect; on leaving, tasks that still run are given up, and a cluster made here ends.

        Raises:
            MedsegError: dask is not installed, or no scheduler answers.
        """
        distributed = imported()
        if self.scheduler is not None:
            with _connected(distributed, self.scheduler) as client:
                yield client
            return
        count = self.workers or 1
        threads = max(1, torch.get_num_threads() // count)
        with distributed.LocalCluster(
            n_workers=count, threads_per_worker=threads, processes=True, memory_limit=None,
            dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
            preload=["medseg.batch.dask_preload"],
        ) as cluster, _connected(distributed, cluster) as client:  # fmt: skip
            yield client


@contextmanager
def _connected(distributed: Any, where: Any) -> Iterator[Any]:
    try:
        client = distributed.Client(where, timeout=CONNECT_S, name="medseg", set_as_default=False)
    except (OSError, ValueError) as error:
        raise MedsegError(
            f"--scheduler {where}: no scheduler answers ({error}); start one with "
            "`dask scheduler`, and give the address that it prints, as tcp://host:8786"
        ) from error
    try:
        yield client
    finally:
        client.close(timeout=CONNECT_S)


def imported() -> Any:
    """Import dask's scheduler and workers.

    Raises:
        MedsegError: They are not installed.
    """
    try:
        import distributed
    except ImportError as error:
        raise MedsegError(
            f'--engine dask needs dask: pip install "medseg[dask]" ({error})'
        ) from error
    return distributed
