"""Names of weights: which of a file's are which of ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

OWN = "medseg"
_COUNTER = "num_batches_tracked"  # of batch norm; none here uses it
_LONGEST_PREFIX = 3  # names before the network's own, e.g. `module.model.encoder.`


@dataclass(frozen=True)
class Match:
    """How names of a file become ours.

    Args:
        layout: Whose names they are: "medseg" for the network's own.
        prefix: What stands before them in the file.
        theirs: For each of our weights that has a name in the layout, that name in the file,
            prefix included, whether the file has it or not.
    """

    layout: str
    prefix: str
    theirs: Mapping[str, str]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """All that a network keeps, by name, but for the counters of batch norms."""
    return {name: item for name, item in module.state_dict().items() if not is_counter(name)}


def kernels_of(module: nn.Module) -> frozenset[str]:
    """Names of the weights with 2 axes or more: of convolutions and fully connected layers."""
    return frozenset(name for name, item in module.named_parameters() if item.ndim > 1)


def is_counter(name: str) -> bool:
    """Whether a weight is none, but counts the batches that a norm has seen."""
    return name.rpartition(".")[2] == _COUNTER


def best_match(module: nn.Module, names: Collection[str]) -> Match:
    """The layout and prefix under which a file has most of the kernels, then of all weights.

    Layouts are the module's own names, and those of its method `layouts`, if it has one: for each
    foreign layout, the name there of each module with weights. Of equals, the first layout with
    the shorter prefix is taken.

    Args:
        module: The network or encoder.
        names: The file's.
    """
    state, kernels = weights_of(module), kernels_of(module)
    foreign: dict[str, dict[str, str]] = getattr(module, "layouts", dict)()
    layouts = {OWN: {own: own for own in state}}
    layouts |= {layout: _renamed(state, modules) for layout, modules in foreign.items()}
    prefixes = sorted({p for name in names for p in _prefixes(name)}, key=lambda p: (len(p), p))

    def found(pair: tuple[str, str]) -> tuple[int, int]:
        layout, prefix = pair
        here = [own for own, theirs in layouts[layout].items() if prefix + theirs in names]
        return len(kernels.intersection(here)), len(here)

    layout, prefix = max(((lay, p) for lay in layouts for p in prefixes), key=found)
    return Match(layout, prefix, {own: prefix + name for own, name in layouts[layout].items()})


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for length in range(min(len(parts), _LONGEST_PREFIX + 1)):
        yield "".join(f"{part}." for part in parts[:length])


def _renamed(state: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, str]:
    """Our weights by the names of their modules in another layout."""
    split = {own: own.rpartition(".") for own in state}
    return {
        own: f"{modules[module]}.{weight}"
        for own, (module, _, weight) in split.items()
        if module in modules
    }
