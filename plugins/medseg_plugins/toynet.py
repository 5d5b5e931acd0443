"""NiftyNet's network of two layers for trying things out (Gibson et al. 2018).

doi:10.1016/j.cmpb.2018.01.025.
"""

from __future__ import annotations

from torch import Tensor, nn

from medseg.networks.blocks import Activation, ConvNormAct, Norm, Triple, keep_variance
from medseg.networks.stages import check_positive
from medseg.registry import NETWORKS


@NETWORKS.register("toynet")
class ToyNet(nn.Module):
    """A 3x3x3 convolution and 1x1x1 scores: a run with it shows whether all else works.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        features: Channels between the two.
        kernel: Kernel of the first convolution, per axis.
        norm: Normalisation behind it.
        activation: Non-linearity behind that.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        features: int = 10,
        kernel: Triple = (3, 3, 3),
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        check_positive("features", features)
        self.layer = ConvNormAct(in_channels, features, kernel, norm=norm, activation=activation)
        self.scores = nn.Conv3d(features, classes, 1)
        self.apply(keep_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        logits: Tensor = self.scores(self.layer(x))
        return logits
