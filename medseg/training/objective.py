"""What a step lowers, the loss of all outputs; and how several processes lower it as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medseg.inference.runner import autocast
from medseg.training.ranks import ALONE, Ranks

Lowered = Callable[[Tensor, Tensor, str], Tensor]


class Objective(nn.Module):
    """A network and its loss as one module, so that DDP sees which weights the loss depends on.

    Args:
        network: Gives logits, finest first.
        loss: Of all of them.
    """

    def __init__(self, network: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, image: Tensor, label: Tensor, precision: str) -> Tensor:
        """Map (N, C, I, J, K) and (N, I, J, K) to the loss; the network alone is autocast."""
        with autocast(image.device, precision):
            outputs = self.network(image)
        value: Tensor = self.loss(outputs, label)
        return value


class Averaged:
    """An objective whose gradients are the mean over all processes, after the last part of a step.

    Gradients meet in torch's DistributedDataParallel (Li et al. 2020, arXiv:2006.15704). It is made
    anew when other weights train than before, for it knows only those that did when it was made.
    With `find_unused_parameters` it never moves its buckets, so that the order of sums, and with it
    the last bit, does not depend on when a run was resumed.

    Args:
        objective: On its device.
        ranks: The processes.
    """

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        self.alone, self.ranks = objective, ranks
        self._parallel: DistributedDataParallel | None = None
        self._trained: tuple[bool, ...] = ()

    @contextmanager
    def part(self, *, is_last: bool) -> Iterator[Lowered]:
        """The objective, for one forward and backward pass of a step."""
        if self.ranks.size == 1:
            yield self.alone
            return
        parallel = self._wrapped()
        with nullcontext() if is_last else parallel.no_sync():
            yield parallel

    def leave(self) -> None:
        """Go on without the other processes, which have stopped in the midst of a pass."""
        if self._parallel is not None:
            # They would wait for the pass that broke off.
            self._parallel.reducer._remove_autograd_hooks()
        self.ranks = ALONE

    def _wrapped(self) -> DistributedDataParallel:
        weights = self.alone.network.parameters()
        trained = tuple(weight.requires_grad for weight in weights)
        if self._parallel is None or trained != self._trained:
            self._trained = trained
            # One that is never used, for torch warns in each process where none is.
            idle = next(self.alone.network.parameters()).new_zeros(1)
            self.alone.register_parameter("idle", nn.Parameter(idle))
            self._parallel = DistributedDataParallel(self.alone, find_unused_parameters=True)
        return self._parallel
