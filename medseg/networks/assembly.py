"""From the config's `model` section to one module: encoder, decoder and heads, or a whole network.

Whatever the parts are, the result maps (N, in_channels, I, J, K) to a tuple of raw logits: those
of the input's size first, then auxiliary ones; the same in training and in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg.config.schema import ComponentSpec, Model
from medseg.errors import ConfigError, PluginError
from medseg.networks.blocks import ONE, ZERO, SubvoxelConv, Triple
from medseg.networks.sizes import check_size, try_divisors, within
from medseg.registry import DECODERS, ENCODERS, NETWORKS, Registry

_AUXILIARY_WEIGHT = 0.3


class EncoderDecoder(nn.Module):
    """Encoder, decoder and 1x1x1 heads.

    The outputs are the logits, those of the decoder's next coarser levels, and those of the
    encoder's own auxiliary maps, which only the loss looks at. `output_weights` are their shares
    in the loss: halved from level to level (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z),
    and the encoder's `auxiliary_weight`, by default that of GoogLeNet (Szegedy et al. 2015,
    arXiv:1409.4842, section 5).

    Args:
        encoder: An encoder that keeps its contract (`medseg.testing.check_encoder`).
        decoder: A decoder for its channels and strides.
        classes: Channels of each output, background included.
        deep_supervision: Heads on so many of the decoder's next coarser levels.

    Raises:
        ConfigError: The decoder has too few levels for the auxiliary heads.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, classes: int, deep_supervision: int = 0
    ) -> None:
        super().__init__()
        widths = _levels(decoder, "decoder")[: 1 + deep_supervision]
        if len(widths) <= deep_supervision:
            raise ConfigError(
                f"deep_supervision {deep_supervision} needs {deep_supervision + 1} decoder levels, "
                f"got {len(widths)}; set it to at most {len(widths) - 1}",
                ("deep_supervision",),
            )
        self.encoder = encoder
        self.decoder = decoder
        self.heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for width in widths)
        finest = _strides(encoder)[0]
        stride = _strides(decoder)[0] if hasattr(decoder, "strides") else finest
        if stride != ONE:
            self.heads[0] = _coarse_head(widths[0], classes, stride, is_finest=stride == finest)
        auxiliary = tuple(getattr(encoder, "auxiliary_channels", ()))
        self.auxiliary_heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for width in auxiliary)
        weight = float(getattr(encoder, "auxiliary_weight", _AUXILIARY_WEIGHT))
        halves = (0.5**level for level in range(len(widths)))
        self.output_weights: tuple[float, ...] = (*halves, *[weight] * len(auxiliary))
        self.divisor = _divisor(encoder)
        self.margin = ZERO

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (N, in_channels, I, J, K) to (logits, *auxiliary logits of coarser levels).

        Raises:
            ConfigError: The size is not a multiple of `divisor`, or equals it where an instance
                norm would then see a single voxel.
        """
        check_size(x.shape[2:], self.divisor)
        try:
            return self._outputs(x)
        except ValueError as error:
            if tuple(x.shape[2:]) != self.divisor:
                raise
            raise ConfigError(
                f"a size of {self.divisor} voxels leaves one voxel at the coarsest level, and a "
                "norm cannot take that: double one axis, or use fewer levels or another norm (for "
                "batch norm, more samples in a batch will do)"
            ) from error

    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        if self.auxiliary_heads:
            levels, maps = self.encoder.with_auxiliary(x)  # type: ignore[operator]
        else:
            levels = self.encoder(x)
        logits = [h(level) for h, level in zip(self.heads, self.decoder(levels), strict=False)]
        logits += [head(m) for head, m in zip(self.auxiliary_heads, maps, strict=True)]
        return tuple(logits)


class WholeNetwork(nn.Module):
    """A network by itself, its output brought into one form.

    `output_weights` are as given; None: each output counts half as much as the one before.
    `margin` is the network's own: the voxels of context, per axis, that its input has on each side
    beyond the patch whose logits it gives; none where it names none.
    `divisor` is of that patch, and found by trying sizes. It is (1, 1, 1) where none was accepted,
    as with a network that takes one fixed size: then the network itself has to refuse the others.

    Args:
        network: A network that keeps its contract (`medseg.testing.check_network`).
        in_channels: Channels of its input.
        classes: Channels of its outputs, background included.
        output_weights: Shares of its outputs in the loss; whether there are as many of them is not
            known before it runs (`check_output_weights`).
    """

    def __init__(
        self,
        network: nn.Module,
        in_channels: int,
        classes: int,
        output_weights: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.output_weights = output_weights
        self.margin = _margin(network)
        self.divisor = try_divisors(network, in_channels, self.margin)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (N, in_channels, I, J, K), margin included, to (logits, *auxiliary logits).

        Raises:
            ConfigError: The size without the margin is not a multiple of `divisor`, or nothing.
            PluginError: The network returns something else than logits.
        """
        size = within(x.shape[2:], self.margin)
        check_size(size, self.divisor)
        out = self.network(x)
        logits = (out,) if isinstance(out, Tensor) else tuple(out)
        expected = (x.shape[0], self.classes, *size)
        shapes = [tuple(item.shape) if isinstance(item, Tensor) else () for item in logits]
        if shapes[:1] != [expected] or any(s[:2] != expected[:2] or len(s) != 5 for s in shapes):
            raise PluginError(
                f"the network returns tensors of shapes {shapes}; expected logits {expected}, then "
                "auxiliary ones of any size"
            )
        return logits


