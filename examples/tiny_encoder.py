"""An encoder of your own, to be named in a YAML and then used as any other.

plugins: [tiny_encoder.py]
model:
  encoder: {name: tiny, widths: [8, 16, 32]}
  decoder: unet
"""

from __future__ import annotations

from torch import Tensor, nn

from medseg.registry import ENCODERS


@ENCODERS.register("tiny")
class TinyEncoder(nn.Module):
    """Two convolutions per level; each level but the first halves the grid.

    Args:
        in_channels: Channels of the input; medseg fills it in.
        widths: Feature channels of each level. Every option is a named, typed argument.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.channels = tuple(widths)
        self.strides = tuple((2**level, 2**level, 2**level) for level in range(len(widths)))
        self.levels = nn.ModuleList()
        for level, width in enumerate(widths):
            first = nn.Conv3d(in_channels, width, 3, stride=1 if level == 0 else 2, padding=1)
            second = nn.Conv3d(width, width, 3, padding=1)
            norm = nn.InstanceNorm3d(width, affine=True)
            self.levels.append(nn.Sequential(first, nn.ReLU(), second, norm, nn.ReLU()))
            in_channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, I, J, K) to one feature map per level, finest first."""
        return [x := level(x) for level in self.levels]
