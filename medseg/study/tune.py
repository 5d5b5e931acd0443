"""Tune a postprocessor of a run, a study or an ensemble, on models that have not seen the cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medseg.errors import DataError
from medseg.inference import ensembles
from medseg.inference.ensembles import Ensemble, Member
from medseg.networks.checkpoint import Tuned, load, set_tuned
from medseg.study import heldout
from medseg.training.run import RunFolder
from medseg.tuning.result import Result
from medseg.tuning.run import HeldOut, Request
from medseg.tuning.run import tune as tune_cases
from medseg.volumes import cases


@dataclass(frozen=True)
class Target:
    """What is tuned.

    Args:
        ensemble: Its models; of a run, the one.
        keep: Puts the result where prediction finds it.
        folder: For what the tuning tells.
    """

    ensemble: Ensemble
    keep: Callable[[Tuned], None]
    folder: Path

    @classmethod
    def find(cls, model: str | Path) -> Target:
        """A run folder, a study folder, or an `ensemble.json`.

        Of a study the result goes into the model of every run; of an `ensemble.json`, into it.

        Raises:
            DataError: It is none of these, or not complete.
        """
        path = Path(model)
        if not path.exists():
            raise DataError(path, "not a readable model (no such file or folder)")
        source = ensembles.find(path)
        if source.path.name == ensembles.MODEL and path.is_dir():
            member = Member(source.path, 1.0, "", ".")
            keep = partial(set_tuned, source.path)
            return cls(Ensemble((member,)), keep, folder_of(path))
        if source.path.suffix != ".json":
            raise DataError(path, "a run folder is needed: it says which cases did not train")
        found = ensembles.read(source.path)
        if path.is_dir():
            return cls(found, partial(_keep_in_all, source.models), folder_of(path))
        return cls(found, partial(ensembles.set_tuned, source.path), folder_of(path))


def folder_of(model: str | Path) -> Path:
    """Where the results of a tuning lie: `tuning` in a folder, `NAME_tuning` beside a file."""
    path = Path(model)
    return path.with_name(f"{path.stem}_tuning") if path.suffix == ".json" else path / "tuning"


def tune(
    model: str | Path,
    request: Request,
    *,
    device: str = "auto",
    plugins: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Result:
    """Tune a postprocessor; see `medseg.tuning.run.tune`.

    Args:
        model: A run folder, a study folder or an `ensemble.json`.
        request: What to tune.
        device: "auto", "cpu", "cuda" or "cuda:N".
        plugins: Plugins that the models need and that are not installed.
        overrides: Settings instead of the models' own, e.g. `data.path=elsewhere`.

    Raises:
        MedsegError: As of `Target.find`, `heldout.divide` and `tuning.run.tune`.
    """
    target = Target.find(model)
    members, tuned = target.ensemble.members, target.ensemble.tuned
    first = load(members[0].model, plugins, overrides)
    validated = {i for m in members for i in RunFolder(m.model.parent).split().validation}
    found = heldout.divide(members, cases.find(first.config.data).only(validated).cases)
    if not found.groups:
        raise DataError(model, "of no case every run has a model that has not seen it")
    parts = [
        HeldOut(
            partial(
                heldout.predictor, group.members, tuned,
                device=device, plugins=plugins, overrides=overrides,
            ),
            group.cases,
        )
        for group in found.groups
    ]  # fmt: skip
    return tune_cases(parts, target.keep, target.folder, request)


def _keep_in_all(models: Sequence[Path], tuned: Tuned) -> None:
    for model in models:
        set_tuned(model, tuned)
