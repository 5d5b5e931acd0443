"""Any segmentation network of `monai.networks.nets` (Cardoso et al. 2022, arXiv:2211.02701)."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from medseg.registry import NETWORKS
from medseg_plugins.monai_options import make

# What medseg fills in, by the names that MONAI's classes use for it.
_INPUTS = ("in_channels",)
_OUTPUTS = ("out_channels", "num_classes")
_DIMENSIONS = ("spatial_dims",)
# These return their best output last, after those of shallower or inner layers.
_BEST_LAST = ("BasicUNetPlusPlus", "DAF3D")


@NETWORKS.register("monai")
class MonaiNetwork(nn.Module):
    """One of MONAI's networks by its class name.

    Auxiliary outputs, where the network's options ask for them (`deep_supervision`, `dsdepth`),
    come in training and in evaluation alike.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        net: A class of `monai.networks.nets`, e.g. "UNet", "DynUNet", "SegResNet".
        options: The class's own options, by name; those that medseg fills in (in and out channels,
            three dimensions) are left out.

    Raises:
        ConfigError: The class or an option is unknown, an option is missing or refused.
    """

    def __init__(
        self, in_channels: int, classes: int, net: str, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        filled = {
            **dict.fromkeys(_INPUTS, in_channels),
            **dict.fromkeys(_OUTPUTS, classes),
            **dict.fromkeys(_DIMENSIONS, 3),
        }
        self.net = make("MONAI network", "net", net, _networks(), options or {}, filled)
        self.best_last = net in _BEST_LAST
        self.aliases = _aliases(self)
        self.register_state_dict_post_hook(_drop_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_aliases)  # type: ignore[no-untyped-call]
        self.train()

    def train(self, mode: bool = True) -> MonaiNetwork:
        """Switch between training and evaluation, the outputs staying the same in number.

        MONAI's networks drop their auxiliary outputs where the outermost module evaluates; the
        modules inside it (dropout, norms) are the ones that must follow `mode`.
        """
        super().train(mode)
        self.net.training = True
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (N, in_channels, I, J, K) to (logits, *auxiliary)."""
        out = self.net(x)
        if isinstance(out, Tensor):
            # DynUNet stacks its outputs: (N, outputs, classes, I, J, K).
            out = out.unbind(1) if out.ndim == x.ndim + 1 else (out,)
        return tuple(reversed(out)) if self.best_last else tuple(out)


def _aliases(module: nn.Module) -> dict[str, str]:
    """Further names of weights that a network holds more than once (DynUNet does), by name."""
    first: dict[int, str] = {}
    names = [
        (name, first.setdefault(id(weight), name))
        for name, weight in [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]
    ]
    return {name: original for name, original in names if name != original}


def _drop_aliases(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for alias in module.aliases:  # type: ignore[union-attr]
        state.pop(prefix + alias, None)


def _add_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for alias, original in module.aliases.items():  # type: ignore[union-attr,operator]
        if prefix + original in state:
            state[prefix + alias] = state[prefix + original]


def _networks() -> dict[str, type[nn.Module]]:
    """MONAI's classes that take a number of input and of output channels, without their aliases."""
    from monai.networks import nets

    found = {}
    for item in vars(nets).values():
        if inspect.isclass(item) and issubclass(item, nn.Module):
            names = inspect.signature(item).parameters
            if any(n in names for n in _INPUTS) and any(n in names for n in _OUTPUTS):
                found[item.__name__] = item
    return found
