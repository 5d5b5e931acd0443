"""What is measured, and the recipe that all have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common import CONFIGS

from medseg.config import Config, load

# Rotation with scaling, flips, noise, brightness and contrast, whatever the shipped configs do.
AFFINE, DEGREES, SCALE = 0.5, 15.0, 0.15
BRIGHTNESS, CONTRAST, NOISE, NOISE_PROBABILITY = 0.15, 0.2, 0.1, 0.25
RADIANS = math.radians(DEGREES)
_AUGMENT = (
    f"augment={{affine: {AFFINE}, rotate: {DEGREES}, scale: {SCALE}, brightness: {BRIGHTNESS}, "
    f"contrast: {CONTRAST}, noise: {NOISE}, noise_probability: {NOISE_PROBABILITY}, flip: %s}}"
)


@dataclass(frozen=True)
class Data:
    """A data set.

    Args:
        name: Of its folder.
        config: Of medseg, for network, patch and batch.
        flip: Axes.
    """

    name: str
    config: str
    flip: tuple[int, ...]

    def load(self, folder: str, precision: str = "bf16") -> Config:
        """The recipe.

        Args:
            folder: Where the data sets lie.
            precision: Of medseg's training.
        """
        place = f"{folder}/{self.name}"
        split = f"{place}/split.json" if self.name == "hippocampus" else ""
        where = [f"data.path={place}", *([f"data.split.file={split}"] if split else [])]
        settings = [_AUGMENT % list(self.flip), f"train.precision={precision}", "train.threads=1"]
        return load(CONFIGS / self.config, [*where, *settings])


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        name: In the table.
        tool: "medseg", "floor", "nnunet" or "monai".
        precision: "fp32", or torch's autocast in "bf16".
    """

    name: str
    tool: str
    precision: str


SETS = {
    "hippocampus": Data("hippocampus", "hippocampus.yaml", (0,)),
    "brats2015": Data("brats2015", "brats2015_deepmedic.yaml", (0, 1, 2)),
}
MEDSEG, FLOOR = Method("medseg", "medseg", "bf16"), Method("floor, bf16", "floor", "bf16")
NNUNET, MONAI = Method("nnU-Net", "nnunet", "fp32"), Method("MONAI", "monai", "fp32")
METHODS = (
    MEDSEG,
    FLOOR,
    NNUNET,
    MONAI,
    Method("medseg, fp32", "medseg", "fp32"),
    Method("floor, fp32", "floor", "fp32"),
    Method("nnU-Net, bf16 autocast", "nnunet", "bf16"),
    Method("MONAI, bf16 autocast", "monai", "bf16"),
)
