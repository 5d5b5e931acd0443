"""A network over a whole volume: in one pass, or by a sliding window with Gaussian weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional

from medseg.config.axes import numbers
from medseg.config.schema import Config, Inference
from medseg.errors import ConfigError, MedsegError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
) -> Tensor:
    """Predict the class probabilities of one volume.

    Args:
        network: In eval mode; gives a tuple of logits, finest first.
        image: (C, I, J, K) float32 on the network's device.
        settings: Mode, overlap, flips (axes by number: `config.numbered`), precision.
        patch: Window (i, j, k) where the settings name none.
        divisor: What the network's input must be divisible by, per axis.

    Returns:
        (classes, I, J, K) float32: softmax, averaged over the flips.

    Raises:
        NonFiniteError: A logit is not finite.
    """
    window = settings.patch or tuple(patch)
    flips = _flips(numbers(settings.flip, None))
    total: Tensor | None = None
    with autocast(image.device, settings.precision):
        for axes in flips:
            flipped = image.flip([a + 1 for a in axes])[None]
            logits = _logits(network, flipped, settings, window, divisor)[0]
            if not bool(torch.isfinite(logits).all()):
                raise NonFiniteError(f"the network gave {_count(logits)}")
            share = logits.flip([a + 1 for a in axes]).softmax(0)
            total = share if total is None else total.add_(share)
    assert total is not None
    return total.div_(len(flips))


def _logits(
    network: nn.Module,
    image: Tensor,
    settings: Inference,
    window: Sequence[int],
    divisor: Sequence[int],
) -> Tensor:
    if _is_whole(settings, image.shape[2:]):
        return _whole(network, image, divisor)
    logits: Tensor = sliding_window_inference(
        image,
        roi_size=tuple(window),
        sw_batch_size=settings.batch,
        predictor=lambda x: network(x)[0].float(),
        overlap=settings.overlap,
        mode="gaussian",
        padding_mode="replicate",
    )
    return logits


def _is_whole(settings: Inference, shape: Sequence[int]) -> bool:
    if settings.mode == "auto":
        return torch.Size(shape).numel() <= settings.whole_voxels
    return settings.mode == "whole"


def _whole(network: nn.Module, image: Tensor, divisor: Sequence[int]) -> Tensor:
    """One pass over the volume, its end repeated up to a size that the network takes."""
    shape = image.shape[2:]
    pads = [(-n) % d for n, d in zip(shape, divisor, strict=True)]
    if any(pads):
        image = functional.pad(image, (0, pads[2], 0, pads[1], 0, pads[0]), mode="replicate")
    logits: Tensor = network(image)[0].float()
    return logits[..., : shape[0], : shape[1], : shape[2]]


def _flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of mirrored axes: 2 to the power of their number."""
    combinations: list[tuple[int, ...]] = [()]
    for axis in axes:
        combinations += [(*done, axis) for done in combinations]
    return combinations


def _count(logits: Tensor) -> str:
    bad = int((~torch.isfinite(logits)).sum())
    return f"{bad} non-finite logits of {logits.numel()}; lower train.lr or use precision fp32"
