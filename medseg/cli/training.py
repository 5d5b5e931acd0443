"""Commands on the way to a model: demo, check, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.app import app
from medseg.cli.options import ConfigFile, Device, Overrides, Plugins
from medseg.console import console


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
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder.")],
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this run.")] = False,
    plugin: Plugins = None,
    overrides: Overrides = None,
) -> None:
    """Train a model, and score it on the validation cases."""
    from medseg.config import load

    loaded = load(config, overrides or [], plugin or [])  # its mistakes come before torch does
    from medseg import api, tables

    summary = api.train(loaded, output, device=device, resume=resume)
    console.print(tables.scores(summary, f"{loaded.name}: validation"))
    if "every_subset" in summary:
        console.print(tables.subsets(summary["every_subset"], "Every subset of the channels"))
    tables.paths({"Report": output / "report.html", "Masks": output / "validation",
                  "Model": output / "model.safetensors"})  # fmt: skip
