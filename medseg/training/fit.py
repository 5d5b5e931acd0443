"""Let the transforms that learn do so, on the training cases, before anything is cached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from medseg.console import Tick, track
from medseg.errors import DataError
from medseg.files import read_json
from medseg.training.run import RunFolder
from medseg.training.setup import Setup
from medseg.transforms import fitted as transforms
from medseg.transforms.fitted import Fitted
from medseg.transforms.preprocess import Preprocessor
from medseg.volumes.load import load_case


def fitted(setup: Setup, run: RunFolder, *, resume: bool, quiet: bool) -> Setup:
    """The setup with all that its transforms learn, each from what those before it give.

    Args:
        setup: Of the run.
        run: Its folder; a run to resume goes by what it has learnt before.
        resume: Whether it is to be resumed.
        quiet: Whether to show no progress.

    Raises:
        ConfigError: A transform cannot learn from these cases.
        DataError: A case cannot be read, or what a run to resume has learnt is lost.
    """
    specs, ids = setup.config.preprocess.normalise, setup.ids.train
    built = transforms.build(specs, setup.dataset.channels)
    places = [n for n, transform in enumerate(built) if transforms.learns(transform)]
    if resume and places:
        return replace(setup, fitted=_read(run, setup))
    learnt = Fitted(setup.dataset.channels, len(ids))
    if places:
        with track("Fit", len(places) * len(ids), quiet=quiet) as tick:
            for place in places:
                name = specs[place].name
                samples = _samples(setup, place, learnt, tick)
                values = transforms.fit(built[place], place, name, samples)
                known = {**learnt.transforms, transforms.key(place, name): values}
                learnt = replace(learnt, transforms=known)
    return replace(setup, fitted=learnt)


def _samples(setup: Setup, place: int, learnt: Fitted, tick: Tick) -> Iterator[dict[str, Any]]:
    """The training cases, one after the other, as the transform at a place sees them."""
    settings = setup.config.preprocess
    before = Preprocessor(
        settings.model_copy(update={"normalise": settings.normalise[:place]}),
        setup.spacing,
        setup.config.plugins,
        channels=setup.dataset.channels,
        fitted=learnt,
    )
    by_id = {case.id: case for case in setup.dataset.cases}
    for case in setup.ids.train:
        prepared = before(replace(load_case(by_id[case], setup.dataset), label=None))
        mask = {} if prepared.mask is None else {"mask": prepared.mask}
        yield {"image": prepared.image, **mask}
        tick(case)


def _read(run: RunFolder, setup: Setup) -> Fitted:
    try:
        return Fitted.of(read_json(run.fitted), setup.dataset.channels, run.fitted)
    except DataError as error:
        reason = f"{error.reason}; the run goes by it: restore it, or start anew with another -o"
        raise DataError(run.fitted, reason) from error
