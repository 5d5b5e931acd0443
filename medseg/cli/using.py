"""Commands that use models, or make one of others: predict, evaluate, tune, ensemble, import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.app import INTERRUPTED, SOME_FAILED, app, here
from medseg.cli.options import (
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
from medseg.console import console, errors


@app.command()
def predict(  # noqa: PLR0913, PLR0917  (options)
    model: Annotated[
        list[Path],
        typer.Option(
            "--model", "-m", help="A run, study, ensemble.json or model file; repeatable."
        ),
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
            model, inputs, output, device=device, plugins=here(plugin), overrides=overrides or [],
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
    model: Annotated[
        Path, typer.Option("--model", "-m", help="A run or study folder, or an ensemble.json.")
    ],
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
    from medseg.study.tune import folder_of
    from medseg.tuning.summary import table

    options, overrides = _fixed(settings or [])
    result = api.tune(
        model, name, options=options, score=score, device=device, plugins=here(plugin),
        overrides=overrides,
    )  # fmt: skip
    console.print(table(result))
    console.print(result.verdict, markup=False)
    tables.paths({"Report": folder_of(model) / f"{name}.html"})


@app.command()
def ensemble(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run or study folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ensemble's file, .json.")],
    device: Device = "auto",
    plugin: Plugins = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, as data.path=x; repeatable."),
    ] = None,
) -> None:
    """Choose how much each run counts, on cases that none has trained on, and write that down."""
    from medseg import api, tables

    found = api.ensemble(
        runs, output, device=device, plugins=here(plugin), overrides=settings or []
    )
    console.print(tables.ensemble(found))
    tables.paths({"Ensemble": output})


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

    report = api.import_model(name, weights, output, plugins=here(plugin), overrides=overrides)
    console.print(report.table())
    tables.paths({"Model": output})


@app.command()
def plugins(plugin: Plugins = None) -> None:
    """List every component: kind, name, options with defaults, source file."""
    from medseg import plugins as finding
    from medseg import tables

    finding.load(here(plugin))
    console.print(tables.components(), markup=False)


def _print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of the output stream, at once."""
    import json

    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


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
