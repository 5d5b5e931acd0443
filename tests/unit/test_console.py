"""Progress and messages: plain lines where there is no terminal, and no markup from data."""

from __future__ import annotations

import io
import warnings

import pytest
from rich.console import Console

from medseg import console as module
from medseg.console import Tick, track


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed where there is no terminal, with a clock that each look moves by 4 s."""
    out = io.StringIO()
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(module, "console", Console(file=out, soft_wrap=True, highlight=False))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    return out


def test_lines_come_now_and_then_and_at_the_end(lines: io.StringIO) -> None:
    with track("Train", 5) as tick:
        for n in range(5):
            tick(f"note {n}")
    assert lines.getvalue().splitlines() == [
        "Train: 60%, 12 s, 8 s left  note 2",
        "Train: 100%, 20 s, 0 s left  note 4",
    ]


def test_progress_may_be_set(lines: io.StringIO) -> None:
    with track("Train", 200) as tick:
        tick("[bold]as it is[/] :smile:", to=50)
        tick(to=200)
    assert lines.getvalue().splitlines()[-1] == "Train: 100%, 8 s, 0 s left"
    assert tick.done == 200


def test_what_is_begun_is_shown_before_anything_is_done(lines: io.StringIO) -> None:
    with track("Predict", 2) as tick:
        for _ in range(3):
            tick.show("reading a  0 failed")
    assert lines.getvalue().splitlines() == ["Predict: 0%, 12 s  reading a  0 failed"]


def test_notes_are_no_markup(lines: io.StringIO) -> None:
    with track("Train", 1) as tick:
        tick("[bold]x[/] \\[y]")
    assert lines.getvalue().endswith("[bold]x[/] \\[y]\n")


def test_nothing_to_do(lines: io.StringIO) -> None:
    with track("Predict", 0):
        pass
    assert lines.getvalue() == ""


def test_quiet(lines: io.StringIO) -> None:
    with track("Train", 3, quiet=True) as tick:
        for _ in range(3):
            tick()
    assert (tick.done, lines.getvalue()) == (3, "")
    assert type(tick) is Tick


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=100, legacy_windows=False)
    monkeypatch.setattr(module, "console", terminal)
    with track("Predict", 2) as tick:
        tick()
        tick("[case]")
    assert "Predict" in out.getvalue()
    assert "100%" in out.getvalue()
    assert "[case]" in out.getvalue()


def test_emoji_names_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """File names may hold them."""
    module.console.print("a:car:b")
    module.errors.print("[red]c[/]:bus:d")
    assert capsys.readouterr() == ("a:car:b\n", "c:bus:d\n")


def test_warnings_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        module.show_warnings_briefly()
        for text in ("case [1]: odd", "case [1]: odd", "case [2]: odd"):
            warnings.warn(text, stacklevel=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["warning: case [1]: odd", "warning: case [2]: odd"]
