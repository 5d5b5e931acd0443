"""A logger changes nothing of a training, whether it works or breaks down at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medseg.config import load
from medseg.errors import DataError
from medseg.registry import LOGGERS
from medseg.training import loop
from medseg.training.run import RunFolder
from medseg.training.state import State

Recipe = Callable[..., Path]
PLUGIN = """
import json
import random

from medseg.registry import LOGGERS


@LOGGERS.register("lines_of_a_test")
class Lines:
    '''Writes what it is told, a line an event, and draws from a generator that others use too.'''

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks

    def _write(self, event, *about):
        if event == self.breaks:
            raise OSError(28, "No space left on device")
        random.random()
        with (self.folder / "lines.jsonl").open("a") as file:
            file.write(json.dumps([event, *about]) + "\\n")

    def start(self, folder, config, step):
        self.folder = folder
        self._write("start", step)

    def record(self, step, values):
        self._write("record", step, values["loss"])

    def finish(self, status, best, files):
        self._write("finish", status, best)
"""
SHORT: dict[str, Any] = {
    "train.budget": {"steps": 6},
    "train.save_every": 2,
    "train.validate_every": 3,
    "train.validation_cases": 1,
}


@pytest.fixture
def logged(recipe: Recipe, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """The recipe of a short run with the logger of this test, which breaks down somewhere."""
    before = dict(LOGGERS._components)
    plugin = tmp_path / "lines.py"
    plugin.write_text(PLUGIN)

    def write(*breaks: str) -> Path:
        loggers = [{"name": "lines_of_a_test", "breaks": where} for where in breaks]
        return recipe(**SHORT, **{"plugins": [str(plugin)], "train.loggers": loggers})

    yield write
    LOGGERS._components = before


def train(path: Path, run: Path, *, resume: bool = False) -> RunFolder:
    return loop.train(load(path), run, device="cpu", resume=resume, quiet=True)


def lines(run: RunFolder) -> list[list[Any]]:
    return [json.loads(line) for line in (run.path / "lines.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_weights_do_not_depend_on_loggers(
    recipe: Recipe, logged: Callable[..., Path], tmp_path: Path
) -> None:
    alone = train(recipe(**SHORT), tmp_path / "alone")
    with pytest.warns(UserWarning, match="No space left on device") as warned:
        run = train(logged("start", "record", "finish", ""), tmp_path / "run")
    assert len([w for w in warned if "left out" in str(w.message)]) == 3
    last = {tuple(event[:2]) for event in lines(run)}
    assert {("start", 0), ("record", 3), ("record", 6), ("finish", "finished")} <= last
    known, expected = run.records(), alone.records()
    for ours, theirs in zip(known, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("step", "lr", "loss", "grad_norm", "validation"):
            assert ours.get(key) == theirs.get(key)
    from safetensors.numpy import load_file

    for name in ("last.safetensors", "model.safetensors"):
        a, b = load_file(run.path / name), load_file(alone.path / name)
        assert a.keys() == b.keys()
        assert all((a[key] == b[key]).all() for key in a)


@pytest.mark.slow
def test_a_resumed_run_tells_where_it_goes_on(
    logged: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, save = logged(""), State.save

    def stop_at_4(self: State, file: Path) -> None:
        save(self, file)
        if self.step == 4:
            raise DataError(file, "pulled out")

    with monkeypatch.context() as patch:
        patch.setattr(State, "save", stop_at_4)
        with pytest.raises(DataError, match="pulled out"):
            train(path, tmp_path / "run")
    run = train(path, tmp_path / "run", resume=True)
    told = [event[:2] for event in lines(run)]
    first = [["start", 0], ["record", 3], ["finish", "failed"]]
    assert told == [*first, ["start", 4], ["record", 6], ["finish", "finished"]]
    assert [record["step"] for record in run.records()] == [3, 6]
    assert all(record["validation_seconds"] > 0 for record in run.records())
