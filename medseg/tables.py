"""Results as rich tables."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from medseg.console import console, errors
from medseg.evaluation.subsets import channels_of
from medseg.registry import REGISTRIES, Registry

if TYPE_CHECKING:  # it imports torch, which lists of components need not
    from medseg.batch.run import Outcome
    from medseg.study.ensemble import Chosen
    from medseg.study.spread import Spread

_TERMINAL = 80  # columns
_LITERAL = re.compile(r"(?:typing\.)?Literal\[([^]]*)\]")
_SHOWN = {
    "dice": ("Dice", 3),
    "precision": ("Precision", 3),
    "recall": ("Recall", 3),
    "hd95_mm": ("HD95 mm", 2),
    "nsd": ("NSD", 3),
    "volume_error_ml": ("Error mL", 2),
}
_LESION_MEANS = {"lesion_f1": ("Lesion F1", 3), "lesion_sensitivity": ("Lesion sens.", 3)}
_LESIONS = {
    "false_per_case": ("False\n/case", 2),
    "sensitivity": ("Sens.", 3),
    "precision": ("Prec.", 3),
    "f1": ("F1", 3),
}


def scores(summary: Mapping[str, Any], title: str) -> Group:
    """The summary of an evaluation: means by class and, where they were counted, the lesions."""
    lesions = [_lesions(summary)] if any("pooled" in c for c in summary["classes"].values()) else []
    return Group(_means(summary, title), *lesions)


def _means(summary: Mapping[str, Any], title: str) -> Table:
    classes = summary["classes"]
    keys = [key for key in _SHOWN if all(key in found for found in classes.values())]
    table = Table(
        title=f"{title}, mean Dice {_number(summary['mean_dice'], 3)}", title_justify="left"
    )
    table.add_column("Class")
    for key in keys:
        table.add_column(_SHOWN[key][0], justify="right")
    for name, found in classes.items():
        cells = [_number(found[key]["mean"], _SHOWN[key][1]) for key in keys]
        table.add_row(escape(name), *cells)
    return table


def _lesions(summary: Mapping[str, Any]) -> Table:
    """The lesions of each class over all cases together; mean F1: over the cases."""
    table = Table(title="Lesions, all cases together", title_justify="left")
    table.add_column("Class")
    headings = [heading for heading, _ in _LESIONS.values()]
    for heading in ("Found", "False", *headings, "Mean\nF1", "FROC"):
        table.add_column(heading, justify="right", vertical="bottom")
    for name, found in summary["classes"].items():
        pooled = found["pooled"]
        table.add_row(
            escape(name),
            f"{pooled['tp']}/{pooled['tp'] + pooled['fn']}",
            str(pooled["fp"]),
            *(_number(pooled[key], places) for key, (_, places) in _LESIONS.items()),
            _number(found["lesion_f1"]["mean"], 3),
            _number(found["froc"]["mean"] if "froc" in found else None, 3),
        )
    return table


def subsets(found: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Dice by the channels that were there (x), of a summary's `subsets` or `every_subset`."""
    channels = channels_of(found)
    table = Table(title=title, title_justify="left")
    for name in channels:
        table.add_column(escape(name), justify="center")
    for name in ("cases", *found[0]["dice"], "mean Dice"):
        table.add_column(escape(name), justify="right")
    for subset in found:
        there = ("x" if name in subset["channels"] else "-" for name in channels)
        dice = (_number(value, 3) for value in (*subset["dice"].values(), subset["mean_dice"]))
        table.add_row(*there, str(subset["cases"]), *dice)
    return table


def spread(found: Spread) -> Table:
    """Each score over folds or seeds: mean, sd, least and greatest."""
    table = Table(title=f"Over {len(found.values)} {found.over}", title_justify="left")
    for name in ("Class", "Score", "Mean", "SD", "Min", "Max"):
        table.add_column(name, justify="left" if name in ("Class", "Score") else "right")
    about, rows = found.as_json(), list[tuple[str, str, int, Mapping[str, Any]]]()
    if len(found.classes) > 1:
        rows.append(("mean", "Dice", 3, about["mean_dice"]))
    for name, measures in about["classes"].items():
        rows += [
            (name, title, places, measures[key])
            for key, (title, places) in {**_SHOWN, **_LESION_MEANS}.items()
            if key in measures
        ]
    for name, title, places, values in rows:
        cells = [_number(values[key], places) for key in ("mean", "sd", "min", "max")]
        table.add_row(escape(name), title, *cells)
    return table


