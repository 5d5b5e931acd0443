"""A network over a whole volume: in one pass, or by a sliding window with Gaussian weights.

With a region of interest, only what lies in it is predicted: windows cover its bounding box, those
without any of its voxels are left out, and outside the region the background is certain. A network
with a margin reads that much context around each window out of the volume; beyond the volume's end
the edge is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor, nn
from torch.nn import functional

from medseg.config.axes import numbers
from medseg.config.schema import Config, Inference
from medseg.errors import ConfigError, MedsegError
from medseg.inference.boxes import Box, bounds, cut, everything, grown, mirrored, starts, tiled
from medseg.networks.blocks import ZERO

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Gaussian weights (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): deviation in windows.
_SIGMA, _LEAST_WEIGHT = 1 / 8, 1e-3

Triple = tuple[int, int, int]


class NonFiniteError(MedsegError):
    """A network gave NaN or infinity: never taken for background (promise 4)."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast of a precision by its name in the config.

    Raises:
        MedsegError: fp16 on a CPU, where convolutions lack it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise MedsegError("precision fp16 needs a CUDA device; use bf16 or fp32 on a CPU")
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


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


@torch.inference_mode()
def predict_volume(
    network: nn.Module,
    image: Tensor,
    settings: Inference,
    patch: Sequence[int],
    divisor: Sequence[int],
    *,
    roi: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Predict the class probabilities of one volume.

    Args:
        network: In eval mode; gives a tuple of logits, finest first. It may have a `margin`.
        image: (C, I, J, K) float32 on the network's device.
        settings: Mode, overlap, flips (axes by number: `config.numbered`), precision.
        patch: Window (i, j, k) where the settings name none.
        divisor: What a window's size must be divisible by, per axis.
        roi: (I, J, K) bool, the region of interest, not empty; None: everywhere.
        offsets: (classes,) added to the logits, e.g. logarithms of ratios of priors.

    Returns:
        (classes, I, J, K) float32: softmax, averaged over the flips; background outside the region.

    Raises:
        NonFiniteError: A logit is not finite.
    """
    settings = settings.model_copy(update={"patch": settings.patch or tuple(patch)})
    flips = _flips(numbers(settings.flip, None))
    box = everything(image)
    if roi is not None and settings.mode != "resize":  # whose sampler takes all of a volume too
        box = bounds(roi)
    total: Tensor | None = None
    with autocast(image.device, settings.precision):
        for axes in flips:
            turned = [axis + 1 for axis in axes]
            logits = _logits(
                network,
                image.flip(turned),
                settings,
                divisor,
                mirrored(box, axes, image.shape[1:]),
                None if roi is None else roi.flip(axes),
            )
            if not bool(torch.isfinite(logits).all()):
                raise NonFiniteError(f"the network gave {_count(logits)}")
            if offsets is not None:
                logits += offsets.to(logits)[:, None, None, None]
            share = logits.flip(turned).softmax(0)
            total = share if total is None else total.add_(share)
    assert total is not None
    total.div_(len(flips))
    return total if roi is None else _background_outside(total, box, roi)


def _logits(
    network: nn.Module,
    image: Tensor,
    settings: Inference,
    divisor: Sequence[int],
    box: Box,
    roi: Tensor | None,
) -> Tensor:
    """The logits (classes, *box); 0 where no window came, which is outside the region."""
    size = [part.stop - part.start for part in box]
    if settings.mode == "resize":
        return _resized(network, image[(slice(None), *box)], settings)
    window, is_whole = settings.patch or (), _is_whole(settings, size)
    if is_whole:
        window = tuple(-(-n // d) * d for n, d in zip(size, divisor, strict=True))
    margin = getattr(network, "margin", ZERO)
    if any(margin) and not settings.overlap and not is_whole:
        room = tuple(tiled(part, step) for part, step in zip(box, window, strict=True))
    else:
        room = tuple(
            grown(part, n, least, centred=not is_whole)
            for part, n, least in zip(box, image.shape[1:], window, strict=True)
        )
    image = cut(image, room, margin)
    if is_whole:
        (logits,) = _run(network, image, [ZERO], window, margin)
    else:
        inside = None if roi is None else cut(roi[None].float(), room, ZERO)[0] > 0
        logits = _stitched(network, image, settings, margin, inside)
    inner = (
        slice(part.start - large.start, part.stop - large.start)
        for part, large in zip(box, room, strict=True)
    )
    result: Tensor = logits[(slice(None), *inner)]
    return result


def _is_whole(settings: Inference, shape: Sequence[int]) -> bool:
    if settings.mode == "auto":
        return torch.Size(shape).numel() <= settings.whole_voxels
    return settings.mode == "whole"


def _stitched(
    network: nn.Module, image: Tensor, settings: Inference, margin: Triple, roi: Tensor | None
) -> Tensor:
    """Slide over a volume that has its margin around it."""
    window = settings.patch or ()
    size = [n - 2 * m for n, m in zip(image.shape[1:], margin, strict=True)]
    weight = compute_importance_map(
        window, mode="gaussian", sigma_scale=_SIGMA, device=image.device
    ).clamp_min(_LEAST_WEIGHT)
    total, weights = torch.zeros(0), torch.zeros(size, device=image.device)
    places = _places(size, window, settings.overlap, roi)
    for n in range(0, len(places), settings.batch):
        some = places[n : n + settings.batch]
        for place, logits in zip(some, _run(network, image, some, window, margin), strict=True):
            if not len(total):
                total = torch.zeros(len(logits), *size, device=image.device)
            here = tuple(slice(at, at + w) for at, w in zip(place, window, strict=True))
            total[(slice(None), *here)].addcmul_(logits, weight)
            weights[here] += weight
    return total.div_(weights.clamp_min_(torch.finfo(weights.dtype).tiny))


def _places(
    size: Sequence[int], window: Sequence[int], overlap: float, roi: Tensor | None
) -> list[Triple]:
    """Where windows begin that hold a voxel of the region."""
    axes = [starts(n, w, overlap) for n, w in zip(size, window, strict=True)]
    i, j, k = window
    return [
        (a, b, c)
        for a, b, c in product(*axes)
        if roi is None or bool(roi[a : a + i, b : b + j, c : c + k].any())
    ]


def _run(
    network: nn.Module,
    image: Tensor,
    places: Sequence[Triple],
    window: Sequence[int],
    margin: Triple,
) -> Tensor:
    """The logits (N, classes, *window) of windows that begin at `places`, without the margin."""
    i, j, k = (w + 2 * m for w, m in zip(window, margin, strict=True))
    windows = [image[:, a : a + i, b : b + j, c : c + k] for a, b, c in places]
    logits: Tensor = network(torch.stack(windows))[0]
    return logits.float()


def _resized(network: nn.Module, image: Tensor, settings: Inference) -> Tensor:
    """One pass over a volume resized to the window, as the sampler `resize` trains."""
    window = settings.patch or ()
    small = functional.interpolate(image[None], window, mode="trilinear")[0]
    margin = getattr(network, "margin", ZERO)
    small = cut(small, [slice(0, n) for n in window], margin)
    logits = _run(network, small, [ZERO], window, margin)
    return functional.interpolate(logits, image.shape[1:], mode="trilinear")[0]


def _background_outside(shares: Tensor, box: Box, roi: Tensor) -> Tensor:
    """Class probabilities of the whole volume from those of the region's box."""
    whole = torch.zeros(len(shares), *roi.shape, device=shares.device)
    whole[0] = 1
    inside = roi[box]
    whole[(slice(None), *box)] = torch.where(inside, shares, whole[(slice(None), *box)])
    return whole


def _flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of mirrored axes: 2 to the power of their number."""
    combinations: list[tuple[int, ...]] = [()]
    for axis in axes:
        combinations += [(*done, axis) for done in combinations]
    return combinations


def _count(logits: Tensor) -> str:
    bad = int((~torch.isfinite(logits)).sum())
    return f"{bad} non-finite logits of {logits.numel()}; lower train.lr or use precision fp32"
