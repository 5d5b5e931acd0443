"""Driver: the loop of MONAI's tutorials: transforms, sliding window, inverse, save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batch_parts.driver import Job, loaded, serve


def prepare(job: Job) -> Callable[[], Any]:
    """Load the network and compose the transforms."""
    import numpy as np
    import torch
    from inference_parts import peers
    from monai import transforms as t
    from monai.data import DataLoader, Dataset, decollate_batch
    from monai.inferers import sliding_window_inference

    model = loaded(job)
    network, patch = peers.Finest.of(model.checkpoint), model.config.train.patch
    before = t.Compose(
        [
            t.LoadImaged("image"),
            t.EnsureChannelFirstd("image"),
            t.Orientationd("image", "RAS", labels=None),
            *([t.Spacingd("image", job["spacing"])] if job["spacing"] else []),
            t.ScaleIntensityRanged("image", *job["range"], -1, 1, clip=True)
            if job["range"]
            else t.NormalizeIntensityd("image"),
        ]
    )
    after = t.Compose(
        [
            t.Invertd("pred", before, orig_keys="image", nearest_interp=False),
            t.AsDiscreted("pred", argmax=True),
            t.SaveImaged(
                "pred", output_dir=job["output"], output_postfix="", separate_folder=False,
                resample=False, print_log=False, output_dtype=np.uint8,
            ),
        ]
    )  # fmt: skip
    data = Dataset([{"image": path} for path in job["images"].values()], before)
    loader = DataLoader(data, batch_size=1, num_workers=job["workers"])

    def call() -> None:
        with torch.no_grad():
            for batch in loader:
                batch["pred"] = sliding_window_inference(
                    batch["image"],
                    patch,
                    4,
                    network,
                    0.5,
                    mode="gaussian",
                    padding_mode="replicate",
                )
                for sample in decollate_batch(batch):
                    after(sample)

    return call


if __name__ == "__main__":
    serve(prepare)
