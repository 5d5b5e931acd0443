"""A network over a whole volume: in one pass, or by a sliding window with Gaussian weights.

With a region of interest, only what lies in it is predicted: windows cover its bounding box, those
without any of its voxels are left out, and outside the region the background is certain. A network
with a margin reads that much context around each window out of the volume; beyond the volume's end
the edge is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.config.schema import Config, Inference
from medseg.errors import ConfigError
from medseg.inference import order
from medseg.inference.boxes import Box, meet, size, within
from medseg.inference.plan import Plan, plan
from medseg.inference.precision import settled
from medseg.inference.runner import (
    NonFiniteError,
    OutOfMemoryError,
    Runner,
    autocast,
    windows_at_once,
)
from medseg.inference.stitch import Stitcher, likeliest
from medseg.networks.blocks import ZERO
from medseg.transforms.route import Route

__all__ = [
    "NonFiniteError", "OutOfMemoryError", "Pass", "autocast", "check_patch", "predict_labels",
    "predict_volume",
]  # fmt: skip

MIB = 1 << 20


def check_patch(config: Config, divisor: tuple[int, int, int]) -> None:
    """Refuse a patch or window that the network's strides do not divide.

    Raises:
        ConfigError: Names the nearest sizes that fit.
    """
    for key, patch in (
        ("train.patch", config.train.patch),
        ("inference.patch", config.inference.patch),
    ):
        if patch is not None and any(p % d for p, d in zip(patch, divisor, strict=True)):
            fitting = [max(d, round(p / d) * d) for p, d in zip(patch, divisor, strict=True)]
            raise ConfigError(
                f"{key} {list(patch)} must be divisible by {list(divisor)}, the network's strides; "
                f"try {fitting}",
                tuple(key.split(".")),
            )


@dataclass(frozen=True, eq=False)
class Pass:
    """One network over one volume, on its way to the input's grid.

    Args:
        run: The network.
        plan: Its windows.
        route: From the network's grid to the input's.
        classes: Of the network.
        batch: Windows at once.
        roi: bool (I, J, K) of the input's grid, the region of interest; None: everywhere.
        offsets: (classes,) added to the logits.
    """

    run: Runner
    plan: Plan
    route: Route
    classes: int
    batch: int = 1
    roi: Tensor | None = None
    offsets: Tensor | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        image: Tensor,
        settings: Inference,
        divisor: Sequence[int],
        classes: int,
        *,
        route: Route | None = None,
        roi: Tensor | None = None,
        region: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> Pass:
        """Lay windows over an image (C, I, J, K) on the network's grid.

        Args:
            network: In eval mode.
            image: (C, I, J, K) float32.
            settings: With a patch, and flips by number.
            divisor: What a window's size must be divisible by, per axis.
            classes: Of the network.
            route: To the input's grid; None: the input's grid is the network's.
            roi: (I, J, K) bool on the network's grid, not empty; None: everywhere.
            region: The same on the input's grid; None: `roi` itself.
            offsets: (classes,) added to the logits, e.g. logarithms of ratios of priors.
        """
        route = Route.identity(image.shape[1:]) if route is None else route
        region = roi if region is None else region
        if settings.mode == "resize":  # whose sampler takes all of a volume too
            patch = settings.patch or ZERO
            image = functional.interpolate(image[None], patch, mode="trilinear")[0]
            route, roi = route.resized(patch), None
        device = next(network.parameters(), image).device
        windows = plan(image, settings, divisor, getattr(network, "margin", ZERO), roi)
        if settings.precision == "auto":
            precision = settled(network, windows, settings, divisor, device)
            settings = settings.model_copy(update={"precision": precision})
        return cls(
            Runner(network, settings, device),
            windows,
            route,
            classes,
            windows_at_once(settings, windows.window, device),
            region,
            None if offsets is None else offsets[:, None, None, None],
        )

    @cached_property
    def seen(self) -> Box:
        """The box of the input outside of which all is background."""
        return order.seen(self.plan, self.route)

    def parts(self, box: Box, memory: int, beside: Sequence[Pass] = ()) -> list[list[Box]]:
        """The blocks of a box that holds `seen`: see `order.parts`.

        Args:
            box: Of the input's grid.
            memory: Bytes for the sums of windows.
            beside: Other passes that will be asked for the same blocks at the same time.
        """
        ways = [(one.plan, one.route, one.seen) for one in (self, *beside)]
        return order.parts(ways, box, self.classes, memory)

    @torch.inference_mode()
    def scores(self, blocks: Sequence[Box]) -> Iterator[Tensor]:
        """(classes, *block), of which the largest is the likeliest class: the cheapest there is.

        Logits where nothing is interpolated, else probabilities.

        Args:
            blocks: Boxes of the input's grid.
        """
        yield from self._stream(blocks, shares=not self.route.is_plain)

    @torch.inference_mode()
    def shares(self, blocks: Sequence[Box]) -> Iterator[Tensor]:
        """The class probabilities (classes, *block) of blocks of the input's grid, in order.

        Probabilities rather than logits are interpolated, and labels never.
        """
        yield from self._stream(blocks, shares=True)

    def _stream(self, blocks: Sequence[Box], *, shares: bool) -> Iterator[Tensor]:
        nothing = 0.0 if shares else -torch.inf
        inner = [meet(block, self.seen) for block in blocks]
        stream = self._logits([block for block in inner if block])
        for block, met in zip(blocks, inner, strict=True):
            if met:
                logits = next(stream)
                found = self._bordered(logits.softmax(0), met) if shares else logits
                found = self._outside(self.route.part(found, met), met, nothing)
                yield found if met == block else self._around(found, met, block, nothing)
            else:
                yield self._background(block, nothing)

    @cached_property
    def _stitcher(self) -> Stitcher:
        return Stitcher(self.run, self.classes, self.batch)

    def _logits(self, blocks: Sequence[Box]) -> Iterator[Tensor]:
        schedule = order.schedule(self.plan, self.route, blocks)
        for logits in self._stitcher(schedule):
            yield logits if self.offsets is None else logits + self.offsets.to(logits)

    def _background(self, block: Box, nothing: float) -> Tensor:
        values = torch.full((self.classes, *size(block)), nothing)
        values[0] = 1
        return values

    def _around(self, found: Tensor, met: Box, block: Box, nothing: float) -> Tensor:
        values = self._background(block, nothing).to(found)
        values[(slice(None), *within(met, block))] = found
        return values

    def _bordered(self, shares: Tensor, block: Box) -> Tensor:
        """With the background that lies around what is predicted, as far as a block reaches."""
        pads: list[int] = []
        for old, part in zip(self.route.source(block), self.plan.box, strict=True):
            pads = [max(part.start - old.start, 0), max(old.stop - part.stop, 0), *pads]
        if not any(pads):
            return shares
        shares = functional.pad(shares, pads)
        shares[0] += 1 - shares.sum(0)
        return shares

    def _outside(self, values: Tensor, block: Box, nothing: float) -> Tensor:
        """Background outside the region of interest."""
        if self.roi is None:
            return values
        outside = ~self.roi[block].to(values.device)
        values[1:, outside] = nothing
        values[0, outside] = 1
        return values


def predict_volume(
    network: nn.Module,
    image: Tensor,
    settings: Inference,
    patch: Sequence[int],
    divisor: Sequence[int],
    *,
    classes: int,
    roi: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Predict the class probabilities of one volume.

    Args:
        network: In eval mode; gives a tuple of logits, finest first. It may have a `margin`.
        image: (C, I, J, K) float32.
        settings: Mode, overlap, flips (axes by number: `config.numbered`), precision.
        patch: Window (i, j, k) where the settings name none.
        divisor: What a window's size must be divisible by, per axis.
        classes: Of the network.
        roi: (I, J, K) bool, the region of interest, not empty; None: everywhere.
        offsets: (classes,) added to the logits, e.g. logarithms of ratios of priors.

    Returns:
        (classes, I, J, K) float32: the softmax of logits, which are averaged over the flips;
        background outside the region.

    Raises:
        NonFiniteError: A logit is not finite.
        OutOfMemoryError: There is not enough memory for one window.
    """
    settings = settings.model_copy(update={"patch": settings.patch or tuple(patch)})
    one = Pass.of(network, image, settings, divisor, classes, roi=roi, offsets=offsets)
    out = torch.zeros(classes, *image.shape[1:], device=image.device)
    out[0] = 1
    for part in one.parts(one.seen, settings.memory * MIB):
        for block, shares in zip(part, one.shares(part), strict=True):
            out[(slice(None), *block)] = shares
    return out


def predict_labels(
    network: nn.Module,
    image: Tensor,
    settings: Inference,
    patch: Sequence[int],
    divisor: Sequence[int],
    *,
    classes: int,
    roi: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Predict the likeliest class of each voxel, in memory that hardly grows with the classes.

    Arguments and errors are those of `predict_volume`.

    Returns:
        (I, J, K) uint8 class indices.
    """
    settings = settings.model_copy(update={"patch": settings.patch or tuple(patch)})
    one = Pass.of(network, image, settings, divisor, classes, roi=roi, offsets=offsets)
    out = torch.zeros(image.shape[1:], dtype=torch.uint8, device=image.device)
    for part in one.parts(one.seen, settings.memory * MIB):
        for block, scores in zip(part, one.scores(part), strict=True):
            out[block] = likeliest(scores).to(out.device)
    return out
