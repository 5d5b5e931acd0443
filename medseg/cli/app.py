"""The application that commands are added to, and what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.console import console
from medseg.version import VERSION

OK, REFUSED, SOME_FAILED, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    name="medseg",
    help="3D medical lesion segmentation: one YAML from NIfTI volumes to model, masks and scores.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 all well, 2 nothing could start, 3 some cases failed (see failures.csv).",
)


def here(references: list[str] | None) -> list[str]:
    """Plugin references with their paths taken from the current folder."""
    from medseg.plugins import is_path

    return [str(Path(r).resolve()) if is_path(r) else r for r in references or []]


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"medseg {VERSION}")
        raise typer.Exit(OK)


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version
