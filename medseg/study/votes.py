"""Where models differ: all that the Dice of any mean of their probabilities depends on.

Where all of them find the same class likeliest, so does every weighted mean. What is kept of a case
are therefore counts of those voxels, and probabilities of the others alone: a few in a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.evaluation.metrics import ratio
from medseg.files import atomic
from medseg.volumes.dataset import IGNORE_INDEX
from medseg.volumes.image import Array

Regions = Sequence[Sequence[int]]
_HALF = np.float16  # of probabilities: 5e-4 near 1, which moves no score that counts


@dataclass(frozen=True, eq=False)
class Votes:
    """A case.

    Args:
        agreed: (3, R) voxels of each region among those where all models agree: in truth and
            prediction, in the prediction, in the truth.
        shares: (M, C, V) probabilities of each model where they do not.
        truth: (V,) class indices there.
    """

    agreed: Array
    shares: Array
    truth: Array

    @classmethod
    def of(cls, shares: Sequence[Array], truth: Array, regions: Regions) -> Votes:
        """Compare models.

        Args:
            shares: Of each, (C, I, J, K); they may be memory maps: one is looked at at a time.
            truth: (I, J, K) class indices; voxels of `IGNORE_INDEX` do not count.
            regions: The class indices of each class that is scored.
        """
        first = shares[0].argmax(0)
        differ = np.zeros(first.shape, dtype=bool)
        for other in shares[1:]:
            differ |= other.argmax(0) != first
        known = truth != IGNORE_INDEX
        alike, differ = known & ~differ, known & differ
        agreed = _counts(first[alike], truth[alike], regions)
        return cls(agreed, np.stack([one[:, differ] for one in shares]), truth[differ])

    def dice(self, weights: Array, regions: Regions) -> Array:
        """Dice (R,) of the weighted mean; 1 where a class is neither in it nor in the truth.

        Args:
            weights: (M,), not all 0.
            regions: As of `of`.
        """
        total = np.zeros(self.shares.shape[1:], dtype=np.float32)
        for weight, share in zip(weights, self.shares, strict=True):
            if weight:
                total += np.float32(weight) * share.astype(np.float32)
        both, predicted, true = self.agreed + _counts(total.argmax(0), self.truth, regions)
        pairs = zip(both.tolist(), (predicted + true).tolist(), strict=True)
        return np.array([ratio(2 * overlap, size) for overlap, size in pairs])


class Cases:
    """Cases on disk, so that memory does not grow with their number.

    Args:
        folder: Where to keep them; the caller removes it.
        models: How many models there are.
        regions: The class indices of each class that is scored.
    """

    def __init__(self, folder: Path, models: int, regions: Regions) -> None:
        self._folder, self._models, self._regions = folder, models, regions
        self._known: dict[tuple[int, ...], Array] = {}
        self.ids = list[str]()

    def add(self, case_id: str, shares: Callable[[int], Array], truth: Array) -> None:
        """Keep a case.

        Args:
            case_id: Its name.
            shares: Gives the probabilities (C, I, J, K) of each model by its number.
            truth: (I, J, K) class indices, IGNORE_INDEX where ignored.

        Raises:
            DataError: It cannot be written.
        """
        whole = [self._folder / f"whole_{n}.npy" for n in range(self._models)]
        for n, file in enumerate(whole):
            _write(file, shares(n).astype(_HALF))
        maps = [_read(file) for file in whole]
        found = Votes.of(maps, truth, self._regions)
        for part in ("agreed", "shares", "truth"):
            _write(self._file(len(self.ids), part), getattr(found, part))
        for file in whole:
            file.unlink()
        self.ids.append(case_id)

    def scores(self, counts: Sequence[int]) -> Array:
        """The mean Dice over the classes of each case (I,), of the mean weighted by counts."""
        divisor = int(np.gcd.reduce(list(counts)))
        key = tuple(count // divisor for count in counts)
        if key not in self._known:
            weights = np.array(key, dtype=float) / sum(key)
            every = range(len(self.ids))
            self._known[key] = np.array(
                [self._votes(n).dice(weights, self._regions).mean() for n in every]
            )
        return self._known[key]

    def _votes(self, case: int) -> Votes:
        return Votes(*(_read(self._file(case, part)) for part in ("agreed", "shares", "truth")))

    def _file(self, case: int, part: str) -> Path:
        return self._folder / f"{case:04d}_{part}.npy"


def _counts(labels: Array, truth: Array, regions: Regions) -> Array:
    found = np.zeros((3, len(regions)), dtype=np.int64)
    for n, indices in enumerate(regions):
        predicted, true = np.isin(labels, indices), np.isin(truth, indices)
        found[:, n] = (predicted & true).sum(), predicted.sum(), true.sum()
    return found


def _write(path: Path, array: Array) -> None:
    with atomic(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def _read(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(path, f"cannot be read: {error}") from error
    return array
