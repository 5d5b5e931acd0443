"""A run folder: what a training leaves behind, and where."""

from __future__ import annotations

import fcntl
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

from medseg import plugins
from medseg.config import Config, dump
from medseg.errors import ConfigError, DataError
from medseg.files import finite, read_json, sha256, write_json, write_text
from medseg.inference.ensembles import STUDY
from medseg.networks.load_report import LoadReport
from medseg.version import VERSION
from medseg.volumes.dataset import Dataset
from medseg.volumes.split import SplitIds

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What a run has from the study that it is part of.

    Args:
        ids: Who trains and who validates; None: as the config says.
        cache: The folder of preprocessed cases that all its runs share; None: its own.
        spent: CPU seconds that this process spent on other runs before.
    """

    ids: SplitIds | None = None
    cache: Path | None = None
    spent: float = 0.0


ALONE = Part()
"""Of a run that is part of no study."""


class RunFolder:
    """The files of one run. Creating it writes nothing.

    Args:
        path: The folder.
        cache: Where its preprocessed cases lie; None: in it.
    """

    def __init__(self, path: str | Path, cache: Path | None = None) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.model = self.path / "model.safetensors"
        self.last_model = self.path / "last.safetensors"
        self.state = self.path / "last.pt"
        self.state_before = previous(self.state)
        self.log = self.path / "log.jsonl"
        self.curves = self.path / "progress.png"
        self.splits = self.path / "splits.json"
        self.environment = self.path / "environment.json"
        self.pretrained = self.path / "pretrained.json"
        self.fitted = self.path / "fitted.json"
        self.validation = self.path / "validation"
        self.report = self.path / "report.html"
        self.bad_batch = self.path / "bad_batch.safetensors"
        self.cache = self.path / "cache" if cache is None else cache

    @property
    def is_begun(self) -> bool:
        """Whether there is a state to go on from; a kill may leave the one before the last."""
        return self.state.exists() or self.state_before.exists()

    def refuse_another(self, resume: bool) -> None:
        """Keep a run that is here, unless it is to be resumed.

        Raises:
            DataError: The folder holds a run that has a state to resume from.
        """
        if not resume and self.config.exists() and self.is_begun:
            raise DataError(
                self.path, "holds a run already; give --resume to go on with it, or another -o"
            )
        if (self.path / STUDY).exists():
            raise DataError(
                self.path,
                "holds a study, not a run: give --fold, --all-folds or --seeds to go on with it, "
                "or another -o",
            )

    def start(
        self,
        config: Config,
        dataset: Dataset,
        ids: SplitIds,
        pretrained: LoadReport | None,
        fitted: Mapping[str, Any],
    ) -> None:
        """Write what is known before the first step.

        Raises:
            DataError: The folder cannot be written.
        """
        write_json(self.splits, {"train": ids.train, "validation": ids.validation})
        write_json(self.environment, environment(config, dataset))
        if pretrained is not None:
            write_json(self.pretrained, pretrained.as_json())
        if fitted:
            write_json(self.fitted, fitted)
        write_text(self.config, dump(config))  # last: it says that there is a run to resume

    def reopen(self, config: Config, dataset: Dataset, ids: SplitIds) -> None:
        """Check that a run to resume is this one.

        Raises:
            DataError: There is no run here, or its input files or the split have changed since.
            ConfigError: It was started with another config.
        """
        if not self.config.exists():
            raise DataError(self.path, "holds no run to resume; leave --resume out to start one")
        refuse_other_settings(config, self.config)
        self._refuse_other_inputs(_hashes(dataset))
        self.refuse_other_split(ids)

    def refuse_other_split(self, ids: SplitIds) -> None:
        """Check that a run to resume goes on with the cases that it began with.

        Raises:
            DataError: Others train or validate now.
        """
        then = self.split()
        moved = sorted({*then.train} ^ {*ids.train} | {*then.validation} ^ {*ids.validation})
        if moved:
            raise DataError(
                self.splits,
                f"the split has changed since the run was started ({moved[0]!r} and "
                f"{len(moved) - 1} more trained or validated then and do not now, or the other way "
                "round); restore what was there, or start anew with another -o",
            )

    def _refuse_other_inputs(self, now: Mapping[str, str]) -> None:
        then = self.inputs()
        differ = [file for file in {**then, **now} if then.get(file) != now.get(file)]
        if differ:
            what = "new" if differ[0] not in then else "changed" if differ[0] in now else "gone"
            raise DataError(
                differ[0],
                f"{what} since the run in {self.path} was started ({len(differ)} such files); "
                "restore what was there, or start anew with another -o",
            )

    def inputs(self) -> dict[str, str]:
        """The hash of every file of its cases when it was started.

        Raises:
            DataError: They cannot be read.
        """
        try:
            return dict(read_json(self.environment)["inputs"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(self.environment, f"says nothing of inputs ({error!r})") from error

    def split(self) -> SplitIds:
        """Who trained and who validates."""
        stored = read_json(self.splits)
        return SplitIds(tuple(stored["train"]), tuple(stored["validation"]))

    def facts(self) -> Record:
        """What a report should tell of the run."""
        known = read_json(self.environment)
        last = (self.records() or [{"step": 0, "seconds": 0.0}])[-1]
        versions = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
        return {
            "Run": str(self.path.resolve()),
            "Steps": last["step"],
            "Seconds": round(last["seconds"]),
            "medseg": known["medseg"],
            "Packages": versions,
            "Platform": known["platform"],
            "Config": self.config.read_text(encoding="utf-8"),
        }

    def records(self) -> list[Record]:
        """The log so far. A line that a crash cut short is left out."""
        return list(_records(self.log))

    def append(self, record: Record) -> None:
        """Add a line to the log; the system has it when this returns. NaN becomes null.

        Raises:
            DataError: It cannot be written.
        """
        line = json.dumps(finite(record), allow_nan=False)
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise DataError(
                self.log,
                f"cannot be written: {error.strerror or error}; mend it, and go on with --resume",
            ) from error

    def rewind(self, step: int) -> None:
        """Drop what the log holds beyond a step."""
        kept = [record for record in self.records() if record["step"] <= step]
        write_text(self.log, "".join(json.dumps(record) + "\n" for record in kept))

    def sweep(self) -> None:
        """Remove what killed processes left half written; only for the one that holds `lock`."""
        for file in self.path.glob(".partial-*"):
            if file.suffix in (self.state.suffix, self.model.suffix):
                file.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second training out of the folder while this one runs.

        Raises:
            DataError: Another process holds it, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise DataError(self.path, f"cannot be written: {error.strerror or error}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(self.path, "another process is training here") from error
            yield


def previous(state: Path) -> Path:
    """Where the state before a state is kept."""
    return state.with_name(f"previous{state.suffix}")


def refuse_other_settings(config: Config, stored: Path) -> None:
    """Check that a config is the one that was stored.

    Raises:
        ConfigError: It differs.
    """
    here, there = _settings(dump(config)), _settings(stored.read_text(encoding="utf-8"))
    for new, old in zip_longest(here, there, fillvalue=""):
        if new != old:
            raise ConfigError(
                f"{stored} was started with another config:\n"
                f"    there: {old}\n    now:   {new}\n"
                "go on with the same settings, or start anew with another -o"
            )


def environment(config: Config, dataset: Dataset) -> Record:
    """Versions, the machine, the plugins and a hash of every input file."""
    packages = ("torch", "monai", "numpy", "scipy", "nibabel", "pydantic", "safetensors")
    return {
        "medseg": VERSION,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "plugins": plugins.provenance(config.plugins),
        "inputs": _hashes(dataset),
    }


def _hashes(dataset: Dataset) -> dict[str, str]:
    return {str(file): sha256(file) for case in dataset.cases for file in case.files}


def _records(path: Path) -> Iterator[Record]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _settings(text: str) -> list[str]:
    """The lines of a config without their comments, and without what no weight depends on."""
    lines = [line.split("  #", maxsplit=1)[0].strip() for line in text.splitlines()]
    return [line for line in lines if not line.startswith(("workers: ", "start_method: "))]
