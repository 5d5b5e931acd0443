"""Dense V-Net (Gibson et al. 2018, doi:10.1109/TMI.2018.2806309): dense stacks at three scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.networks.blocks import (
    ONE,
    TWO,
    Activation,
    ConvNormAct,
    Norm,
    Triple,
    conv,
    keep_variance,
    norm_layer,
)
from medseg.networks.stages import check_positive, flatten, per_stage, same_length, scaled
from medseg.registry import NETWORKS


@NETWORKS.register("dense_vnet")
class DenseVNet(nn.Module):
    """Stacks of densely connected convolutions on 1/2, 1/4 and 1/8 of the resolution.

    A stack's convolutions see its input and all maps of those before. From each stack a convolution
    leads to a few maps for the scores, which are made on half the resolution from these maps and
    the averaged input, and interpolated to the input's size. The defaults are NiftyNet's, 0.88 M
    parameters for 1 channel and 9 classes; `dense_vnet_prior` has the paper's spatial prior, too.

    The prior knows where in the *patch* a class lies: take it only if a patch is always the same
    part of the body, as with volumes resized to one size. NiftyNet adds one and the same prior to
    all classes, which no softmax can see; here each class has its own, as in the paper. NiftyNet's
    affine augmentation inside the network is left to `train.augment`.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        growth: Maps that each convolution of a stack adds, per stack.
        convs: Convolutions of each stack.
        skips: Maps for the scores, per stack.
        down: Channels of the first convolution and of those between the stacks.
        width: Factor on `growth`, `skips` and `down`.
        strides: Step into each stack's grid, per axis. Null: 2s.
        kernel: Kernel of the 3x3x3 convolutions, per axis: `[3, 3, 1]` for thick slices along k.
        prior: Grid of the spatial prior, e.g. the paper's `[12, 12, 12]`. Null: none.
        dropout: Probability of dropping a map inside a stack, the same maps for all patches of a
            batch (batch-wise spatial dropout). Those kept are scaled up; dropped ones are computed
            all the same, so this saves no time here.
        norm: Normalisation behind each convolution.
        activation: Non-linearity.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        classes: int,
        *,
        growth: tuple[int, ...] = (4, 8, 16),
        convs: tuple[int, ...] = (5, 10, 10),
        skips: tuple[int, ...] = (12, 24, 24),
        down: int = 24,
        width: float = 1.0,
        strides: tuple[Triple, ...] | None = None,
        kernel: Triple = (3, 3, 3),
        prior: Triple | None = None,
        dropout: float = 0.5,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        for option, numbers in (("growth", growth), ("convs", convs), ("skips", skips)):
            same_length(option, numbers, growth)
        check_positive("down", down)
        check_positive("prior", *(prior or ONE))
        steps = per_stage("strides", strides, [TWO] * len(growth))
        growth, skips, (down,) = (scaled(n, width) for n in (growth, skips, (down,)))

        def layer(width_in: int, number: int, shape: Triple, step: Triple = ONE) -> nn.Module:
            return ConvNormAct(width_in, number, shape, step, norm=norm, activation=activation)

        self.average = nn.Sequential(_average(steps[0]), norm_layer(norm, in_channels))
        self.stem = layer(in_channels, down, flatten(kernel, 5), steps[0])
        self.downs, self.stacks, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = in_channels + down
        coarser = ONE
        for n, (more, count, skip, step) in enumerate(
            zip(growth, convs, skips, steps, strict=True)
        ):
            if n:
                self.downs.append(layer(before, down, kernel, step))
                before, coarser = down, _times(coarser, step)
            widths = [before + more * k for k in range(count)]
            stack = DenseStack([layer(number, more, kernel) for number in widths], dropout)
            self.stacks.append(stack)
            before += more * count
            self.skips.append(nn.Sequential(layer(before, skip, kernel), *_upwards(coarser)))
        self.scores = conv(in_channels + sum(skips), classes, kernel, bias=True)
        self.prior = None if prior is None else SpatialPrior(classes, prior)
        self.up = nn.Sequential(*_upwards(steps[0]))
        self.apply(keep_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        maps = [self.average(x)]
        x = torch.cat([maps[0], self.stem(x)], 1)
        for n, (stack, skip) in enumerate(zip(self.stacks, self.skips, strict=True)):
            x = stack(self.downs[n - 1](x) if n else x)
            maps.append(skip(x))
        scores = self.scores(torch.cat(maps, 1))
        logits: Tensor = self.up(scores if self.prior is None else self.prior(scores))
        return logits


class DenseStack(nn.Module):
    """Each layer sees the stack's input and what all layers before it gave.

    Args:
        layers: The layers, from the growing numbers of channels to the same number of new ones.
        dropout: Probability of dropping a new map, in all samples of the batch; the last layer's
            stay.
    """

    def __init__(self, layers: Sequence[nn.Module], dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, I, J, K) to (N, C + new, I, J, K), the input's channels first."""
        for n, layer in enumerate(self.layers):
            new = layer(x)
            if n < len(self.layers) - 1:
                shares = new.new_ones(1, new.shape[1], 1, 1, 1)
                new = new * nn.functional.dropout(shares, self.dropout, self.training)
            x = torch.cat([x, new], 1)
        return x


class SpatialPrior(nn.Module):
    """The logarithm of how probable each class is at each place, added to the scores.

    It is kept on a coarse grid and interpolated as probabilities; at first all classes are equal.
    """

    def __init__(self, classes: int, size: Triple) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, classes, *size))

    def forward(self, scores: Tensor) -> Tensor:
        """Keep the shape (N, classes, I, J, K)."""
        size = list(scores.shape[2:])
        prior = nn.functional.interpolate(self.logits.softmax(1), size, mode="trilinear")
        return scores + prior.clamp_min(torch.finfo(prior.dtype).tiny).log()


def _average(step: Triple) -> nn.AvgPool3d:
    """Three long where it steps; what lies outside the volume does not count."""
    i, j, k = (3 if n > 1 else 1 for n in step)
    return nn.AvgPool3d((i, j, k), step, (i // 2, j // 2, k // 2), count_include_pad=False)


def _upwards(step: Triple) -> list[nn.Module]:
    return [] if math.prod(step) == 1 else [nn.Upsample(scale_factor=step, mode="trilinear")]


def _times(a: Triple, b: Triple) -> Triple:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


NETWORKS.preset("dense_vnet_prior", "dense_vnet", prior=(12, 12, 12))
