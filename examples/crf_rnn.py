"""A network of your own that ends in a dense CRF, trained as one: "CRF as RNN".

Zheng et al. 2015, arXiv:1502.03240. In a YAML:

plugins: [crf_rnn.py]
preprocess: {spacing: [1, 1, 1]}
model:
  network: {name: crf_rnn, spacing: [1, 1, 1]}
"""

from __future__ import annotations

from torch import Tensor, nn

from medseg.postprocess.dense.layer import DenseCRFLayer
from medseg.registry import NETWORKS


@NETWORKS.register("crf_rnn")
class CRFasRNN(nn.Module):
    """A few convolutions, then mean field with kernel weights that are learnt with them.

    Args:
        in_channels: Channels of the input; medseg fills it in.
        classes: Channels of the output; medseg fills it in.
        spacing: Voxel size in mm that `preprocess.spacing` brings all volumes to.
        width: Feature channels.
        modalities: How many channels of the input the CRF looks at, from the first; at most 3.
        spatial_mm: Standard deviation of the CRF's spatial kernel, in mm.
        appearance_mm: That of the positions in its appearance kernel, in mm.
        appearance_intensity: That of the intensities in it, in units of the normalised input.
        learn_compatibility: Whether to learn which labels go together.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        width: int = 16,
        modalities: int = 2,
        spatial_mm: float = 3.0,
        appearance_mm: float = 12.0,
        appearance_intensity: float = 0.5,
        learn_compatibility: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, width, width):
            layers += [nn.Conv3d(channels, width, 3, padding=1), nn.InstanceNorm3d(width)]
            layers += [nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv3d(width, classes, 1))
        self.crf = DenseCRFLayer(
            classes,
            spacing,
            spatial_mm,
            appearance_mm,
            appearance_intensity,
            learn_compatibility=learn_compatibility,
        )
        self.modalities = modalities

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to raw logits (N, classes, I, J, K)."""
        image = x[:, : self.modalities].clamp(-3, 3)  # outliers would only cost memory
        return self.crf(self.body(x), image)
