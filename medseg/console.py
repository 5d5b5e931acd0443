"""What a person sees while medseg works: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_SECONDS_BETWEEN_LINES = 10.0


class Tick:
    """Moves one task forward; made by `track`."""

    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0

    def __call__(self, note: str = "", *, to: float | None = None) -> None:
        """Move on by one, or to a given amount, with a few words on how it goes."""
        self.done = self.done + 1 if to is None else to
        self.show(note)

    def show(self, note: str) -> None:
        """Show nothing: the base counts in silence."""


class _Bar(Tick):
    def __init__(self, total: float, progress: Progress, name: str) -> None:
        super().__init__(total)
        self._progress = progress
        self._task = progress.add_task(name, total=total, note="")

    def show(self, note: str) -> None:
        self._progress.update(self._task, completed=self.done, note=escape(note))


class _Lines(Tick):
    def __init__(self, total: float, name: str) -> None:
        super().__init__(total)
        self._name, self._start = name, time.monotonic()
        self._last = self._start

    def show(self, note: str) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self._last, seconds = now, now - self._start
        share = self.done / self.total if self.total else 1.0
        told = f"{self._name}: {share:.0%}, {seconds:.0f} s"
        if self.done:
            told += f", {seconds * (self.total - self.done) / self.done:.0f} s left"
        console.print(f"{told}  {note}".rstrip(), markup=False)


@contextmanager
def track(name: str, total: float, *, quiet: bool = False) -> Iterator[Tick]:
    """Show the progress of a task of `total` parts, with the time left."""
    if quiet:
        yield Tick(total)
    elif not console.is_terminal:
        yield _Lines(total, name)
    else:
        columns = (
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as progress:
            yield _Bar(total, progress, name)


def show_warnings_briefly() -> None:
    """Print a warning as one line on the error stream, each different one once."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        del category, filename, lineno, file, line
        errors.print(f"[yellow]warning:[/] {escape(str(message))}")

    warnings.showwarning = show
    # Torch's, of a gradient that it copies to the layout of its weight: nothing to be done about.
    warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
