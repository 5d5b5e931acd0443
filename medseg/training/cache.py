"""Preprocessed cases on disk, memory-mapped: a file each, named by a hash of all it came from."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg import plugins
from medseg.errors import DataError
from medseg.files import sha256
from medseg.training import casefile
from medseg.training.sampling import spread
from medseg.transforms.preprocess import Prepared, Preprocessor, Spacing
from medseg.volumes.dataset import IGNORE_INDEX, Case, Dataset
from medseg.volumes.image import Array
from medseg.volumes.load import load_case

_VOXELS_PER_CLASS = 20_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case. Its arrays are read-only maps of the file, opened when asked for.

    Args:
        id: The case's name.
        path: Its file; see `casefile`.
        spacing: Voxel size in mm.
        missing: The numbers of the channels that are missing, and 0 all over.
    """

    id: str
    path: Path
    spacing: Spacing
    missing: tuple[int, ...] = ()

    def image(self) -> Array:
        """(C, I, J, K) float32."""
        return self._arrays()["image"]

    def label(self) -> Array:
        """(I, J, K) uint8 class indices."""
        return self._arrays()["label"]

    def mask(self) -> Array | None:
        """(I, J, K) bool, the region of interest; None: the case has none."""
        return self._arrays().get("mask")

    def counts(self) -> Array:
        """(2, 256) how many voxels each class index has: everywhere, and in the region."""
        return self._arrays()["counts"]

    def voxels(self) -> Array:
        """(V, 2) class and flat index of some voxels of each foreground class, by class."""
        return self._arrays()["voxels"]

    def weights(self) -> Array | None:
        """(I, J, K) float32, where patches are to be drawn; None: the case has no such map."""
        return self._arrays().get("weights")

    def _arrays(self) -> Mapping[str, Array]:
        try:
            return casefile.read(self.path).arrays
        except DataError as error:
            reason = f"case {self.id!r}: {error.reason}; start again to have it made anew"
            raise DataError(self.path, reason) from error


def fill(
    folder: Path,
    cases: Sequence[Case],
    dataset: Dataset,
    preprocessor: Preprocessor,
    tick: Callable[[], None],
) -> tuple[CachedCase, ...]:
    """Preprocess what the cache does not hold yet, and return all cases in order.

    What it holds is read in full before it is used. A damaged file, or one of another version of
    medseg, is made anew, with a warning.

    Raises:
        DataError: A case cannot be read, or the cache cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _tell_of_folders(folder)
    done: list[CachedCase] = []
    for case in cases:
        key = _key(case, dataset, preprocessor)
        path = folder / f"{case.id}-{key[:16]}.safetensors"
        found = _found(path, case.id, key)
        if found is None:
            _store(path, key, preprocessor(load_case(case, dataset)), len(cases) - len(done))
            found = _opened(casefile.read(path), path, case.id)
        done.append(found)
        tick()
    return tuple(done)


def _found(path: Path, case: str, key: str) -> CachedCase | None:
    """What the cache has under a name, if it is what it should be."""
    if not path.exists():
        return None
    try:
        file = casefile.check(path)
    except DataError as error:
        warnings.warn(f"{error}; the case is made anew", stacklevel=3)
        return None
    if file.version != casefile.VERSION or file.about["key"] != key:
        warnings.warn(
            f"{path}: written by another version of medseg (format {file.version}, here "
            f"{casefile.VERSION}); the case is made anew",
            stacklevel=3,
        )
        return None
    return _opened(file, path, case)


def _opened(file: casefile.CaseFile, path: Path, case: str) -> CachedCase:
    i, j, k = file.about["spacing"]
    return CachedCase(case, path, (i, j, k), tuple(file.about["missing"]))


def _tell_of_folders(folder: Path) -> None:
    """Say that a cache of before medseg 0.7, a folder a case, is not read."""
    old = sum(1 for _ in folder.glob("*/case.json"))
    if old:
        warnings.warn(
            f"{folder}: {old} folders of an earlier medseg's cache are not used; delete them",
            stacklevel=3,
        )


def _key(case: Case, dataset: Dataset, preprocessor: Preprocessor) -> str:
    """A hash of the case's files, their meaning, and what is done to them."""
    files = [c and (sha256(c.path), c.index) for c in case.channels]
    others = [path and sha256(path) for path in (case.label, case.mask, case.weights)]
    parts = [
        files, others, dataset.reference(case), dataset.policy.grids,
        list(dataset.labels.values), dataset.labels.ignore,
        preprocessor.settings.model_dump(mode="json"), preprocessor.spacing,
        plugins.fingerprint(preprocessor.references),
        preprocessor.fitted.as_json() if preprocessor.fitted else {},
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _store(path: Path, key: str, prepared: Prepared, left: int) -> None:
    """Write a case's file.

    Args:
        path: Where.
        key: What it came from.
        prepared: The case.
        left: How many cases are to be written, this one included.
    """
    arrays = {"image": prepared.image}
    if prepared.label is not None:
        arrays |= {
            "label": prepared.label,
            "voxels": _voxels(prepared.label),
            "counts": _counts(prepared),
        }
    arrays |= {
        name: array
        for name, array in (("mask", prepared.mask), ("weights", prepared.weights))
        if array is not None
    }
    about = {"key": key, "spacing": prepared.spacing, "missing": prepared.missing}
    try:
        casefile.write(path, arrays, about)
    except DataError as error:
        raise _told_of_space(error, sum(array.nbytes for array in arrays.values()), left) from error


def _told_of_space(error: DataError, size: int, left: int) -> DataError:
    """The error with the space that is needed, if it is space that is lacking."""
    cause = error.__cause__
    if not (isinstance(cause, OSError) and cause.errno in _FULL):
        return error
    folder = Path(error.source).parent
    free = shutil.disk_usage(folder).free
    return DataError(
        error.source,
        f"{error.reason}. It needs {_told(size)}, and with the other cases that are not cached "
        f"yet ({left - 1}) up to about {_told(size * left)}; {_told(free)} are free. Free some, or "
        "set train.cache to a folder on another disk",
    )


def _told(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _counts(prepared: Prepared) -> Array:
    label, mask = prepared.label, prepared.mask
    assert label is not None
    inside = label if mask is None else label[mask]
    return np.stack([np.bincount(part.ravel(), minlength=256) for part in (label, inside)])


def _voxels(label: Array) -> Array:
    """Some voxels of each class, spread evenly, as (class, flat index)."""
    flat = label.ravel()
    found = []
    for value in np.unique(flat):
        if value not in (0, IGNORE_INDEX):
            places = spread(flat == value, _VOXELS_PER_CLASS)
            found.append(np.stack([np.full_like(places, value), places], axis=1))
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)
