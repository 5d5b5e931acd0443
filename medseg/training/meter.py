"""What the log tells of the steps since its last record: loss, gradients, time, memory."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor


class Meter:
    """Means over steps. Each is told as `begin`, `computing` (the batch is there), `end`.

    Args:
        samples: Patches of a step.
        device: Where the network computes.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        self.loss, self._samples, self._device = math.nan, samples, device
        self._losses, self._norms = list[float](), list[Tensor]()
        self._outside = self._inside = self._mark = 0.0

    def begin(self) -> None:
        """A step begins: its batch is waited for."""
        self._mark = time.perf_counter()

    def computing(self) -> None:
        """The batch is there, augmented."""
        now = time.perf_counter()
        self._outside += now - self._mark
        self._mark = now

    def end(self, loss: float, norm: Tensor | None = None) -> None:
        """The step is done.

        Args:
            loss: Of its batch.
            norm: Of its gradients, before they were clipped; left on its device until `read`.
        """
        self._inside += time.perf_counter() - self._mark
        self._losses.append(loss)
        if norm is not None:
            self._norms.append(norm.detach())
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss

    def read(self) -> dict[str, float]:
        """The figures since the last call; docs/logging.md has their units."""
        steps, seconds = len(self._losses), self._outside + self._inside
        found = {"loss": sum(self._losses) / steps}
        if self._norms:
            norms = torch.stack(self._norms)
            found["grad_norm"] = float(norms[norms.isfinite()].mean())  # fp16 skips the others
        found |= {
            "outside": round(self._outside / seconds, 5),
            "data_ms": round(1000 * self._outside / steps, 3),
            "step_ms": round(1000 * seconds / steps, 3),
            "samples_per_second": round(self._samples * steps / seconds, 3),
        }
        if self._device.type == "cuda":
            found["memory_mib"] = round(torch.cuda.max_memory_allocated(self._device) / 2**20, 1)
        self._losses, self._norms, self._outside, self._inside = [], [], 0.0, 0.0
        return found
