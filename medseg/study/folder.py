"""A study folder: several runs of one config, the split that they share, and what came of them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg.config import Config, dump
from medseg.console import track
from medseg.errors import ConfigError, DataError
from medseg.files import read_json, write_json, write_text
from medseg.inference.ensembles import ENSEMBLE, STUDY
from medseg.training.run import RunFolder, refuse_other_settings
from medseg.version import VERSION
from medseg.volumes import cases
from medseg.volumes.check import check_cases
from medseg.volumes.split import Folds, SplitIds, chosen, draw, given
from medseg.volumes.stratify import strata

_FORMAT = 1


@dataclass(frozen=True)
class Place:
    """Which run of a study.

    Args:
        fold: The fold that validates; None: the study has one split alone.
        seed: Its seed; None: the config's.
    """

    fold: int | None
    seed: int | None

    @property
    def name(self) -> str:
        """Its folder, relative to the study's."""
        parts = {"fold": self.fold, "seed": self.seed}
        return "/".join(f"{key}_{n}" for key, n in parts.items() if n is not None)


class Study:
    """The files of a study. Creating it writes nothing.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.about = self.path / STUDY
        self.config = self.path / "config.yaml"
        self.splits = self.path / "splits.json"
        self.cache = self.path / "cache"
        self.oof = self.path / "oof"
        self.report = self.path / "report.html"
        self.ensemble = self.path / ENSEMBLE

    def begin(
        self, config: Config, *, has_folds: bool, seeds: int | None, quiet: bool = False
    ) -> None:
        """Write what all runs share, or see that it is what they began with.

        A study of which no run has begun binds to nothing: it is written anew.

        Args:
            config: Of all runs; its own fold does not matter where there are folds.
            has_folds: Whether each run has a fold.
            seeds: How many seeds there are, from the config's on; None: its own alone.
            quiet: Show no progress.

        Raises:
            ConfigError: The study was begun with another config, or has no folds.
            DataError: Something else is in the folder, or the cases or the split have changed.
        """
        if not self.about.exists() and RunFolder(self.path).environment.exists():
            raise DataError(
                self.path, "holds a run, and a study needs a folder of its own: give another -o"
            )
        found = None if seeds is None else list(range(config.seed, config.seed + seeds))
        with self.lock():
            if self.about.exists() and self._has_runs():
                self._reopen(config, has_folds, found)
            else:
                self._start(config, has_folds, found, quiet)

    def _start(self, config: Config, has_folds: bool, seeds: list[int] | None, quiet: bool) -> None:
        split = _drawn(config, has_folds, quiet)
        self.about.unlink(missing_ok=True)
        write_json(self.splits, {**asdict(split), "seed": config.seed})
        write_text(self.config, dump(_normal(config, has_folds)))
        about: dict[str, Any] = {
            "format": _FORMAT,
            "medseg": VERSION,
            "folds": None,
            "seeds": seeds,
        }
        if isinstance(split, Folds):
            about["folds"] = len(split.folds)
        write_json(self.about, about)  # last: it says that there is a study

    def _reopen(self, config: Config, has_folds: bool, seeds: list[int] | None) -> None:
        refuse_other_settings(_normal(config, has_folds), self.config)
        about = self._about()
        if has_folds != (about["folds"] is not None) or (seeds is None) != (about["seeds"] is None):
            kinds = {"folds": about["folds"], "seeds": about["seeds"]}
            there = " and ".join(key for key, value in kinds.items() if value is not None)
            raise DataError(
                self.path, f"holds a study of {there}: ask for the same again, or give another -o"
            )
        self._refuse_other_cases(config)
        if seeds is not None and len(seeds) > len(about["seeds"]):
            write_json(self.about, {**about, "seeds": seeds})

    def _refuse_other_cases(self, config: Config) -> None:
        """Refuse a split that no longer is what the config gives, as far as names can tell."""
        dataset = cases.find(cases.resolve(config.data))
        split, now = self.split(), given(dataset, config.data.split)
        if isinstance(split, SplitIds) and isinstance(now, Folds):
            now = chosen(now, config.data.split)
        if now is None and {*split.ids} == {case.id for case in dataset.cases}:
            return
        if now != split:
            raise DataError(
                self.splits,
                "the cases or the split have changed since the study began: its runs could no "
                "longer be compared; restore what was there, or give another -o",
            )

    def split(self) -> Folds | SplitIds:
        """The split that all runs share.

        Raises:
            DataError: It cannot be read.
        """
        stored = read_json(self.splits)
        try:
            if "folds" in stored:
                return Folds(tuple(map(tuple, stored["folds"])))
            return SplitIds(tuple(stored["train"]), tuple(stored["validation"]))
        except (KeyError, TypeError) as error:
            raise DataError(self.splits, f"not a readable split ({error!r})") from error

    def places(self) -> list[Place]:
        """Every run of the study, fold by fold, whether it has been trained or not."""
        about = self._about()
        folds: list[int | None] = [None] if about["folds"] is None else [*range(about["folds"])]
        seeds: list[int | None] = [None] if about["seeds"] is None else about["seeds"]
        return [Place(fold, seed) for fold in folds for seed in seeds]

    def run(self, place: Place) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.path / place.name, self.cache)

    def config_of(self, config: Config, place: Place) -> Config:
        """The config of a run."""
        split = self.split()
        if place.seed is not None:
            config = config.model_copy(update={"seed": place.seed})
        if place.fold is None or not isinstance(split, Folds):
            return config
        update = {"fold": place.fold, "folds": len(split.folds)}
        settings = config.data.split.model_copy(update=update)
        data = config.data.model_copy(update={"split": settings})
        return config.model_copy(update={"data": data})

    def ids(self, place: Place) -> SplitIds:
        """Who trains and who validates in a run."""
        split = self.split()
        return split if isinstance(split, SplitIds) else split.split(place.fold or 0)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait until no other process does what one alone may do here.

        Raises:
            DataError: The folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".study.lock").open("w")
        except OSError as error:
            raise DataError(self.path, f"cannot be written: {error.strerror or error}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _has_runs(self) -> bool:
        """Whether one has begun."""
        return any(self.run(place).config.exists() for place in self.places())

    def _about(self) -> dict[str, Any]:
        about = read_json(self.about)
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise DataError(self.about, f"not a study of medseg {VERSION}")
        return about


def _drawn(config: Config, has_folds: bool, quiet: bool) -> Folds | SplitIds:
    """The folds, or the one split of the config's fold; what is wrong with the cases is told.

    Raises:
        ConfigError: Folds are asked for, and the split file has none.
        DataError: A case cannot be used, or the split does not fit.
        DataErrors: Several things are wrong.
    """
    settings, dataset = config.data.split, cases.find(cases.resolve(config.data))
    found = given(dataset, settings)
    if found is None:
        with track("Check", len(dataset.cases), quiet=quiet) as tick:
            report = check_cases(dataset, need_labels=True, progress=tick)
        report.raise_problems()
        known = strata(report, dataset.labels)
        found = draw(dataset, settings.folds, config.seed, known)
    if not has_folds:
        return chosen(found, settings)
    if isinstance(found, SplitIds):
        raise ConfigError(
            f"data.split.file: {settings.file} says who trains and who validates, and so there are "
            'no folds: give a file {"folds": [[ids], [ids], ...]}, or data.split.file=null to draw '
            "them, or leave out --fold and --all-folds",
            ("data", "split", "file"),
        )
    return found


def _normal(config: Config, has_folds: bool) -> Config:
    """The config as all runs of a study share it."""
    if not has_folds:
        return config
    split = config.data.split.model_copy(update={"fold": 0})
    return config.model_copy(update={"data": config.data.model_copy(update={"split": split})})
