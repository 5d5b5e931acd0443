"""What a training tells of itself: log.jsonl and progress.png always, loggers besides."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import methodcaller
from textwrap import shorten
from types import TracebackType
from typing import Any

from medseg.config.schema import Config
from medseg.evaluation.progress import mean_dice
from medseg.registry import LOGGERS
from medseg.training import curves
from medseg.training.run import Record, RunFolder

_TOLD = 300  # characters of what a logger failed with
_DRAWN = 0.02  # share of the time that drawing may take before the end


class Logbook:
    """The log of a run, open while it trains.

    A line of log.jsonl is part of the run: where it cannot be written, training ends. The picture
    and the loggers are for people: one that fails is left out with a warning, and training goes on.

    Args:
        run: Whose log it is.
        config: Names the loggers, which see all of it.
        step: Where the training begins; what the log holds beyond it is dropped.
    """

    def __init__(self, run: RunFolder, config: Config, step: int) -> None:
        self._run, self._step = run, step
        self._plain: dict[str, Any] = config.model_dump(mode="json")
        self._loggers = [
            (f"logger {spec.name!r}", LOGGERS.build(spec.spec())) for spec in config.train.loggers
        ]
        self._records: list[Record] = []
        self._draws = True
        self._begun, self._drawing = time.monotonic(), 0.0

    def __enter__(self) -> Logbook:
        """Rewind the log, and start the loggers."""
        self._run.rewind(self._step)
        self._records = self._run.records()
        self._tell("start", self._run.path.resolve(), self._plain, self._step)
        return self

    def write(self, record: Record) -> None:
        """Add a record: `step`, numbers by name, and perhaps `validation`, Dice by name.

        Raises:
            DataError: log.jsonl cannot be written.
        """
        self._run.append(record)
        self._records.append(record)
        if "validation" in record and self._drawing <= _DRAWN * (time.monotonic() - self._begun):
            self._draw()
        values = numbers(record)
        self._tell("record", int(values.pop("step")), values)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Draw what there is, and tell the loggers how it ended."""
        broken = "stopped" if kind and issubclass(kind, KeyboardInterrupt) else "failed"
        self._draw()
        files = (self._run.config, self._run.log, self._run.curves)
        there = [file.resolve() for file in files if file.exists()]
        self._tell("finish", broken if kind else "finished", numbers(best(self._records)), there)

    def _draw(self) -> None:
        begun = time.monotonic()
        if self._draws:
            self._draws = self._try(
                self._run.curves.name,
                lambda: curves.draw(self._run.curves, self._records, self._plain["name"]),
            )
        self._drawing += time.monotonic() - begun

    def _tell(self, event: str, *about: Any) -> None:
        kept = []
        for name, logger in self._loggers:
            told = copy.deepcopy(about)  # whatever it does with them, the next gets the same
            if self._try(name, partial(methodcaller(event, *told), logger)):
                kept.append((name, logger))
        self._loggers = kept

    @staticmethod
    def _try(name: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except (Exception, SystemExit) as error:  # noqa: BLE001  (other people's code)
            reason = shorten(f"{type(error).__name__}: {error}", _TOLD, placeholder=" …")
            warnings.warn(
                f"{name} failed and is left out from here on ({reason}); training goes on, and "
                "log.jsonl has every record",
                stacklevel=4,
            )
            return False
        return True


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record by name, those of `validation` as validation/NAME."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": one for inner, one in numbers(value).items()}
        elif isinstance(value, int | float) and math.isfinite(value):
            found[name] = float(value)
    return found


def best(records: Sequence[Record]) -> dict[str, float]:
    """The validation scores of the step that was the best, the last such: of model.safetensors."""
    validated = [record["validation"] for record in records if record.get("validation")]
    return max(reversed(validated), key=mean_dice, default={})
