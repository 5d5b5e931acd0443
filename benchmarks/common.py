"""What the benchmarks share: one run of medseg or of the peer, in a process with one thread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
_PEERS = ("nnunetv2==2.8.1", "SimpleITK")  # MONAI comes with medseg, at the version of constraints
_ONE_THREAD = {
    **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"
}  # fmt: skip


def medseg(config: str, output: Path, *overrides: str) -> dict[str, Any]:
    """Train a shipped config and return its validation summary, with steps and overhead.

    The last weights are scored, not the best: nothing is chosen on the cases that are scored.
    """
    last_only = "train.validate_every=1000000000"
    run(
        "-m",
        "medseg",
        "train",
        "-c",
        CONFIGS / config,
        "-o",
        output,
        "train.threads=1",
        last_only,
        *overrides,
    )
    summary = json.loads((output / "validation" / "summary.json").read_text())
    records = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    steady = [record["outside"] for record in records[1:-1]]
    return {**scores(summary), "steps": records[-1]["step"], "outside": statistics.median(steady)}


def peer(config: str, output: Path, job: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """Train the peer, and score its masks as medseg's are scored."""
    masks = output / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    (output / "job.json").write_text(json.dumps({**job, "output": str(masks)}))
    told = run(HERE / "monai_unet.py", output / "job.json")
    run(
        "-m",
        "medseg",
        "evaluate",
        "-c",
        CONFIGS / config,
        "-i",
        masks,
        "-o",
        output / "scores",
        *overrides,
    )
    summary = json.loads((output / "scores" / "summary.json").read_text())
    return {**scores(summary), "steps": int(told.split(" steps")[0].split()[-1])}


def run(*words: str | Path, python: Path | None = None) -> str:
    """Run Python (this one, or another) with one thread; return what it printed."""
    done = subprocess.run(
        [str(python or sys.executable), *map(str, words)],
        env=_ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def peer_python(folder: Path) -> Path:
    """The Python of an environment with nnU-Net, MONAI and medseg; made from PyPI if not there."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    probe = [str(python), "-c", "import monai, nnunetv2, SimpleITK"]
    if not python.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        root = HERE.parent
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(root / "constraints.txt")]
        subprocess.run([*pip, "-e", str(root), *_PEERS], check=True)
    return python


def scores(summary: dict[str, Any]) -> dict[str, float]:
    """Mean over the classes of the mean Dice and HD95."""
    classes = summary["classes"].values()
    hd95 = [found["hd95_mm"]["mean"] for found in classes if found["hd95_mm"]["mean"] is not None]
    return {
        "dice": summary["mean_dice"],
        "hd95": statistics.fmean(hd95) if hd95 else float("nan"),
        "worst": min(found["dice"]["min"] for found in classes),
    }


def machine() -> str:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, one thread used, torch {torch.__version__}"
