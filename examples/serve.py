"""A model behind HTTP: upload the files of a case, download its mask.

    pip install fastapi python-multipart uvicorn
    python examples/serve.py RUN

What clients send and get, and what has to stand in front of it: examples/README.md.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from medseg import Predictor
from medseg.batch.outputs import found
from medseg.errors import DataError, DataErrors, MedsegError
from medseg.volumes import nifti

MEGABYTES = 1024  # of a request, as it comes
VOXELS = 300_000_000  # of a file unpacked, or on the network's grid
AT_ONCE, WAITING = 1, 8  # cases predicted at the same time, each on all cores; cases in the queue


def service(predictor: Predictor) -> FastAPI:
    """The service. Its requests share the model, which any number of threads may use."""
    app = FastAPI(title="medseg", max_body_size=MEGABYTES << 20)
    running = CapacityLimiter(AT_ONCE)

    @app.post("/predict")
    async def predict(files: list[UploadFile], summary: bool = False) -> Response:
        """Predict one case, given as one file a channel, in the model's order.

        Gives the mask as .nii.gz, on the grid of the first file and in its geometry; or, with
        `summary`, the volume of each class in mL and what was odd about the files, as JSON.
        """
        if running.statistics().tasks_waiting >= WAITING:
            raise HTTPException(503, "too many cases are waiting", {"Retry-After": "60"})
        return await to_thread.run_sync(answer, predictor, files, summary, limiter=running)

    @app.exception_handler(MedsegError)
    @app.exception_handler(MemoryError)
    def failed(_: Request, error: Exception) -> Response:
        """What is not the client's fault, such as a network that gives NaN."""
        return JSONResponse({"detail": str(error) or "out of memory"}, 500)

    return app


def answer(predictor: Predictor, files: list[UploadFile], summary: bool) -> Response:
    """Predict what was uploaded, and leave nothing of it behind."""
    with TemporaryDirectory(prefix="medseg-") as folder:
        names = {
            save(file, Path(folder, str(n))): str(file.filename) for n, file in enumerate(files)
        }
        try:
            for path in names:
                check_size(path, predictor)
            case = predictor.read(list(names))
            prediction = predictor.predict_case(case)
        except (DataError, DataErrors) as error:
            raise HTTPException(422, told(str(error), names)) from error
        notes = [told(note, names) for note in case.notes]
        if summary:
            return JSONResponse({**found(predictor, prediction, case.reference), "notes": notes})
        mask = Path(folder, "mask.nii.gz")
        labels = predictor.labels.to_values(prediction.labels)
        nifti.write(mask, labels, case.reference, affine=prediction.affine)
        headers = {
            "Content-Disposition": "attachment; filename=mask.nii.gz",
            "Medseg-Notes": json.dumps(notes),
        }
        return Response(mask.read_bytes(), headers=headers, media_type="application/gzip")


def save(file: UploadFile, path: Path) -> Path:
    """Keep an upload under a name of ours: only how the client's ends is taken over."""
    path = path.with_suffix(".nii.gz" if str(file.filename).lower().endswith(".gz") else ".nii")
    with path.open("wb") as copy:
        shutil.copyfileobj(file.file, copy)
    return path


def check_size(path: Path, predictor: Predictor) -> None:
    """Refuse a small file of a huge volume before it fills the memory."""
    header, spacing = nifti.read_header(path), predictor.checkpoint.spacing
    finer = 1.0 if spacing is None else math.prod(header.spacing) / math.prod(spacing)
    voxels = math.prod(header.shape) * max(1, finer)
    if voxels > VOXELS:
        raise DataError(path, f"{voxels:.2g} voxels to predict; the limit is {VOXELS:.2g}")


def told(text: str, names: dict[Path, str]) -> str:
    """A text with files called as the client calls them."""
    for path, name in names.items():
        text = text.replace(str(path), name)
    return text


if __name__ == "__main__":
    import uvicorn

    from medseg.memory import keep_freed

    keep_freed()
    warnings.simplefilter("ignore", nifti.VolumeWarning)  # clients are told
    uvicorn.run(service(Predictor.load(sys.argv[1:])))
