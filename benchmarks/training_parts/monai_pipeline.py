"""MONAI: CacheDataset, dictionary transforms and ThreadDataLoader, its losses and Adam."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai import transforms as t
from monai.data import CacheDataset, ThreadDataLoader
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch.utils.data import RandomSampler

from medseg.training.setup import Setup
from training_parts.methods import (
    AFFINE,
    BRIGHTNESS,
    CONTRAST,
    NOISE,
    NOISE_PROBABILITY,
    RADIANS,
    SCALE,
    SETS,
)  # fmt: skip
from training_parts.network import Outputs
from training_parts.prepared import for_monai

_KEYS = ("image", "label")
_ENDLESS = 10**9


def steps(setup: Setup, job: dict[str, Any]) -> Callable[[], Any]:
    """What takes a step with the next batch."""
    patch = setup.config.train.patch
    chain = t.Compose(
        [
            t.LoadImaged(_KEYS, reader="NumpyReader", image_only=True),
            t.EnsureChannelFirstd("image", channel_dim=0),
            t.EnsureChannelFirstd("label", channel_dim="no_channel"),
            t.SpatialPadd(_KEYS, patch),
            t.RandCropByPosNegLabeld(_KEYS, "label", patch, pos=1, neg=1, num_samples=1),
            t.RandAffined(
                _KEYS, prob=AFFINE, rotate_range=(RADIANS,) * 3, scale_range=(SCALE,) * 3,
                mode=("bilinear", "nearest"), padding_mode="border",
            ),
            *(t.RandFlipd(_KEYS, prob=0.5, spatial_axis=n) for n in SETS[job["data"]].flip),
            t.RandGaussianNoised("image", prob=NOISE_PROBABILITY, std=NOISE),
            t.RandShiftIntensityd("image", BRIGHTNESS, prob=1.0),
            t.RandScaleIntensityd("image", CONTRAST, prob=1.0),
        ]
    )  # fmt: skip
    data = CacheDataset(for_monai(setup, Path(job["prepared"])), chain, progress=False)
    # A sampler without end: a set of two cases would start a thread anew at every step.
    sampler = RandomSampler(data, replacement=True, num_samples=_ENDLESS)
    loader = ThreadDataLoader(
        data, batch_size=setup.config.train.batch, sampler=sampler, num_workers=0
    )
    network = Outputs(setup.network, job["precision"]).train()
    loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    stream = iter(loader)

    def step() -> float:
        batch = next(stream)
        optimiser.zero_grad()
        value = loss(network(batch["image"]), batch["label"])
        value.backward()
        optimiser.step()
        return float(value)

    return step
