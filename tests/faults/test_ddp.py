"""Training in several processes: exact, and whole when one of them is killed.

Each test shares what few runs these are, for a run starts several processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medseg.config import load
from medseg.training import loop
from medseg.training.run import RunFolder

pytestmark = pytest.mark.slow

STEPS = 30
EXACT: dict[str, Any] = {
    "train.batch": 1,
    "train.budget": {"steps": STEPS},
    "train.save_every": 3,
    "train.validate_every": 15,
    "train.validation_cases": 2,
    "train.workers": 1,
    # Running statistics and the random numbers of a dropout have to come back too.
    "model": {
        "network": {
            "name": "monai",
            "net": "UNet",
            "options": {"channels": [4, 8], "strides": [2], "dropout": 0.2, "norm": "batch"},
        }
    },
}
PLAIN: dict[str, Any] = {  # nothing random but patches, and each is its own in the network
    "train.budget": {"steps": 6},
    "train.validate_every": 6,
    "train.optimiser": "sgd",
    "train.lr": 0.05,
    "train.clip": 1.0,
    "train.ema": 0.5,
    "augment": {"affine": 0, "brightness": 0, "contrast": 0, "noise_probability": 0},
    "loss": {"name": "cross_entropy"},
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
ONE_NODE = ("--standalone", "--nproc-per-node", "2")


def started(recipe: Path, run: Path, *options: str, launch: tuple[str, ...] = ONE_NODE) -> Any:
    """Start torchrun; its output is both streams."""
    words = ("-m", "medseg", "train", "-c", str(recipe), "-o", str(run), "--device", "cpu")
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launch, *words, *options],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: Any) -> tuple[int, str]:
    """Wait until it and all that it started are gone; its exit code and all that was said."""
    with process:
        try:
            said, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        return process.returncode, said


def weights(run: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / name)


def equal(run: Path, other: Path, name: str) -> bool:
    ours, theirs = weights(run, name), weights(other, name)
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def workers_of(agent: int) -> list[int]:
    """The processes that an agent of torchrun has started."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(n) for n in children if b"medseg" in Path(f"/proc/{n}/cmdline").read_bytes()]


def saved(run: Path) -> dict[str, Any]:
    """The state from which a run would go on."""
    files = [file for file in (run / "last.pt", run / "previous.pt") if file.exists()]
    values: dict[str, Any] = torch.load(files[0], weights_only=True)
    return values


@pytest.fixture(scope="module")
def exact(recipe: Callable[..., Path]) -> Path:
    return recipe(**EXACT)


@pytest.fixture(scope="module")
def whole(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes of one machine."""
    run = tmp_path_factory.mktemp("ddp") / "whole"
    code, said = ended(started(exact, run))
    assert code == 0, said
    assert said.count("Report") == said.count("validation, mean Dice") == 1, said
    return run


@pytest.fixture(scope="module")
def broken(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A run of two machines, one process on each, of which the second is killed; what was said."""
    run = tmp_path_factory.mktemp("ddp") / "broken"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
               "--master-port", port)  # fmt: skip
    agents = [started(exact, run, launch=(*meeting, "--node-rank", rank)) for rank in "01"]
    try:
        start = time.monotonic()
        while not (run / "last.pt").exists():
            assert time.monotonic() - start < 300
            assert all(agent.poll() is None for agent in agents)
            time.sleep(0.002)
        (victim,) = workers_of(agents[1].pid)
        os.kill(victim, signal.SIGKILL)
        (code, said), (other, _) = (
            ended(agents[0]),
            ended(agents[1]),
        )  # data workers, too, or it hangs
    finally:
        for agent in agents:
            agent.kill()
    assert code != 0
    assert other != 0
    yield run, said


@pytest.fixture
def interrupted(broken: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the run that lost a process."""
    return shutil.copytree(broken[0], tmp_path / "run")


def test_a_killed_process_ends_all_with_one_error(broken: tuple[Path, str]) -> None:
    run, said = broken
    assert said.count("error: another process of this training is gone") == 1, said
    assert "--resume goes on from the last state" in said
    assert saved(run)["step"] < STEPS
    assert not list(run.glob("*.partial*"))
    assert all(json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())


def test_it_goes_on_as_if_nothing_had_happened(exact: Path, whole: Path, interrupted: Path) -> None:
    """Two machines or one, interrupted or not: the same two processes, the same weights."""
    code, said = ended(started(exact, interrupted, "--resume"))
    assert code == 0, said
    for name in ("last.safetensors", "model.safetensors"):
        assert equal(interrupted, whole, name)
    ours, theirs = RunFolder(interrupted).records(), RunFolder(whole).records()
    told = [[(r["step"], r["lr"], r.get("validation")) for r in log] for log in (ours, theirs)]
    assert told[0] == told[1]
    assert (interrupted / "report.html").exists()


def test_another_number_of_processes_goes_on(exact: Path, interrupted: Path) -> None:
    before = saved(interrupted)
    assert before["batches"] == 2 * before["step"]
    loop.train(load(exact), interrupted, device="cpu", resume=True, quiet=True)
    after = saved(interrupted)
    assert after["step"] == STEPS
    assert after["batches"] == before["batches"] + STEPS - before["step"]  # none twice, none left
    assert all(weight.isfinite().all() for weight in weights(interrupted).values())


def test_two_processes_take_the_steps_of_one(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Two with a patch each, as one with both, where a patch knows nothing of its neighbours."""
    pair, one = (recipe(**PLAIN, **{"train.batch": n}) for n in (1, 2))
    process = started(pair, tmp_path / "pair")
    loop.train(load(one), tmp_path / "one", device="cpu", quiet=True)
    code, said = ended(process)
    assert code == 0, said
    ours, theirs = weights(tmp_path / "pair"), weights(tmp_path / "one")
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6)
    first = RunFolder(tmp_path / "one").records(), RunFolder(tmp_path / "pair").records()
    losses = [records[-1]["loss"] for records in first]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the mean of both, not the first's


def test_bad_data_are_told_once(recipe: Callable[..., Path], heads: Path, tmp_path: Path) -> None:
    data = shutil.copytree(heads, tmp_path / "data")
    (data / "labelsTr" / "head_002.nii.gz").write_bytes(b"nothing")
    path = recipe(**PLAIN, **{"data.path": str(data)})
    code, said = ended(started(path, tmp_path / "run"))
    assert code != 0
    assert said.count("head_002.nii.gz") == said.count("error: ") == 1, said
    # Once, on a starved machine, torch aborted a process that was leaving, its error already told.
    assert "exitcode  : 2" in said or "SIGABRT" in said, said
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert yaml.safe_load(path.read_text())["data"]["path"] == str(data)
