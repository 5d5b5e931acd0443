"""The command line. Torch and monai are imported inside commands: `--help` needs neither."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from medseg.console import console, errors, show_warnings_briefly
from medseg.errors import MedsegError
from medseg.memory import keep_freed
from medseg.options import (
    ConfigFile,
    Crf,
    Device,
    Devices,
    Engine,
    Missing,
    Overrides,
    Plugins,
    Scheduler,
    Workers,
)
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


@app.command()
def predict(  # noqa: PLR0913, PLR0917  (options)
    model: Annotated[
        list[Path], typer.Option("--model", "-m", help="A run folder or model file; repeatable.")
    ],
    inputs: Annotated[
        Path, typer.Option("--input", "-i", help="A folder, a .nii.gz, a .csv or a .txt list.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the masks.")],
    device: Devices = "auto",
    workers: Workers = None,
    engine: Annotated[
        Engine, typer.Option(help="One process, several, or dask; else as the options tell.")
    ] = Engine.auto,
    scheduler: Scheduler = None,
    shard: Annotated[
        str, typer.Option(metavar="K/N", help="Only part K of N; other processes do the others.")
    ] = "1/1",
    crf: Annotated[
        Crf, typer.Option(help="Run a CRF: always, never, or if the model has one that helps.")
    ] = Crf.model,
    missing: Annotated[
        Missing | None,
        typer.Option(
            help="A case that lacks a channel fails, or is predicted without; else as trained."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON line a case, and one of all at the end.")
    ] = False,
    plugin: Plugins = None,
    overrides: Overrides = None,
) -> None:
    """Predict masks. A rerun does only what is missing or stale."""
    from medseg import api, tables

    tell = (lambda entry: _print_json({"event": "case", **entry.plain()})) if as_json else None
    try:
        outcome = api.predict(
            model, inputs, output, device=device, plugins=_here(plugin), overrides=overrides or [],
            crf=crf.value, missing=missing.value if missing else None, shard=shard, tell=tell,
            engine=engine.value, workers=workers, scheduler=scheduler,
            quiet=quiet or as_json,
        )  # fmt: skip
    except KeyboardInterrupt:
        errors.print("interrupted: the same command goes on with what is missing")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        _print_json({"event": "summary", **outcome.plain()})
    tables.outcome(outcome, output, quiet=quiet or as_json)
    if not outcome.is_complete:
        raise typer.Exit(SOME_FAILED)


@app.command()
def evaluate(
    config: ConfigFile,
    predictions: Annotated[Path, typer.Option("--input", "-i", help="Folder of masks.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the scores.")],
    plugin: Plugins = None,
    overrides: Overrides = None,
) -> None:
    """Score a folder of masks against the labels that a config names."""
    from medseg.config import load

    loaded = load(config, overrides or [], plugin or [])
    from medseg import api, tables

    summary = api.evaluate(predictions, loaded, output)
    console.print(tables.scores(summary, f"{summary['cases']} cases"))
    if len(summary["subsets"]) > 1:
        console.print(tables.subsets(summary["subsets"], "By the channels that were there"))
    tables.paths({"Report": output / "report.html", "Scores": output / "scores.csv"})


@app.command()
def tune(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A postprocessor, as crf.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="A run folder.")],
    score: Annotated[str, typer.Option(help="dice, iou, nsd or lesion_f1.")] = "dice",
    device: Device = "auto",
    plugin: Plugins = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Options of NAME to keep fixed, as mm3=20; with a dot, settings, as data.path=x.",
        ),
    ] = None,
) -> None:
    """Tune a postprocessor on the validation cases; the model takes it only if it helps."""
    from medseg import api, tables
    from medseg.tuning.summary import table

    options, overrides = _fixed(settings or [])
    result = api.tune(
        model, name, options=options, score=score, device=device, plugins=_here(plugin),
        overrides=overrides,
    )  # fmt: skip
    console.print(table(result))
    console.print(result.verdict, markup=False)
    tables.paths({"Report": model / "tuning" / f"{name}.html"})


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The network, as deepmedic.")],
    weights: Annotated[
        Path, typer.Argument(metavar="FILE", help="Its weights, as model.ckpt.index.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file to write.")],
    plugin: Plugins = None,
    overrides: Overrides = None,
) -> None:
    """Make a model of weights that another program trained."""
    from medseg import api, tables

    report = api.import_model(name, weights, output, plugins=_here(plugin), overrides=overrides)
    console.print(report.table())
    tables.paths({"Model": output})


@app.command()
def plugins(plugin: Plugins = None) -> None:
    """List every component: kind, name, options with defaults, source file."""
    from medseg import plugins as finding
    from medseg import tables

    finding.load(_here(plugin))
    console.print(tables.components(), markup=False)


def _print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of the output stream, at once."""
    import json

    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


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


def _fixed(settings: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Options of one component (no dot in the key) with their values, and settings of the run."""
    from medseg.config.source import parse
    from medseg.errors import ConfigError

    options, overrides = {}, []
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or "." in key:
            overrides.append(text)
            continue
        source = parse(value, "command line")
        if source.problems:
            raise ConfigError("\n".join(map(str, source.problems)))
        options[key.strip()] = source.values
    return options, overrides


def _here(references: list[str] | None) -> list[str]:
    """Plugin references with their paths taken from the current folder."""
    from medseg.plugins import is_path

    return [str(Path(r).resolve()) if is_path(r) else r for r in references or []]


def main() -> None:
    """Run the command line; a user's error is a message and exit code 2, without a traceback."""
    # Waiting threads sleep rather than spin: beside any other load, spinning slows torch manyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show_warnings_briefly()
    keep_freed()
    try:
        app()
    except MedsegError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(REFUSED)
    except (OSError, MemoryError) as error:
        what = "out of memory" if isinstance(error, MemoryError) else ""
        errors.print(f"[red]error:[/] {escape(what + ' ' + str(error)).strip()}")
        sys.exit(REFUSED)
