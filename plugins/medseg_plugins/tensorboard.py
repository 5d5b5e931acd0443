"""The log for TensorBoard: event files in the run folder, for `tensorboard --logdir FOLDER`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.registry import LOGGERS


@LOGGERS.register("tensorboard")
class TensorBoard:
    """Writes each number of a record as a scalar, and the config as a text.

    A resumed run tells TensorBoard to forget what lies beyond the step it goes on from.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError('logger tensorboard: pip install "medseg[tensorboard]"')

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """Open `tensorboard/` of the run folder."""
        from torch.utils.tensorboard import SummaryWriter

        self._step, first = step, step + 1 if step else 0
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        text = json.dumps(config, indent=2, ensure_ascii=False)
        self._writer.add_text("config", f"```json\n{text}\n```", step)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve."""
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, status: str, best: dict[str, float], files: list[Path]) -> None:  # noqa: ARG002
        """Add the best scores and close the file."""
        for name, value in best.items():
            self._writer.add_scalar(f"best/{name}", value, self._step)
        self._writer.add_text("status", status, self._step)
        self._writer.close()
