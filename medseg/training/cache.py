"""Preprocessed cases on disk, memory-mapped: a folder each, named by a hash of all it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg import plugins
from medseg.errors import DataError
from medseg.files import read_json, sha256, write_json
from medseg.training.sampling import spread
from medseg.transforms.preprocess import Prepared, Preprocessor, Spacing
from medseg.volumes.dataset import IGNORE_INDEX, Case, Dataset
from medseg.volumes.image import Array
from medseg.volumes.load import load_case

_VERSION = 4  # raise when what a cached case holds changes
_VOXELS_PER_CLASS = 20_000


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case. Arrays are opened when asked for, as maps of the files.

    Args:
        id: The case's name.
        folder: Where its arrays lie.
        spacing: Voxel size in mm.
        has_mask: Whether it has a region of interest.
        has_weights: Whether it has a map of where patches are drawn.
        missing: The numbers of the channels that are missing, and 0 all over.
    """

    id: str
    folder: Path
    spacing: Spacing
    has_mask: bool = False
    has_weights: bool = False
    missing: tuple[int, ...] = ()

    def image(self) -> Array:
        """(C, I, J, K) float32."""
        return self._open("image")

    def label(self) -> Array:
        """(I, J, K) uint8 class indices."""
        return self._open("label")

    def mask(self) -> Array | None:
        """(I, J, K) bool, the region of interest; None: the case has none."""
        return self._open("mask") if self.has_mask else None

    def counts(self) -> Array:
        """(2, 256) how many voxels each class index has: everywhere, and in the region."""
        return self._open("counts")

    def voxels(self) -> Array:
        """(V, 2) class and flat index of some voxels of each foreground class."""
        return self._open("voxels")

    def weights(self) -> Array | None:
        """(I, J, K) float32, where patches are to be drawn; None: the case has no such map."""
        return self._open("weights") if self.has_weights else None

    def _open(self, name: str) -> Array:
        path = self.folder / f"{name}.npy"
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, self.id, error) from error
        return array


def fill(
    folder: Path,
    cases: Sequence[Case],
    dataset: Dataset,
    preprocessor: Preprocessor,
    tick: Callable[[], None],
) -> tuple[CachedCase, ...]:
    """Preprocess what the cache does not hold yet, and return all cases in order.

    Raises:
        DataError: A case cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for case in cases:
        place = folder / f"{case.id}-{_key(case, dataset, preprocessor)[:16]}"
        if not place.exists():
            _store(place, preprocessor(load_case(case, dataset)))
        done.append(_opened(place, case.id))
        tick()
    return tuple(done)


def _opened(place: Path, case: str) -> CachedCase:
    file = place / "case.json"
    try:
        about = read_json(file)
        i, j, k = about["spacing"]
        has = (bool(about["mask"]), bool(about["weights"]))
        return CachedCase(case, place, (i, j, k), *has, tuple(about["missing"]))
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise _damaged(file, case, error) from error


def _damaged(file: Path, case: str, error: Exception) -> DataError:
    reason = error.reason if isinstance(error, DataError) else error
    return DataError(file, f"case {case!r}: {reason}; delete the folder to rebuild")


def _key(case: Case, dataset: Dataset, preprocessor: Preprocessor) -> str:
    """A hash of the case's files, their meaning, and what is done to them."""
    files = [c and (sha256(c.path), c.index) for c in case.channels]
    others = [path and sha256(path) for path in (case.label, case.mask, case.weights)]
    parts = [
        _VERSION, files, others, dataset.reference(case), dataset.policy.grids,
        list(dataset.labels.values), dataset.labels.ignore,
        preprocessor.settings.model_dump(mode="json"), preprocessor.spacing,
        plugins.fingerprint(preprocessor.references),
        preprocessor.fitted.as_json() if preprocessor.fitted else {},
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _store(place: Path, prepared: Prepared) -> None:
    """Write a case's arrays into a folder that appears under its name only when complete."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=place.parent))
    try:
        np.save(partial / "image.npy", prepared.image, allow_pickle=False)
        if prepared.label is not None:
            np.save(partial / "label.npy", prepared.label, allow_pickle=False)
            np.save(partial / "voxels.npy", _voxels(prepared.label), allow_pickle=False)
            np.save(partial / "counts.npy", _counts(prepared), allow_pickle=False)
        if prepared.mask is not None:
            np.save(partial / "mask.npy", prepared.mask, allow_pickle=False)
        if prepared.weights is not None:
            np.save(partial / "weights.npy", prepared.weights, allow_pickle=False)
        about = {
            "spacing": prepared.spacing,
            "mask": prepared.mask is not None,
            "weights": prepared.weights is not None,
            "missing": prepared.missing,
        }
        write_json(partial / "case.json", about)
        _reveal(partial, place)
    except OSError as error:
        raise DataError(place, f"cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reveal(partial: Path, place: Path) -> None:
    """Give a complete folder its name, unless another run was faster."""
    try:
        partial.rename(place)
    except OSError:
        if not place.is_dir():
            raise


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
