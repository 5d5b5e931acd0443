"""Worker: MONAI's CRF, where its compiled extension (BUILD_MONAI=1) is there.

It takes one deviation for all axes and all channels: the mean of the positions' is taken, and
channels are divided by their own. It leaves kernels as they come, unnormalised by row, and works on
all voxels, so that its time can be compared and its marginals cannot.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from monai.networks.blocks import CRF
from monai.utils import optional_import
from worker import Job, serve


def refine(job: Job, image: Any, brain: Any, probabilities: Any) -> Any:  # noqa: ARG001
    """Marginals of all voxels."""
    parameters, device = job["parameters"], job["options"]["device"]
    deviations = np.asarray(parameters["intensities"], np.float32) * 6.2 / 254
    crf = CRF(
        iterations=parameters["iterations"],
        gaussian_weight=parameters["weights"][0],
        bilateral_weight=parameters["weights"][1],
        gaussian_spatial_sigma=parameters["positions"][0],
        bilateral_spatial_sigma=float(np.mean(parameters["bilateral"])),
        bilateral_color_sigma=1.0,
        update_factor=1.0,
    )
    logits = torch.from_numpy(np.log(np.maximum(probabilities, 1e-6)))[None].to(device)
    guide = image / deviations[:, None, None, None]
    with torch.no_grad():
        return crf(logits, torch.from_numpy(guide)[None].to(device))[0].cpu().numpy()


if __name__ == "__main__":
    if not optional_import("monai._C")[1]:
        sys.exit("MONAI's compiled extension (monai._C) is not part of this install")
    torch.set_num_threads(1)
    serve(refine)