Network = EncoderDecoder | WholeNetwork


def build_network(model: Model, in_channels: int, classes: int, seed: int) -> Network:
    """Build what the config describes, with weights drawn from the seed.

    The caller's random state is left as it was.

    Args:
        model: The config's `model` section. `deep_supervision` is for encoder and decoder; a whole
            network has options of its own for that.
        in_channels: Channels of the input.
        classes: Channels of the output, background included.
        seed: Where the initial weights come from.

    Raises:
        ConfigError: A component or one of its options does not exist or does not fit; the error's
            path starts at the `model` section.
        PluginError: A component does not describe its levels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.network is not None:
            network = _build(
                NETWORKS, model.network, "network", in_channels=in_channels, classes=classes
            )
            return WholeNetwork(network, in_channels, classes, model.supervision_weights)
        encoder = _build(ENCODERS, model.encoder, "encoder", in_channels=in_channels)
        channels, strides = _levels(encoder, "encoder"), _strides(encoder)
        decoder = _build(DECODERS, model.decoder, "decoder", channels=channels, strides=strides)
        built = EncoderDecoder(encoder, decoder, classes, model.deep_supervision)
        if model.supervision_weights is not None:
            check_output_weights(model.supervision_weights, len(built.output_weights))
            built.output_weights = model.supervision_weights
        return built


def check_output_weights(weights: Sequence[float] | None, outputs: int) -> None:
    """Refuse weights of another number of outputs.

    Raises:
        ConfigError: With both numbers.
    """
    if weights is not None and len(weights) != outputs:
        raise ConfigError(
            f"supervision_weights needs one number for each of the network's {outputs} outputs, "
            f"the full size first, got {len(weights)}: {list(weights)}",
            ("supervision_weights",),
        )


def _build(
    registry: Registry, component: ComponentSpec | None, key: str, **given: Any
) -> nn.Module:
    if component is None:
        raise ConfigError(f"the model needs {key}", (key,))
    try:
        built = registry.build(component.spec(), **given)
    except ConfigError as error:
        raise ConfigError(str(error), (key, *error.path)) from error
    if not isinstance(built, nn.Module):
        raise PluginError(f"{key} {component.name!r} is a {type(built).__name__}, not a nn.Module")
    return built


def _levels(module: nn.Module, kind: str) -> tuple[int, ...]:
    channels = getattr(module, "channels", None)
    if not isinstance(channels, Sequence) or not channels:
        raise PluginError(
            f"{kind} {type(module).__name__}.channels is {channels!r}; expected the channels of "
            "each level, finest first"
        )
    return tuple(channels)


def _strides(module: nn.Module) -> tuple[Triple, ...]:
    strides = getattr(module, "strides", None)
    if not isinstance(strides, Sequence) or any(len(stride) != 3 for stride in strides):
        raise PluginError(
            f"{type(module).__name__}.strides is {strides!r}; expected three numbers for each "
            "level, finest first"
        )
    return tuple((i, j, k) for i, j, k in strides)


def _coarse_head(width: int, classes: int, stride: Triple, *, is_finest: bool) -> nn.Module:
    """From a strided level, the encoder's finest or one where the decoder stops, to full size."""
    if is_finest:
        return SubvoxelConv(width, classes, stride)
    return nn.Sequential(
        nn.Conv3d(width, classes, 1), nn.Upsample(scale_factor=stride, mode="trilinear")
    )


def _divisor(encoder: nn.Module) -> Triple:
    i, j, k = (math.lcm(*steps) for steps in zip(*_strides(encoder), strict=True))
    return i, j, k


def _margin(network: nn.Module) -> Triple:
    margin = getattr(network, "margin", ZERO)
    if not isinstance(margin, Sequence) or len(margin) != 3 or any(m < 0 for m in margin):
        raise PluginError(
            f"{type(network).__name__}.margin is {margin!r}; expected three numbers from 0, the "
            "voxels of context on each side per axis"
        )
    i, j, k = margin
    return i, j, k
