"""The ablations: what is changed in a shipped config, one ingredient at a time. Edit this list.

A change that a config has already, or that this version of medseg refuses, is told and not run.
"""

from __future__ import annotations

from dataclasses import dataclass

_NO_AUGMENTATION = (  # the whole section: what a config adds to it is off as well
    "augment={affine: 0, flip: [], brightness: 0, contrast: 0, noise_probability: 0}",
)


@dataclass(frozen=True)
class Ablation:
    """One change.

    Args:
        name: In the table.
        overrides: Of the config, as on the command line.
        data: The data set that it is for; empty: all.
    """

    name: str
    overrides: tuple[str, ...]
    data: str = ""


def _monai(transform: str, **options: object) -> str:
    """A transform of each sample, by MONAI, as an override writes it."""
    told = ", ".join(f"{key}: {str(value).lower()}" for key, value in options.items())
    return f"{{name: monai, transform: {transform}, options: {{{told}}}}}"


def _per_sample(*axes: int) -> tuple[str, ...]:
    """The recipe's augmentation, sample by sample instead of in batches on the device.

    In the training process itself: CPU seconds of worker processes would not count.
    """
    angle = 0.2618  # 15 degrees
    transforms = (
        _monai("RandAffined", prob=0.5, rotate_range=[angle] * 3, scale_range=[0.15] * 3,
               padding_mode="border"),
        *(_monai("RandFlipd", prob=0.5, spatial_axis=axis) for axis in axes),
        _monai("RandScaleIntensityd", factors=0.2, prob=1.0),
        _monai("RandShiftIntensityd", offsets=0.15, prob=1.0),
        _monai("RandGaussianNoised", std=0.1, prob=0.25),
    )  # fmt: skip
    return (*_NO_AUGMENTATION, f"augment.transforms=[{', '.join(transforms)}]")


ABLATIONS: tuple[Ablation, ...] = (
    Ablation("as shipped", ()),
    Ablation("fp32", ("train.precision=fp32",)),
    Ablation("no deep supervision", ("model.deep_supervision=0",)),
    Ablation("no averaged weights (EMA)", ("train.ema=0",)),
    Ablation("plain blocks", ("model.encoder.residual=false",)),
    Ablation("poly schedule", ("train.schedule=poly",)),
    Ablation("AdamW for all", ("train.optimiser=adamw", "train.lr=0.01")),
    Ablation("SGD, .01, momentum .99", (
        "train.optimiser=sgd", "train.lr=0.01", "train.momentum=0.99",
        "train.weight_decay=0.00003",
    )),
    Ablation("no weight decay", ("train.weight_decay=0",)),
    Ablation("no elastic deformation", ("augment.elastic=0",)),
    Ablation("no gamma", ("augment.gamma=0",)),
    Ablation("no flips", ("augment.flip=[]", "inference.flip=[]")),
    Ablation("flips along all axes", ("augment.flip=[0, 1, 2]", "inference.flip=[0, 1, 2]")),
    Ablation("flip along left-right alone", ("augment.flip=[0]", "inference.flip=[0]")),
    Ablation("no flips in prediction", ("inference.flip=[]",)),
    Ablation("no augmentation", _NO_AUGMENTATION),
    Ablation("augmentation by sample", _per_sample(0), data="hippocampus"),
    Ablation("augmentation by sample", _per_sample(0, 1, 2), data="sts_pet"),
    Ablation("patches anywhere", ("train.sampler={name: uniform}",)),
    Ablation("half of patches around classes", (
        "train.sampler={name: balanced, foreground: 0.5}",
    )),
    Ablation("prior correction", ("inference.prior_correction=1",)),
    Ablation("no prior correction", ("inference.prior_correction=0",)),
)  # fmt: skip
