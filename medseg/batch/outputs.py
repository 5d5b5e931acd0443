"""What a case leaves in the output folder: names, the record beside the mask, what makes it stale.

Beside each mask `ID.nii.gz` lies `ID.json`, which says from which inputs, model and settings it
came. It is written last, so that it vouches for volumes that are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from medseg import plugins
from medseg.batch.entry import readable
from medseg.config.schema import Config
from medseg.errors import DataError
from medseg.files import read_json, sha256
from medseg.inference.ensembles import model_files
from medseg.inference.predictor import Predictor
from medseg.inference.steps import entries
from medseg.postprocess.prediction import Prediction
from medseg.version import VERSION
from medseg.volumes.dataset import Case
from medseg.volumes.image import Array, Image
from medseg.volumes.stack import Stack

CONFIDENCE = "confidence"  # the folder of the probabilities that only lesions need
_DECIDE = ("model", "settings", "medseg", "missing")  # beside inputs and outputs: a mask's age


def mask(output: Path, case: str) -> Path:
    """Where the mask of a case goes."""
    return output / f"{case}.nii.gz"


def sidecar(output: Path, case: str) -> Path:
    """Where its record goes."""
    return output / f"{case}.json"


def probabilities(output: Path, case: str) -> Path:
    """Where its class probabilities go."""
    return output / f"{case}_probabilities.nii.gz"


def confidence(output: Path, case: str) -> Path:
    """Where the probabilities inside the predicted foreground go, which lesions need."""
    return output / CONFIDENCE / f"{case}.nii.gz"


def uncertainty(output: Path, case: str) -> Path:
    """Where its map of uncertainty goes."""
    return output / f"{case}_uncertainty.nii.gz"


def volumes(output: Path, case: str) -> tuple[Path, ...]:
    """Every volume that a case may have."""
    return tuple(name(output, case) for name in (mask, probabilities, confidence, uncertainty))


class Inside:
    """Class probabilities within the predicted foreground, 0 elsewhere; a `Stack`.

    Args:
        shares: (classes, I, J, K), or a stack of them.
        inside: (I, J, K) bool.
    """

    def __init__(self, shares: Array | Stack, inside: Array) -> None:
        self._shares, self._inside = shares, inside

    @property
    def shape(self) -> tuple[int, ...]:
        """(classes, I, J, K)."""
        return tuple(self._shares.shape)

    def __len__(self) -> int:
        """How many classes there are."""
        return len(self._shares)

    def __iter__(self) -> Iterator[Array]:
        """Those of each class."""
        for share in self._shares:
            yield share * self._inside


def provenance(predictor: Predictor, models: Sequence[Path]) -> dict[str, Any]:
    """What a mask depends on beside its inputs, and what it was made with."""
    first, *others = (member.config for member in predictor.members)
    parts = _decisive(first)
    if others:
        parts["ensemble"] = [_decisive(config) for config in others]
    if predictor.weights is not None:
        parts["weights"] = list(predictor.weights)
    steps = entries(predictor.checkpoint, predictor.crf)
    parts["postprocess"] = [entry.model_dump(mode="json") for entry in steps]
    if first.evaluation.lesions and not first.inference.probabilities:
        parts["confidence"] = True
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {
        "medseg": VERSION,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "nibabel": nib.__version__,
        },
        "device": predictor.device.type,
        "model": "+".join(sha256(model) for model in model_files(models)),
        "settings": digest,
        "plugins": [
            dict(plugin) for plugin in predictor.checkpoint.plugins if "=" not in plugin["plugin"]
        ],
    }  # fmt: skip


def _decisive(config: Config) -> dict[str, Any]:
    """The settings of one model that its masks depend on."""
    parts = config.model_dump(mode="json", include={"preprocess", "model", "inference"})
    for key in ("memory", "batch"):  # how it is computed, not what
        del parts["inference"][key]
    parts["data"] = config.data.model_dump(mode="json", include={"reference", "grids"})
    parts["window"] = config.inference.patch or config.train.patch
    parts["plugins"] = plugins.fingerprint(config.plugins)
    return parts


def inputs_of(case: Case, predictor: Predictor) -> dict[str, Any]:
    """The hashes of a case's files, and which channels they are.

    Raises:
        DataError: A file cannot be read.
    """
    channels = predictor.checkpoint.channels
    return {
        "inputs": {readable(path): sha256(path) for path in case.files},
        "channels": list(channels),
        "missing": [channels[n] for n in case.missing],
    }


def found(predictor: Predictor, prediction: Prediction, reference: Image) -> dict[str, Any]:
    """Shape, voxel size, the volume of each class in mL, and how it was computed."""
    labels, voxel = predictor.labels, prediction.voxel_mm3 / 1000
    most = len(labels.values) + 1
    # Layer by layer: numpy makes 8 bytes of each label.
    layers = [np.bincount(layer.ravel(), minlength=most) for layer in prediction.labels]
    counts = np.sum(layers, axis=0)
    index = {value: n + 1 for n, value in enumerate(labels.values)}
    millilitres = {
        name: round(sum(int(counts[index[value]]) for value in values) * voxel, 6)
        for name, values in labels.classes.items()
    }
    return {
        "shape": reference.shape, "spacing_mm": reference.spacing, "volume_ml": millilitres,
        **prediction.made,
    }  # fmt: skip


def outputs_if_current(output: Path, case: str, record: dict[str, Any]) -> dict[str, str] | None:
    """The outputs with their hashes, if they are there, unharmed, and came from the same.

    The same are inputs, model and settings. Inputs may have moved: their hashes count, in the
    order of the channels. Seconds, host and the like do not count.
    """
    try:
        known = read_json(sidecar(output, case))
        outputs: dict[str, str] = known["outputs"]
        current = (
            list(known["inputs"].values()) == list(record["inputs"].values())
            and all(known[key] == record[key] for key in _DECIDE)
            and all(sha256(output / name) == digest for name, digest in outputs.items())
        )
        return outputs if current else None
    except (DataError, KeyError, TypeError, AttributeError):
        return None


def discard(output: Path, case: str, written: Sequence[str] = ()) -> None:
    """Remove what is stale once a case has failed: of an earlier run, and of this one.

    What others left under its names is kept: a record tells which are ours.

    Args:
        output: The folder.
        case: The id.
        written: What this run wrote of it, relative to the folder.
    """
    record = sidecar(output, case)
    stale = [output / name for name in written]
    if is_ours(record):
        stale += [*volumes(output, case), record]
    for file in stale:
        file.unlink(missing_ok=True)


def is_ours(record: Path) -> bool:
    """Whether a record is there and says that medseg wrote it; one that is damaged cannot say.

    Others, too, put a JSON file beside a volume: BIDS and dcm2niix do.
    """
    if not record.exists():
        return False
    try:
        known = read_json(record)
    except DataError:
        return True
    return isinstance(known, dict) and "medseg" in known


def check_names(output: Path, case: str, *, most: int | None = None) -> None:
    """Refuse a case whose files cannot have the names that they should.

    Args:
        output: The folder.
        case: The id.
        most: Bytes that a name may have; None: what the file system says.

    Raises:
        DataError: The longest of them is too long for the file system.
    """
    try:
        most = os.pathconf(output, "PC_NAME_MAX") if most is None else most
    except (OSError, ValueError, AttributeError):  # not known here
        return
    longest = max((path.name for path in volumes(output, case)), key=lambda n: len(os.fsencode(n)))
    size = len(os.fsencode(longest))
    if size > most:
        raise DataError(
            output / longest,
            f"a name of {size} bytes, and this file system takes {most}: shorten the id",
        )
