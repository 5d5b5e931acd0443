"""Commands on the way to a model: demo, check, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.app import app
from medseg.cli.options import ConfigFile, Device, Overrides, Plugins
from medseg.config.schema import Config
from medseg.console import console
from medseg.errors import ConfigError


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all of it.")] = Path(
        "demo"
    ),
    device: Device = "auto",
    overrides: Overrides = None,
) -> None:
    """Make phantoms of a head with lesions, train on them, predict, evaluate: in minutes."""
    from medseg import demo as demonstration

    demonstration.run(output, device, overrides or [])


@app.command()
def check(config: ConfigFile, plugin: Plugins = None, overrides: Overrides = None) -> None:
    """Check a config, its cases and its network, and say what training would take."""
    from medseg.config import load

    loaded = load(config, overrides or [], plugin or [])  # its mistakes come before torch does
    from medseg import checking

    checking.check(loaded)


@app.command()
def train(
    config: ConfigFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run folder; of several runs, the study's.")
    ],
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this run.")] = False,
    fold: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="Train fold K into fold_K, from 0.")
    ] = None,
    all_folds: Annotated[
        bool, typer.Option("--all-folds", help="Train every fold, or go on with what is missing.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Train with N seeds, into seed_...")
    ] = None,
    plugin: Plugins = None,
    overrides: Overrides = None,
) -> None:
    """Train a model, and score it on the validation cases; or one for each fold or seed.

    Started by torchrun, several processes train one model.
    """
    from medseg.config import load
    from medseg.training.world import told_once_a_machine

    with told_once_a_machine():
        if fold is not None and all_folds:
            raise ConfigError("--fold and --all-folds: give one of them")
        loaded = load(config, overrides or [], plugin or [])  # its mistakes come before torch does
    from medseg import api, tables

    if fold is not None or all_folds or seeds is not None:
        _study(loaded, output, fold, all_folds, seeds, device)
        return
    summary = api.train(loaded, output, device=device, resume=resume)
    if not summary:  # of several processes the first has it
        return
    console.print(tables.scores(summary, f"{loaded.name}: validation"))
    if "every_subset" in summary:
        console.print(tables.subsets(summary["every_subset"], "Every subset of the channels"))
    tables.paths({"Report": output / "report.html", "Masks": output / "validation",
                  "Model": output / "model.safetensors"})  # fmt: skip


def _study(
    config: Config, output: Path, fold: int | None, all_folds: bool, seeds: int | None, device: str
) -> None:
    from medseg import api, tables

    found = api.train_study(
        config, output, fold=fold, all_folds=all_folds, seeds=seeds, device=device
    )
    if found.summary is None:
        console.print(f"Not trained yet: {', '.join(found.missing)}")
        return
    console.print(tables.scores(found.summary, f"{config.name}: {found.summary['cases']} cases"))
    for spread in found.spreads:
        console.print(tables.spread(spread))
    tables.paths({"Report": output / "report.html", "Masks": output / "oof",
                  "Ensemble": output / "ensemble.json"})  # fmt: skip
