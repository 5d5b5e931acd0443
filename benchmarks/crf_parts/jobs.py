"""What is measured: each job is one call of a CRF in a fresh process with one thread for BLAS."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PINNED = ("numpy==2.4.6", "pydensecrf2==1.1")  # built from source: a C++ compiler is needed
DEVIATIONS = {"sd 15": (15.0, 15.0), "narrow": (4.5, 3.5), "sd 40": (40.0, 40.0)}
"""Of the intensities of Flair and T1c, of 254; narrow is DeepMedic's example."""
_ONE_THREAD = {
    **os.environ,
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True)
class Method:
    """A CRF and how it is called.

    Args:
        name: In tables.
        worker: The script.
        options: What it takes beside the parameters, which all share.
    """

    name: str
    worker: str = "ours.py"
    options: dict[str, Any] = field(default_factory=dict, hash=False)


def ours(accuracy: str, threads: int = 1, **options: Any) -> Method:
    """Medseg's CRF in numba."""
    told = f"medseg {accuracy}" + (f", {threads} threads" if threads > 1 else "")
    return Method(told, options={"accuracy": accuracy, "threads": threads, **options})


PAIR, TWO, FAST, HIGH = ours("pair"), ours("pair", 2), ours("fast"), ours("high")
ALL = Method("pydensecrf2, all voxels", "peer.py", {"voxels": "all"})
BRAIN = Method("pydensecrf2, brain voxels", "peer.py", {"voxels": "brain"})
EXACT = ours("exact")


def torch_method(device: str) -> Method:
    """Medseg's CRF in torch."""
    return Method(f"medseg torch, {device}", options={"engine": "torch", "device": device})


def monai(device: str) -> Method:
    """MONAI's."""
    return Method(f"MONAI, {device}", "monai_crf.py", {"device": device})


@dataclass(frozen=True)
class Job:
    """One call.

    Args:
        method: Who.
        part: "full" or "border".
        classes: Of the probabilities.
        deviations: A name in `DEVIATIONS`.
    """

    method: Method
    part: str
    classes: int
    deviations: str

    def told(self, **more: Any) -> dict[str, Any]:
        """What a result begins with."""
        about = {"classes": self.classes, "deviations": self.deviations}
        return {"method": self.method.name, **about, **more}


@dataclass(frozen=True)
class Bench:
    """Where jobs run.

    Args:
        inputs: Folder with full/, border/ and warm/.
        pythons: By worker; those not named run in this one.
    """

    inputs: Path
    pythons: dict[str, Path]

    def run(self, job: Job, marginals: Path | None = None, **environment: str) -> dict[str, Any]:
        """Do a job in a process of its own.

        Raises:
            JobError: The worker failed.
        """
        method = job.method
        told = {
            "inputs": str(self.inputs),
            "part": job.part,
            "classes": job.classes,
            "parameters": parameters(job.deviations),
            "options": method.options,
            "marginals": None if marginals is None else str(marginals),
        }
        python = self.pythons.get(method.worker, Path(sys.executable))
        done = subprocess.run(
            [str(python), str(HERE / method.worker), json.dumps(told)],
            env={**_ONE_THREAD, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise JobError(done.stderr.strip() or f"{method.worker}: exit {done.returncode}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def compile_seconds(self, classes: int) -> float:
        """What the first call ever takes, beyond any other: numba compiles, and keeps it."""
        job = Job(PAIR, "warm", classes, "sd 15")
        with tempfile.TemporaryDirectory() as empty:
            cold = self.run(job, NUMBA_CACHE_DIR=empty)
            warm = self.run(job, NUMBA_CACHE_DIR=empty)
        return float(cold["first_call_s"] - warm["first_call_s"])

    def exact(self, job: Job, cache: Path) -> Path:
        """The marginals of brute force on the same input, from the cache if they are there."""
        truth = replace(job, method=EXACT)
        digest = hashlib.sha256(json.dumps(parameters(job.deviations)).encode())
        for name in ("image", "brain", f"p{job.classes}"):
            digest.update((self.inputs / job.part / f"{name}.npy").read_bytes())
        file = cache / f"exact-{digest.hexdigest()[:16]}.npy"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".part.npy")
            self.run(truth, unfinished)
            unfinished.rename(file)
        return file


class JobError(RuntimeError):
    """A worker failed; the message is what it said."""


def parameters(deviations: str) -> dict[str, Any]:
    """In voxels and 0..254, as the peer and `from_deepmedic` take them."""
    return {
        "positions": (3.0, 3.0, 3.0),
        "bilateral": (17.0, 12.0, 10.0),
        "intensities": DEVIATIONS[deviations],
        "weights": (3.0, 5.0),
        "iterations": 5,
    }


def speed(classes: tuple[int, ...], quick: bool) -> Iterator[Job]:
    """Full volumes, both sides; the other accuracies with two classes only."""
    for n in classes:
        for deviations in list(DEVIATIONS)[: 1 if quick else 3 if n == 2 else 2]:
            for method in (PAIR, TWO, ALL, BRAIN, *((FAST, HIGH) if n == 2 else ())):
                yield Job(method, "full", n, deviations)


def accuracy(classes: tuple[int, ...], quick: bool) -> Iterator[Job]:
    """The border of the tumour; more than two classes with one deviation only."""
    for n in classes[: 1 if quick else None]:
        for deviations in list(DEVIATIONS)[: 3 if n == 2 and not quick else 1]:
            for method in (FAST, PAIR, HIGH, BRAIN):
                yield Job(method, "border", n, deviations)


def peer_python(cache: Path) -> Path:
    """The Python of an environment that has the peer; made if it is not there."""
    folder = cache / "peer"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    probe = [str(python), "-c", "import pydensecrf.densecrf"]
    if not python.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINNED], check=True)
    return python


def versions(python: Path) -> list[str]:
    """Of what is pinned, as another Python has it."""
    names = [pinned.partition("==")[0] for pinned in PINNED]
    ask = f"from importlib.metadata import version\nfor n in {names}: print(n, version(n))"
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
