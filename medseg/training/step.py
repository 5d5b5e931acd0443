"""One step of the optimiser: batches, augmented on the device, to new weights and their average."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medseg.config.schema import Config
from medseg.errors import MedsegError
from medseg.inference.runner import autocast
from medseg.training.dataset import Batch
from medseg.training.state import State
from medseg.transforms import augment

Pair = tuple[Tensor, Tensor]


class Step:
    """Forward, loss, backward, optimiser, average.

    Args:
        state: What it changes.
        loss: Of all outputs of the network, on its device.
        config: With axes as numbers (`Config.numbered`).
    """

    def __init__(self, state: State, loss: nn.Module, config: Config) -> None:
        self.state, self.loss, self.config = state, loss, config
        self.device = next(state.network.parameters()).device
        self.norm: Tensor | None = None  # of the last step's gradients, before they were clipped
        self.network: Callable[[Tensor], tuple[Tensor, ...]] = state.network
        if config.train.compile:
            self.network = torch.compile(state.network)

    def prepare(self, batch: Batch, part: int = 0) -> Pair:
        """Bring a batch to the device and change it at random, as the step's number tells.

        Args:
            batch: See `dataset.Patches`.
            part: Which of the step's batches it is.
        """
        number = self.state.step * self.config.train.accumulate + part
        image, label = augmented(batch, self.config, number, self.device)
        return image, _without(label, self.state.network.margin)

    def __call__(self, parts: Sequence[Pair], lr: float) -> float:
        """Take one step; return the loss, the mean over the parts.

        Args:
            parts: Images (N, C, I, J, K) and labels (N, I, J, K), whose gradients are averaged.
            lr: The learning rate.

        Raises:
            MedsegError: The loss is not finite.
        """
        state = self.state
        torch.manual_seed(seed_of(self.config.seed, state.step))  # of dropout and its like
        for group in state.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        state.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for image, label in parts:
            with autocast(self.device, state.precision):
                outputs = self.network(image)
            value = self.loss(outputs, label) / len(parts)
            total += self._finite(value)
            state.scaler.scale(value).backward()
        if self.config.train.clip is not None:
            state.scaler.unscale_(state.optimiser)
            self.norm = nn.utils.clip_grad_norm_(state.network.parameters(), self.config.train.clip)
        state.scaler.step(state.optimiser)
        state.scaler.update()
        state.update_average()
        state.step += 1
        return total

    def _finite(self, value: Tensor) -> float:
        number = float(value.detach())
        if not math.isfinite(number):
            raise MedsegError(
                f"the loss is {number} at step {self.state.step}; lower train.lr, lengthen "
                "train.warmup or set train.precision to fp32"
            )
        return number


def augmented(batch: Batch, config: Config, number: int, device: torch.device) -> Pair:
    """A batch on the device, changed as its number tells."""
    image = batch["image"].to(device, non_blocking=True)
    label = batch["label"].to(device, non_blocking=True)
    generator = torch.Generator().manual_seed(seed_of(config.seed, number))
    change = augment.draw(config.augment, image.shape[0], image.shape[1], generator)
    return augment.apply(change, image, label, batch["spacing"], batch["present"])


def seed_of(seed: int, number: int) -> int:
    """A different seed for every number of every run (a Weyl sequence on the golden ratio)."""
    return (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) % 2**63


def _without(label: Tensor, margin: Sequence[int]) -> Tensor:
    """The label of the patch alone: the margin is context, and nothing is learnt there."""
    i, j, k = (slice(m, n - m) for m, n in zip(margin, label.shape[1:], strict=True))
    return label[:, i, j, k].long()  # a new tensor, without gaps
