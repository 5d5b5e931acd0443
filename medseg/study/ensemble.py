"""`medseg ensemble`: which runs and studies predict best together, and how much each counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from medseg.console import track
from medseg.errors import DataError
from medseg.files import check_writable
from medseg.inference import ensembles
from medseg.inference.ensembles import Ensemble, Member, weights_sha256
from medseg.inference.predictor import Predictor
from medseg.networks.checkpoint import load
from medseg.study import heldout
from medseg.study.select import Choice, choose
from medseg.study.votes import Cases
from medseg.training.run import RunFolder
from medseg.volumes import cases
from medseg.volumes.dataset import IGNORE_INDEX, Case
from medseg.volumes.image import Array

_FEWEST = 2


@dataclass(frozen=True)
class Chosen:
    """What came of it.

    Args:
        path: The file that was written.
        runs: The names of the runs and studies, in the order given.
        choice: How much each counts, and what that is worth.
        cases: The cases that were judged, each by models that have not seen it.
        seen: The others, that a run has trained on: id to that run.
    """

    path: Path
    runs: tuple[str, ...]
    choice: Choice
    cases: tuple[str, ...]
    seen: dict[str, str]


def ensemble(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    device: str = "auto",
    plugins: Sequence[str] = (),
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Chosen:
    """Choose weights for runs and studies, and write the ensemble that they make.

    See docs/cross_validation.md. The file goes where a model goes: to `predict` and `tune`. The
    score is the Dice, mean over classes and cases, of the mean of the probabilities before any
    postprocessing. A case counts only if every run has a model that has not seen it.

    Args:
        runs: Run folders and study folders, of whatever configs with the same channels and classes.
        output: The `ensemble.json`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        plugins: Plugins that the models need and that are not installed.
        overrides: Settings instead of the models' own, e.g. `data.path=elsewhere`.
        quiet: Show no progress.

    Raises:
        DataError: A run is none, or given twice; they differ in channels or classes; or fewer than
            2 cases are left that none of them has trained on; or `output` is there already, and is
            something else or has steps that were tuned.
    """
    output = Path(output)
    if output.suffix != ".json":
        raise DataError(output, "an ensemble's name ends in .json")
    _refuse_to_lose(output)
    members = _members(runs, output)
    firsts = [load(some[0].model, plugins, overrides) for some in members.values()]
    ensembles.check_alike(firsts)
    everyone = tuple(member for some in members.values() for member in some)
    ids = {i for m in everyone for i in RunFolder(m.model.parent).split().validation}
    found = cases.find(firsts[0].config.data).only(ids)
    split = heldout.divide(everyone, [case for case in found.cases if case.label is not None])
    _refuse_few(split, len(ids), output)
    check_writable(output.parent)
    folder = output.with_name(f".{output.stem}-cache")
    judged = Cases(folder, len(members), firsts[0].labels.regions)
    total = sum(len(group.cases) for group in split.groups)
    try:
        with track("Predict", total, quiet=quiet) as tick:
            for group in split.groups:
                some = _predictors(group, list(members), device, plugins, overrides)
                for case in group.cases:
                    _judge(judged, some, case)
                    tick(case.id)
        choice = choose(judged.scores, len(members), total, firsts[0].config.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    chosen = Chosen(output, tuple(members), choice, tuple(judged.ids), split.seen)
    _write(chosen, members)
    return chosen


def _refuse_to_lose(output: Path) -> None:
    """Refuse to write over what is no ensemble, or over what was tuned for one."""
    if not output.exists():
        return
    try:
        found = ensembles.read(output)
    except DataError as error:
        raise DataError(
            output, f"is there already, and {error.reason}: name another by -o"
        ) from error
    if found.tuned:
        names = ", ".join(item.name for item in found.tuned)
        raise DataError(
            output, f"{names} was tuned for it and would be lost: name another by -o, or remove it"
        )


def _members(runs: Sequence[str | Path], output: Path) -> dict[str, tuple[Member, ...]]:
    """The models of each run, with their shares in it; by its path relative to the ensemble's."""
    members: dict[str, tuple[Member, ...]] = {}
    for run in runs:
        if not Path(run).is_dir():
            raise DataError(
                run, "a run or study folder is needed: it says which cases did not train"
            )
        source = ensembles.find(run)
        name = Path(os.path.relpath(Path(run).resolve(), output.parent.resolve())).as_posix()
        if name in members:
            raise DataError(run, "is given twice; weights say how much a run counts")
        members[name] = tuple(
            Member(model, weight, weights_sha256(model), name)
            for model, weight in zip(source.models, source.weights, strict=True)
        )
    if not members:
        raise DataError(output, "no run is given to make an ensemble of")
    return members


def _refuse_few(split: heldout.Split, known: int, output: Path) -> None:
    left = sum(len(group.cases) for group in split.groups)
    if left < _FEWEST:
        by = ", ".join(dict.fromkeys(split.seen.values())) or "no case has a label"
        raise DataError(
            output,
            f"of {known} cases that validate somewhere {left} are left that no run has trained on "
            f"(by {by}), and the choice needs at least {_FEWEST}: give studies of all folds, or "
            "runs with the same validation cases",
        )


def _predictors(
    group: heldout.Group,
    runs: Sequence[str],
    device: str,
    plugins: Sequence[str],
    overrides: Sequence[str],
) -> list[Predictor]:
    """One predictor for each run: of its models that have not seen the cases."""
    found = []
    for run in runs:
        mine = [member for member in group.members if member.run == run]
        found.append(
            heldout.predictor(mine, None, device=device, plugins=plugins, overrides=overrides)
        )
    return found


def _judge(judged: Cases, predictors: Sequence[Predictor], case: Case) -> None:
    """Predict a case with every run, one after the other, and keep where they differ."""
    first = predictors[0]
    loaded = first.load_case(case)
    assert loaded.label is not None
    truth: Array = loaded.label
    if first.config.evaluation.roi:
        mask = first.prepare(loaded).prepared[0][0].region
        truth = truth if mask is None else np.where(mask, truth, np.uint8(IGNORE_INDEX))

    def shares(n: int) -> Array:
        own = loaded if n == 0 else predictors[n].load_case(case)
        return predictors[n].raw(own).need_probabilities()

    judged.add(case.id, shares, truth)


def _write(chosen: Chosen, members: dict[str, tuple[Member, ...]]) -> None:
    """Write the ensemble, without runs that count nothing. Nothing has been tuned for it yet."""
    weights = dict(zip(chosen.runs, chosen.choice.weights, strict=True))
    kept = tuple(
        replace(member, weight=member.weight * weights[run])
        for run, some in members.items()
        for member in some
        if weights[run]
    )
    figures = {
        "score": "dice",
        "runs": list(chosen.runs),
        **asdict(chosen.choice),
        "weights": list(chosen.choice.weights),
        "cases": list(chosen.cases),
        "seen": chosen.seen,
    }
    ensembles.write(chosen.path, Ensemble(kept, (), figures))
