"""What several processes prepare together: work is done once, and what came of it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from medseg.errors import DataError
from medseg.training import cache
from medseg.training.cache import CachedCase
from medseg.training.fit import fitted
from medseg.training.ranks import Ranks
from medseg.training.run import RunFolder
from medseg.training.setup import Setup
from medseg.training.state import State
from medseg.transforms.fitted import Fitted
from medseg.transforms.preprocess import Preprocessor
from medseg.volumes.dataset import Case, Dataset

_CASES = TypeAdapter(tuple[CachedCase, ...])


def learnt(ranks: Ranks, setup: Setup, run: RunFolder, *, resume: bool, quiet: bool) -> Setup:
    """The setup with what its transforms learn: in the first process, which tells the others.

    Raises:
        MedsegError: See `fit.fitted`.
    """

    def plain() -> object:
        found = fitted(setup, run, resume=resume, quiet=quiet).fitted
        return found.as_json() if found else {}

    known = ranks.first(plain)
    return replace(setup, fitted=Fitted.of(known, setup.dataset.channels, run.fitted))


def fill(
    ranks: Ranks,
    folder: Path,
    cases: Sequence[Case],
    dataset: Dataset,
    preprocessor: Preprocessor,
    tick: Callable[[], None],
) -> tuple[CachedCase, ...]:
    """Preprocess what the cache does not hold, a share in each process, and return all cases.

    A machine that does not see the folder of another then makes the other's share for itself.

    Raises:
        DataError: A case cannot be read.
    """

    def made(some: Sequence[Case]) -> tuple[CachedCase, ...]:
        return cache.fill(folder, some, dataset, preprocessor, tick)

    if ranks.size == 1:
        return made(cases)
    mine, world = cases[ranks.rank :: ranks.size], ranks.world
    parts = ranks.each(lambda: _CASES.dump_python(made(mine), mode="json"))
    found = {case.id: case for part in parts for case in _CASES.validate_python(part)}
    with ranks.together():  # one owner a machine, whatever another sees by now
        owned = cases[world.local_rank :: world.local_size]
        made([case for case in owned if not _is_here(found[case.id])])
    return tuple(found[case.id] for case in cases)


def _is_here(case: CachedCase) -> bool:
    try:
        case.counts()
    except DataError:
        return False
    return True


def same_state(ranks: Ranks, state: State) -> None:
    """Let all processes go on from the state of the first, which alone reads the run folder."""
    if ranks.size > 1:
        data = ranks.share(state.packed() if ranks.is_first else b"")
        with ranks.together():
            if not ranks.is_first:
                state.unpack(data)
