"""The cases of a tuning on disk, so that memory does not grow with their number."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.files import atomic
from medseg.postprocess.prediction import Prediction
from medseg.volumes.image import Array

_HALF = np.float16  # of probabilities: 5e-4 near 1, which moves no score that counts


class Store:
    """Predictions before the step that is tuned, and the truth.

    Args:
        folder: Where to keep them; the caller removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.ids = folder, list[str]()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, case_id: str, prediction: Prediction, truth: Array) -> None:
        """Keep a case.

        Args:
            case_id: Its name.
            prediction: With probabilities.
            truth: (I, J, K) class indices, IGNORE_INDEX where ignored.

        Raises:
            DataError: It cannot be written.
        """
        if prediction.probabilities is None:
            raise DataError(case_id, "its prediction has no probabilities to tune on")
        self._write("labels", prediction.labels)
        self._write("image", prediction.image)
        self._write("affine", prediction.affine)
        self._write("probabilities", prediction.probabilities.astype(_HALF))
        self._write("truth", truth)
        if prediction.mask is not None:
            self._write("mask", prediction.mask)
        self.ids.append(case_id)

    def prediction(self, case: int) -> Prediction:
        """A case by its number, probabilities as float32 that sum to one."""
        probabilities = self._read(case, "probabilities").astype(np.float32)
        probabilities /= probabilities.sum(0)
        return Prediction(
            labels=self._read(case, "labels"),
            image=self._read(case, "image"),
            affine=self._read(case, "affine"),
            probabilities=probabilities,
            mask=self._read(case, "mask") if self._file(case, "mask").exists() else None,
        )

    def truth(self, case: int) -> Array:
        """(I, J, K) class indices, IGNORE_INDEX where ignored."""
        return self._read(case, "truth")

    def _file(self, case: int, part: str) -> Path:
        return self._folder / f"{case:04d}_{part}.npy"

    def _write(self, part: str, array: Array) -> None:
        with atomic(self._file(len(self), part)) as temporary:
            np.save(temporary, array, allow_pickle=False)

    def _read(self, case: int, part: str) -> Array:
        array: Array = np.load(self._file(case, part), allow_pickle=False)
        return array
