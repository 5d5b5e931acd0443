"""Which convolutions see the input itself, and what stands right behind them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.networks.blocks import Triple

_POOLS = (nn.MaxPool3d, nn.AvgPool3d)
_LONG_ENOUGH = 64  # voxels per axis, for most networks; shapes only, so it costs nothing
_REFUSALS = (
    RuntimeError, ValueError, IndexError, TypeError, AssertionError, NotImplementedError,
    MedsegError,
)  # fmt: skip


@dataclass(frozen=True)
class FirstLayer:
    """A convolution of the input.

    Args:
        name: Its name in the network.
        norm: Name of the norm that alone among the modules sees its output; None: there is none.
    """

    name: str
    norm: str | None

    def constant_goes_to(self, module: nn.Module) -> str | None:
        """The weight that takes a constant in the output: a bias, or the mean of a batch norm.

        Returns:
            The weight's name; "" where an instance norm removes constants; None: nowhere.
        """
        if getattr(module.get_submodule(self.name), "bias", None) is not None:
            return f"{self.name}.bias"
        if self.norm is None:
            return None
        norm = module.get_submodule(self.norm)
        if getattr(norm, "running_mean", None) is not None:
            return f"{self.norm}.running_mean"
        alone = isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
        return "" if alone or isinstance(norm, nn.InstanceNorm3d) else None


def first_layers(module: nn.Module, in_channels: int, divisor: Triple) -> dict[str, FirstLayer]:
    """Find the convolutions of the input by following it through the network, without computing.

    A pooling keeps channels apart and passes on a rise or a shift of intensity, so that behind it
    the input is still the input.

    Args:
        module: An encoder or a network; it is not changed.
        in_channels: Channels of the input.
        divisor: What its size must be a multiple of.

    Returns:
        Each by the name of its kernel. None where the network cannot be followed.
    """
    trial = copy.deepcopy(module).to("meta").eval()
    size = [d * math.ceil(_LONG_ENOUGH / d) for d in divisor]
    x = torch.empty(1, in_channels, *size, device="meta")
    images, outputs = [x], dict[str, Tensor]()
    readers: dict[str, list[str]] = {}
    for name, part in trial.named_modules():
        part.register_forward_pre_hook(_note_reader(name, outputs, readers))
        if isinstance(part, nn.Conv3d) and part.groups == 1:
            part.register_forward_hook(_note_output(name, images, outputs))
        elif isinstance(part, _POOLS):
            part.register_forward_hook(_note_pooled(images))
    try:
        with torch.no_grad():
            trial(x)
    except _REFUSALS:
        return {}
    found = {}
    for name in outputs:
        after = readers.get(name, [])
        alone = len(after) == 1 and _is_norm(trial.get_submodule(after[0]))
        found[f"{name}.weight"] = FirstLayer(name, after[0] if alone else None)
    return found


def _note_output(
    name: str, images: Sequence[Tensor], outputs: dict[str, Tensor]
) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        if inputs and any(inputs[0] is image for image in images):
            outputs[name] = out

    return hook


def _note_pooled(images: list[Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        if inputs and any(inputs[0] is image for image in images):
            images.append(out)

    return hook


def _note_reader(
    name: str, outputs: Mapping[str, Tensor], readers: dict[str, list[str]]
) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for convolution, out in outputs.items():
            if inputs and inputs[0] is out:
                readers.setdefault(convolution, []).append(name)

    return hook


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm))
