"""Training, top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from medseg.config.schema import Config, Train
from medseg.console import Tick, console, track
from medseg.errors import MedsegError
from medseg.inference.runner import autocast
from medseg.networks.checkpoint import Checkpoint, Priors, save
from medseg.networks.sizes import beyond
from medseg.training import cache, sharing
from medseg.training.budget import Clock, learning_rate, steps_per_epoch
from medseg.training.dataset import Patches, batches, recipe
from medseg.training.logbook import Logbook
from medseg.training.meter import Meter
from medseg.training.precision import measured
from medseg.training.priors import measure
from medseg.training.processes import joined, own_device
from medseg.training.ranks import Ranks
from medseg.training.run import ALONE, Part, Record, RunFolder
from medseg.training.setup import Setup, set_up
from medseg.training.state import State
from medseg.training.step import Step
from medseg.training.validate import validate
from medseg.training.watch import Watch
from medseg.training.workers import Stream, watched

_STEPS_PER_RECORD = 25
_VALIDATIONS = 10


def train(
    config: Config,
    output: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    quiet: bool = False,
    part: Part = ALONE,
) -> RunFolder | None:
    """Train a model; started by torchrun, in several processes.

    Args:
        config: What to do.
        output: The run folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        resume: Whether to go on with the run in `output`; bit-exact for budgets of steps or epochs
            with the same threads and device.
        quiet: Whether to show no progress.
        part: What it has from a study.

    Returns:
        The run folder, with `model.safetensors` (best in validation) and `last.safetensors`; None:
        another process goes on with it.

    Raises:
        MedsegError: Whatever is wrong with config, data or plugins, before the first step.
    """
    with joined() as ranks, ExitStack() as held:
        run, quiet = RunFolder(output, part.cache), quiet or not ranks.is_first
        with ranks.together():
            if ranks.is_first and run.config.exists():  # told before the data are read
                with run.lock():
                    run.refuse_another(resume)
            if config.train.threads:
                torch.set_num_threads(config.train.threads)
            where = own_device(device, ranks.world)
            setup = _ready(config, run, part, where, resume=resume, quiet=quiet)
        with ranks.together():
            if ranks.is_first:
                held.enter_context(run.lock())
                _claim(config, setup, run, resume=resume)
        setup = sharing.learnt(ranks, setup, run, resume=resume, quiet=quiet)
        training, validation = _cached(setup, run, ranks, quiet)
        state = State(setup.network.to(where), config.train, setup.tuning)
        ranks.first(lambda: _begin(config, setup, run, state, resume=resume))
        sharing.same_state(ranks, state)
        state.run_in(state.precision)
        state.seconds -= part.spent if config.train.budget.cpu_seconds else 0.0
        keep, log = held.enter_context(watched(config.train)), None
        with ranks.together():
            if ranks.is_first:
                log = held.enter_context(Logbook(run, config, state.step))
        with track("Train", 1.0, quiet=quiet) as tick:
            _loop(setup, run, state, training, validation, ranks, log, tick, keep)
        return run if ranks.is_first else None


def _ready(
    config: Config, run: RunFolder, part: Part, device: torch.device, *, resume: bool, quiet: bool
) -> Setup:
    """Find all that can be wrong, before a file is written."""
    with track("Check", 1, quiet=quiet) as tick:
        is_begun = resume and run.is_begun
        setup = set_up(config, take_weights=not is_begun, ids=part.ids)
        for precision in (config.train.precision, config.inference.precision):
            autocast(device, precision)  # refuses what the device lacks
        tick(f"{len(setup.ids.train)} cases train, {len(setup.ids.validation)} validate")
    if setup.pretrained and not quiet:
        console.print(setup.pretrained.table())
    return setup


def _claim(config: Config, setup: Setup, run: RunFolder, *, resume: bool) -> None:
    """See that a run folder, which is locked, is this run's."""
    if resume:
        run.reopen(config, setup.dataset, setup.ids)
    else:
        run.refuse_another(resume)
    run.sweep()


def _begin(config: Config, setup: Setup, run: RunFolder, state: State, *, resume: bool) -> None:
    """Write what is known before the first step, or read what was known after the last."""
    if resume:
        state.restore(run.state)
    else:
        run.start(config, setup.dataset, setup.ids, setup.pretrained, _learnt(setup))
    state.precision = state.precision or _precision(setup, next(state.network.parameters()).device)


