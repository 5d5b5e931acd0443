"""Which engine is taken, who gets which device and threads, what the end of a process tells."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.batch import dask_engine, engines, pool, pool_worker
from medseg.batch.deaths import Deaths, told
from medseg.batch.engines import choose
from medseg.batch.job import Job
from medseg.batch.pipeline import pipelined
from medseg.batch.seats import Seat, seats
from medseg.errors import DataError, MedsegError
from medseg.volumes.dataset import Case


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 threads with 2 GPUs, as far as names go."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("medseg.batch.seats.pick_device", torch.device)


def test_devices_and_threads_are_shared_out(gpus: None) -> None:
    assert seats("cuda:all") == (Seat("cuda:0", 4), Seat("cuda:1", 4))
    assert seats("cuda:1, cuda:0") == (Seat("cuda:1", 4), Seat("cuda:0", 4))
    assert [seat.device for seat in seats("cuda:all", 3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert seats("cpu", 3) == (Seat("cpu", 2),) * 3
    assert seats("cpu", 100)[0] == Seat("cpu", 1)


@pytest.mark.parametrize(
    "device, workers, said",
    [
        ("cuda:0,cuda:1", 1, r"--workers 1: 2 devices are named \(cuda:0, cuda:1\)"),
        ("cuda:0,cuda:0", None, "a device comes twice"),
    ],
)
def test_seats_that_cannot_be(device: str, workers: int | None, said: str, gpus: None) -> None:
    with pytest.raises(DataError, match=said):
        seats(device, workers)


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DataError, match="--device cuda:all: torch finds no CUDA device"):
        seats("cuda:all")
    with pytest.raises(DataError, match="--device nonsense"):
        seats("cpu,nonsense")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the pool and dask were made of."""
    found: list[Any] = []
    monkeypatch.setattr(engines, "pooled", lambda places: found.append(len(places)))
    monkeypatch.setattr(engines, "on_dask", found.append)
    monkeypatch.setattr("medseg.batch.dask_cluster.imported", lambda: None)
    return found


def test_the_engine_follows_from_the_options(made: list[Any]) -> None:
    assert choose("cpu").start is pipelined
    assert choose("cpu", workers=1).device == "cpu"
    choose("cpu", workers=3)
    choose("cpu", name="pool")
    assert made == [1, 3, 1]
    made.clear()
    assert choose("cuda", scheduler="tcp://a:1").device == "cpu"
    assert choose("cpu", name="dask", workers=2).device == "cpu"
    assert [(cluster.scheduler, cluster.workers) for cluster in made] == [
        ("tcp://a:1", None),
        (None, 2),
    ]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"workers": 0}, "--workers 0: 1 or more"),
        ({"name": "pool", "scheduler": "a"}, "--scheduler is for --engine dask, not for pool"),
        ({"name": "pipeline", "workers": 2}, "--engine pipeline is one process"),
        ({"name": "dask", "scheduler": "a", "workers": 2}, "--workers and --scheduler"),
        ({"name": "dask", "device": "cuda:all"}, "a worker of dask has one device"),
    ],
)
def test_options_that_do_not_go_together(
    options: dict[str, Any], said: str, made: list[Any]
) -> None:
    with pytest.raises(MedsegError, match=said):
        choose(options.pop("device", "cpu"), **options)


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MedsegError, match=r'pip install "medseg\[dask\]"'):
        choose("cpu", name="dask")


@pytest.mark.parametrize(
    "code, said",
    [
        (-signal.SIGKILL, "killed by signal 9: out of memory?"),
        (128 + signal.SIGKILL, "killed by signal 9: out of memory?"),
        (-signal.SIGSEGV, "killed by signal 11: a fault in native code: a library, a driver or a"),
        (128 + signal.SIGTERM, "killed by signal 15: ended from outside?"),
        (-signal.SIGUSR1, "killed by signal 10"),
        (1, "ended with exit code 1: it called exit?"),
        (None, "cut off, though it still runs"),
    ],
)
def test_what_the_end_of_a_process_tells(code: int | None, said: str) -> None:
    assert told(code).startswith(said)


def test_a_case_may_cost_two_workers(tmp_path: Path) -> None:
    deaths, case = Deaths(Job((), tmp_path)), Case("a", ())
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "a.json").touch()
    assert deaths.add(case, "x") is None
    assert deaths.add(Case("b", ()), "x") is None
    assert [again.id for again in deaths.again] == ["a", "b"]
    assert (tmp_path / "a.nii.gz").exists()
    entry = deaths.add(case, "killed by signal 9")
    assert entry is not None
    assert (entry.id, entry.status) == ("a", "failed")
    assert entry.reason.endswith("killed by signal 9")
    assert not list(tmp_path.iterdir())


def test_a_device_that_fails_ends_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some errors CUDA refuses all that a process asks: the next cases would fail, too."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    assert pool_worker._lost(torch.device("cpu")) is None
    monkeypatch.setattr(torch, "zeros", refuse)
    assert pool_worker._lost(torch.device("cpu")) is None
    lost = pool_worker._lost(torch.device("cuda"))
    assert lost == "CUDA error: an illegal memory access was encountered"


class Silent:
    """A process, a channel or a client that does whatever it is asked, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def do(*_: Any, **__: Any) -> Silent:
            self.asked.append(name)
            return self

        return do

    def is_alive(self) -> bool:
        return False


def test_the_pool_tries_again_one_case_at_a_time_and_alone(tmp_path: Path) -> None:
    waiting = [Case(name, ()) for name in "ab"]
    crew = pool._Crew(Job((), tmp_path), seats("cpu", 2), waiting, lambda *_: None)
    hands = [pool._Hand(Silent(), Silent(), n, is_ready=True) for n in (0, 1)]  # type: ignore[arg-type]
    crew._hands = list(hands)
    crew._deaths.again.extend(Case(name, ()) for name in "xy")
    crew._hand_out()
    assert [hand.case for hand in hands] == waiting
    hands[0].case = None
    crew._hand_out()
    assert hands[0].case is None  # the other one is still at work
    hands[1].case = None
    crew._hand_out()
    assert [hand.case for hand in crew._hands] == [Case("x", ())]
    assert "join" in hands[1].process.asked  # type: ignore[attr-defined]


def test_dask_tries_again_one_case_at_a_time(tmp_path: Path) -> None:
    run = dask_engine._Run(Silent(), Job((), tmp_path), [Case("a", ())], lambda *_: None)
    desks = [dask_engine._Seat(f"tcp://{n}", 1, "case") for n in (0, 1)]
    run._seats = {seat.address: seat for seat in desks}
    run._deaths.again.extend(Case(name, ()) for name in "xy")
    run._hand_out()
    assert [seat.case for seat in desks] == [Case("a", ()), None]
    desks[0].case = desks[0].task = None
    run._hand_out()
    assert [seat.case for seat in desks] == [Case("x", ()), None]
