"""Workers of dask: killed, lost, refused; a scheduler that is not there, or is no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medseg.batch import dask_cluster, dask_engine, dask_worker
from medseg.batch.dask_cluster import Cluster
from medseg.batch.dask_engine import on_dask
from medseg.batch.entry import Entry
from medseg.batch.job import Job, Worker
from medseg.batch.place import Stopped
from medseg.errors import MedsegError

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow

Masks = Callable[[Job], dict[str, bytes]]
ALWAYS = 99


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program of dask's; it is ended after the test."""
    running = []

    def start(name: str, *words: str, **environment: str) -> subprocess.Popen[str]:
        module = f"distributed.cli.dask_{name}"
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words, "--no-dashboard"],
            stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def scheduler(program: Callable[..., subprocess.Popen[str]]) -> tuple[str, subprocess.Popen[str]]:
    """A scheduler: its address and process."""
    process = program("scheduler", "--host", "127.0.0.1", "--port", "0")
    assert process.stderr is not None
    for line in process.stderr:
        if "Scheduler at:" in line:
            return line.split()[-1], process
    raise AssertionError("no scheduler")


def engine(job: Job, cluster: Cluster) -> Any:
    return on_dask(cluster)(SimpleNamespace(job=job), lambda *_: None)  # type: ignore[arg-type]


def run(job: Job, cases: Any, cluster: Cluster) -> dict[str, Entry]:
    return {entry.id: entry for entry in engine(job, cluster)(cases)}


def states(entries: dict[str, Entry]) -> dict[str, str]:
    return {name: entries[name].status for name in sorted(entries)}


def test_a_local_cluster_loses_workers_and_no_case_but_the_culprit(lab: Any, masks: Masks) -> None:
    cases, here = lab.cases(6, 0, 3), lab.job((9, 0), (9, 0), output="here")
    work = Worker(here)
    assert [work(case).status for case in cases] == ["done"] * 6
    expected = masks(here)
    for note in lab.notes.iterdir():
        note.unlink()
    job = lab.job((signal.SIGKILL, ALWAYS), (signal.SIGKILL, 1))
    entries = run(job, cases, Cluster(workers=2))
    assert states(entries) == {"a": "failed", **dict.fromkeys("bcdef", "done")}
    assert "2 workers ended over this case" in entries["a"].reason
    assert set(list(entries)[-2:]) == {"a", "d"}
    assert len(set(lab.pids(1))) == len(lab.pids(1)) == 2
    assert len(lab.pids(2)) == 2
    del expected["a.nii.gz"]
    assert masks(job) == expected
    pids = {entry.worker.rsplit("-", 1)[1] for entry in entries.values() if entry.id != "a"}
    assert str(os.getpid()) not in pids


def test_an_existing_cluster_and_a_node_that_is_lost(
    lab: Any, scheduler: Any, program: Any, masks: Masks
) -> None:
    """Two workers without a nanny; one dies in the midst of a case, and no other comes."""
    address, _ = scheduler
    nodes = {}
    for _ in range(2):
        node = program("worker", address, "--no-nanny", "--nthreads", "1")
        nodes[node.pid] = node

    def lose() -> None:
        while not lab.pids(1):
            time.sleep(0.05)
        os.kill(lab.pids(1)[0], signal.SIGKILL)

    threading.Thread(target=lose).start()
    entries = run(lab.job((0, 1)), lab.cases(4, 1), Cluster(address))
    assert states(entries) == dict.fromkeys("abcd", "done")
    assert list(entries)[-1] == "b"
    lost, kept = lab.pids(1)
    assert {lost, kept} == set(nodes)
    assert nodes[lost].wait() == -signal.SIGKILL
    assert nodes[kept].poll() is None  # it is not ours to end


def test_a_scheduler_that_is_lost_stops_the_run(
    lab: Any, scheduler: Any, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 3.0)
    address, process = scheduler
    program("worker", address, "--no-nanny", "--nthreads", "1")
    seen = []
    with pytest.raises(Stopped, match="the scheduler of dask is lost"):
        for entry in engine(lab.job(), Cluster(address))(lab.cases(8)):
            seen.append(entry.id)
            if len(seen) == 1:
                process.kill()
    assert 1 <= len(seen) < 8


def test_no_scheduler_is_an_error_soon(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense:x:1"):
        with pytest.raises(MedsegError, match="no scheduler answers"):
            run(lab.job(), lab.cases(1), Cluster(address))


def test_a_scheduler_without_workers_is_an_error(
    lab: Any, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_engine, "PATIENCE_S", 1.0)
    with pytest.raises(MedsegError, match="no worker for 1 s"):
        run(lab.job(), lab.cases(1), Cluster(scheduler[0]))


def test_a_worker_with_another_version_is_refused_by_name(
    lab: Any, scheduler: Any, program: Any, tmp_path: Path
) -> None:
    address, _ = scheduler
    (tmp_path / "sitecustomize.py").write_text(
        'from medseg import version\nversion.VERSION = "0.0.1"\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    program("worker", address, "--no-nanny", "--nthreads", "1", PYTHONPATH=path)
    with pytest.raises(MedsegError, match=r"worker tcp://127.* refused: medseg 0\.0\.1 is there"):
        run(lab.job(), lab.cases(1), Cluster(address))


def test_a_model_or_folder_that_a_worker_lacks_is_told_with_its_name(lab: Any) -> None:
    job = lab.job()
    gone = replace(job, models=(lab.folder / "none.safetensors",))
    with pytest.raises(MedsegError, match=r"worker tcp://.* refused: .*none\.safetensors"):
        run(gone, lab.cases(1), Cluster(workers=1))


def test_a_worker_that_imported_an_older_plugin_is_refused(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster outlives edits of a plugin; the hash is of the file, the code is of before."""
    monkeypatch.setattr(dask_worker, "_loaded", {})
    monkeypatch.setattr(dask_worker, "_plugins", {})
    assert dask_worker.prepare(lab.job(), 1)
    lab.plugin.write_text(lab.plugin.read_text() + "# edited\n")
    with pytest.raises(MedsegError, match=r"plugin .*fatal\.py has changed.*restart the workers"):
        dask_worker.prepare(lab.job(output="again"), 1)
