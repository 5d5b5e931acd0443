"""Several processes on one machine: what ends one of them costs one case, by name, or none."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medseg.batch.entry import Entry
from medseg.batch.job import Job, Worker
from medseg.batch.place import Stopped
from medseg.batch.pool import pooled
from medseg.batch.seats import Seat
from medseg.errors import MedsegError

pytestmark = pytest.mark.slow

Masks = Callable[[Job], dict[str, bytes]]
SEAT = Seat("cpu", 1)
ALWAYS = 99


@pytest.fixture(autouse=True)
def no_one_is_left() -> Iterator[None]:
    """Neither an orphan nor a zombie stays, whatever a test does."""
    yield
    assert not [child for child in children() if child[2] == "Z"]
    assert not multiprocessing.active_children()


def children() -> list[list[str]]:
    """The processes that this one has started: id, name, state, parent."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found.append(file.read_text().split()[:4])
    return [child for child in found if child[3] == str(os.getpid())]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine(job: Job, workers: int = 2) -> Any:
    return pooled((SEAT,) * workers)(SimpleNamespace(job=job), lambda *_: None)  # type: ignore[arg-type]


def run(job: Job, cases: Any, workers: int = 2) -> dict[str, Entry]:
    return {entry.id: entry for entry in engine(job, workers)(cases)}


def states(entries: dict[str, Entry]) -> dict[str, str]:
    return {name: entries[name].status for name in sorted(entries)}


def test_one_or_two_workers_make_what_this_process_makes(
    lab: Any, masks: Masks, one_thread: None
) -> None:
    cases, here = lab.cases(5), lab.job(output="here")
    assert [Worker(here)(case).status for case in cases] == ["done"] * 5
    expected = masks(here)
    assert len(set(expected.values())) == 5
    for workers in (1, 2):
        job = lab.job(output=f"{workers}")
        entries = run(job, cases, workers)
        assert states(entries) == dict.fromkeys("abcde", "done")
        assert masks(job) == expected
        pids = {entry.worker.rsplit("-", 1)[1] for entry in entries.values()}
        assert len(pids) <= workers
        assert str(os.getpid()) not in pids


def test_cases_that_end_their_worker_are_named_and_all_others_done(lab: Any, masks: Masks) -> None:
    """One always, one always and by itself, and one that does well where it has all the memory."""
    cases = lab.cases(5, 0, 1, 3)
    before = lab.job((9, 0), (9, 0), (9, 0))
    work = Worker(before)
    assert [work(case).status for case in cases] == ["done"] * 5
    for note in lab.notes.iterdir():
        note.unlink()
    job = lab.job((signal.SIGKILL, ALWAYS), (-7, ALWAYS), (signal.SIGKILL, 1))
    entries = run(job, cases)
    assert states(entries) == {"a": "failed", "b": "failed", "c": "done", "d": "done", "e": "done"}
    assert "killed by signal 9: out of memory?" in entries["a"].reason
    assert "ended with exit code 7" in entries["b"].reason
    assert set(list(entries)[-3:]) == {"a", "b", "d"}  # tried again after all others
    for far in (1, 2, 3):
        assert len(set(lab.pids(far))) == len(lab.pids(far)) == 2
    assert sorted(masks(job)) == ["c.nii.gz", "d.nii.gz", "e.nii.gz"]  # none of before
    assert sorted(file.name for file in job.output.glob("*.json")) == ["c.json", "d.json", "e.json"]


