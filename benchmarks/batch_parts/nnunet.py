"""Driver: nnU-Net's `predict_from_files`, with its own processes for reading and writing.

Its predictor is given medseg's network (`manual_initialization`) and plans that say what its
planning would have said of these data: `inference_parts.peers.plans`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from batch_parts.driver import Job, loaded, serve


def prepare(job: Job) -> Callable[[], Any]:
    """Load the network and write the plans."""
    os.environ.update({f"nnUNet_{name}": job["output"] for name in ("raw", "preprocessed")})
    os.environ["nnUNet_results"] = job["output"]  # noqa: SIM112 (its name)
    from inference_parts import peers

    model = loaded(job)
    classes, more = len(model.labels.values) + 1, {}
    if job["range"] is not None:
        low, high = job["range"]  # becomes -1 to 1, as in medseg's config
        limits = {"percentile_00_5": low, "percentile_99_5": high}
        middle = {"mean": (low + high) / 2, "std": (high - low) / 2}
        more = {"scheme": "CTNormalization", "intensities": {**limits, **middle}}
    settings = peers.plans(
        model.config.train.patch, classes, spacing=job["spacing"] or (1.0, 1.0, 1.0), **more
    )
    predictor = peers.predictor(peers.Finest.of(model.checkpoint), settings)
    inputs = [[path] for path in job["images"].values()]
    outputs = [f"{job['output']}/{case}" for case in job["images"]]
    workers = job["workers"]
    return lambda: predictor.predict_from_files(
        inputs, outputs,
        num_processes_preprocessing=workers, num_processes_segmentation_export=workers,
    )  # fmt: skip


if __name__ == "__main__":
    serve(prepare)
