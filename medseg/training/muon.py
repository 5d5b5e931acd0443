"""Muon: an optimiser whose steps turn all directions of a layer's weights alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Of the quintic polynomial that brings singular values to about 1: Jordan et al. 2024.
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_ADAM_SIZE = 0.2  # root mean square of a typical step of Adam: Liu et al. 2025, section 2.2


class Muon(torch.optim.AdamW):
    """Momentum with orthogonalised steps for weights of convolutions, AdamW for all else.

    The momentum of a weight (out, in, i, j, k), taken as a matrix (out, in * i * j * k), is
    replaced by the nearest matrix with singular values of about 1, so that directions with small
    gradients are learnt as fast as those with large ones (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon). Steps are as large as Adam's, so that learning rate
    and decay mean the same for both (Liu et al. 2025, arXiv:2502.16982, Eq. 4).

    Args:
        groups: Parameters, or groups of them.
        lr: Learning rate.
        momentum: Of the orthogonalised steps, in Nesterov's form.
        betas: Of AdamW.
        weight_decay: Decoupled.
    """

    def __init__(
        self,
        groups: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, lr, betas=betas, weight_decay=weight_decay, fused=True)
        self.momentum = momentum
        self._step_supports_amp_scaling = False  # a step with infinite gradients is left out whole

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step. The gradients of the weights that Muon moves are used up."""
        for group in self.param_groups:
            pairs = [(p, p.grad) for p in group["params"] if p.grad is not None and is_matrix(p)]
            if pairs:
                weights, gradients = (list(one) for one in zip(*pairs, strict=True))
                self._move(weights, gradients, group["lr"], group["weight_decay"])
        super().step(closure)

    def _move(
        self, weights: list[Tensor], gradients: list[Tensor], lr: float, weight_decay: float
    ) -> None:
        momenta = [self._momentum(weight) for weight in weights]
        torch._foreach_mul_(momenta, self.momentum)
        torch._foreach_add_(momenta, gradients)
        torch._foreach_add_(gradients, momenta, alpha=self.momentum)
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        for weight, gradient in zip(weights, gradients, strict=True):
            matrix = gradient.reshape(len(gradient), -1)
            size = lr * _ADAM_SIZE * max(matrix.shape) ** 0.5
            weight.sub_(orthogonalised(matrix).view_as(weight), alpha=size)
            weight.grad = None  # AdamW passes over what has none

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())  # of no use here, but AdamW looks for it on loading
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        return momentum


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight maps several channels to several, so that its directions mean something."""
    return weight.ndim > 2 and min(weight.shape[:2]) > 3


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought to about 1, from 0.7 to 1.2.

    The iteration runs on the small Gram matrix, and its result is applied once: a fifth of the work
    for a layer's weights, which are much wider than high.

    Args:
        matrix: (M, N) float32.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    matrix = matrix / (matrix.norm() + 1e-7)
    gram = _gram(matrix)
    unit = torch.eye(len(gram), device=gram.device)
    total = unit
    for n in range(_ITERATIONS):
        change = torch.addmm(_LINEAR * unit + _CUBIC * gram, gram, gram, alpha=_QUINTIC)
        total = change @ total if n else change
        if n < _ITERATIONS - 1:
            gram = change @ gram @ change
    return (total.bfloat16() @ matrix.bfloat16()).float()


def _gram(matrix: Tensor) -> Tensor:
    """The inner products of the rows, of bfloat16 factors where that is faster, summed in float32.

    Factors may be rounded, sums may not: they would no longer be those of any matrix, and the
    iteration would blow up what became negative.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return matrix @ matrix.T
    finally:
        torch.set_float32_matmul_precision(before)
