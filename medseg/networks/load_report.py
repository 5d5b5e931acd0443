"""What became of each weight of a file, and of each of the network's: printed and stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

Status = Literal["kept", "inflated", "adapted", "left out", "missing"]
_TAKEN: tuple[Status, ...] = ("kept", "inflated", "adapted")
_NAMED = 2  # names that a group of rows is shown by


@dataclass(frozen=True)
class Row:
    """One weight.

    Args:
        status: "kept" as it is, "inflated" from 2D to 3D, "adapted" otherwise (the reason says
            how), "left out" of what the file has, or "missing" in the file.
        name: Its name in the network; "" if the network has none.
        source: Its name in the file; "" if the file has none.
        reason: Why, in a few words; "" for what is kept.
        kernel: Whether it is a weight of the network with 2 axes or more: of a convolution or of
            a fully connected layer, not a bias or one of a norm.
    """

    status: Status
    name: str = ""
    source: str = ""
    reason: str = ""
    kernel: bool = False


@dataclass(frozen=True)
class LoadReport:
    """How a network got its weights from a file.

    Args:
        file: Where the file is, or its url.
        sha256: What it hashes to.
        target: What the weights are for.
        layout: Whose names the file uses, e.g. "torchvision"; "medseg" for our own.
        prefix: What stands before those names in the file, e.g. "module.".
        rows: Each weight of the network, in its order, then what is left out of the file.
        notes: What holds for all weights.
    """

    file: str
    sha256: str
    target: Literal["encoder", "network"]
    layout: str
    prefix: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def kernels(self) -> dict[Status, int]:
        """How many of the network's kernels have which status."""
        counts = Counter(row.status for row in self.rows if row.kernel)
        return {status: counts[status] for status in get_args(Status)}

    @property
    def summary(self) -> str:
        """The kernels in one line, e.g. `13 of 13 kernels taken: 12 inflated, 1 adapted`."""
        kernels = self.kernels
        taken = sum(kernels[status] for status in _TAKEN)
        parts = ", ".join(f"{number} {status}" for status, number in kernels.items() if number)
        return f"{taken} of {sum(kernels.values())} kernels taken: {parts}"

    def as_json(self) -> dict[str, Any]:
        """Plain values: the summary, the counts, then all rows."""
        return {"summary": self.summary, "kernels": self.kernels, **asdict(self)}

    def table(self) -> RenderableType:
        """The summary, then all that was not taken as it is or inflated, grouped by the reason."""
        prefix = f", behind {self.prefix!r}" if self.prefix else ""
        about = [
            ("Weights", f"of the {self.target}, from {Path(self.file).name}"),
            ("", f"sha256 {self.sha256[:16]}, names of {self.layout}{prefix}"),
            ("Kernels", self.summary),
            *(("Note", note) for note in self.notes),
        ]
        head = _grid((f"[bold]{key}", escape(value)) for key, value in about)
        shown = [row for row in self.rows if row.status not in ("kept", "inflated")]
        rows = _grid((_COLOURED[key[0]], *cells) for key, cells in _grouped(shown))
        return Group(head, Padding(rows, (0, 0, 0, 2))) if shown else head


_COLOURED = {
    "adapted": "[cyan]adapted",
    "left out": "[yellow]left out",
    "missing": "[yellow]missing",
}


def _grid(rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    return table


def _grouped(rows: Iterable[Row]) -> Iterable[tuple[tuple[str, str], tuple[str, str]]]:
    """Rows of one status and reason as one: its names, shortened, then the reason."""
    order = {status: n for n, status in enumerate(_COLOURED)}

    def key(row: Row) -> tuple[int, str]:
        return order[row.status], row.reason

    for _, group in groupby(sorted(rows, key=key), key):
        members = list(group)
        names = [row.name or row.source for row in members]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text = ", ".join(names[:_NAMED]) + more
        yield (members[0].status, members[0].reason), (escape(text), escape(members[0].reason))
