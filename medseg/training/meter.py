"""Mean loss since the last record, and where the time went."""

from __future__ import annotations

import math
import time


class Meter:
    """The figures of the log: the loss, and the share of time outside network and optimiser.

    Each step is told as `begin`, `computing` (the batch is there, augmented), `end`.
    """

    def __init__(self) -> None:
        self.loss, self._losses = math.nan, list[float]()
        self._outside = self._inside = self._mark = 0.0

    def begin(self) -> None:
        """A step begins: its batch is waited for."""
        self._mark = time.perf_counter()

    def computing(self) -> None:
        """The batch is there."""
        now = time.perf_counter()
        self._outside += now - self._mark
        self._mark = now

    def end(self, loss: float) -> None:
        """The step is done."""
        self._inside += time.perf_counter() - self._mark
        self._losses.append(loss)
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss

    def read(self) -> dict[str, float]:
        """The figures since the last call."""
        mean = sum(self._losses) / len(self._losses)
        share = self._outside / (self._outside + self._inside)
        self._losses, self._outside, self._inside = [], 0.0, 0.0
        return {"loss": mean, "outside": share}
