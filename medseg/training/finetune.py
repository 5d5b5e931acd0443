"""Which levels of the encoder train, from when on and how fast.

Features that were learnt elsewhere may stay as they are (a feature extractor: Razavian et al. 2014,
arXiv:1403.6382), thaw level by level, coarsest first (Howard and Ruder 2018, arXiv:1801.06146,
section 3.3), or train at rates that fall towards the input (section 3.2 there).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from medseg.config.schema import Train
from medseg.errors import ConfigError
from medseg.networks.assembly import EncoderDecoder, Network


class FineTuning:
    """The settings `freeze`, `encoder_lr` and `level_decay`, applied to one network.

    Args:
        network: To be trained.
        in_channels: Channels of its input.
        settings: The `train` section.

    Raises:
        ConfigError: The network has no encoder, or one of fewer levels.
    """

    def __init__(self, network: Network, in_channels: int, settings: Train) -> None:
        self.network, self.settings = network, settings
        self._levels: list[list[nn.Parameter]] = []
        self._fixed = 0
        self._at_rest: list[nn.Module] = []
        keys = [("freeze", "levels"), ("encoder_lr",), ("level_decay",)]
        given = [settings.freeze.levels is not None, settings.encoder_lr != 1,
                 settings.level_decay != 1]  # fmt: skip
        if any(given):
            key = keys[given.index(True)]
            if not isinstance(network, EncoderDecoder):
                raise ConfigError(
                    "this is for the levels of an encoder, and a whole network shows none: leave "
                    "it out",
                    key,
                )
            self._levels = levels_of(network.encoder, in_channels, network.divisor)
        count, levels = len(self._levels), settings.freeze.levels
        if levels is not None and levels != "all" and levels > count:
            raise ConfigError(f"the encoder has {count} levels, got {levels}", keys[0])
        self.rest(0.0)

    def groups(self) -> list[dict[str, Any]]:
        """The parameters for an optimiser, each group with the `factor` of its learning rate."""
        if self.settings.encoder_lr == self.settings.level_decay == 1:
            return [{"params": list(self.network.parameters()), "factor": 1.0}]
        groups = []
        for level, parameters in enumerate(self._levels):
            finer = len(self._levels) - 1 - level
            factor = self.settings.encoder_lr * self.settings.level_decay**finer
            groups.append({"params": parameters, "factor": factor})
        known = {id(p) for parameters in self._levels for p in parameters}
        others = [p for p in self.network.parameters() if id(p) not in known]
        return [*groups, {"params": others, "factor": 1.0}]

    def rest(self, fraction: float) -> None:
        """Put the network into training mode, but for what is fixed at this part of the budget.

        Fixed parameters get no gradient, and modules that hold nothing else are in evaluation
        mode: their norm statistics do not move and they drop nothing.
        """
        fixed = self._count(fraction)
        if fixed != self._fixed:
            for level, parameters in enumerate(self._levels):
                for parameter in parameters:
                    parameter.requires_grad_(level >= fixed)
            self._fixed, self._at_rest = fixed, _without_gradient(self.network)
        self.network.train()
        for module in self._at_rest:
            module.eval()

    def _count(self, fraction: float) -> int:
        """How many levels, from the finest on, are fixed at a part of the budget."""
        freeze = self.settings.freeze
        count = len(self._levels) if freeze.levels == "all" else freeze.levels or 0
        if freeze.thaw is None:
            return count
        first, last = freeze.thaw
        step = (last - first) / max(1, count - 1)
        return sum(fraction < first + n * step for n in range(count))


def levels_of(
    encoder: nn.Module, in_channels: int, divisor: tuple[int, int, int]
) -> list[list[nn.Parameter]]:
    """The parameters of each level of an encoder, finest first: those it needs and no finer one.

    Found by gradient, so that any encoder will do. Parameters that no level needs, as those of
    auxiliary maps, are left out.

    Args:
        encoder: The encoder; it is not changed.
        in_channels: Channels of its input.
        divisor: Voxels that its input must be a multiple of.
    """
    trial = copy.deepcopy(encoder).to("meta").train().requires_grad_(True)
    own = dict(encoder.named_parameters())
    levels = trial(torch.empty(2, in_channels, *(2 * d for d in divisor), device="meta"))
    found: list[list[nn.Parameter]] = []
    left = dict.fromkeys(own)
    for level in levels:
        gradients = torch.autograd.grad(
            level.sum(),
            [trial.get_parameter(name) for name in left],
            retain_graph=True,
            allow_unused=True,
        )
        mine = [name for name, g in zip(left, gradients, strict=True) if g is not None]
        found.append([own[name] for name in mine])
        left = {name: None for name in left if name not in set(mine)}
    return found


def _without_gradient(network: nn.Module) -> list[nn.Module]:
    """The outermost modules all of whose parameters are fixed."""
    found: list[nn.Module] = []
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            found.append(module)
    return found
