"""Many volumes: one bad case costs one case, and a rerun does only what is missing or stale.

Beside each mask `ID.nii.gz` lies `ID.json`, which says from which inputs, model and settings it
came. It is written after the mask, so that it vouches for a mask that is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg import plugins
from medseg.console import Tick
from medseg.errors import DataError, MedsegError, raise_all
from medseg.files import check_writable, read_json, sha256, write_json
from medseg.inference.predictor import Predictor
from medseg.inference.steps import entries
from medseg.postprocess.prediction import Prediction
from medseg.version import VERSION
from medseg.volumes.dataset import Case
from medseg.volumes.image import Image
from medseg.volumes.load import absent
from medseg.volumes.writer import write

FAILURES = "failures.json"


@dataclass
class Outcome:
    """What became of each case, by id."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def predict_cases(
    predictor: Predictor, model: Path, cases: Sequence[Case], output: Path, tick: Tick
) -> Outcome:
    """Predict cases into a folder.

    Writes `ID.nii.gz` and `ID.json` for each, `ID_probabilities.nii.gz` where the config asks for
    them, else `confidence/ID.nii.gz` where it counts lesions (the probabilities within the
    predicted foreground, 0 elsewhere: all that the confidence of a lesion needs), and
    `failures.json` while any case fails.

    Args:
        predictor: The model.
        model: Its file, whose hash goes into each record.
        cases: What to predict.
        output: The folder.
        tick: Called after each case.

    Raises:
        DataError: The folder cannot be written.
    """
    outcome = Outcome()
    _refuse_overwriting(output, cases)
    check_writable(output)
    made_with = _provenance(predictor, model)
    for case in cases:
        try:
            raise_all(absent(case))
            record = {
                **made_with,
                "inputs": {str(p): sha256(p) for p in case.files},
                "channels": list(predictor.checkpoint.channels),
                "missing": [predictor.checkpoint.channels[n] for n in case.missing],
            }
            if _is_current(output, case.id, record):
                outcome.kept.append(case.id)
            else:
                _predict(predictor, case, output, record)
                outcome.done.append(case.id)
        except Exception as error:  # noqa: BLE001  (one bad case costs one case)
            _discard(output, case.id)
            outcome.failed[case.id] = _reason(error)
            _write_failures(output, outcome.failed)
            _free_memory()
        tick(f"{case.id}  {len(outcome.failed)} failed")
    if not outcome.failed:
        (output / FAILURES).unlink(missing_ok=True)
    return outcome


def _predict(predictor: Predictor, case: Case, output: Path, record: dict[str, Any]) -> None:
    mask, written = _mask(output, case.id), {}
    loaded = predictor.load_case(case)
    config = predictor.config
    wanted = config.inference.probabilities or config.evaluation.lesions
    prediction = predictor.predict_case(loaded, probabilities=wanted)
    values = predictor.labels.to_values(prediction.labels)
    if prediction.probabilities is not None:
        path, shares = _probabilities(output, case.id), prediction.probabilities
        if not config.inference.probabilities:
            path, shares = _confidence(output, case.id), shares * (prediction.labels > 0)
        write(path, shares, loaded.reference)
        written[path.relative_to(output).as_posix()] = sha256(path)
    write(mask, values, loaded.reference, affine=prediction.affine)
    written[mask.name] = sha256(mask)
    if _sidecar(output, case.id).exists():  # of an earlier run, whose other volumes are stale now
        for file in _files(output, case.id):
            if file.relative_to(output).as_posix() not in written:
                file.unlink(missing_ok=True)
    found = _found(predictor, prediction, loaded.reference)
    write_json(
        _sidecar(output, case.id), {**record, "outputs": written, **found, "notes": loaded.notes}
    )


def _found(predictor: Predictor, prediction: Prediction, reference: Image) -> dict[str, Any]:
    """Shape, voxel size and the volume of each class in mL."""
    counts = np.bincount(prediction.labels.ravel(), minlength=len(predictor.labels.values) + 1)
    index = {value: n + 1 for n, value in enumerate(predictor.labels.values)}
    volumes = {
        name: sum(int(counts[index[value]]) for value in values) * prediction.voxel_mm3 / 1000
        for name, values in predictor.labels.classes.items()
    }
    return {"shape": reference.shape, "spacing_mm": reference.spacing, "volume_ml": volumes}


def _provenance(predictor: Predictor, model: Path) -> dict[str, Any]:
    """What a mask depends on beside its inputs."""
    config = predictor.config
    parts = config.model_dump(mode="json", include={"preprocess", "model", "inference"})
    steps = entries(predictor.checkpoint, predictor.crf)
    parts["postprocess"] = [entry.model_dump(mode="json") for entry in steps]
    parts["data"] = config.data.model_dump(mode="json", include={"reference", "grids"})
    parts["window"] = config.inference.patch or config.train.patch
    parts["plugins"] = plugins.fingerprint(config.plugins)
    if config.evaluation.lesions and not config.inference.probabilities:
        parts["confidence"] = True
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {
        "medseg": VERSION,
        "torch": torch.__version__,
        "device": predictor.device.type,
        "model": sha256(model),
        "settings": digest,
        "plugins": [
            dict(plugin) for plugin in predictor.checkpoint.plugins if "=" not in plugin["plugin"]
        ],
    }


def _is_current(output: Path, case: str, record: dict[str, Any]) -> bool:
    """Whether the outputs are there, unharmed, and came from the same inputs, model and settings.

    Inputs may have moved: their hashes count, in the order of the channels.
    """
    try:
        known = read_json(_sidecar(output, case))
        return (
            list(known["inputs"].values()) == list(record["inputs"].values())
            and all(known[key] == record[key] for key in ("model", "settings", "medseg", "missing"))
            and all(sha256(output / name) == digest for name, digest in known["outputs"].items())
        )
    except (DataError, KeyError, TypeError, AttributeError):
        return False


def _discard(output: Path, case: str) -> None:
    """Remove what an earlier run made of a case: it is stale, and the case has failed."""
    if _sidecar(output, case).exists():
        for file in (*_files(output, case), _sidecar(output, case)):
            file.unlink(missing_ok=True)


def _write_failures(output: Path, failed: dict[str, str]) -> None:
    write_json(output / FAILURES, {"failed": [{"id": k, "reason": v} for k, v in failed.items()]})


def _reason(error: Exception) -> str:
    text = str(error).strip() or repr(error)
    return text if isinstance(error, MedsegError) else f"{type(error).__name__}: {text}"


def _refuse_overwriting(output: Path, cases: Sequence[Case]) -> None:
    inputs = {path.resolve() for case in cases for path in case.files}
    for case in cases:
        for file in _files(output, case.id):
            if file.resolve() in inputs:
                raise DataError(file, "an input has this name; give another output folder")


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _mask(output: Path, case: str) -> Path:
    return output / f"{case}.nii.gz"


def _sidecar(output: Path, case: str) -> Path:
    return output / f"{case}.json"


def _probabilities(output: Path, case: str) -> Path:
    return output / f"{case}_probabilities.nii.gz"


def _confidence(output: Path, case: str) -> Path:
    return output / "confidence" / f"{case}.nii.gz"


def _files(output: Path, case: str) -> tuple[Path, Path, Path]:
    """Every volume that a case may have."""
    return _mask(output, case), _probabilities(output, case), _confidence(output, case)
