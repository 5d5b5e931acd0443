"""Training, top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.config.schema import Config
from medseg.console import Tick, console, track
from medseg.errors import MedsegError
from medseg.inference.predictor import pick_device
from medseg.inference.window import autocast
from medseg.networks.checkpoint import Checkpoint, Priors, save
from medseg.training import cache, curves
from medseg.training.budget import Clock, learning_rate
from medseg.training.dataset import Batch, Patches, batches, recipe
from medseg.training.fit import fitted
from medseg.training.priors import measure
from medseg.training.run import RunFolder
from medseg.training.setup import Setup, set_up
from medseg.training.state import State
from medseg.training.validate import validate
from medseg.transforms import augment

_STEPS_PER_RECORD = 25
_VALIDATIONS = 10


def train(
    config: Config,
    output: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    quiet: bool = False,
) -> RunFolder:
    """Train a model.

    Args:
        config: What to do.
        output: The run folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        resume: Whether to go on with the run in `output`; bit-exact for budgets of steps or epochs
            with the same threads and device.
        quiet: Whether to show no progress.

    Returns:
        The run folder, with `model.safetensors` (best in validation) and `last.safetensors`.

    Raises:
        MedsegError: Whatever is wrong with config, data or plugins, before the first step.
    """
    where, run = pick_device(device), RunFolder(output)
    if run.config.exists():  # told before the data are read, which may take long
        with run.lock():
            run.refuse_another(resume)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    with track("Check", 1, quiet=quiet) as tick:
        setup = set_up(config, take_weights=not (resume and run.state.exists()))
        for precision in (config.train.precision, config.inference.precision):
            autocast(where, precision)  # refuses what the device lacks
        tick(f"{len(setup.ids.train)} cases train, {len(setup.ids.validation)} validate")
    if setup.pretrained and not quiet:
        console.print(setup.pretrained.table())
    with run.lock():
        if resume:
            run.reopen(config, setup.dataset)
        else:
            run.refuse_another(resume)
        setup = fitted(setup, run, resume=resume, quiet=quiet)
        training, validation = _cached(setup, run, quiet)
        if not resume:
            run.start(config, setup.dataset, setup.ids, setup.pretrained, _learnt(setup))
        state = State(setup.network.to(where), config.train, setup.tuning)
        if resume:
            state.restore(run.state)
        run.rewind(state.step)
        with track("Train", 1.0, quiet=quiet) as tick:
            _loop(setup, run, state, training, validation, tick)
    return run


def _loop(
    setup: Setup,
    run: RunFolder,
    state: State,
    training: Sequence[cache.CachedCase],
    validation: Sequence[cache.CachedCase],
    tick: Tick,
) -> None:
    config, settings = setup.config, setup.config.train
    device = next(state.network.parameters()).device
    loss = setup.loss.to(device)
    clock = Clock(settings.budget, math.ceil(len(training) / settings.batch), state.seconds)
    patches = Patches(training, recipe(config, setup.network.margin, setup.classes))
    priors = measure(patches, training, roi=config.inference.roi)
    numbered, meter = config.numbered, _Meter()
    stream = batches(patches, settings, state.step, pin=device.type == "cuda")
    fraction = clock.fraction(state.step)
    while fraction < 1 and not _is_patience_lost(state, settings.patience):
        meter.begin()
        lr = learning_rate(settings, fraction)
        image, label = _augmented(next(stream), numbered, state.step, device)
        label = _without(label, setup.network.margin)
        meter.computing()
        setup.tuning.rest(fraction)
        value = _step(state, loss, image, label, config, lr)
        meter.end(value)
        state.step += 1
        before, fraction = fraction, clock.fraction(state.step)
        tick(_told(state, meter), to=fraction)
        is_due = _is_due(settings.validate_every, state.step, before, fraction)
        if is_due or state.step % _STEPS_PER_RECORD == 0:
            record: dict[str, Any] = {
                "step": state.step,
                "lr": lr,
                **meter.read(),
                "seconds": clock.elapsed(),
            }
            if is_due:
                record["validation"] = _validated(setup, run, state, validation, priors)
            _append(run, record)
        if is_due or (settings.save_every and state.step % settings.save_every == 0):
            state.seconds = clock.elapsed()
            state.save(run.state)
    if state.step == 0:
        raise MedsegError(
            f"the budget was spent before the first step: start-up took {clock.elapsed():.0f} s; "
            "raise train.budget"
        )
    if state.best < 0:  # killed before its first validation, and resumed with nothing left
        _validated(setup, run, state, validation, priors)
    save(run.last_model, _checkpoint(setup, state, priors))


def _step(
    state: State, loss: nn.Module, image: Tensor, label: Tensor, config: Config, lr: float
) -> float:
    """One optimiser step; returns the loss.

    Raises:
        MedsegError: The loss is not finite.
    """
    torch.manual_seed(_seed(config.seed, state.step))  # dropout and whatever else draws inside
    for group in state.optimiser.param_groups:
        group["lr"] = lr * group["factor"]
    with autocast(image.device, config.train.precision):
        outputs = state.network(image)
    value = loss(outputs, label)
    number = float(value.detach())
    if not math.isfinite(number):
        raise MedsegError(
            f"the loss is {number} at step {state.step}; lower train.lr, lengthen train.warmup or "
            "set train.precision to fp32"
        )
    state.optimiser.zero_grad(set_to_none=True)
    state.scaler.scale(value).backward()
    if config.train.clip is not None:
        state.scaler.unscale_(state.optimiser)
        nn.utils.clip_grad_norm_(state.network.parameters(), config.train.clip)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    state.update_average()
    return number


def _augmented(
    batch: Batch, config: Config, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    image = batch["image"].to(device, non_blocking=True)
    label = batch["label"].to(device, non_blocking=True)
    generator = torch.Generator().manual_seed(_seed(config.seed, step))
    change = augment.draw(config.augment, image.shape[0], image.shape[1], generator)
    return augment.apply(change, image, label, batch["spacing"], batch["present"])


def _without(label: Tensor, margin: Sequence[int]) -> Tensor:
    """The label of the patch alone: the margin is context, and nothing is learnt there."""
    i, j, k = (slice(m, n - m) for m, n in zip(margin, label.shape[1:], strict=True))
    return label[:, i, j, k].contiguous()


def _validated(
    setup: Setup,
    run: RunFolder,
    state: State,
    cases: Sequence[cache.CachedCase],
    priors: Priors,
) -> dict[str, float]:
    """Validate the averaged weights, and keep them where they are the best so far."""
    scores = validate(state.average, cases, setup.config, setup.dataset.labels, priors)
    mean = sum(scores.values()) / max(len(scores), 1)
    state.waited += 1
    if mean >= state.best:
        state.best, state.waited = mean, 0
        save(run.model, _checkpoint(setup, state, priors))
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
    setup: Setup, run: RunFolder, quiet: bool
) -> tuple[tuple[cache.CachedCase, ...], tuple[cache.CachedCase, ...]]:
    folder = Path(setup.config.train.cache) if setup.config.train.cache else run.cache
    by_id = {case.id: case for case in setup.dataset.cases}
    shown = setup.ids.validation[: setup.config.train.validation_cases]
    ids = (*setup.ids.train, *shown)
    with track("Preprocess", len(ids), quiet=quiet) as tick:
        done = cache.fill(folder, [by_id[i] for i in ids], setup.dataset, setup.preprocessor, tick)
    return done[: len(setup.ids.train)], done[len(setup.ids.train) :]


def _append(run: RunFolder, record: dict[str, Any]) -> None:
    with run.log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    if "validation" in record:
        curves.draw(run.curves, run.records())


def _told(state: State, meter: _Meter) -> str:
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


def _seed(seed: int, step: int) -> int:
    """A different seed for every step of every run (a Weyl sequence on the golden ratio)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03) % 2**63


class _Meter:
    """Mean loss since the last record, and the share of time outside the network and optimiser."""

    def __init__(self) -> None:
        self.loss, self._losses = math.nan, list[float]()
        self._outside = self._inside = self._mark = 0.0

    def begin(self) -> None:
        self._mark = time.perf_counter()

    def computing(self) -> None:
        now = time.perf_counter()
        self._outside += now - self._mark
        self._mark = now

    def end(self, loss: float) -> None:
        self._inside += time.perf_counter() - self._mark
        self._losses.append(loss)
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss

    def read(self) -> dict[str, float]:
        """The figures since the last call."""
        mean = sum(self._losses) / len(self._losses)
        share = self._outside / (self._outside + self._inside)
        self._losses, self._outside, self._inside = [], 0.0, 0.0
        return {"loss": mean, "outside": share}
