"""Data workers change no weight, and none that dies hangs a training or leaves anything behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medseg.config import load
from medseg.config.train import Train
from medseg.errors import MedsegError
from medseg.training import loop
from medseg.training.workers import watched

Recipe = Callable[..., Path]
LONG = {
    "train.budget": {"steps": 100_000},
    "train.save_every": 2,
    "train.validate_every": 10**6,
    "train.workers": 2,
}
SETTINGS = Train.model_validate(
    {"patch": (8, 8, 8), "budget": {"steps": 1}, "workers": 2}, strict=False
)


def weights(run: Path) -> dict[str, bytes]:
    """The config travels in the file too, and says how many workers there were."""
    tensors = load_file(run / "last.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_any_number_of_workers_of_any_kind_trains_the_same_weights(
    recipe: Recipe, tmp_path: Path
) -> None:
    path = recipe(**{"train.budget": {"steps": 4}, "train.cache": str(tmp_path / "cache")})
    ends = []
    for workers, method in ((0, "fork"), (1, "fork"), (2, "fork"), (2, "forkserver"), (2, "spawn")):
        run = tmp_path / f"{method}{workers}"
        config = load(path, [f"train.workers={workers}", f"train.start_method={method}"])
        loop.train(config, run, device="cpu", quiet=True)
        ends.append(weights(run))
    assert all(end == ends[0] for end in ends[1:])


class Session:
    """A training in a session of its own, whose processes can be told from all others."""

    def __init__(self, config: Path, run: Path) -> None:
        command = [sys.executable, "-m", "medseg", "train", "-c", str(config), "-o", str(run)]
        self.main = subprocess.Popen(
            [*command, "--device", "cpu"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.seen: set[int] = set()
        until(lambda: (run / "last.pt").exists() or self.main.poll() is not None)

    def others(self) -> list[int]:
        """Its processes beside the main one, zombies included."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                _, session = stat.read_text().rsplit(")", 1)[1].split()[2:4]
            except OSError:
                continue
            if int(session) == self.main.pid and int(stat.parent.name) != self.main.pid:
                found.append(int(stat.parent.name))
        self.seen.update(found)
        return found

    def end(self) -> str:
        """Wait for its end; what it said on stderr."""
        return self.main.communicate(timeout=300)[1].decode()

    def left_behind(self) -> list[str]:
        """Blocks of shared memory that its processes made."""
        names = {f"torch_{pid}_" for pid in (*self.seen, self.main.pid)}
        blocks = (block.name for block in Path("/dev/shm").iterdir())
        return [name for name in blocks if name.startswith(tuple(names))]


def until(holds: Callable[[], bool], patience: float = 300) -> None:
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < patience
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "method"),
    [("a worker is killed", "fork"), ("a worker is killed", "forkserver"), ("Ctrl-C", "fork")],
)
def test_however_a_training_ends_its_workers_end_with_it(
    end: str, method: str, recipe: Recipe, tmp_path: Path
) -> None:
    path, run = recipe(**LONG, **{"train.start_method": method}), tmp_path / "run"
    session = Session(path, run)
    try:
        workers = session.others()
        assert len(workers) >= 2, session.main.poll()
        if end == "Ctrl-C":
            os.killpg(session.main.pid, signal.SIGINT)
        else:
            os.kill(max(workers), signal.SIGKILL)
        said = session.end()
        until(lambda: not session.others(), patience=30)
    finally:
        session.main.kill()
    assert session.left_behind() == []
    assert "Traceback" not in said
    if end == "Ctrl-C":
        assert session.main.returncode == 130
        return
    assert session.main.returncode == 2, said
    assert f"a data worker, process {max(workers)}, ended by signal 'Killed'" in said
    assert "memory may have run out" in said
    assert "--resume" in said
    step = int(torch.load(run / "last.pt", weights_only=True)["step"])
    stop_after(step + 2)(path, run)


def stop_after(step: int) -> Callable[[Path, Path], None]:
    """Go on without workers, in this process, up to a step."""

    def resume(path: Path, run: Path) -> None:
        save = loop.State.save

        def counted(self: Any, file: Path) -> None:
            save(self, file)
            if self.step >= step:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.State, "save", counted)
            with pytest.raises(KeyboardInterrupt):
                config = load(path, ["train.workers=0", "train.start_method=spawn"])
                loop.train(config, run, device="cpu", resume=True, quiet=True)

    return resume


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "DataLoader worker (pid 71) is killed by signal: Killed. ",
            r"process 71, ended by signal 'Killed': the machine's memory .*--resume.*\(2 now",
        ),
        (
            "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that ...",
            r"process 71, ended by signal 'Bus error': shared memory may have run out, \d+ MiB of",
        ),
        (
            "DataLoader worker (pid(s) 71, 72) exited unexpectedly",
            r"process 71, 72, ended: what it printed above",
        ),
        (
            "DataLoader worker (pid 71) exited unexpectedly with exit code 1. Details are lost",
            r"process 71, ended with code 1: what it printed above .*__name__",
        ),
    ],
)
def test_a_death_is_told_in_one_message(said: str, told: str) -> None:
    with pytest.raises(MedsegError, match=told), watched(SETTINGS):
        raise RuntimeError(said)


def test_other_errors_go_their_way_and_end_the_stream() -> None:
    ended: list[bool] = []

    def stream() -> Any:
        try:
            yield {}
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="size mismatch"), watched(SETTINGS) as keep:
        next(keep(stream()))
        raise RuntimeError("size mismatch")
    assert ended == [True]
