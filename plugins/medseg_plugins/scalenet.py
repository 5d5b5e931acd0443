"""ScaleNet (Fidon et al. 2017, arXiv:1706.08124): modalities apart, then mixed, then averaged."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from medseg.networks.blocks import ONE, Norm, Triple, keep_variance
from medseg.networks.stages import check_positive, scaled
from medseg.registry import NETWORKS
from medseg_plugins.highres3dnet import HighRes3DNet
from medseg_plugins.highres_blocks import HighResBlock, Nonlinearity, Style, conv_layer


@NETWORKS.register("scalenet")
class ScaleNet(nn.Module):
    """Features of each modality by itself, layers that mix them, and HighRes3DNet on their merge.

    A scalable layer sees the maps as a table, modalities by features. It first mixes each feature
    over the modalities, then the features of each modality; so its weights grow with the number of
    modalities, not with its product with the features. The merge makes the rest of the network
    independent of that number. With one channel this is a HighRes3DNet with a longer beginning.

    The layers are NiftyNet's (16 features, residual blocks of a 3x3x3 and a 1x1x1 convolution, the
    front end `highres3dnet` with 80 maps before the scores); the paper tries several numbers of
    them.

    Args:
        in_channels: Modalities.
        classes: Channels of the output.
        features: Feature maps of each modality.
        layers: Scalable layers.
        merge: How the modalities become one: "average" or "max".
        width: Factor on the widths of the front end and on `features`.
        kernel: Kernel of the 3x3x3 convolutions, per axis: `[3, 3, 1]` for thick slices along k.
        norm: Normalisation before each convolution.
        activation: Non-linearity.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        features: int = 16,
        layers: int = 1,
        merge: Literal["average", "max"] = "average",
        width: float = 1.0,
        kernel: Triple = (3, 3, 3),
        norm: Norm = "batch",
        activation: Nonlinearity = "prelu",
    ) -> None:
        super().__init__()
        check_positive("features", features)
        check_positive("layers", layers)
        (features,) = scaled((features,), width)
        style = Style(norm, activation)
        self.merge = merge
        self.modalities = in_channels
        self.stem = conv_layer(
            style, in_channels, in_channels * features, kernel, groups=in_channels
        )
        self.layers = nn.Sequential(
            *[ScalableLayer(in_channels, features, kernel, style) for _ in range(layers)]
        )
        self.apply(keep_variance)
        self.front = HighRes3DNet(
            features,
            classes,
            width=width,
            kernel=kernel,
            head=(80,),
            norm=norm,
            activation=activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, modalities, I, J, K) to logits (N, classes, I, J, K)."""
        table = _table(self.layers(self.stem(x)), self.modalities)
        merged = table.mean(1) if self.merge == "average" else table.amax(1)
        logits: Tensor = self.front(merged)
        return logits


class ScalableLayer(nn.Module):
    """Each feature over the modalities, then each modality over the features.

    Both are grouped convolutions; the channels are ordered by modality, then feature.
    """

    def __init__(self, modalities: int, features: int, kernel: Triple, style: Style) -> None:
        super().__init__()
        self.modalities, self.features = modalities, features
        total, kernels = modalities * features, (kernel, ONE)
        self.over_modalities = HighResBlock(total, total, kernels, style, groups=features)
        self.over_features = HighResBlock(total, total, kernels, style, groups=modalities)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, modalities * features, I, J, K)."""
        x = self.over_modalities(_turned(x, self.modalities))
        y: Tensor = self.over_features(_turned(x, self.features))
        return y


def _turned(x: Tensor, rows: int) -> Tensor:
    """Channels ordered by row, then column, to channels ordered by column, then row."""
    return _table(x, rows).transpose(1, 2).flatten(1, 2)


def _table(x: Tensor, rows: int) -> Tensor:
    return x.view(len(x), rows, -1, *x.shape[2:])
