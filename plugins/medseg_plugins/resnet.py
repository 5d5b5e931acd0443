"""ResNet encoders in 3D (He et al. 2015, arXiv:1512.03385; 2016, arXiv:1603.05027), plain twins."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    ONE,
    THREE,
    TWO,
    Activation,
    ConvNormAct,
    Norm,
    Triple,
    conv,
    recomputed,
)
from medseg.networks.stages import cumulative, flatten, halving, per_stage, same_length, scaled
from medseg.registry import ENCODERS
from medseg_plugins.resnet_blocks import (
    SQUEEZE,
    Block,
    Order,
    Shape,
    Shortcut,
    Style,
    block_of,
    pre_activation,
    torchvision_names,
)


@ENCODERS.register("resnet")
class ResNetEncoder(nn.Module):
    """A stem convolution, then stages of residual blocks; one level per stage.

    The defaults are a small residual encoder for training from scratch. `resnet18` and the like
    are the papers' networks, with one level more: the stem's output, before its pooling.

    Args:
        in_channels: Channels of the input.
        widths: Output channels of each stage.
        width: Factor on all widths.
        blocks: Residual blocks of each stage. Null: one.
        strides: Step of each level, per axis: the stem takes the first, the first block of a
            stage the others; with `stem_pool` the second is the pooling's. Null: 1, then 2s; with
            `stem_pool` 2s.
        kernels: Kernel of each level's convolutions, per axis. The stem is flat, too, where the
            first is 1 long; with `stem_pool`, the pooling where the second is. Null: 3x3x3.
        dilations: Dilation of each stage's 3x3x3 convolutions. Null: 1.
        block: "basic" (two 3x3x3 convolutions) or "bottleneck" (1x1x1, 3x3x3, 1x1x1; four times
            narrower inside).
        residual: Whether blocks have shortcuts. False gives the plain twin (2015, section 3.3).
            The last norm of a residual "v1" or "v1b" block starts at zero (Goyal et al. 2017,
            arXiv:1706.02677), so that the block starts as its shortcut.
        shortcut: "pool" (average pool, then 1x1x1; ResNet-D: He et al. 2018, arXiv:1812.01187) or
            the options of the 2015 paper: "A" (every n-th voxel, zeros for new channels), "B"
            (strided 1x1x1 with norm where shapes change) or "C" ("B" everywhere).
        order: "v1" (2015), "v1b" (a bottleneck steps in its 3x3x3 rather than in its first 1x1x1,
            as in torchvision) or "v2" (2016: norm and activation before each convolution, nothing
            behind the addition). A level of "v2" is handed out through a norm and an activation of
            its own; the next stage takes the sum itself.
        se: Whether squeeze-and-excitation ends each block's body (Hu et al. 2018,
            arXiv:1709.01507).
        norm: Normalisation behind each convolution.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map between the first two convolutions of a
            block, behind the activation.
        stem_kernel: Kernel of the stem.
        stem_norm: Whether norm and activation follow the stem.
        stem_pool: Whether the papers' 3x3x3 max pooling follows the stem, whose output is then the
            first level; needs `stem_norm`.
        checkpointing: Recompute each stage's activations for the gradient: less memory, more time.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 128),
        width: float = 1.0,
        blocks: tuple[int, ...] | None = None,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
        block: Block = "basic",
        residual: bool = True,
        shortcut: Shortcut = "pool",
        order: Order = "v1b",
        se: bool = False,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
        stem_kernel: Triple = (3, 3, 3),
        stem_norm: bool = False,
        stem_pool: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if stem_pool and not stem_norm:
            raise ConfigError(
                "stem_pool makes the stem's output a level: set stem_norm to true", ("stem_norm",)
            )
        widths = _widths(widths, width, block)
        counts = (1,) * len(widths) if blocks is None else blocks
        same_length("blocks", counts, widths)
        rates = (1,) * len(widths) if dilations is None else dilations
        same_length("dilations", rates, widths)
        levels = len(widths) + stem_pool
        steps = per_stage("strides", strides, halving(levels, TWO if stem_pool else ONE))
        shapes = per_stage("kernels", kernels, [THREE] * levels)
        style = Style(block, residual, shortcut, order, se, norm, activation, dropout)
        first = widths[0] // (SQUEEZE if block == "bottleneck" else 1)
        self.channels = (first, *widths) if stem_pool else widths
        self.strides = cumulative(steps)
        self.checkpointing = checkpointing
        self._has_layout = stem_norm and order != "v2" and (not residual or shortcut != "pool")

        kernel = flatten(shapes[0], stem_kernel)
        self.stem: nn.Module = (
            ConvNormAct(in_channels, first, kernel, steps[0], norm=norm, activation=activation)
            if stem_norm
            else conv(in_channels, first, kernel, steps[0])
        )
        self.pool = _stem_pool(shapes[1], steps[1]) if stem_pool else None
        self.stages = nn.ModuleList()
        for n, (count, stride, rate) in enumerate(
            zip(counts, (ONE, *steps[1 + stem_pool :]), rates, strict=True)
        ):
            width_in = widths[n - 1] if n else first
            shape = Shape(width_in, widths[n], shapes[n + stem_pool], stride, rate)
            self.stages.append(_stage(style, shape, count, activated=stem_norm and n == 0))
        self.ends = (
            nn.ModuleList(nn.Sequential(*pre_activation(style, w)) for w in widths)
            if order == "v2"
            else None
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, I, J, K) to one feature map per level, finest first."""
        x = self.stem(x)
        levels = []
        if self.pool is not None:
            levels.append(x)
            x = self.pool(x)
        for n, stage in enumerate(self.stages):
            x = recomputed(stage, x, self.checkpointing)
            levels.append(x if self.ends is None else self.ends[n](x))
        return levels

    def layouts(self) -> dict[str, dict[str, str]]:
        """Layers' names in torchvision, whose names MedicalNet and timm use too.

        Empty for what torchvision does not have: "v2", the shortcut "pool", a stem without norm.
        """
        if not self._has_layout:
            return {}
        names = {f"stem.{own}": theirs for own, theirs in torchvision_names(self.stem)}
        for n, stage in enumerate(self.stages):
            for m, block in enumerate(stage.children()):
                for own, theirs in torchvision_names(block):
                    names[f"stages.{n}.{m}.{own}"] = f"layer{n + 1}.{m}.{theirs}"
        return {"torchvision": names}


def _widths(widths: tuple[int, ...], width: float, block: Block) -> tuple[int, ...]:
    same_length("widths", widths, widths)
    if block == "basic":
        return scaled(widths, width)
    if any(number % SQUEEZE for number in widths):
        raise ConfigError(
            f"a bottleneck's widths are multiples of {SQUEEZE}, got {widths}", ("widths",)
        )
    inner = scaled((number // SQUEEZE for number in widths), width)
    return tuple(SQUEEZE * number for number in inner)


def _stem_pool(kernel: Triple, stride: Triple) -> nn.MaxPool3d:
    """Padded on both sides, as torchvision's and MedicalNet's; flat where nothing is pooled."""
    i, j, k = (3 if n > 1 or s > 1 else 1 for n, s in zip(kernel, stride, strict=True))
    return nn.MaxPool3d((i, j, k), stride, (i // 2, j // 2, k // 2))


def _stage(style: Style, shape: Shape, count: int, *, activated: bool) -> nn.Sequential:
    rest = shape._replace(width_in=shape.width, stride=ONE)
    first = block_of(style, shape, activated=activated)
    return nn.Sequential(first, *[block_of(style, rest) for _ in range(count - 1)])


# The papers' networks, with shortcut B at every depth, as torchvision has them.
ENCODERS.preset(
    "resnet10",
    "resnet",
    widths=(64, 128, 256, 512),
    blocks=(1, 1, 1, 1),
    shortcut="B",
    norm="batch",
    activation="relu",
    stem_kernel=(7, 7, 7),
    stem_norm=True,
    stem_pool=True,
)
ENCODERS.preset("resnet18", "resnet10", blocks=(2, 2, 2, 2))
ENCODERS.preset("resnet34", "resnet10", blocks=(3, 4, 6, 3))
ENCODERS.preset("resnet50", "resnet34", block="bottleneck", widths=(256, 512, 1024, 2048))
ENCODERS.preset("resnet101", "resnet50", blocks=(3, 4, 23, 3))
ENCODERS.preset("resnet152", "resnet50", blocks=(3, 8, 36, 3))
ENCODERS.preset("resnet200", "resnet50", blocks=(3, 24, 36, 3))
ENCODERS.preset("plain18", "resnet18", residual=False)
ENCODERS.preset("plain34", "resnet34", residual=False)
ENCODERS.preset("se_resnet50", "resnet50", se=True)

# MedicalNet (Chen et al. 2019, arXiv:1904.00625), for its weights for one input channel.
ENCODERS.preset(
    "medicalnet10",
    "resnet10",
    strides=((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    dilations=(1, 1, 2, 4),
)
ENCODERS.preset("medicalnet18", "medicalnet10", blocks=(2, 2, 2, 2), shortcut="A")
ENCODERS.preset("medicalnet34", "medicalnet18", blocks=(3, 4, 6, 3))
ENCODERS.preset(
    "medicalnet50",
    "medicalnet10",
    block="bottleneck",
    widths=(256, 512, 1024, 2048),
    blocks=(3, 4, 6, 3),
)
ENCODERS.preset("medicalnet101", "medicalnet50", blocks=(3, 4, 23, 3))
ENCODERS.preset("medicalnet152", "medicalnet50", blocks=(3, 8, 36, 3))
ENCODERS.preset("medicalnet200", "medicalnet50", blocks=(3, 24, 36, 3))
