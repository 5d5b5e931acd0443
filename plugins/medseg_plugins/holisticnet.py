"""HolisticNet (Fidon et al. 2017, arXiv:1707.00478): scores at four scales, and their fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.networks.blocks import ONE, Norm, Triple, keep_variance
from medseg.networks.stages import check_positive, scaled
from medseg.registry import NETWORKS
from medseg_plugins.highres_blocks import Nonlinearity, Style, conv_layer, highres_stage

_DILATIONS = (1, 2, 1, 2)
_FULL = 2  # so many scales keep the input's grid


@NETWORKS.register("holisticnet")
class HolisticNet(nn.Module):
    """Four scales of residual blocks, each with its own scores; the result is their average.

    Scales 1 and 2 keep the input's grid, 3 and 4 lie behind an average pooling; the blocks of
    scales 2 and 4 are dilated. The logits of the average come first, those of the scales are
    auxiliary outputs of the input's size: deep supervision, for which the paper made its
    Wasserstein Dice loss.

    Widths and blocks are NiftyNet's. Unlike there, the weights of the average are positive and sum
    to 1 over the scales, for each class, so that it is an average of probabilities; it starts
    equal. Scores have a bias and no norm. Both coarse scales are brought up by a transposed
    convolution as long as its step, which starts as a repetition of voxels: NiftyNet's for scale 4
    is one voxel long and leaves gaps.

    Args:
        in_channels: Channels of the input.
        classes: Channels of each output.
        features: Channels of all blocks.
        score_features: Channels of the 3x3x3 convolution before each scale's scores.
        width: Factor on both.
        blocks: Residual blocks of each scale.
        stride: The pooling before scale 3, per axis.
        kernel: Kernel of the 3x3x3 convolutions, per axis: `[3, 3, 1]` for thick slices along k.
        norm: Normalisation before each convolution.
        activation: Non-linearity; NiftyNet's is "elu".
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        classes: int,
        *,
        features: int = 70,
        score_features: int = 140,
        width: float = 1.0,
        blocks: int = 3,
        stride: Triple = (2, 2, 2),
        kernel: Triple = (3, 3, 3),
        norm: Norm = "batch",
        activation: Nonlinearity = "elu",
    ) -> None:
        super().__init__()
        check_positive("features", features, score_features)
        check_positive("blocks", blocks)
        check_positive("stride", *stride)
        features, score_features = scaled((features, score_features), width)
        style = Style(norm, activation)
        self.stem = conv_layer(style, in_channels, features, kernel)
        self.pool = nn.AvgPool3d(stride)
        self.scales = nn.ModuleList(
            highres_stage(features, features, blocks, kernel, style, dilation)
            for dilation in _DILATIONS
        )
        self.scores = nn.ModuleList(
            nn.Sequential(
                conv_layer(style, features, score_features, kernel),
                nn.Conv3d(score_features, classes, 1),
            )
            for _ in _DILATIONS
        )
        self.apply(keep_variance)
        self.ups = nn.ModuleList(_repetition(classes, stride) for _ in _DILATIONS[_FULL:])
        self.balance = nn.Parameter(torch.zeros(len(_DILATIONS), 1, classes, 1, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (N, in_channels, I, J, K) to (logits, *logits of the scales), all of its size."""
        x = self.stem(x)
        outputs = []
        for n, (scale, score) in enumerate(zip(self.scales, self.scores, strict=True)):
            x = scale(self.pool(x) if n == _FULL else x)
            scores = score(x)
            outputs.append(scores if n < _FULL else self.ups[n - _FULL](scores))
        shares = torch.stack([out.log_softmax(1) for out in outputs]) + self.balance.log_softmax(0)
        return shares.logsumexp(0), *outputs


def _repetition(classes: int, stride: Triple) -> nn.Module:
    """Each class by itself to the finer grid: at first, every voxel is repeated."""
    if stride == ONE:
        return nn.Identity()
    up = nn.ConvTranspose3d(classes, classes, stride, stride, groups=classes, bias=False)
    nn.init.ones_(up.weight)
    return up
