"""What a network is before it is trained: size, shapes, memory and receptive field."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from medseg.networks.blocks import ZERO, Triple

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
_SHORT = 16  # voxels; no shorter, or a network with many poolings would have nothing left
_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.AlphaDropout)


def parameter_count(module: nn.Module) -> int:
    """How many numbers training can change."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def output_shapes(
    network: nn.Module, in_channels: int, size: Triple, batch: int = 1
) -> list[tuple[int, ...]]:
    """Shapes of the outputs for an input of (batch, in_channels, *size), without computing them.

    The network is in the mode it is in: what cannot be trained on shows here too.
    """
    trial = copy.deepcopy(network).to("meta")
    with torch.no_grad():
        out = trial(torch.empty(batch, in_channels, *size, device="meta"))
    return [tuple(item.shape) for item in _outputs(out)]


def multiply_adds(network: nn.Module, in_channels: int, size: Triple) -> int:
    """Multiplications with addition in one forward pass of (1, in_channels, *size): convolutions.

    Half of the floating-point operations that torch counts.
    """
    trial = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trial(torch.empty(1, in_channels, *size, device="meta"))
    total: int = counter.get_total_flops()
    return total // 2


def activation_memory(
    network: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> int:
    """Bytes that one training step keeps for its backward pass, weights left out.

    This is the largest part of a step's memory, found without computing anything. The workspace of
    convolutions and the optimiser's state come on top.

    Args:
        network: Any network; it is not changed.
        shape: Shape of the input batch, (N, in_channels, I, J, K).
        dtype: Type of the feature maps: that of autocast, if it is on.
    """
    trial = copy.deepcopy(network).to("meta", dtype).train()
    weights = {p.untyped_storage()._cdata for p in trial.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = tensor  # held, so that no other storage takes its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        trial(torch.empty(*shape, dtype=dtype, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def receptive_field(network: nn.Module, in_channels: int, size: Triple, output: int = 0) -> Triple:
    """How many input voxels, per axis, the central voxel of an output depends on.

    Found by gradient on a copy: all weights are made positive, so that no two paths cancel, and
    norms become the identity, since their statistics see the whole input. It cannot exceed `size`:
    a network that sees further, or everything, gives `size`.

    Args:
        network: A network or an encoder; it is not changed.
        in_channels: Channels of the input.
        size: Size of the input in voxels, (i, j, k).
        output: Which of several outputs (levels) to look at.
    """
    trial = _monotone(network)
    i, j, k = (
        _extent(trial, in_channels, _slab(network, size, axis), output)[axis] for axis in range(3)
    )
    return i, j, k


def _slab(network: nn.Module, size: Triple, axis: int) -> Triple:
    """The input made short along the other axes, where that is possible: it saves the time."""
    divisor, margin = getattr(network, "divisor", size), getattr(network, "margin", ZERO)
    i, j, k = (
        n if a == axis else min(n, max(_SHORT, 2 * d) + 2 * m)
        for a, (n, d, m) in enumerate(zip(size, divisor, margin, strict=True))
    )
    return i, j, k


def _extent(trial: nn.Module, in_channels: int, size: Triple, output: int) -> list[int]:
    x = torch.ones(1, in_channels, *size, requires_grad=True)
    y = _outputs(trial(x * 1.0))[output]  # times 1: a first layer in place may not touch a leaf
    i, j, k = (n // 2 for n in y.shape[2:])
    (gradient,) = torch.autograd.grad(y[:, :, i, j, k].sum(), x)
    seen = torch.nonzero(gradient.sum((0, 1)))
    extent: list[int] = (seen.max(0).values - seen.min(0).values + 1).tolist()
    return extent


def _monotone(network: nn.Module) -> nn.Module:
    """A copy in which every output grows with every input voxel that it depends on."""
    trial = copy.deepcopy(network).float().eval()
    for parent in list(trial.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (*_NORMS, *_DROPOUTS)):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.MaxPool3d):  # its gradient would see one voxel only
                setattr(parent, name, _MeanPool(child))
    for parameter in trial.parameters():
        parameter.requires_grad_(False)
        parameter.fill_(parameter.shape[0] / parameter.numel() if parameter.ndim > 1 else 0.25)
    for module in trial.modules():
        module.register_forward_hook(_flag_gradient)
    return trial


class _MeanPool(nn.Module):
    """The mean where a max pooling takes the largest, on maps shorter than its kernel too."""

    def __init__(self, pool: nn.MaxPool3d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = (
            (n, n, n) if isinstance(n, int) else tuple(n)
            for n in (self.pool.kernel_size, self.pool.stride, self.pool.padding)
        )
        i, j, k = self.pool(x.detach()).shape[2:]
        sides = [side for n, pad in zip(kernel, padding, strict=True) for side in (n, pad)]
        padded = functional.pad(x, sides[::-1])  # last axis first; a kernel's length behind
        return functional.avg_pool3d(padded, kernel, stride)[:, :, :i, :j, :k]


def _flag_gradient(_module: nn.Module, _inputs: Any, out: Any) -> None:
    """Let 0 or 1 pass back, whatever the depth: gradients that shrink would round to 0."""
    if isinstance(out, Tensor) and out.requires_grad:
        out.register_hook(_flag)  # type: ignore[no-untyped-call]


def _flag(gradient: Tensor) -> Tensor:
    return (gradient > 0).to(gradient.dtype)


def _outputs(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)