def _loop(
    setup: Setup,
    run: RunFolder,
    state: State,
    training: Sequence[cache.CachedCase],
    validation: Sequence[cache.CachedCase],
    ranks: Ranks,
    log: Logbook | None,
    tick: Tick,
    keep: Callable[[Stream], Stream],
) -> None:
    config, settings = setup.config, setup.config.train
    device = next(state.network.parameters()).device
    loss = setup.loss.to(device)
    clock = Clock(settings.budget, steps_per_epoch(settings, len(training)), state.seconds)
    patches = Patches(training, recipe(config, setup.network.margin, setup.classes))
    priors = measure(patches, training, roi=config.inference.roi)
    meter, watch = Meter(settings.batch * settings.accumulate, device), Watch(clock)
    step = Step(state, loss, config.numbered, run.bad_batch, ranks)
    first, pin = state.batches + ranks.rank, device.type == "cuda"
    stream = keep(batches(patches, settings, first, stride=ranks.size, pin=pin))
    fraction = _fraction(clock, state, settings, ranks)
    while fraction < 1 and not _is_patience_lost(state, settings.patience):
        meter.begin()
        lr = learning_rate(settings, fraction)
        parts = [step.prepare(next(stream), part) for part in range(settings.accumulate)]
        meter.computing()
        setup.tuning.rest(fraction)
        meter.end(step(parts, lr), step.norm)
        before, fraction = fraction, _fraction(clock, state, settings, ranks)
        tick(_told(state, meter), to=fraction)
        is_due = _is_due(settings.validate_every, state.step, before, fraction)
        if is_due or state.step % _STEPS_PER_RECORD == 0:
            record: Record = {"step": state.step, "lr": lr, **meter.read()}
            record["seconds"] = clock.elapsed()
            if step.skipped:
                record["skipped"] = step.skipped
            if is_due:
                with watch:
                    watch.scores = _validated(setup, run, state, validation, priors, ranks)
                record["validation"] = watch.scores
                record["validation_seconds"] = clock.elapsed() - record["seconds"]
            if log:
                log.write(record)
        is_kept = is_due or (settings.save_every and state.step % settings.save_every == 0)
        if is_kept and ranks.is_first:
            state.seconds = clock.elapsed()
            state.save(run.state)
    with ranks.together():
        if state.step == 0:
            raise MedsegError(
                f"the budget was spent before the first step: start-up took {clock.elapsed():.0f} "
                "s; raise train.budget"
            )
    if state.best < 0:  # killed before its first validation, and resumed with nothing left
        with watch:
            watch.scores = _validated(setup, run, state, validation, priors, ranks)
    watch.tell()
    ranks.first(lambda: save(run.last_model, _checkpoint(setup, state, priors)))


def _fraction(clock: Clock, state: State, settings: Train, ranks: Ranks) -> float:
    """How much of the budget is gone, which all processes must agree on.

    Passes over the cases are counted by what all have drawn, seconds by the first one's clock.
    """
    alone = state.batches / settings.accumulate  # the steps that one process would have taken
    fraction = clock.fraction(alone if settings.budget.epochs else state.step)
    return fraction if clock.total_steps else float(ranks.gather(fraction)[0])


def _precision(setup: Setup, device: torch.device) -> str:
    """The precision of a run, which a resumed one keeps."""
    settings = setup.config.train
    if settings.precision != "auto":
        return settings.precision
    size = beyond(settings.patch, setup.network.margin)
    image = torch.zeros(settings.batch, len(setup.dataset.channels), *size, device=device)
    setup.tuning.rest(0.0)
    return measured(setup.network, image)


def _validated(
    setup: Setup,
    run: RunFolder,
    state: State,
    cases: Sequence[cache.CachedCase],
    priors: Priors,
    ranks: Ranks,
) -> dict[str, float]:
    """Validate the averaged weights, and keep them where they are the best so far."""
    ranks.same(state.average.buffers())  # of batches that each process saw for itself
    scores = validate(state.average, cases, setup.config, setup.dataset.labels, priors, ranks)
    mean = sum(scores.values()) / max(len(scores), 1)
    state.waited += 1
    if mean >= state.best:
        state.best, state.waited = mean, 0
        ranks.first(lambda: save(run.model, _checkpoint(setup, state, priors)))
    return {"mean": mean, **scores} if len(scores) > 1 else scores


def _checkpoint(setup: Setup, state: State, priors: Priors) -> Checkpoint:
    dataset = setup.dataset
    weights = state.average.state_dict()
    return Checkpoint(
        setup.config,
        dataset.channels,
        dataset.labels,
        setup.spacing,
        weights,
        priors=priors,
        fitted=_learnt(setup),
    )


def _learnt(setup: Setup) -> dict[str, Any]:
    return setup.fitted.as_json() if setup.fitted else {}


def _cached(
    setup: Setup, run: RunFolder, ranks: Ranks, quiet: bool
) -> tuple[tuple[cache.CachedCase, ...], tuple[cache.CachedCase, ...]]:
    folder = Path(setup.config.train.cache) if setup.config.train.cache else run.cache
    by_id = {case.id: case for case in setup.dataset.cases}
    shown = setup.ids.validation[: setup.config.train.validation_cases]
    ids = (*setup.ids.train, *shown)
    found, share = [by_id[i] for i in ids], math.ceil(len(ids) / ranks.size)
    with track("Preprocess", share, quiet=quiet) as tick:
        done = sharing.fill(ranks, folder, found, setup.dataset, setup.preprocessor, tick)
    return done[: len(setup.ids.train)], done[len(setup.ids.train) :]


def _told(state: State, meter: Meter) -> str:
    best = f"  best Dice {state.best:.3f}" if state.best >= 0 else ""
    return f"step {state.step}  loss {meter.loss:.3f}{best}"


def _is_due(every: int | None, step: int, before: float, fraction: float) -> bool:
    """Whether to validate: at the end, and every so many steps or parts of the budget."""
    if fraction >= 1:
        return True
    if every is not None:
        return step % every == 0
    return int(fraction * _VALIDATIONS) > int(before * _VALIDATIONS)


def _is_patience_lost(state: State, patience: int | None) -> bool:
    return patience is not None and state.waited >= patience
