"""A network takes weights from a file: matched by name, made to fit, reported one by one.

Nothing starts from random in silence: a kernel that the file lacks, or that does not fit, is an
error that says what to set, unless the config says `allow_partial`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medseg.config.schema import Model, Pretrained
from medseg.errors import ConfigError, DataError
from medseg.networks.assembly import EncoderDecoder, Network
from medseg.networks.first_layer import first_layers
from medseg.networks.inflate import first_kernel, fit
from medseg.networks.load_report import LoadReport, Row, Status
from medseg.networks.matching import best_match, is_counter, kernels_of, weights_of
from medseg.networks.weights_files import Weights, read

_SWAPPED = "of another class count: starts from random"
_NO_HEAD = "the file has no such head: starts from random"
_HEADS = ("heads.", "auxiliary_heads.")
_TOLD = 3  # examples in a message
_PARTIAL = "or pretrained.allow_partial: true, to start these from random"


def load_pretrained(network: Network, model: Model, channels: Sequence[str]) -> LoadReport | None:
    """Give a network the weights that the config names; None where it names none.

    Heads of another class count start anew, which is reported but no error. Where anything is
    wrong, the network stays as it was.

    Args:
        network: Built from `model`; changed in place.
        model: The config's section.
        channels: Names of the input channels, in order.

    Raises:
        DataError: The file cannot be used, or is of another network.
        ConfigError: The settings do not fit the file or the channels; the error's path starts at
            the `model` section.
    """
    of_encoder = model.encoder.pretrained if model.encoder is not None else None
    settings = of_encoder or model.pretrained
    if settings is None:
        return None
    try:
        return _Loading(network, settings, channels, of_encoder is not None).run()
    except ConfigError as error:
        place = ("encoder", "pretrained") if of_encoder else ("pretrained",)
        raise ConfigError(str(error), (*place, *error.path)) from error


class _Loading:
    """One network, one file. First everything is found, then checked, then copied."""

    def __init__(
        self, network: Network, settings: Pretrained, channels: Sequence[str], of_encoder: bool
    ) -> None:
        self.settings, self.channels, self.of_encoder = settings, channels, of_encoder
        self.classes = getattr(network, "classes", None)
        if isinstance(network, EncoderDecoder):
            self.module = network.encoder if of_encoder else network
        else:
            self.module = network.network
        self.state, self.kernels = weights_of(self.module), kernels_of(self.module)
        self.notes: list[str] = []
        self.file = self._translated(read(settings))
        self.match = best_match(self.module, self.file.tensors.keys())
        self.firsts = first_layers(self.module, len(channels), network.divisor)
        if not self.firsts and (settings.channels or settings.preprocessing):
            raise ConfigError(
                "channels and preprocessing need a convolution that sees the input itself, which "
                "this network does not have: set both to null",
                ("channels" if settings.channels else "preprocessing",),
            )
        self.values: dict[str, Tensor] = {}
        self.constants: dict[str, Tensor] = {}
        self.rows: dict[str, Row] = {}
        self.remedies: dict[str, str] = {}

    def _translated(self, file: Weights) -> Weights:
        """A file of another program by the network's own names: see `networks.importing`."""
        translate = getattr(self.module, "translated", None)
        try:
            tensors = translate(file.tensors) if translate is not None else None
        except ValueError as error:
            raise DataError(file.path, str(error)) from error
        if tensors is None:
            return file
        self.notes.append("names and conventions of the program that wrote the file, translated")
        return replace(file, tensors=tensors)

    def run(self) -> LoadReport:
        for own in self.state:
            self.rows[own] = self._take(own)
        heads = self._heads()
        if not self.settings.allow_partial:
            self._refuse([row for own, row in self.rows.items() if own not in heads])
        for own, row in self.rows.items():
            if row.status == "missing" or own in heads:
                self.rows[own] = replace(row, reason=heads.get(own) or self._start(own))
        self._place_constants()
        with torch.no_grad():
            for own, value in self.values.items():
                self.state[own].copy_(value)
        return self._report()

    def _take(self, own: str) -> Row:
        """Find a weight's value in the file and make it fit."""
        name, ours, is_kernel = self.match.theirs.get(own, ""), self.state[own], own in self.kernels
        weight = self.file.tensors.get(name)
        if weight is None:
            return Row("missing", own, kernel=is_kernel)
        if ours.is_floating_point() and not weight.is_floating_point():
            raise DataError(
                self.file.path,
                f"{name} is of {weight.dtype}: quantised weights are not read, save them as floats",
            )
        weight, adapted = weight.to(ours.dtype), ""  # before anything is divided, in half precision
        if own in self.firsts and weight.ndim > 3:
            weight, self.constants[own], adapted = first_kernel(
                weight, self.settings, self.channels
            )
        fitted = fit(weight, ours.shape, self.settings)
        if fitted is None:
            self.remedies[own] = remedy(weight.shape, ours.shape)
            theirs = tuple(self.file.tensors[name].shape)
            shapes = f"{name} is {theirs}, {own} here is {tuple(ours.shape)}"
            return Row("left out", own, name, shapes, is_kernel)
        self.values[own], inflated = fitted
        status: Status = "adapted" if adapted or inflated else "kept"
        if inflated and weight.ndim == 4 and not adapted:
            status = "inflated"
        return Row(status, own, name, "; ".join(filter(None, (adapted, inflated))), is_kernel)

    def _heads(self) -> dict[str, str]:
        """Heads that the file lacks, or has for another class count, each with the reason.

        Encoder and decoder have their heads by name. A whole network's are told by shape: they
        differ from the file's only in axes that here are as long as there are classes, and in the
        file all of one other length. The first kernel is none.
        """
        if self.of_encoder:
            return {}
        shapes = {
            own: (self.state[own].shape, self.file.tensors[row.source].shape)
            for own, row in self.rows.items()
            if row.status == "left out"
        }
        if self.classes is not None:
            found = {own: other_classes(*shapes[own], self.classes) for own in shapes}
            found.pop(next((own for own in self.state if own in self.kernels), ""), None)
            swapped = [own for own, other in found.items() if other is not None]
            return {} if len({*found.values()} - {None}) > 1 else dict.fromkeys(swapped, _SWAPPED)
        swapped = [own for own, (ours, theirs) in shapes.items() if ours[1:] == theirs[1:]]
        lacking = [own for own, row in self.rows.items() if row.status == "missing"]
        reasons = dict.fromkeys(swapped, _SWAPPED) | dict.fromkeys(lacking, _NO_HEAD)
        return {own: reason for own, reason in reasons.items() if own.startswith(_HEADS)}

    def _refuse(self, rows: Sequence[Row]) -> None:
        """Refuse kernels that the file lacks and weights that do not fit."""
        misfits = {row.reason: self.remedies[row.name] for row in rows if row.status == "left out"}
        if misfits:
            helps = ", ".join(dict.fromkeys(misfits.values()))
            raise DataError(self.file.path, f"{_some([*misfits], '; ')}: {helps}, {_PARTIAL}")
        lacking = [row.name for row in rows if row.status == "missing" and row.kernel]
        if not lacking:
            return
        there = _some([n for n, t in self.file.tensors.items() if t.ndim > 1])
        here = _some([self.match.theirs.get(own, own) for own in lacking])
        other = "" if self.of_encoder else ", put a file of the encoder alone under model.encoder"
        taken = sum(row.kernel for row in rows) - len(lacking)
        raise DataError(
            self.file.path,
            f"has {taken or 'none'} of the {taken + len(lacking)} kernels; it has {there}, but "
            f"lacks {here} (names of {self.match.layout}): set the model's kind, levels and norm "
            f"to those of the file{other}, set pretrained.key if it holds several sets, {_PARTIAL}",
        )

    def _start(self, own: str) -> str:
        """What a weight that the file lacks starts from. A bias that its layer lacked is 0."""
        module, _, kind = own.rpartition(".")
        if kind == "bias" and f"{module}.weight" in self.values.keys() & self.kernels:
            self.values[own] = torch.zeros_like(self.state[own])
            return "the file's layer has no bias: set to 0"
        has_layer = any(name.rpartition(".")[0] == module for name in self.values)
        lack = f"the file's layer has no {kind}" if has_layer else "the file has no such layer"
        lowest, highest = (float(bound) for bound in self.state[own].aminmax())
        start = f"{lowest:g}" if lowest == highest else "random"
        return f"{lack}: starts from {start}"

    def _place_constants(self) -> None:
        """Give the constants of a preprocessing that was folded in to what can take them."""
        for own, constant in self.constants.items():
            if own not in self.values or not bool(constant.any()):
                continue
            place = self.firsts[own].constant_goes_to(self.module)
            if place is None:
                raise ConfigError(
                    "preprocessing leaves a constant that nothing behind the first convolution "
                    "takes: set the encoder's norm to none, batch or instance, or preprocessing "
                    "to null",
                    ("preprocessing",),
                )
            if not place:
                self.notes.append(
                    "the constant of the preprocessing is left out: the instance norm behind the "
                    "first convolution removes it"
                )
                continue
            is_bias = place.endswith(".bias")
            before = self.values.get(place, self.state[place])
            self.values[place] = before + constant if is_bias else before - constant
            reason = "the preprocessing's constant " + ("added" if is_bias else "subtracted")
            self.rows[place] = replace(self.rows[place], status="adapted", reason=reason)

    def _report(self) -> LoadReport:
        taken = {row.source for row in self.rows.values()}
        left = [name for name in self.file.tensors if name not in taken and not is_counter(name)]
        types = {
            str(self.file.tensors[name].dtype).removeprefix("torch.") for name in taken if name
        }
        if types - {"float32"}:
            self.notes.append(f"cast to float32 from {', '.join(sorted(types - {'float32'}))}")
        as_they_are = [own for own in self.firsts if self.rows[own].status in ("kept", "inflated")]
        if as_they_are and len(self.channels) > 1:
            named = ", ".join(f"{name} = {n}" for n, name in enumerate(self.channels))
            self.notes.append(f"input channels are the file's as they are: {named}")
        return LoadReport(
            file=self.settings.url or str(self.file.path),
            sha256=self.file.sha256,
            target="encoder" if self.of_encoder else "network",
            layout=self.match.layout,
            prefix=self.match.prefix,
            rows=(*self.rows.values(), *(self._left_out(name) for name in left)),
            notes=tuple(self.notes),
        )

    def _left_out(self, name: str) -> Row:
        """Why a weight of the file has no place here."""
        prefix, layer = self.match.prefix, name.rpartition(".")[0]
        target = "encoder" if self.of_encoder else "network"
        levels = len(getattr(self.module, "channels", ()))
        if not name.startswith(prefix):
            reason = f"not part of the {target}"
        elif layer in {theirs.rpartition(".")[0] for theirs in self.match.theirs.values()}:
            reason = f"the layer has no {name.rpartition('.')[2]} here"
        elif self.of_encoder and self._is_matrix(layer):
            reason = "a classifier is not part of the encoder"
        else:
            reason = f"no such layer here{f' (levels: {levels})' if levels else ''}"
        return Row("left out", source=name, reason=reason)

    def _is_matrix(self, layer: str) -> bool:
        weight = self.file.tensors.get(f"{layer}.weight")
        return weight is not None and weight.ndim == 2


