"""Options that commands share, and the words that some of them take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The YAML file of the run.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Devices = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N; several as cuda:0,cuda:1; or cuda:all.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="So many processes, a model in each.")
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="That of dask's, as tcp://host:8786.")
]
Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", help="A plugin file, folder or module; repeatable.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as train.lr=1e-3.")
]


class Missing(StrEnum):
    """What becomes of a case that lacks a channel."""

    refuse = "refuse"
    zero = "zero"


class Crf(StrEnum):
    """Whether a CRF runs."""

    on = "on"
    off = "off"
    model = "model"


class Engine(StrEnum):
    """What predicts a batch."""

    auto = "auto"
    pipeline = "pipeline"
    pool = "pool"
    dask = "dask"
