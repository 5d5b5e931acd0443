"""A network takes weights from a file: matched by name, made to fit, reported one by one.

Nothing is left to chance in silence: a kernel that the file lacks or that does not fit is an error
that says what to set, unless the config says `allow_partial`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.config.schema import Model, Pretrained
from medseg.errors import ConfigError, DataError
from medseg.networks.assembly import EncoderDecoder, Network
from medseg.networks.first_layer import FirstLayer, first_layers
from medseg.networks.inflate import first_kernel, fit
from medseg.networks.load_report import LoadReport, Row, Status
from medseg.networks.weights_files import Weights, read

_HEADS = ("heads.", "auxiliary_heads.")
_LONGEST_PREFIX = 3  # names before the network's own, e.g. `module.model.encoder.`
_TOLD = 3  # examples in a message
_COUNTER = "num_batches_tracked"  # of batch norm; the norms here do not use it
_PARTIAL = "or set pretrained.allow_partial to true: they then start from random"


def load_pretrained(
    network: Network, model: Model, channels: Sequence[str]
) -> LoadReport | None:
    """Give a network the weights that the config names; None where it names none.

    A network of another class count keeps its own heads. Where something is wrong, the network
    stays as it was.

    Args:
        network: Built from `model`; changed in place.
        model: The config's section.
        channels: Names of the input channels, in order.

    Raises:
        DataError: The file cannot be used, or is of another network.
        ConfigError: The settings do not fit the file or the channels; the error's path starts at
            the `model` section.
    """
    of_encoder = model.encoder is not None and model.encoder.pretrained is not None
    settings = model.encoder.pretrained if of_encoder and model.encoder else model.pretrained
    if settings is None:
        return None
    try:
        return _Loader(network, settings, channels, of_encoder).load()
    except ConfigError as error:
        place = ("encoder", "pretrained") if of_encoder else ("pretrained",)
        raise ConfigError(str(error), (*place, *error.path)) from error


@dataclass(frozen=True)
class Match:
    """How names of the file become ours.

    Args:
        layout: Whose names they are.
        prefix: What stands before them in the file.
        theirs: Each of our weights by its name in the file, whether the file has it or not.
    """

    layout: str
    prefix: str
    theirs: Mapping[str, str]


def best_match(module: nn.Module, names: Iterable[str]) -> Match:
    """The layout and prefix under which a file has most of the kernels, then of all weights.

    Layouts are the module's own names, and those of its method `layouts`, if it has one: for each
    foreign layout, the name there of each module with weights.
    """
    state = weights_of(module)
    names = {name for name in names if not name.endswith(_COUNTER)}
    prefixes = sorted({p for name in names for p in _prefixes(name)}, key=lambda p: (len(p), p))
    foreign: dict[str, dict[str, str]] = getattr(module, "layouts", dict)()
    layouts = {layout: _renamed(state, modules) for layout, modules in foreign.items()}
    matches = [
        Match(layout, prefix, {own: prefix + name for own, name in theirs.items()})
        for layout, theirs in {"medseg": {own: own for own in state}, **layouts}.items()
        for prefix in prefixes
    ]

    def found(match: Match) -> tuple[int, int]:
        here = [own for own, name in match.theirs.items() if name in names]
        return sum(is_kernel(state[own]) for own in here), len(here)

    return max(matches, key=found)  # the first of equals: own names, then the shorter prefix
