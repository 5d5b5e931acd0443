"""Worker: medseg's CRF."""

from __future__ import annotations

from typing import Any

from worker import Job, serve

from medseg.postprocess.crf import DenseCRF3D
from medseg.postprocess.deepmedic import from_deepmedic


def refine(job: Job, image: Any, brain: Any, probabilities: Any) -> Any:
    """Marginals; the voxels of BraTS are 1 mm wide."""
    crf = DenseCRF3D(**from_deepmedic(**job["parameters"]), **job["options"])
    return crf(probabilities, image, (1.0, 1.0, 1.0), roi=brain)


if __name__ == "__main__":
    serve(refine)
