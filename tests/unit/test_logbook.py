"""The log is written whatever becomes of loggers, and each logger is told all of it, once."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg import plugins
from medseg.config import Config, load
from medseg.errors import ConfigError, DataError
from medseg.registry import LOGGERS
from medseg.training import curves
from medseg.training.logbook import Logbook, best, numbers
from medseg.training.meter import Meter
from medseg.training.run import RunFolder
from medseg.training.setup import set_up

Recipe = Callable[..., Path]
TOLD: list[tuple[Any, ...]] = []


class Witness:
    """Keeps what it was told; breaks down where it is asked to."""

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks

    def _tell(self, event: str, *about: Any) -> None:
        if event == self.breaks:
            raise ConnectionError("the server\nis down")
        TOLD.append((event, *about))

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        self._tell("start", folder, config["name"], step)
        config.clear()

    def record(self, step: int, values: dict[str, float]) -> None:
        self._tell("record", step, dict(values))
        values.clear()

    def finish(self, status: str, best: dict[str, float], files: list[Path]) -> None:
        self._tell("finish", status, best, [file.name for file in files])


@pytest.fixture(autouse=True)
def witness() -> Iterator[None]:
    plugins.load()
    before = dict(LOGGERS._components)
    LOGGERS.register("witness")(Witness)
    TOLD.clear()
    yield
    LOGGERS._components = before


@pytest.fixture
def config(recipe: Recipe) -> Callable[..., Config]:
    """A config whose loggers are witnesses, each of which breaks down somewhere, or nowhere."""

    def make(*breaks: str) -> Config:
        plain = load(recipe())
        loggers = [{"name": "witness", "breaks": where} for where in breaks]
        values = plain.model_dump(mode="json")
        values["train"]["loggers"] = loggers
        return Config.model_validate_json(json.dumps(values))

    return make


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "config.yaml").write_text("name: tiny\n")
    return RunFolder(tmp_path)


FIRST = {"step": 25, "lr": 0.1, "loss": 1.5}
SECOND = {"step": 50, "lr": 0.05, "loss": 0.5, "grad_norm": math.nan,
          "validation": {"mean": 0.5, "a": 0.25, "b": 0.75}}  # fmt: skip


def test_a_logger_is_told_of_a_run(config: Callable[..., Config], run: RunFolder) -> None:
    with Logbook(run, config("", ""), 0) as log:
        log.write(FIRST)
        log.write(SECOND)
    dice = {"validation/mean": 0.5, "validation/a": 0.25, "validation/b": 0.75}
    told = [
        ("start", run.path, "tiny", 0),
        ("record", 25, {"lr": 0.1, "loss": 1.5}),
        ("record", 50, {"lr": 0.05, "loss": 0.5, **dice}),
        ("finish", "finished", {"mean": 0.5, "a": 0.25, "b": 0.75},
         ["config.yaml", "log.jsonl", "progress.png"]),
    ]  # fmt: skip
    assert [event for event in told for _ in range(2)] == TOLD
    lines = run.log.read_text().splitlines()
    assert lines[1].endswith(
        '"grad_norm": null, "validation": {"mean": 0.5, "a": 0.25, "b": 0.75}}'
    )
    assert run.curves.stat().st_size > 10_000


@pytest.mark.parametrize(
    "error, status", [(KeyboardInterrupt(), "stopped"), (DataError("a.nii", "bad"), "failed")]
)
def test_a_logger_is_told_how_it_ended(
    config: Callable[..., Config], run: RunFolder, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), Logbook(run, config(""), 0) as log:
        log.write(FIRST)
        raise error
    assert TOLD[-1] == ("finish", status, {}, ["config.yaml", "log.jsonl", "progress.png"])


@pytest.mark.parametrize("event, rest", [("start", 0), ("record", 1), ("finish", 3)])
def test_a_logger_that_fails_is_left_out(
    config: Callable[..., Config], run: RunFolder, event: str, rest: int
) -> None:
    told = r"logger 'witness' failed .* \(ConnectionError: the server is down\); training goes on"
    with (
        pytest.warns(UserWarning, match=told) as warned,
        Logbook(run, config(event, "", ""), 0) as log,
    ):
        log.write(FIRST)
        log.write(SECOND)
    assert len(warned) == 1
    assert [record["step"] for record in run.records()] == [25, 50]
    assert len(TOLD) == rest + 2 * 4


def test_a_logger_that_lacks_a_method_is_left_out(
    config: Callable[..., Config], run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Witness, "record")
    with (
        pytest.warns(UserWarning, match="no attribute 'record'"),
        Logbook(run, config(""), 0) as log,
    ):
        log.write(FIRST)
    assert [event[0] for event in TOLD] == ["start"]


def test_a_picture_that_fails_is_left_out(
    config: Callable[..., Config], run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(path: Path, *about: Any) -> None:
        raise DataError(path, "the disk is full")

    monkeypatch.setattr(curves, "draw", draw)
    with (
        pytest.warns(UserWarning, match=r"progress\.png failed .*the disk is full") as warned,
        Logbook(run, config(""), 0) as log,
    ):
        log.write(SECOND)
    assert len(warned) == 1
    assert TOLD[-1][0] == "finish"


def test_a_log_that_cannot_be_written_ends_training(
    config: Callable[..., Config], run: RunFolder
) -> None:
    with (
        pytest.raises(DataError, match=r"log\.jsonl: cannot be written: Is a directory"),
        Logbook(run, config(), 0) as log,
    ):
        run.log.unlink()
        run.log.mkdir()
        log.write(FIRST)


def test_a_resumed_log_goes_on_from_its_step(config: Callable[..., Config], run: RunFolder) -> None:
    run.append(FIRST)
    run.append(SECOND)
    with run.log.open("a") as file:
        file.write('{"step": 75, "lo')  # torn by a crash
    with Logbook(run, config(""), 25) as log:
        log.write({**SECOND, "loss": 0.25})
    assert [record["loss"] for record in run.records()] == [1.5, 0.25]
    assert TOLD[0][-1] == 25


def test_numbers() -> None:
    record = {"step": 3, "loss": 0.5, "norm": math.inf, "note": "x", "none": None,
              "validation": {"a b": 1.0, "c": None}}  # fmt: skip
    assert numbers(record) == {"step": 3.0, "loss": 0.5, "validation/a b": 1.0}


def test_best() -> None:
    scores = [{"mean": 0.2, "a": 1}, {"mean": 0.7, "a": 2}, {"mean": 0.7, "a": 3}, {"mean": None}]
    assert best([{"step": 1}, {"validation": {}}, *({"validation": s} for s in scores)])["a"] == 3
    assert best([]) == {}


def test_the_meter_reads_means() -> None:
    meter = Meter(4, torch.device("cpu"))
    for loss, norm in ((1.0, 2.0), (2.0, math.inf), (6.0, 4.0)):
        meter.begin()
        meter.computing()
        meter.end(loss, torch.tensor(norm))
    found = meter.read()
    assert list(found) == ["loss", "grad_norm", "outside", "data_ms", "step_ms",
                           "samples_per_second"]  # fmt: skip
    assert (found["loss"], found["grad_norm"]) == (3.0, 3.0)
    assert found["data_ms"] <= found["step_ms"]
    meter.begin()
    meter.computing()
    meter.end(5.0)
    assert "grad_norm" not in meter.read()


def test_an_unknown_logger_is_a_mistake_of_the_config(recipe: Recipe) -> None:
    path = recipe(**{"train.loggers": ["tensorbord", {"name": "mlflow", "url": "x"}]})
    with pytest.raises(ConfigError) as error:
        load(path)
    assert "train.loggers[0]: unknown logger 'tensorbord'; did you mean 'tensorboard'?" in str(
        error.value
    )
    assert "logger 'mlflow': unknown option 'url'; did you mean 'uri'?" in str(error.value)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_library_that_is_missing_is_told_at_set_up(
    recipe: Recipe, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(recipe(**{"train.loggers": [name]}))
    home = sys.modules[LOGGERS.get(name).__module__]
    monkeypatch.setattr(home, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf'pip install "medseg\[{name}\]"') as error:
        set_up(config)
    assert error.value.path == ("train", "loggers", 0)
