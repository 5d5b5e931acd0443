"""Mean field in torch: the same operator as the numba one, on the CPU or a GPU, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medseg.postprocess.dense.engines import Way
from medseg.postprocess.dense.problem import Problem
from medseg.postprocess.dense.settings import Settings
from medseg.postprocess.dense.torch_filters import Filter, Gaussian, appearance
from medseg.volumes.image import Array


class Kernel:
    """A filter K, normalised: D^-1/2 K D^-1/2 with D = K 1.

    Args:
        kernel: K.
        exclude_self: Whether its diagonal is left out, once D is known.
    """

    def __init__(self, kernel: Filter, exclude_self: bool = False) -> None:
        self._kernel = kernel
        ones = torch.ones_like(kernel.diagonal)[:, None]
        self._scale = kernel(ones).rsqrt()
        self._own = self._scale**2 * kernel.diagonal[:, None] if exclude_self else None
        self._total = self(ones)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter (N, C) values."""
        filtered = self._scale * self._kernel(self._scale * values)
        return filtered if self._own is None else filtered - self._own * values

    def message(self, marginals: Tensor) -> Tensor:
        """Filter (N, C) marginals: as they sum to 1, the first class follows from the others."""
        others = self(marginals[:, 1:])
        return torch.cat([self._total - others.sum(1, keepdim=True), others], 1)


def mean_field(
    problem: Problem,
    settings: Settings,
    device: torch.device,
    way: Way = "grid",
) -> Array:
    """Run mean field; all marginals are sent every time, whatever `settings.tolerance` says.

    Args:
        problem: The voxels.
        settings: The pairwise part, and how far to go.
        device: Where it runs.
        way: What stands for the appearance kernel.

    Returns:
        (C, N) float32 marginals.
    """
    spatial, bilateral = settings.weights
    with torch.no_grad():
        weights, kernels = [], []
        if spatial:
            weights.append(spatial)
            kernels.append(Kernel(Gaussian(problem, device), settings.exclude_self))
        if bilateral:
            weights.append(bilateral)
            kernels.append(
                Kernel(appearance(problem, settings, way, device), settings.exclude_self)
            )
        odds = torch.from_numpy(problem.odds).to(device, torch.float32).t()
        unary = torch.cat([torch.zeros_like(odds[:, :1]), odds], 1)
        costs = settings.compatibility
        compatibility = None if costs is None else torch.from_numpy(np.asarray(costs)).to(unary)
        field = refine(unary, kernels, weights, compatibility, settings.iterations)
        found: Array = field.softmax(1).t().contiguous().cpu().numpy()
    return found


def refine(
    unary: Tensor,
    kernels: Sequence[Kernel],
    weights: Sequence[float] | Tensor,
    compatibility: Tensor | None,
    iterations: int,
) -> Tensor:
    """Mean field on logits (Kraehenbuehl and Koltun 2011, arXiv:1210.5644, algorithm 1).

    Args:
        unary: (N, C) logits.
        kernels: Over the N voxels.
        weights: One for each kernel.
        compatibility: (C, C) cost of two labels beside each other; None: Potts.
        iterations: Updates, of all voxels at once.

    Returns:
        (N, C) logits; their softmax over C are the marginals.
    """
    logits = unary
    for _ in range(iterations):
        marginals = logits.softmax(1)
        message = torch.zeros_like(unary)
        for weight, kernel in zip(weights, kernels, strict=True):
            message = message + weight * kernel.message(marginals)
        logits = unary + (message if compatibility is None else -message @ compatibility.t())
    return logits
