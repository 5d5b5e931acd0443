"""Worker: pydensecrf2, which wraps the code of Kraehenbuehl and Koltun (arXiv:1210.5644).

It is given what its documentation asks for: negative log-probabilities, features divided by their
deviations. "all" is its own way for volumes; "brain" hands it the brain's voxels as a list.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydensecrf.densecrf import NORMALIZE_SYMMETRIC, DenseCRF
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian
from worker import Job, serve

LOW, HIGH, LEVELS = -3.1, 3.1, 254.0
LEAST = 1e-6  # medseg's too


def refine(job: Job, image: Any, brain: Any, probabilities: Any) -> Any:
    """Marginals of all voxels, or of the brain's."""
    parameters = job["parameters"]
    flat = probabilities.reshape(len(probabilities), -1)
    if job["options"]["voxels"] == "all":
        spatial = create_pairwise_gaussian(parameters["positions"], brain.shape)
        bilateral = create_pairwise_bilateral(
            parameters["bilateral"], parameters["intensities"], _levels(image), chdim=0
        )
        return _inferred(parameters, flat, spatial, bilateral).reshape(probabilities.shape)
    index = np.flatnonzero(brain)
    places = np.stack(np.unravel_index(index, brain.shape)).astype(np.float32)
    spatial = places / _column(parameters["positions"])
    colours = _levels(image.reshape(len(image), -1).take(index, axis=1))
    colours /= _column(parameters["intensities"])
    bilateral = np.concatenate([places / _column(parameters["bilateral"]), colours])
    found = flat.copy()
    found[:, index] = _inferred(parameters, flat.take(index, axis=1), spatial, bilateral)
    return found.reshape(probabilities.shape)


def _levels(image: Any) -> Any:
    return (image - np.float32(LOW)) * np.float32(LEVELS / (HIGH - LOW))


def _inferred(parameters: Any, probabilities: Any, spatial: Any, bilateral: Any) -> Any:
    field = DenseCRF(probabilities.shape[1], len(probabilities))
    field.setUnaryEnergy(np.ascontiguousarray(-np.log(np.maximum(probabilities, LEAST))))
    for features, weight in zip((spatial, bilateral), parameters["weights"], strict=True):
        field.addPairwiseEnergy(features, compat=weight, normalization=NORMALIZE_SYMMETRIC)
    return np.array(field.inference(parameters["iterations"]))


def _column(values: Any) -> Any:
    return np.asarray(values, np.float32)[:, None]


if __name__ == "__main__":
    serve(refine)
