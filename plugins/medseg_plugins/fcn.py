"""Fully convolutional decoder in 3D (Long, Shelhamer and Darrell 2015, arXiv:1411.4038)."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, Activation, ConvNormAct, Norm, Triple, conv, resized
from medseg.networks.stages import check_positive
from medseg.registry import DECODERS

_SKIPS = 2  # FCN-8s


@DECODERS.register("fcn")
class FCNDecoder(nn.Module):
    """The coarsest level, upsampled and added to `skips` finer ones; one level is returned.

    The paper scores classes on each level by a 1x1 convolution, then upsamples and adds the scores.
    Here the levels are brought to `width` channels, upsampled trilinearly and added; the core's
    head scores the sum. All these steps are linear and can be exchanged: from as many channels as
    classes on, both have the same functions. The learnt upsampling of the paper is fixed here at
    what it begins with.

    Args:
        channels: The encoder's channels, finest level first.
        strides: The encoder's strides against the input, finest level first.
        width: Channels of the returned level.
        skips: How many finer levels are added. With an encoder whose coarsest stride is 32, as in
            the paper: 0 for FCN-32s, 1 for FCN-16s, 2 for FCN-8s. Null: 2, or as many as there are.
        hidden: Widths of hidden convolutions on the coarsest level; `[4096, 4096]` in the paper,
            which took them from VGG's fully connected layers.
        kernel: Kernel of the first hidden convolution, per axis (7x7 in the paper); the others are
            1x1x1.
        dropout: Probability of dropping a feature map behind each hidden convolution; 0.5 in the
            paper.
        norm: Normalisation behind each hidden convolution; the paper has "none".
        activation: Non-linearity behind each hidden convolution.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[Triple, ...],
        *,
        width: int = 32,
        skips: int | None = None,
        hidden: tuple[int, ...] = (),
        kernel: Triple = (3, 3, 3),
        dropout: float = 0.0,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        check_positive("width", width)
        check_positive("hidden", *hidden)
        most = len(channels) - 1
        skips = min(_SKIPS, most) if skips is None else skips
        if not 0 <= skips <= most:
            raise ConfigError(
                f"this encoder has 0 to {most} levels finer than its coarsest, got {skips} skips",
                ("skips",),
            )
        self.channels = (width,)
        self.strides = (strides[most - skips],)
        self.hidden = nn.Sequential()
        width_in = channels[-1]
        for n, number in enumerate(hidden):
            shape = ONE if n else kernel
            self.hidden.append(
                ConvNormAct(
                    width_in, number, shape, norm=norm, activation=activation, dropout=dropout
                )
            )
            width_in = number
        widths = (width_in, *channels[:most][::-1])[: 1 + skips]
        # The head's bias serves for all.
        self.projections = nn.ModuleList(conv(number, width, ONE) for number in widths)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map the encoder's levels, finest first, to one (N, width, ...), the last skip's."""
        coarsest, *skips = self.projections
        x = coarsest(self.hidden(levels[-1]))
        for project, level in zip(skips, levels[-2::-1], strict=False):
            x = project(level) + resized(x, level)
        return [x]
