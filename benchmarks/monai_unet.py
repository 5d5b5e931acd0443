"""The peer: a plain MONAI recipe (UNet, DiceCE, Adam) for a number of CPU seconds, one thread.

    python benchmarks/monai_unet.py job.json

job.json: {"train": [{"image", "label"}], "validation": [{"id", "image", "label"}], "classes",
"patch", "range" (null: zero mean, unit variance), "seconds", "seed", "output", and for images that
are lists of files, one a channel, "channels", of stripped brains with "crop": true}. Writes a mask
`ID.nii.gz` for each validation case into `output`. What it does is what MONAI's own spleen and
BraTS tutorials do: a cached data set, class-balanced crops, flips and intensity changes, fp32.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ScaleIntensityRanged,
    SpatialPadd,
)
from monai.utils import set_determinism


def main(job: dict) -> None:
    """Train and predict."""
    torch.set_num_threads(1)
    set_determinism(job["seed"])
    patch, keys = job["patch"], ("image", "label")
    scale = (
        ScaleIntensityRanged("image", *job["range"], 0, 1, clip=True)
        if job["range"]
        else NormalizeIntensityd("image", channel_wise=True)
    )
    crop = [CropForegroundd(keys, "image", select_fn=lambda x: x > x.min(), allow_smaller=True)]
    load = [
        LoadImaged(keys, image_only=True),
        EnsureChannelFirstd(keys),
        Orientationd(keys, "RAS", labels=None),
        *(crop if job.get("crop") else []),
        scale,
    ]
    vary = [
        SpatialPadd(keys, patch),
        RandCropByPosNegLabeld(keys, "label", patch, pos=1, neg=1, num_samples=2),
        RandFlipd(keys, prob=0.5, spatial_axis=0),
        RandScaleIntensityd("image", 0.1, prob=0.5),
        RandShiftIntensityd("image", 0.1, prob=0.5),
    ]
    data = CacheDataset(job["train"], Compose(load + vary), num_workers=0, progress=False)
    loader = DataLoader(data, batch_size=1, shuffle=True)  # a batch is the 2 crops of a case
    channels = job.get("channels", 1)
    network = UNet(
        3, channels, job["classes"], (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2
    )
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    steps = 0
    while time.process_time() < job["seconds"]:
        for batch in loader:
            optimiser.zero_grad()
            loss(network(batch["image"]), batch["label"]).backward()
            optimiser.step()
            steps += 1
            if time.process_time() >= job["seconds"]:
                break
    print(f"{steps} steps", flush=True)
    network.eval()
    prepare = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            scale,
        ]
    )
    for case in job["validation"]:
        image = prepare({"image": case["image"]})["image"]
        with torch.no_grad():
            logits = sliding_window_inference(image[None], patch, 1, network, 0.5, mode="gaussian")
        labels = logits.argmax(1)[0].numpy().astype(np.uint8)
        write(
            Path(job["output"]) / f"{case['id']}.nii.gz",
            labels,
            image.affine.numpy(),
            case["image"] if channels == 1 else case["image"][0],
        )


def write(path: Path, labels: np.ndarray, affine: np.ndarray, source: str) -> None:
    """Turn a RAS mask back to the source's axes and save it."""
    original = nib.load(source)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.io_orientation(original.affine)
    )
    turned = nib.orientations.apply_orientation(labels, turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(turned, original.affine, original.header), path)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
