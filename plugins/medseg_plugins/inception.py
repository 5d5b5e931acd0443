"""GoogLeNet encoder in 3D: inception modules (Szegedy et al. 2014, arXiv:1409.4842)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    THREE,
    TWO,
    Activation,
    ConvNormAct,
    Norm,
    Triple,
    keep_variance,
    max_pool,
    recomputed,
)
from medseg.networks.stages import check_levels, cumulative, flatten, halving, per_stage, scaled
from medseg.registry import ENCODERS
from medseg_plugins.inception_modules import (
    BRANCH_NAMES,
    Inception,
    ResidualInception,
    Style,
    Variant,
    Widths,
)

STEM = (64, 64, 192)  # Table 1: 7x7/2; 1x1 reduction and 3x3 of the second convolution
MODULES = {  # Table 1
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}
LEVELS = ("conv1", "conv2", "3b", "4e", "5b")  # each before a pooling; modules count them likewise
HEADS = ("4a", "4d")  # what the auxiliary heads follow: section 5
HEAD_WIDTH = 128  # section 5
HEAD_WEIGHT = 0.3  # section 5
TORCHVISION_EPS = 1e-3
# Layers outside the modules, and their names in torchvision and in Caffe's GoogLeNet.
LAYER_NAMES = {
    "parts.conv1": ("conv1", "conv1/7x7_s2"),
    "parts.conv2.2": ("conv2", "conv2/3x3_reduce"),
    "parts.conv2.3": ("conv3", "conv2/3x3"),
    "auxiliary.4a": ("aux1.conv", "loss1/conv"),
    "auxiliary.4d": ("aux2.conv", "loss2/conv"),
}


@ENCODERS.register("inception")
class InceptionEncoder(nn.Module):
    """GoogLeNet up to module 5b, without its classifiers; five levels, each before a pooling.

    Poolings are 3 long and, where they divide the grid, not padded at the start, as in the
    published weights' frameworks.

    Args:
        in_channels: Channels of the input.
        variant: Kind of module. "inception": the paper's (Figure 2b), in which 1x1x1 convolutions
            narrow the input before the filters 3 and 5 long and after the pooling. "naive" (Figure
            2a): none of these, so that every module adds its input's channels to its output; at the
            paper's widths that takes 24 times the weights and 5 times the multiplications.
            "residual": "inception" plus its input (Inception-ResNet, Szegedy et al. 2016,
            arXiv:1602.07261, section 3.3). "factorised": each filter 3 or 5 long as a chain of
            3x1x1, 1x3x1 and 1x1x3 (Szegedy et al. 2015, arXiv:1512.00567, section 3.2), each with
            norm and activation; conv1 and conv2 stay.
        torchvision: Build what torchvision's weights need, together with `norm: batch`: its
            "GoogLeNet" has filters 3 long where the paper's are 5 long, a last pooling as long as
            its step, and adds 0.001 to the variances of batch norm.
        lrn: Local response normalisation over 5 channels behind the first pooling and the second
            convolution, as in the paper's Figure 3 (Krizhevsky et al. 2012; constants of Caffe's
            GoogLeNet: alpha 1e-4, beta .75, k 1).
        auxiliary: Two auxiliary heads, behind modules 4a and 4d, with weight 0.3 in the loss; they
            need 4 levels. Each is a 1x1x1 convolution to 128 channels, then the logits: the map
            keeps its grid, so the paper's average pooling and fully connected layer are left out.
        width: Factor on all widths of the paper.
        levels: How many of the five levels are kept: conv1, conv2, 3b, 4e, 5b.
        strides: Step before each level, per axis: that of conv1, then the poolings. Null: 2s, as in
            the paper; `[1, 1, 1]` first keeps small volumes whole.
        kernels: Kernel of each level, per axis: 3, or 1 along an axis in which all filters and
            poolings of the level are flat (the 5 and 7 long ones too). Null: 3x3x3.
        norm: Normalisation behind each convolution; the paper has "none" there.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map of the levels 3b, 4e and 5b; the paper has
            none before its classifier.
        checkpointing: Find the feature maps between levels again for the gradient instead of
            keeping them: less memory, a third more time, same results.
    """

    auxiliary_weight = HEAD_WEIGHT

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        *,
        variant: Variant = "inception",
        torchvision: bool = False,
        lrn: bool = False,
        auxiliary: bool = False,
        width: float = 1.0,
        levels: int = 5,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "instance",
        activation: Activation = "relu",
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_levels(levels, 2, len(LEVELS))
        if auxiliary and levels < 4:
            raise ConfigError(
                f"the auxiliary heads are on level 4: set levels to 4 or 5, got {levels}, or "
                "auxiliary to false",
                ("auxiliary",),
            )
        steps = per_stage("strides", strides, halving(levels, first=TWO))
        shapes = per_stage("kernels", kernels, [THREE] * levels)
        self.strides = cumulative(steps)
        self.variant, self.norm, self.checkpointing = variant, norm, checkpointing
        style = Style(variant, 3 if torchvision else 5, norm, activation)

        first, reduce, second, head = scaled((*STEM, HEAD_WIDTH), width)
        conv1 = style.layer(in_channels, first, flatten(shapes[0], 7), steps[0])
        conv2 = nn.Sequential(
            max_pool(shapes[1], steps[1]),
            _response_norm(lrn),
            style.layer(first, reduce),
            style.layer(reduce, second, flatten(shapes[1], 3)),
            _response_norm(lrn),
        )
        # The encoder in parts, each named after what ends it: a level, or a module with a head.
        self.parts = nn.ModuleDict({"conv1": conv1, "conv2": conv2})
        channels = {"conv1": first, "conv2": second}
        grids = list(zip(shapes, steps, strict=True))
        for name, part, out in _parts(second, width, grids, style, torchvision):
            if dropout and name in LEVELS:
                part.add_module("dropout", nn.Dropout3d(dropout))
            self.parts[name], channels[name] = part, out
        self.channels = tuple(channels[name] for name in LEVELS[:levels])
        heads = HEADS if auxiliary else ()
        self.auxiliary = nn.ModuleDict({name: style.layer(channels[name], head) for name in heads})
        self.auxiliary_channels = (head,) * len(heads)
        if norm == "none":
            self.apply(keep_variance)
        if torchvision:
            _set_eps(self)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Map (N, in_channels, I, J, K) to the maps of levels and of modules 4a and 4d, by name."""
        return {
            name: (x := recomputed(part, x, self.checkpointing))
            for name, part in self.parts.items()
        }

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, I, J, K) to one feature map per level, finest first."""
        maps = self.features(x)
        return [maps[name] for name in LEVELS if name in maps]

    def with_auxiliary(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """As `forward`, and the auxiliary maps: (N, auxiliary_channels[n], ...) as fine as 4e."""
        maps = self.features(x)
        levels = [maps[name] for name in LEVELS if name in maps]
        return levels, [head(maps[name]) for name, head in self.auxiliary.items()]

    def layouts(self) -> dict[str, dict[str, str]]:
        """Names of the modules with weights in torchvision and in Caffe's GoogLeNet.

        Both know the variant "inception" only. Torchvision's norms are batch norms, Caffe has none.
        """
        if self.variant != "inception":
            return {}
        torchvision, caffe = {}, {}
        for own, module in self.named_modules():
            if not isinstance(module, ConvNormAct):
                continue
            in_torchvision, in_caffe = _their_names(own)
            torchvision[f"{own}.0"] = f"{in_torchvision}.conv"
            if self.norm == "batch":
                torchvision[f"{own}.1"] = f"{in_torchvision}.bn"
            caffe[f"{own}.0"] = in_caffe
        return {"torchvision": torchvision, "caffe": caffe}


def _parts(
    width_in: int,
    width: float,
    grids: Sequence[tuple[Triple, Triple]],
    style: Style,
    torchvision: bool,
) -> Iterator[tuple[str, nn.Sequential, int]]:
    """Name, layers and channels of the parts made of modules; a level's grid: kernel and step."""
    part = nn.Sequential()
    for name, row in MODULES.items():
        level = int(name[0]) - 1
        if level == len(grids):
            return
        kernel, step = grids[level]
        if name.endswith("a"):
            short = torchvision and name == "5a"
            part.add_module("pool", nn.MaxPool3d(step) if short else max_pool(kernel, step))
        make = ResidualInception if style.variant == "residual" else Inception
        module = make(width_in, Widths(*scaled(row, width)), kernel, style)
        part.add_module(name, module)
        width_in = module.channels
        if name in LEVELS + HEADS:
            yield name, part, width_in
            part = nn.Sequential()


def _their_names(own: str) -> tuple[str, str]:
    """A layer's names in torchvision and in Caffe's GoogLeNet."""
    if own in LAYER_NAMES:
        return LAYER_NAMES[own]
    _, _, module, place = own.split(".", 3)
    in_torchvision, in_caffe = BRANCH_NAMES[place]
    return f"inception{module}.{in_torchvision}", f"inception_{module}/{in_caffe}"


def _response_norm(wanted: bool) -> nn.Module:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0) if wanted else nn.Identity()


def _set_eps(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = TORCHVISION_EPS


ENCODERS.preset("googlenet", "inception", norm="none", lrn=True, auxiliary=True)
ENCODERS.preset(
    "googlenet_torchvision", "inception", torchvision=True, norm="batch", auxiliary=True
)
ENCODERS.preset("inception_naive", "inception", variant="naive")
ENCODERS.preset("inception_residual", "inception", variant="residual")
ENCODERS.preset("inception_factorised", "inception", variant="factorised")
