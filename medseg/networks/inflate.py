"""Kernels of another network made to fit: 2D to 3D, other input channels, other intensities.

The first layer takes in what was done to the images before it. Where the file's network saw
p(v) = gain * v + offset in a channel, its kernel W answers W * p(v) = (gain W) * v + offset sum(W):
the kernel is scaled, and a constant is left for the convolution's bias, or for the mean of the
batch norm that follows. This is exact away from the border; there, a padded 0 meant the mean colour
in the file's network and means the intensity 0 here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.config.schema import Pretrained
from medseg.errors import ConfigError

_COLOURS = ("red", "green", "blue")
# (gain, means, deviations), red first, for a picture u from 0 to 1: (gain * u - mean) / deviation.
# caffe: Simonyan and Zisserman's published VGG models. torchvision: its ImageNet classifiers, but
# for GoogLeNet, which sees "inception" (its option transform_input).
_PREPROCESSING = {
    "caffe": (255.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "torchvision": (1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": (1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def inflate(kernel: Tensor, length: int, axis: int, how: str) -> Tensor:
    """A 2D kernel as a 3D one (Carreira and Zisserman 2017, arXiv:1705.07750, section 2.3.2).

    Args:
        kernel: (out, in, a, b).
        length: Length of the new axis.
        axis: Where it stands among the three, 0 to 2.
        how: "mean": the kernel in each plane, divided by their number; "centre": in the middle
            plane, zeros in the others. Either way, an input that is constant along the new axis
            gives what the 2D kernel gives.
    """
    planes = kernel.unsqueeze(2 + axis)
    repeats = [1] * planes.ndim
    repeats[2 + axis] = length
    if how == "mean":
        return planes.repeat(repeats) / length
    out = torch.zeros_like(planes).repeat(repeats)
    out.narrow(2 + axis, length // 2, 1).copy_(planes)
    return out


def fit(weight: Tensor, shape: torch.Size, settings: Pretrained) -> tuple[Tensor, str] | None:
    """A weight in the shape of ours, and what was done to it in words; None: it cannot be."""
    if weight.shape == shape:
        return weight, ""
    if weight.ndim == 4 and len(shape) == 5:
        length = shape[2 + settings.axis]
        inflated = inflate(weight, length, settings.axis, settings.inflate)
        how = f"2D to 3D: {settings.inflate} of {length} along axis {settings.axis}"
        return (inflated, how) if inflated.shape == shape else None
    if weight.ndim == 2 and shape == (*weight.shape, 1, 1, 1):
        return weight.reshape(shape), "fully connected, as a 1x1x1 convolution"
    return None


def first_kernel(
    kernel: Tensor, settings: Pretrained, channels: Sequence[str]
) -> tuple[Tensor, Tensor, str]:
    """The kernel of the first layer for our channels and intensities.

    Each of our channels gets the mean of the file's that stand for it, times the file's channels
    over those of ours that are not zero: one image in all of them gives what a grey picture gave.

    Args:
        kernel: (out, in, *size) in 2D or 3D.
        settings: Which channels, order, preprocessing and intensities.
        channels: Names of our channels.

    Returns:
        The kernel (out, len(channels), *size), the constant (out,) that preprocessing adds to its
        answer, and in words what was done, "" if nothing.

    Raises:
        ConfigError: The settings do not fit the file's or our channels; the path is within them.
    """
    width, kernel = kernel.shape[1], kernel.double()
    sources = _sources(settings, channels, width)
    factor = width / sum(1 for source in sources if source)
    gains, offsets = _affine(settings, width)
    constants = offsets * kernel.flatten(2).sum(2)
    kernel = kernel * gains.view(1, -1, *[1] * (kernel.ndim - 2))
    zero = torch.zeros_like(kernel[:, 0])
    mapped = [kernel[:, source].mean(1) if source else zero for source in sources]
    added = torch.stack([constants[:, source].mean(1) for source in sources if source]).sum(0)
    words = _words(channels, sources, factor, width)
    if settings.preprocessing:
        black, white = settings.intensity
        folded = f"{settings.preprocessing} preprocessing folded in ({black:g} to {white:g})"
        words = "; ".join(filter(None, (words, folded)))
    return torch.stack(mapped, 1) * factor, added * factor, words


def _words(
    channels: Sequence[str], sources: Sequence[Sequence[int]], factor: float, width: int
) -> str:
    """The channel mapping, e.g. `ct = mean of 0, 1, 2 of the file, times 3`; "" if none."""
    if [*sources] == [[n] for n in range(width)]:
        return ""
    means = ["mean of " * (len(s) > 1) + (", ".join(map(str, s)) or "zero") for s in sources]
    pairs = [f"{name} = {mean}" for name, mean in zip(channels, means, strict=True)]
    if len(means) > 1 and len({*means}) == 1:
        pairs = [f"each channel = {means[0]}"]
    return f"{'; '.join(pairs)} of the file, times {factor:.4g}"


def _sources(settings: Pretrained, channels: Sequence[str], width: int) -> list[list[int]]:
    """For each of our channels, which of the file's it is the mean of."""
    mapping = settings.channels
    if mapping is None:
        as_they_are = [[n] for n in range(width)]
        return as_they_are if len(channels) == width else [list(range(width)) for _ in channels]
    strange = [name for name in mapping if name not in channels]
    lacking = [name for name in channels if name not in mapping]
    if strange or lacking:
        wrong = f"unknown {strange[0]!r}" if strange else f"{lacking[0]!r} is not mapped"
        raise ConfigError(
            f"channels: {wrong}; map each of {', '.join(channels)}", ("channels", *strange[:1])
        )
    sources = [_source(settings, name, mapping[name], width) for name in channels]
    if not any(sources):
        raise ConfigError("channels are all zero: the network would see nothing", ("channels",))
    return sources


def _source(settings: Pretrained, name: str, wanted: str | int, width: int) -> list[int]:
    if wanted in ("mean", "zero"):
        return list(range(width)) if wanted == "mean" else []
    if isinstance(wanted, int):
        if wanted < width:
            return [wanted]
        known = f"0 to {width - 1}" if width > 1 else "0"
    else:
        if width == len(_COLOURS):
            return [_order(settings).index(wanted)]
        known = "mean, zero or a number"
    raise ConfigError(
        f"channel {name!r} is to be {wanted!r}, but the file's first layer has {width} input "
        f"channels: give {known}",
        ("channels", name),
    )


def _order(settings: Pretrained) -> Sequence[str]:
    order = settings.order or ("bgr" if settings.preprocessing == "caffe" else "rgb")
    return _COLOURS if order == "rgb" else _COLOURS[::-1]


def _affine(settings: Pretrained, width: int) -> tuple[Tensor, Tensor]:
    """Gain and offset of the preprocessing per channel of the file, for our intensities."""
    if settings.preprocessing is None:
        return torch.ones(width, dtype=torch.double), torch.zeros(width, dtype=torch.double)
    if width != len(_COLOURS):
        raise ConfigError(
            f"preprocessing {settings.preprocessing!r} is for pictures of red, green and blue, but "
            f"the file's first layer has {width} input channels: set preprocessing to null",
            ("preprocessing",),
        )
    gain, means, deviations = _PREPROCESSING[settings.preprocessing]
    colours = [_COLOURS.index(name) for name in _order(settings)]
    mean = torch.tensor(means, dtype=torch.double)[colours]
    deviation = torch.tensor(deviations, dtype=torch.double)[colours]
    black, white = settings.intensity
    slope = gain / (white - black)
    return slope / deviation, (-slope * black - mean) / deviation