def test_workers_killed_from_outside_cost_no_case(lab: Any) -> None:
    """One in the midst of a case, and one that has just given its case back."""
    entries = {}

    def kill() -> None:
        while not lab.pids(1):
            time.sleep(0.05)
        os.kill(lab.pids(1)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    with closing(engine(lab.job((0, 1)))(lab.cases(4, 0))) as work:
        for entry in work:
            entries[entry.id] = entry
            if len(entries) == 1:
                os.kill(int(entry.worker.rsplit("-", 1)[1]), signal.SIGKILL)
                killer.start()
    killer.join()
    assert states(entries) == dict.fromkeys("abcd", "done")


def test_a_model_that_cannot_be_loaded_is_an_error_of_the_run(lab: Any) -> None:
    job = replace(lab.job(), models=(lab.folder / "none.safetensors",))
    with pytest.raises(MedsegError, match=r"none\.safetensors"):
        run(job, lab.cases(3), 1)


def test_a_model_that_vanishes_in_mid_run_stops_it_and_takes_nothing_back(lab: Any) -> None:
    """Whoever replaces a worker that was killed cannot start: a run that stopped, no wrong one."""
    model = lab.folder / "mine.safetensors"
    shutil.copy(lab.job().models[0], model)
    entries, job = {}, replace(lab.job(), models=(model,))
    with (
        pytest.warns(UserWarning, match=r"given up.*mine\.safetensors"),
        pytest.raises(Stopped, match=r"no worker is left: .*mine\.safetensors"),
        closing(engine(job, 1)(lab.cases(3))) as work,
    ):
        for entry in work:
            entries[entry.id] = entry
            model.unlink(missing_ok=True)
            os.kill(int(entry.worker.rsplit("-", 1)[1]), signal.SIGKILL)
    assert states(entries) == {"a": "done"}


def test_workers_that_die_as_they_start_are_not_started_for_ever(lab: Any) -> None:
    lab.plugin.write_text("import os\nos._exit(3)\n")
    with (
        pytest.warns(UserWarning, match="given up, it ended 2 times without a case"),
        pytest.raises(MedsegError, match="no worker could start: ended with exit code 3"),
    ):
        run(lab.job(), lab.cases(2), 1)


def test_an_output_folder_that_vanishes_stops_the_run(lab: Any) -> None:
    job, seen = lab.job(), []
    with pytest.raises(Stopped, match="the folder is gone"):
        for entry in engine(job, 1)(lab.cases(6)):
            seen.append(entry.id)
            if len(seen) == 1:
                job.output.rename(lab.folder / "gone")
    assert len(seen) < 6


def test_an_interrupt_ends_a_case_that_would_take_a_minute(lab: Any) -> None:
    job = lab.job((0, ALWAYS))
    work = engine(job, 1)(lab.cases(1, 0))

    def interrupt() -> None:
        while not lab.pids(1):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        next(work)
    assert not multiprocessing.active_children()
    assert not list(job.output.iterdir())  # nor a partial file


ORPHAN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from medseg.batch.job import Job
from medseg.batch.pool import pooled
from medseg.batch.seats import Seat
from medseg.volumes.dataset import Case, Channel

if __name__ == "__main__":
    model, output, plugin, override, *files = sys.argv[1:]
    job = Job((Path(model),), Path(output), device="cpu", plugins=(plugin,), overrides=(override,))
    case = Case("a", tuple(Channel(Path(file)) for file in files))
    start = pooled((Seat("cpu", 1),))
    list(start(SimpleNamespace(job=job), print)([case]))
"""


def test_a_worker_ends_with_its_parent(lab: Any, tmp_path: Path) -> None:
    script, job = tmp_path / "run.py", lab.job((0, ALWAYS))
    script.write_text(ORPHAN)
    (case,) = lab.cases(1, 0)
    words = (*job.models, job.output, *job.plugins, *job.overrides, *case.files)
    parent = subprocess.Popen([sys.executable, script, *words])
    while not lab.pids(1):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 30
    while Path(f"/proc/{lab.pids(1)[0]}").exists():
        assert time.monotonic() < end, "an orphan"
        time.sleep(0.1)
    assert not list(job.output.iterdir())


def test_the_command_line_names_the_case_and_exits_with_3(
    lab: Any, cli: Callable[..., tuple[int, str]]
) -> None:
    lab.cases(2, 0)
    job = lab.job((signal.SIGKILL, ALWAYS))
    code, said = cli(
        "predict", "-m", *job.models, "-i", lab.folder / "in", "-o", job.output, "--device", "cpu",
        "--workers", "1", "--plugin", *job.plugins, *job.overrides,
    )  # fmt: skip
    assert code == 3
    assert "1 predicted, 0 were up to date, 1 failed" in said
    assert "failed: a: 2 workers ended over this case" in said
    assert "killed by signal 9" in (job.output / "failures.csv").read_text()
    code, said = cli("predict", "-m", *job.models, "-i", lab.folder / "in", "-o", job.output,
                     "--workers", "1", "--device", "cpu,cpu")  # fmt: skip
    assert code == 2
    assert "a device comes twice" in said
