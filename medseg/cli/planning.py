"""The command that writes a config: init."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.app import app
from medseg.cli.options import Device
from medseg.console import console

Texts = list[str] | None


class Layout(StrEnum):
    """How the files of a data set are arranged."""

    folder = "folder"
    csv = "csv"
    msd = "msd"
    nnunet = "nnunet"


@app.command()
def init(  # noqa: PLR0913, PLR0917  (options)
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder, or a .csv of cases.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The YAML to write.")] = Path(
        "config.yaml"
    ),
    budget: Annotated[str, typer.Option(help="Time of the training, as 90s, 15m, 2h.")] = "15m",
    memory: Annotated[
        str | None, typer.Option(help="What it may take, as 8GB; else half of what is free.")
    ] = None,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; more than one count the clock.")
    ] = None,
    layout: Annotated[Layout | None, typer.Option(help="How files are arranged.")] = None,
    channel: Annotated[
        Texts, typer.Option(metavar="NAME=PATTERN", help="As t1=images/{id}.nii.gz; repeatable.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Pattern or column of the label.")] = None,
    mask: Annotated[str | None, typer.Option(help="Of a region of interest.")] = None,
    classes: Annotated[
        Texts, typer.Option("--class", metavar="NAME=VALUE", help="As core=1,3; repeatable.")
    ] = None,
    split: Annotated[Path | None, typer.Option(help="JSON of who trains and validates.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; else the folder's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
) -> None:
    """Look at a data set, and write a config for it that says why."""
    from medseg import tables
    from medseg.planning import options, run, summary

    known = options.Options(
        layout=layout.value if layout else None,
        channels=options.pairs(channel or [], "--channel"),
        label=label,
        mask=mask,
        classes=options.label_values(classes or []),
        split=split,
    )
    planned = run.init(
        data, output, options=known, budget=budget, memory=memory, device=device, threads=threads,
        name=name, force=force,
    )  # fmt: skip
    console.print(summary.tables(planned))
    tables.paths({"Config": planned.config, "Figures": planned.figures})
    console.print(
        f"Read it, change what you know better, then: medseg check -c {planned.config}, and "
        f"medseg train -c {planned.config} -o run",
        markup=False,
    )
