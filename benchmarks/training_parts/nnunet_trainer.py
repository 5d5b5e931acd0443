"""nnU-Net's trainer with medseg's network, patch, batch and augmentation list.

Its data loader, single-threaded augmenter, transforms, losses (its deep supervision leaves out the
coarsest output), SGD and gradient clipping are as they come; on a CPU it trains in fp32.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from medseg.networks.describe import output_shapes
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


def trainer(setup: Setup, job: dict[str, Any]) -> Any:
    """A trainer whose `dataloader_train` and `train_step` are ready."""
    folder, patch = Path(job["prepared"]), setup.config.train.patch
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "0"}
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / "nnunet" / "home")
    import torch
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
        DownsampleSegForDSTransform,
    )
    from inference_parts.peers import plans
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    sizes = [s[2:] for s in output_shapes(setup.network, len(setup.dataset.channels), patch)]
    angles, flip = (-RADIANS, RADIANS), SETS[job["data"]].flip

    class Trainer(nnUNetTrainer):  # type: ignore[misc]
        @staticmethod
        def build_network_architecture(plans_manager: Any, *_: Any, **__: Any) -> Outputs:  # noqa: ARG004
            return Outputs(setup.network, job["precision"])

        def _get_deep_supervision_scales(self) -> list[list[float]]:
            return [[n / m for n, m in zip(size, patch, strict=True)] for size in sizes]

        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802
            grown = get_patch_size(patch, angles, angles, angles, (1 - SCALE, 1 + SCALE))
            return angles, False, grown, flip

        @staticmethod
        def get_training_transforms(
            patch_size: Any, rotation_for_DA: Any, deep_supervision_scales: Any,
            mirror_axes: Any, *_: Any, **__: Any,
        ) -> Any:  # fmt: skip
            return _transforms(
                patch_size, rotation_for_DA, mirror_axes,
                [DownsampleSegForDSTransform(ds_scales=deep_supervision_scales)],
            )  # fmt: skip

    made = plans(patch, setup.classes)
    fullres = made["plans"]["configurations"]["3d_fullres"]
    fullres |= {"batch_size": setup.config.train.batch, "batch_dice": False}
    channels = {str(n): name for n, name in enumerate(setup.dataset.channels)}
    home = folder / "nnunet" / "home" / made["plans"]["dataset_name"]
    home.mkdir(parents=True, exist_ok=True)
    link = home / "3d_fullres"
    if not link.exists():
        link.symlink_to((folder / "nnunet" / "3d_fullres").resolve(), target_is_directory=True)
    mine = Trainer(
        made["plans"] | {"continue_training": False}, "3d_fullres", "all",
        made["dataset"] | {"channel_names": channels}, torch.device("cpu"),
    )  # fmt: skip
    mine.initialize()
    if len(sizes) == 1:  # its deep supervision would weigh the only output with 0
        mine.loss.weight_factors = (1.0,)
    mine.dataloader_train, mine.dataloader_val = mine.get_dataloaders()
    mine.network.train()
    return mine


def _transforms(patch: Any, angles: Any, flip: Any, last: list[Any]) -> Any:
    """The list, of nnU-Net's own transforms at its own calls."""
    from batchgeneratorsv2.transforms.intensity.brightness import BrightnessAdditiveTransform
    from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform
    from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

    return ComposeTransforms(
        [
            SpatialTransform(
                tuple(np.asarray(patch).tolist()), patch_center_dist_from_border=0,
                random_crop=False, p_rotation=AFFINE, rotation=angles, p_scaling=AFFINE,
                scaling=(1 - SCALE, 1 + SCALE), p_synchronize_scaling_across_axes=1,
                border_mode_seg="constant", padding_value_seg=-1,
            ),
            RandomTransform(
                GaussianNoiseTransform((0, NOISE**2), p_per_channel=1, synchronize_channels=True),
                NOISE_PROBABILITY,
            ),
            BrightnessAdditiveTransform(0, BRIGHTNESS, synchronize_channels=False),
            ContrastTransform(
                (1 - CONTRAST, 1 + CONTRAST), preserve_range=True, synchronize_channels=False
            ),
            MirrorTransform(allowed_axes=flip),
            RemoveLabelTansform(-1, 0),
            *last,
        ]
    )  # fmt: skip