def remedy(theirs: torch.Size, ours: torch.Size) -> str:
    """What to set such that a weight of the file fits, once its input channels are mapped."""
    if theirs[:2] != ours[:2]:
        return "set the model's widths and kind of blocks to those of the file"
    if len(theirs) == 4 and len(ours) == 5:
        sizes = [[*ours[2 : 2 + axis], *ours[3 + axis :]] for axis in range(3)]
        axes = [str(axis) for axis, size in enumerate(sizes) if size == [*theirs[2:]]]
        if axes:
            return f"set pretrained.axis to {' or '.join(axes)}"
    return "set the model's kernels, or its variant, to those of the file"


def other_classes(ours: torch.Size, theirs: torch.Size, classes: int) -> int | None:
    """How many classes a head of the file has; None: it is no head, by its shape."""
    pairs = {(n, m) for n, m in zip(ours, theirs, strict=False) if n != m}
    here, there = next(iter(pairs), (0, 0))
    alike = len(ours) == len(theirs) and len(pairs) == 1 and here == classes
    return there if alike else None


def _some(words: Sequence[str], between: str = ", ") -> str:
    """The first few, and how many more."""
    more = f" and {len(words) - _TOLD} more" if len(words) > _TOLD else ""
    return between.join(words[:_TOLD]) + more