def ensemble(found: Chosen) -> Group:
    """How much each run counts, and what that is worth."""
    choice = found.choice
    left = f", {len(found.seen)} left out that a run has trained on" if found.seen else ""
    title = f"Mean Dice of {len(found.cases)} cases by models that have not seen them{left}"
    table = Table(title=title, title_justify="left")
    for name in ("Run", "Weight", "Dice"):
        table.add_column(name, justify="left" if name == "Run" else "right", overflow="fold")
    for run, weight, dice in zip(found.runs, choice.weights, choice.alone, strict=True):
        table.add_row(escape(run), _number(weight, 2), _number(dice, 4))
    table.add_section()
    table.add_row("all, each counting the same", "", _number(choice.mean, 4))
    table.add_row("the selection, on the cases that chose it", "", _number(choice.selected, 4))
    table.add_row("the selection, on cases left out", "", _number(choice.held_out, 4))
    told = [
        f"On cases left out the selection is {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {what}."
        for what, difference in (("equal weights", choice.over_mean),
                                 ("the best run", choice.over_best))
        if difference is not None
        for mean, low, high in [difference]
    ]  # fmt: skip
    if not choice.is_selection:
        told.append("That is no gain over equal weights, and so all runs count the same.")
    return Group(table, *told)


def outcome(found: Outcome, output: Path, *, quiet: bool) -> None:
    """Say what became of a batch run: the counts, unless `quiet`, and what went wrong."""
    if not quiet:
        console.print(
            f"{len(found.done)} predicted, {len(found.kept)} were up to date, "
            f"{len(found.failed)} failed"
        )
        lists = {"Failures": output / "failures.csv"} if found.failed else {}
        paths({"Masks": output, **lists})
    for case, reason in found.failed.items():
        errors.print(f"[red]failed:[/] {escape(case)}: {escape(reason)}")
    if found.stopped:
        errors.print(f"[red]stopped:[/] {escape(found.stopped)}")
        errors.print(f"not tried: {escape(', '.join(found.untried) or 'none')}")


def components() -> str:
    """Every registered component by kind: name, source file, then a line for each option."""
    lines = []
    for registry in REGISTRIES.values():
        lines.append(registry.kind)
        for name in registry.names():
            if name in registry.presets:
                told = f"  {name}  {_preset(registry, name)}"
                lines += textwrap.wrap(told, _TERMINAL, subsequent_indent="      ")
                continue
            lines.append(f"  {name}  {_source(registry.get(name))}")
            for parameter in registry.signature(name).parameters.values():
                if parameter.name not in registry.supplies:
                    told = f"    {_LITERAL.sub(_choices, str(parameter))}".replace("typing.", "")
                    lines += textwrap.wrap(told, _TERMINAL, subsequent_indent=" " * 8)
    return "\n".join(lines)


def paths(places: Mapping[str, Path]) -> None:
    """Say where things are."""
    width = max(map(len, places))
    for name, path in places.items():
        console.print(f"{name.ljust(width)}  {path.resolve()}", markup=False)


def _preset(registry: Registry, name: str) -> str:
    """The component that a preset stands for, and the options that it sets."""
    of = registry.presets[name]
    base, mine = registry.signature(of).parameters, registry.signature(name).parameters
    told = [f"{key}: {p.default}" for key, p in mine.items() if p.default != base[key].default]
    return f"= {of} with {', '.join(told)}"


def _choices(literal: re.Match[str]) -> str:
    """Literal['a', 'b'] as 'a' | 'b'."""
    return literal[1].replace(",", " |")


def _source(component: Callable[..., Any]) -> str:
    file = Path(inspect.getsourcefile(component) or "?")
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
