"""A plan as tables: what the data are like, and what was planned for them."""

from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from medseg.planning.amounts import in_mib, told
from medseg.planning.choice import by
from medseg.planning.fingerprint import ChannelPrint, ClassPrint, Fingerprint
from medseg.planning.run import Planned

_KINDS = {"ct": "CT", "pet": "PET", "other": "no unit"}


def tables(planned: Planned) -> Group:
    """All of it."""
    return Group(_data(planned.fingerprint), _classes(planned.fingerprint), _plan(planned))


def _data(fingerprint: Fingerprint) -> Table:
    table = _table(f"{fingerprint.cases} cases")
    least, middle, most = fingerprint.shape
    table.add_row("voxels", f"{by(least)} to {by(most)}, median {by(middle)}")
    finest, _, median, coarsest = fingerprint.spacing
    table.add_row("voxel size", f"{by(finest)} to {by(coarsest)}, median {by(median)} mm")
    turns = ", ".join(f"{code} {count}" for code, count in fingerprint.orientations.items())
    table.add_row("orientation", turns)
    for channel in fingerprint.channels:
        table.add_row(escape(channel.name), _channel(channel))
    return table


def _channel(channel: ChannelPrint) -> str:
    inside = channel.foreground or channel.everywhere
    low, middle, high = (inside.percentiles[percent] for percent in (0.5, 50.0, 99.5))
    return (
        f"{_KINDS[channel.modality]}; {channel.zero:.0%} zeros; labelled voxels {low:.4g} to "
        f"{high:.4g}, median {middle:.4g}"
    )


def _classes(fingerprint: Fingerprint) -> Table:
    table = Table(title="Classes", title_justify="left")
    for title in ("Class", "Cases", "Share", "mL a case", "Parts a case", "mm3 a part"):
        table.add_column(title, justify="left" if title == "Class" else "right")
    for found in fingerprint.classes:
        table.add_row(escape(found.name), *_cells(found))
    return table


def _cells(found: ClassPrint) -> tuple[str, ...]:
    least, median, most = found.ml
    _, count, highest = found.count
    small, middle, large = found.size_mm3
    return (
        str(found.cases),
        f"{found.share:.2%}",
        f"{median:.3g} ({least:.2g}-{most:.3g})",
        f"{count:.3g} (at most {highest:.0f})",
        f"{middle:.3g} ({small:.2g}-{large:.3g})",
    )


def _plan(planned: Planned) -> Table:
    fitted, table = planned.fitted, _table("Plan")
    grid = fitted.choices["preprocess.spacing"].value
    table.add_row("grid", f"{by(tuple(grid))} mm")
    table.add_row("network", f"{fitted.shape.size.name}, {len(fitted.shape.strides)} levels")
    batch = fitted.choices["train.batch"].value
    table.add_row("batch", f"{batch} x {by(fitted.shape.patch)} voxels")
    measured, plan = fitted.measured, fitted.plan
    table.add_row("memory", f"{in_mib(measured.peak)}, measured")
    table.add_row(
        "budget", f"{told(plan.seconds)}: about {plan.steps:,.0f} steps of {plan.step:.3g} s"
    )
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table
