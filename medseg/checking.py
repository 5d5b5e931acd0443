"""`medseg check`: what would be trained, on what, and what it would take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from rich.markup import escape
from rich.table import Table

from medseg.config.schema import Config
from medseg.console import console, track
from medseg.networks.describe import (
    activation_memory,
    multiply_adds,
    output_shapes,
    parameter_count,
    receptive_field,
)
from medseg.networks.sizes import beyond
from medseg.planning.amounts import in_mib
from medseg.training.budget import Clock, steps_per_epoch
from medseg.training.setup import Setup, set_up
from medseg.volumes import cases

_ADAM_COPIES = 5  # weights, their average, gradients and the optimiser's two moments
_REACH = 192  # voxels; a receptive field beyond it is told as such


def check(config: Config) -> None:
    """Find and check the cases, build the network, and print what both are like.

    Raises:
        MedsegError: Something is wrong; all data problems are told at once.
    """
    count = len(cases.find(config.data).cases)
    with track("Check", count) as tick:
        setup = set_up(config, tick)
    console.print(_data(setup), _network(setup), sep="\n")
    if setup.pretrained:
        console.print(setup.pretrained.table())
    for note in dict.fromkeys(note for case in setup.report.cases for note in case.notes):
        console.print(f"[yellow]note:[/] {escape(note)}")
    console.print("[green]Ready to train.[/]")


def _data(setup: Setup) -> Table:
    found = [case for case in setup.report.cases if case.shape and case.spacing]
    voxels = Counter[int]()
    present = Counter[int]()
    for case in found:
        voxels.update(case.voxels)
        present.update(case.voxels.keys())
    table = _table("Data")
    table.add_row("cases", f"{len(setup.ids.train)} train, {len(setup.ids.validation)} validate")
    table.add_row("channels", escape(", ".join(setup.dataset.channels)))
    missing = Counter(", ".join(case.missing) or "none" for case in setup.report.cases)
    if set(missing) != {"none"}:
        told = "; ".join(f"{names}: {n} case{'s' * (n > 1)}" for names, n in missing.most_common())
        table.add_row("missing", escape(told))
    table.add_row("shape", _range([case.shape for case in found if case.shape], 0))
    table.add_row("voxel size", _range([case.spacing for case in found if case.spacing], 2) + " mm")
    turns = Counter(case.orientation for case in found)
    table.add_row("orientation", ", ".join(f"{code} {n}" for code, n in turns.most_common()))
    total = sum(voxels.values())
    for name, values in setup.dataset.labels.classes.items():
        share = sum(voxels[value] for value in values) / total
        cases_with = max(present[value] for value in values)
        told = f"label {', '.join(map(str, values))}: {share:.3%} of voxels, in {cases_with} cases"
        table.add_row(escape(name), told)
    return table


def _network(setup: Setup) -> Table:
    config, network = setup.config, setup.network
    channels, patch = len(setup.dataset.channels), config.train.patch
    table = _table("Network and training")
    seen = beyond(patch, network.margin)
    batch = (config.train.batch, channels, *seen)
    table.add_row("input", _size(batch))
    outputs = output_shapes(network, channels, seen)
    table.add_row("output", ", ".join(_size((config.train.batch, *shape[1:])) for shape in outputs))
    trained, every = parameter_count(network), sum(p.numel() for p in network.parameters())
    fixed = f", {every - trained:,} of them fixed at first" if every > trained else ""
    table.add_row("parameters", f"{every:,}{fixed}")
    table.add_row("multiply-adds", f"{multiply_adds(network, channels, seen) / 1e9:.2f} G a patch")
    table.add_row("receptive field", _field(setup))
    i, j, k = network.divisor
    table.add_row("patch divisible by", f"{i} x {j} x {k}")
    dtype = torch.float32 if config.train.precision == "fp32" else torch.bfloat16
    activations = activation_memory(network, batch, dtype)
    weights = every * 4 * _ADAM_COPIES
    table.add_row(
        "memory", f"about {in_mib(activations + weights)} ({in_mib(activations)} activations)"
    )
    steps = steps_per_epoch(config.train, len(setup.ids.train))
    total = Clock(config.train.budget, steps).total_steps
    table.add_row(
        "steps", f"{steps} an epoch, " + (f"{total:,} in all" if total else _until(config))
    )
    return table


def _field(setup: Setup) -> str:
    network = setup.network
    reach = beyond([-(-_REACH // d) * d for d in network.divisor], network.margin)
    field = receptive_field(network, len(setup.dataset.channels), reach)
    shown = (f"> {r}" if f >= r else str(f) for f, r in zip(field, reach, strict=True))
    return " x ".join(shown) + " voxels"


def _until(config: Config) -> str:
    budget = config.train.budget
    seconds = budget.cpu_seconds or budget.wall_seconds
    return f"as many as fit into {seconds:g} {'CPU ' if budget.cpu_seconds else ''}seconds"


def _range(triples: Iterable[tuple[float, float, float]], decimals: int) -> str:
    axes = list(zip(*triples, strict=True))
    told = (
        f"{min(a):.{decimals}f}"
        if min(a) == max(a)
        else f"{min(a):.{decimals}f}-{max(a):.{decimals}f}"
        for a in axes
    )
    return " x ".join(told)


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table
