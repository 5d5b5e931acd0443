"""The contract of loggers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.testing.common import broken, equal

_CONFIG: dict[str, Any] = {
    "name": "trial",
    "seed": 2**62,
    "plugins": [],
    "data": {"path": "/data", "classes": {"necrotic core": 1, "œdème & more": [1, 2]}},
    "loss": {"name": "dice_ce"},
    "train": {"patch": [16, 16, 16], "budget": {"steps": 60}, "clip": None, "compile": False},
    "about": "several lines\n" * 1000,
}
_DICE = {"necrotic core": 0.25, "œdème & more": 0.75, "mean": 0.5}


def check_logger(make: Callable[[], Any], folder: Path) -> None:
    """Check a logger, which `make` gives as `logger(**options)`.

    A logger shows a training elsewhere than in log.jsonl. Making it does nothing but see that it
    can work: it imports no large library and writes no file. Then it is told, in this order:

    - `start(folder, config, step)`: the run folder, an absolute path; the config as plain values;
      and 0, or the step from which a resumed run goes on: what it has of later ones is to be
      dropped, or not to be taken twice.
    - `record(step, values)`, often: an int above those before, and finite floats by name, such as
      "loss" and, after a validation, "validation/CLASS". Class names hold any characters.
    - `finish(status, best, files)`: "finished", "failed" or "stopped" (by Ctrl-C), at once after
      `start` perhaps; the Dice of each class at the best step, {} if there was no validation; and
      absolute paths of files worth keeping. Nothing of it runs on after that.

    It may raise whatever it likes: medseg warns, leaves it out, and trains on.

    Args:
        make: Makes one; called several times, as each process of a run does.
        folder: An empty folder, to be the run's.

    Raises:
        PluginError: It breaks the contract, or raises.
    """
    running = set(threading.enumerate())
    make()
    if any(folder.iterdir()):
        broken("what making a logger left in the run folder", list(folder.iterdir()), "nothing")
    files = [folder / "log.jsonl", folder / "progress.png"]
    for file in files:
        file.write_bytes(b"some")
    _life(make(), folder, 0, (25, 50), ("stopped", {}, []))
    _life(make(), folder, 25, (50, 60), ("finished", _DICE, files))
    _life(make(), folder, 60, (), ("failed", _DICE, files))
    for file in files:
        if file.read_bytes() != b"some":
            broken(f"{file.name}, which a logger was told of", "changed", "left as it was")
    if left := [thread.name for thread in set(threading.enumerate()) - running]:
        broken("threads of a logger after `finish`", left, "none")


def _life(logger: Any, folder: Path, step: int, steps: tuple[int, ...], end: Any) -> None:
    events: list[tuple[str, tuple[Any, ...]]] = [("start", (folder, _CONFIG, step))]
    for n in steps:
        scores = {f"validation/{name}": dice for name, dice in _DICE.items()} if n > 25 else {}
        events.append(("record", (n, {"loss": 1 / n, "lr": 1e-3, "seconds": 0.5 * n, **scores})))
    for event, about in (*events, ("finish", end)):
        told = copy.deepcopy(about)
        try:
            getattr(logger, event)(*told)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a stranger's code)
            broken(f"`{event}` of a logger", f"{type(error).__name__}: {error}", "no error")
        if not equal(told, about):
            broken(f"what `{event}` of a logger was given", "changed in place", "left as it was")
