"""All that a training needs to go on where it was: kept twice, so that one is always whole."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import torch

from medseg.config.schema import Train
from medseg.errors import DataError, MedsegError
from medseg.files import atomic
from medseg.networks.assembly import Network
from medseg.networks.layers import channels_last
from medseg.training.finetune import FineTuning
from medseg.training.muon import Muon
from medseg.training.run import previous


class State:
    """The network, its average, the optimiser and the counters of a run.

    Every random draw is a function of the seed and the step (see `sampling`), so that the step
    is all there is to restore of them.

    Args:
        network: To be trained, on its device.
        settings: The `train` section.
        tuning: Which of its levels train, and how fast.
    """

    def __init__(self, network: Network, settings: Train, tuning: FineTuning) -> None:
        self.network = network
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimiser = _optimiser(tuning, settings)
        device = next(network.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.precision = ""  # of autocast; chosen before the first step
        self.decay = settings.ema
        self.step = 0
        self.batches = 0  # drawn so far, by all processes
        self.seconds = 0.0
        self.best = -1.0
        self.waited = 0

    def run_in(self, precision: str) -> None:
        """Take a precision of autocast; in a lower one the layout that is faster with it."""
        self.precision = precision
        if precision != "fp32":
            channels_last(self.network)
            channels_last(self.average)

    def update_average(self) -> None:
        """Move the averaged weights towards the present ones; slowly only once there is a past.

        Exponential moving average (Polyak and Juditsky 1992, doi:10.1137/0330046).
        """
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            mine: list[torch.Tensor] = list(self.average.parameters())
            new: list[torch.Tensor] = list(self.network.parameters())
            torch._foreach_lerp_(mine, new, 1 - decay)
            for old, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
                old.copy_(buffer)

    def save(self, path: Path) -> None:
        """Write the state to `path`; the one that was there becomes `previous`.

        Raises:
            MedsegError: The weights are not finite: nothing could go on from them.
            DataError: It cannot be written.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise MedsegError(
                f"the weights are not finite after step {self.step}; lower train.lr, lengthen "
                "train.warmup or set train.precision to fp32"
            )
        data = self.packed()  # torch would report a full disk as something else than an OSError
        with atomic(path) as temporary:
            temporary.write_bytes(data)
            if path.exists():
                path.replace(previous(path))

    def packed(self) -> bytes:
        """All of it, as it is saved."""
        buffer = io.BytesIO()
        torch.save(self._values(), buffer)
        return buffer.getvalue()

    def unpack(self, data: bytes) -> None:
        """Take up what another process packed."""
        values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self._take("state", values)

    def restore(self, path: Path) -> None:
        """Take up the state of `path`, or the one before it; stay at the start if there is none.

        Raises:
            DataError: Neither can be read, or they are of another network.
        """
        reasons = []
        files = [file for file in (path, previous(path)) if file.exists()]
        if not files:
            return
        for file in files:
            try:
                values = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # noqa: BLE001  (torch raises many kinds)
                reasons.append(f"{file.name}: {str(error).splitlines()[0]}")
                continue
            self._take(file, values)
            return
        raise DataError(path, "no state to resume from (" + "; ".join(reasons) + ")")

    def _values(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
            "step": self.step,
            "batches": self.batches,
            "seconds": self.seconds,
            "best": self.best,
            "waited": self.waited,
        }

    def _take(self, file: str | Path, values: dict[str, Any]) -> None:
        try:
            self.network.load_state_dict(values["network"])
            self.average.load_state_dict(values["average"])
            self.optimiser.load_state_dict(values["optimiser"])
            self.scaler.load_state_dict(values["scaler"])
            self.step, self.batches = values["step"], values["batches"]
            self.precision = values["precision"]
        except (RuntimeError, KeyError, ValueError) as error:
            raise DataError(file, f"belongs to another run: {error}") from error
        self.seconds = values["seconds"]
        self.best, self.waited = values["best"], values["waited"]


def _optimiser(tuning: FineTuning, settings: Train) -> torch.optim.Optimizer:
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            tuning.groups(),
            settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
    betas = (settings.momentum, 0.99)
    if settings.optimiser == "muon":
        return Muon(tuning.groups(), settings.lr, betas=betas, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(
        tuning.groups(),
        settings.lr,
        betas=betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
