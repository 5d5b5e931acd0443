"""The peers: MONAI's and nnU-Net's sliding windows over a prepared volume, with our network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg.networks.assembly import build_network
from medseg.networks.checkpoint import Checkpoint, restore


class Finest(nn.Module):
    """A network of medseg as the peers know networks: one output, no auxiliary ones."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Finest:
        """The network of a model, its weights in torch's own layout."""
        config, channels = checkpoint.config, len(checkpoint.channels)
        network = build_network(
            config.model, channels, 1 + len(checkpoint.labels.values), config.seed
        )
        restore(network, checkpoint)
        return cls(network).eval()

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, I, J, K) to logits (N, classes, I, J, K)."""
        logits: Tensor = self.network(x)[0]
        return logits


def monai(network: nn.Module, image: Tensor, patch: Sequence[int], overlap: float = 0.5) -> Tensor:
    """Logits (classes, I, J, K) of an image (C, I, J, K), by MONAI's inferer as it comes."""
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        logits = sliding_window_inference(image[None], patch, 1, network, overlap, mode="gaussian")
        assert isinstance(logits, Tensor)
        return logits[0]


def nnunet(network: nn.Module, image: Tensor, patch: Sequence[int], classes: int) -> Tensor:
    """Logits (classes, I, J, K) in half precision, by nnU-Net's predictor without mirroring."""
    logits: Tensor = predictor(network, plans(patch, classes)).predict_sliding_window_return_logits(
        image
    )
    return logits


def predictor(network: nn.Module, settings: dict[str, Any]) -> Any:
    """nnU-Net's predictor with a network that it did not build (`manual_initialization`)."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    result = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    manager = PlansManager(settings["plans"])
    result.manual_initialization(
        network,
        manager,
        manager.get_configuration("3d_fullres"),
        [network.state_dict()],
        settings["dataset"],
        "nnUNetTrainer",
        None,
    )
    return result


def plans(
    patch: Sequence[int],
    classes: int,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    scheme: str = "ZScoreNormalization",
    intensities: dict[str, float] | None = None,
) -> dict[str, Any]:
    """What nnU-Net's planning would have written: its plans and its dataset.json.

    Axes are exchanged, so that the network sees (i, j, k) as medseg's does. Resampling is
    nnU-Net's default: third order for images, first order for logits.

    Args:
        patch: Voxels of a window.
        classes: Of the network, background included.
        spacing: Voxel size in mm that images are resampled to.
        scheme: Name of nnU-Net's normalisation.
        intensities: What "CTNormalization" needs: mean, std, percentile_00_5, percentile_99_5.
    """
    data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    labels = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    logits = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    fullres = {
        "data_identifier": "3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": [scheme],
        "use_mask_for_norm": [False],
        "resampling_fn_data": function,
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg": function,
        "resampling_fn_seg_kwargs": labels,
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": logits,
        "architecture": {},
    }
    told = {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing),
        "original_median_shape_after_transp": list(patch),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "configurations": {"3d_fullres": fullres},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities or {}},
    }
    names = {"background": 0, **{f"class{n}": n for n in range(1, classes)}}
    dataset = {"channel_names": {"0": "image"}, "labels": names, "file_ending": ".nii.gz"}
    return {"plans": told, "dataset": dataset}
