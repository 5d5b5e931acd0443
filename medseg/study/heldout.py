"""Which models have not seen a case: what is tuned or chosen is so on their predictions alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from medseg.errors import DataError
from medseg.files import sha256
from medseg.inference.ensembles import Member
from medseg.inference.predictor import Predictor, pick_device
from medseg.networks.checkpoint import Tuned, load
from medseg.training.run import RunFolder
from medseg.volumes.dataset import Case


@dataclass(frozen=True)
class Group:
    """Cases, and the members of an ensemble that have not seen them.

    Args:
        members: Their weights sum to 1; each run has the same share of them as in the ensemble.
        cases: At least one.
    """

    members: tuple[Member, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Split:
    """Cases by what may be said of them.

    Args:
        groups: Cases of which every run has a model that has not seen them.
        seen: The others: id to the run that has trained on it.
    """

    groups: tuple[Group, ...]
    seen: dict[str, str]


def divide(members: Sequence[Member], cases: Sequence[Case]) -> Split:
    """Group cases by the members that have not seen them.

    A case is known by its name and by its files' hashes: one that a run knows under another name
    counts as seen.

    Args:
        members: Of an ensemble; each model lies in its run folder.
        cases: All that may be judged.

    Raises:
        DataError: A model lies in no run folder; two runs know different cases by one name.
    """
    knows = {member.model: _Known(RunFolder(member.model.parent)) for member in members}
    runs = dict.fromkeys(member.run for member in members)
    by_members: dict[tuple[Member, ...], list[Case]] = {}
    seen: dict[str, str] = {}
    hashed = cache(sha256)
    for case in cases:
        unseen = [m for m in members if not knows[m.model].has_seen(case, hashed)]
        lacking = [run for run in runs if run not in {member.run for member in unseen}]
        if lacking:
            seen[case.id] = lacking[0]
        else:
            by_members.setdefault(_weighed(unseen, members), []).append(case)
    return Split(tuple(Group(found, tuple(some)) for found, some in by_members.items()), seen)


def predictor(
    members: Sequence[Member],
    tuned: tuple[Tuned, ...] | None,
    *,
    device: str,
    plugins: Sequence[str],
    overrides: Sequence[str],
) -> Predictor:
    """Load members of an ensemble; what was tuned for all of it takes the place of their own.

    Raises:
        DataError: As of `Predictor`.
    """
    found = [load(member.model, plugins, overrides) for member in members]
    if tuned is not None:
        found[0] = replace(found[0], tuned=tuned)
    weights = [member.weight for member in members]
    is_even = max(weights) - min(weights) < 1e-9
    return Predictor(found, pick_device(device), weights=None if is_even else weights)


class _Known:
    """The cases that a run knows."""

    def __init__(self, run: RunFolder) -> None:
        if not run.splits.exists() or not run.environment.exists():
            raise DataError(
                run.model, "lies in no run folder, and only that says which cases did not train"
            )
        ids = run.split()
        self._run = run.path
        self._train, self._validation = set(ids.train), set(ids.validation)
        self._hashes = set(run.inputs().values())

    def has_seen(self, case: Case, hashed: Callable[[Path], str]) -> bool:
        """Whether the run trained on a case, or knows its files under another name.

        Raises:
            DataError: It validated another case of this name.
        """
        if case.id in self._train:
            return True
        is_known = any(hashed(file) in self._hashes for file in case.files)
        if case.id in self._validation and not is_known:
            raise DataError(
                case.files[0],
                f"case {case.id!r} is another than that which {self._run} knows by this name, or "
                "has changed since: what is chosen on both would mean nothing",
            )
        return is_known and case.id not in self._validation


def _weighed(unseen: Sequence[Member], members: Sequence[Member]) -> tuple[Member, ...]:
    """Members with the weights of their runs: what some have seen is left to the others."""

    def total(some: Sequence[Member], run: str) -> float:
        return sum(member.weight for member in some if member.run == run)

    return tuple(
        replace(m, weight=m.weight * total(members, m.run) / total(unseen, m.run)) for m in unseen
    )
