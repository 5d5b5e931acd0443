"""`medseg init`: look at a data set, plan, try, and write a config that says why."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from medseg import files
from medseg.console import track
from medseg.errors import ConfigError, DataError
from medseg.planning import amounts, layout, pooling, schedule
from medseg.planning import start as starting
from medseg.planning.choice import text_of
from medseg.planning.drafts import Basis
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.fit import Fitted, Search, Terms, Try
from medseg.planning.options import Options
from medseg.planning.trial import Request
from medseg.planning.trial import run as try_steps
from medseg.volumes.dataset import Labels


@dataclass(frozen=True)
class Planned:
    """What was planned.

    Args:
        config: The file that was written.
        figures: The fingerprint, beside it.
        fingerprint: Of the data.
        fitted: The network and what its steps took.
    """

    config: Path
    figures: Path
    fingerprint: Fingerprint
    fitted: Fitted


def init(  # noqa: PLR0913  (what the command line has)
    data: str | Path,
    output: str | Path = "config.yaml",
    *,
    options: Options | None = None,
    budget: str = "15m",
    memory: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    name: str | None = None,
    force: bool = False,
    quiet: bool = False,
    attempt: Try = try_steps,
) -> Planned:
    """Plan a training from a data set, and write its config.

    Args:
        data: A folder or a .csv file.
        output: The YAML file to write; the fingerprint goes beside it, as NAME.fingerprint.json.
        options: What is known of the data set; what is not is found.
        budget: Time of the training, as 90s, 15m, 2h.
        memory: What it may take, as 8GB: of the process, or of a GPU; None: half of what is free.
        device: "auto", "cpu", "cuda" or "cuda:N": where the training will run.
        threads: CPU threads of the training; None: one.
        name: Of the run; None: that of the folder.
        force: Whether files that are there may be written over.
        quiet: Show no progress.
        attempt: What tries a training step.

    Raises:
        ConfigError: An option makes no sense.
        DataError: The data cannot be used or are ambiguous, or the output is there already.
        DataErrors: All that is wrong with the data, file by file.
        MedsegError: The memory is too small, or a trial failed.
    """
    seconds, most = amounts.seconds(budget), amounts.size(memory) if memory else None
    config, source = Path(output), Path(data)
    figures = config.with_suffix(".fingerprint.json")
    _refuse_output(config, figures, force=force)
    start = starting.begin(layout.find(source, options or Options()))
    begin, dataset = time.process_time(), start.dataset
    with track("Look at the cases", len(dataset.cases), quiet=quiet) as tick:
        fingerprint = pooling.take(dataset, tick, classes=start.knows_classes)
    reading = time.process_time() - begin
    classes = starting.labels(start, fingerprint)
    fingerprint = starting.named(fingerprint, classes)
    basis = Basis.of(fingerprint, starting.choices(start, classes, config, name))
    asked = _asked(basis, len(dataset.channels), classes, config, device)
    terms = Terms(seconds, most, device, threads, reading)
    with track("Try training steps", len(basis.sizes), quiet=quiet) as tick:
        fitted = Search(basis, terms, asked, tick, attempt).best()
    used = terms.on(fitted.measured.device)
    made = fitted.choices | schedule.choices(
        fitted.plan, fitted.measured, fitted.shape, start.validate, used
    )
    files.write_json(figures, fingerprint.plain())
    files.write_text(config, text_of(made))
    return Planned(config, figures, fingerprint, fitted)


def _asked(basis: Basis, channels: int, classes: Labels, config: Path, device: str) -> Request:
    """A request for a trial, but for the network."""
    return Request(
        config="",
        base=str(config.parent.resolve()),
        channels=channels,
        classes=len(classes.values) + 1,
        regions=classes.regions,
        device=device,
        volume=(1, 1, 1),
        spacing=basis.grid.spacing,
    )


def _refuse_output(config: Path, figures: Path, *, force: bool) -> None:
    if config.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"-o names the config to write, as config.yaml, got {str(config)!r}")
    for path in (config, figures):
        if path.exists() and not force:
            raise DataError(path, "is there already: name another by -o, or give --force")
    files.check_writable(config.parent)
