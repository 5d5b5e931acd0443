"""One step of the optimiser: batches, augmented on the device, to new weights and their average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from medseg.config.schema import Config
from medseg.inference.runner import is_out_of_memory
from medseg.training.dataset import Batch
from medseg.training.objective import Averaged, Objective
from medseg.training.ranks import ALONE, Ranks
from medseg.training.state import State
from medseg.training.trouble import Part, out_of_memory, refuse_non_finite
from medseg.transforms import augment

Pair = tuple[Tensor, Tensor]
_SKIPPED = 50  # steps in a row, at most: a loss scale halved as often is 0 in effect


class Step:
    """Forward, loss, backward, optimiser, average.

    Args:
        state: What it changes.
        loss: Of all outputs of the network, on its device.
        config: With axes as numbers (`Config.numbered`).
        bad_batch: Where a batch whose loss is not finite is kept; None: nowhere.
        ranks: The processes that take each step together, each with batches of its own.
    """

    def __init__(
        self,
        state: State,
        loss: nn.Module,
        config: Config,
        bad_batch: Path | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.state, self.config, self.bad_batch, self.ranks = state, config, bad_batch, ranks
        self.device = next(state.network.parameters()).device
        self.norm: Tensor | None = None  # of the last step's gradients, before they were clipped
        self.skipped, self._in_a_row = 0, 0
        network: nn.Module = state.network
        if config.train.compile:
            network = cast(nn.Module, torch.compile(network))
        self.objective = Averaged(Objective(network, loss), ranks)

    def prepare(self, batch: Batch, part: int = 0) -> Part:
        """Bring a batch to the device and change it at random, as the batch's number tells.

        Args:
            batch: See `dataset.Patches`.
            part: Which of the step's batches it is.
        """
        image, label = augmented(batch, self.config, self._number(part), self.device)
        return Part(image, _without(label, self.state.network.margin), batch["case"])

    def __call__(self, parts: Sequence[Part], lr: float) -> float:
        """Take one step; return the loss, the mean over the parts and processes.

        With fp16, whose gradients may overflow until the loss scale fits, such a step changes
        nothing and is counted in `skipped`.

        Args:
            parts: Whose gradients are averaged.
            lr: The learning rate.

        Raises:
            NonFiniteError: The loss or its gradient is not finite.
            MedsegError: Memory ran out.
        """
        state = self.state
        torch.manual_seed(seed_of(self.config.seed, self._number(0)))  # of dropout and its like
        for group in state.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        try:
            losses, norm = self._taken(parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            loss = self._agreed(parts, losses, norm)
            state.update_average()
            state.step += 1
            state.batches += len(parts) * self.ranks.size
            return loss
        # Outside of the handler, whose error would keep what was computed for the step.
        self.objective.leave()
        raise out_of_memory(said, parts, self.config.train, self._taken)

    def _number(self, part: int) -> int:
        """The number of this process's batch in a part of the step, among all of the run."""
        return self.state.batches + part * self.ranks.size + self.ranks.rank

    def _taken(self, parts: Sequence[Part]) -> tuple[list[float], float]:
        """The losses, and the norm of the gradient; the device is waited for once, at the end."""
        state, clip = self.state, self.config.train.clip
        state.optimiser.zero_grad(set_to_none=True)
        losses = []
        for number, (image, label, _) in enumerate(parts, 1):
            with self.objective.part(is_last=number == len(parts)) as objective:
                value = objective(image, label, state.precision)
                torch.autograd.backward(state.scaler.scale(value / len(parts)))
            losses.append(value.detach())
        state.scaler.unscale_(state.optimiser)
        weights = list(state.network.parameters())
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(weights, clip)
        else:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        state.scaler.step(state.optimiser)
        state.scaler.update()
        self.norm = norm
        *numbers, length = torch.stack([*losses, norm]).tolist()
        return numbers, length

    def _agreed(self, parts: Sequence[Part], losses: Sequence[float], norm: float) -> float:
        """The mean loss of all processes; where a number is not finite, all stop, and one tells.

        The gradient is the same everywhere: where a loss is to blame, only its process may tell.
        """
        own = sum(losses) / len(losses)
        means = self.ranks.gather(own)
        if all(map(math.isfinite, (*means, norm))):
            self._in_a_row = 0
        else:
            is_elsewhere = math.isfinite(own) and not all(map(math.isfinite, means))
            blamed = 0.0 if is_elsewhere else norm
            self.ranks.each(lambda: self._check(parts, losses, blamed))
        return float(sum(means)) / self.ranks.size

    def _check(self, parts: Sequence[Part], losses: Sequence[float], norm: float) -> None:
        if self.state.scaler.is_enabled() and not math.isfinite(norm) and self._in_a_row < _SKIPPED:
            refuse_non_finite(parts, losses, 0.0, self.state.step, self.bad_batch)
            self.skipped += 1
            self._in_a_row += 1
        else:
            refuse_non_finite(parts, losses, norm, self.state.step, self.bad_batch)
            self._in_a_row = 0


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
