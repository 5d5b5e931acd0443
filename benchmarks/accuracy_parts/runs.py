"""The runs: one training of one tool each, how it is made, and what is kept of it."""

from __future__ import annotations

import csv
import hashlib
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from common import CONFIGS, HERE, machine
from common import run as run_python

from accuracy_parts.ablations import ABLATIONS
from accuracy_parts.sets import DataSet, Fold
from medseg.config import dump, load
from medseg.errors import MedsegError

Result = dict[str, Any]
NNUNET = HERE / "accuracy_parts" / "nnunet.py"
_LAST_ONLY = "train.validate_every=1000000000"  # the last weights are scored: nothing is chosen


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        data: What it learns.
        tool: "medseg", "monai" or "nnunet".
        seconds: CPU seconds.
        seed: Of all its random draws.
        fold: Which split.
        change: Name of an ablation; empty: none.
        overrides: Of medseg's config.
    """

    data: DataSet
    tool: str
    seconds: int
    seed: int
    fold: int
    change: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the results; of medseg with a hash of the config: another is another run."""
        words = [self.data.name, self.tool, f"{self.seconds}s", f"seed{self.seed}"]
        words += [f"fold{self.fold}", *([self.change] if self.change else [])]
        if self.tool == "medseg":
            words.append(hashlib.sha256(config(self).encode()).hexdigest()[:12])
        return " ".join(words)


def config(run: Run) -> str:
    """What medseg trains with, as YAML; the place of the data is not in it.

    Raises:
        MedsegError: This version of medseg refuses it.
    """
    return _config(run.data.config, run.overrides, run.seconds, run.seed)


@cache
def _config(name: str, overrides: tuple[str, ...], seconds: int, seed: int) -> str:
    budget = f"train.budget={{cpu_seconds: {seconds}}}"
    return dump(load(CONFIGS / name, [*overrides, budget, f"seed={seed}"]))


def ablated(
    data: DataSet, seconds: int, seeds: Sequence[int], words: Sequence[str]
) -> tuple[list[Run], dict[str, str]]:
    """The runs of the ablations whose name has one of some words in it; why the others are none."""
    runs, left_out = [], {}
    shipped = config(Run(data, "medseg", seconds, 0, 0))
    wanted = [a for a in ABLATIONS if a.data in ("", data.name)]
    for seed in seeds:  # interleaved: a slower hour slows all
        for ablation in wanted:
            if ablation.overrides and not any(word in ablation.name for word in words):
                continue
            run = Run(data, "medseg", seconds, seed, 0, ablation.name, ablation.overrides)
            try:
                changed = config(replace(run, seed=0))
            except MedsegError as error:
                left_out[ablation.name] = f"refused: {str(error).splitlines()[0]}"
                continue
            if ablation.overrides and changed == shipped:
                left_out[ablation.name] = "the config has it so"
                continue
            runs += [
                Run(data, "medseg", seconds, seed, n, ablation.name, ablation.overrides)
                for n in range(len(data.folds))
            ]
    return runs, left_out


def execute(run: Run, work: Path, python: Path | None) -> Result:
    """Train, predict and score; the files are gone afterwards.

    Args:
        run: What to do.
        work: Where nnU-Net's preprocessed cases and the splits stay.
        python: Of an environment that has the peers.
    """
    fold = run.data.folds[run.fold]
    split = fold.store(work / "splits" / f"{run.data.name}-{run.fold}.json")
    where = (f"data.path={run.data.path}", f"data.split.file={split.resolve()}")
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        output = Path(scratch)
        if run.tool == "medseg":
            told, scores = _medseg(run, output, where)
        else:
            assert python is not None
            masks = output / "masks"
            masks.mkdir()
            tool = {"monai": _monai, "nnunet": _nnunet}[run.tool]
            told, scores = tool(run, fold, work, masks, python), output / "scores"
            run_python(
                "-m", "medseg", "evaluate", "-c", CONFIGS / run.data.config, "-i", masks,
                "-o", scores, *where,
            )  # fmt: skip
        found = _scores(scores / "scores.csv")
    missing = {case["id"] for case in fold.validation} - found.keys()
    if missing:
        raise SystemExit(f"{run.key}: no scores of {', '.join(sorted(missing))}")
    return {"key": run.key, **told, "scores": found, "machine": machine()}


def _medseg(run: Run, output: Path, where: Sequence[str]) -> tuple[Result, Path]:
    settings = (*where, *run.overrides, f"seed={run.seed}", "train.threads=1", _LAST_ONLY)
    run_python(
        "-m", "medseg", "train", "-c", CONFIGS / run.data.config, "-o", output / "run",
        *settings, f"train.budget={{cpu_seconds: {run.seconds}}}",
    )  # fmt: skip
    lines = (output / "run" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steady = [record["outside"] for record in records[1:-1] or records]
    told = {
        "steps": records[-1]["step"], "cpu_s": records[-1]["seconds"],
        "outside": statistics.median(steady),
    }  # fmt: skip
    return told, output / "run" / "validation"


def _monai(run: Run, fold: Fold, _work: Path, masks: Path, python: Path) -> Result:
    job = {
        "train": fold.train, "validation": fold.validation, "output": str(masks),
        "classes": 1 + len(run.data.classes), "seconds": run.seconds, "seed": run.seed,
        **run.data.monai,
    }  # fmt: skip
    file = masks.parent / "job.json"
    file.write_text(json.dumps(job))
    told = run_python(HERE / "monai_unet.py", file, python=python)
    return {"steps": int(told.split(" steps")[0].split()[-1]), "cpu_s": run.seconds}


def _nnunet(run: Run, fold: Fold, work: Path, masks: Path, python: Path) -> Result:
    folder = work / "nnunet" / f"{run.data.name}-{run.fold}"
    job = {
        "folder": str(folder.resolve()), "results": str(masks.parent), "output": str(masks),
        "train": fold.train, "validation": fold.validation, "channel": run.data.channel,
        "classes": run.data.classes, "seconds": run.seconds, "seed": run.seed,
    }  # fmt: skip
    file, ready = masks.parent / "job.json", folder / "prepared.json"
    file.write_text(json.dumps(job))
    if not ready.exists():
        told = run_python(NNUNET, "prepare", file, python=python)
        ready.write_text(told.splitlines()[-1])
    trained: Result = json.loads(run_python(NNUNET, "train", file, python=python).splitlines()[-1])
    return {**trained, "prepared": json.loads(ready.read_text())}


def _scores(path: Path) -> dict[str, dict[str, list[float | None]]]:
    """Dice and HD95 in mm (None: no distance) of each case and class."""
    found: dict[str, dict[str, list[float | None]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values = [float(row[name] or "nan") for name in ("dice", "hd95_mm")]
            case = found.setdefault(row["case"], {})
            case[row["class"]] = [round(v, 4) if isfinite(v) else None for v in values]
    return found
