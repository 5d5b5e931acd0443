"""Candidates of the CRF: a cheap convex fit for each kernel setting, without the case left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import log2
from typing import Any

import numpy as np
from scipy import ndimage

from medseg.console import track
from medseg.errors import DataError
from medseg.postprocess.crf_step import CRF
from medseg.postprocess.dense.problem import FLOOR
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.tuning.candidates import defaults
from medseg.tuning.convex import Fit, Sample, fit
from medseg.tuning.result import Candidate, Options
from medseg.tuning.store import Store
from medseg.volumes.dataset import IGNORE_INDEX
from medseg.volumes.image import Array

KERNELS = ((1, 1, 1), (1, 1, 0.5), (1, 1, 2), (1, 0.5, 1), (1, 2, 1), (0.5, 0.5, 1))
"""Multiples of the default spatial_mm, appearance_mm and appearance_intensity."""
STRENGTHS = ((1.0, 0.5, 2.0), (1.0,))
"""Multiples of the fitted weights that the real mean field is tried with: for the best kernel
setting of each fold, and for the second. A mean field costs as much as several fits."""
MOST_VOXELS = 8_000  # a case; three parameters need no more
UNDECIDED = 0.95
_DEVIATIONS = ("spatial_mm", "appearance_mm", "appearance_intensity")
_WEIGHTS = ("temperature", "spatial_weight", "appearance_weight")
_STEPS = 2  # of the grid of fitted values, for each factor of 2
_FARTHEST = 4.0  # on that grid, in factors of 2; a weight below is 0


class CrfFit:
    """Proposes options of the CRF for a set of cases; see `select.Propose`.

    Args:
        store: The cases. All are filtered once for each kernel setting.
        name: The CRF, or a preset of it.
        given: Its options in the config.
        fixed: Options that are not varied.
        classes: Of the model, background included.
        seed: Of the voxels that are drawn.
        quiet: Show no progress.

    Raises:
        ConfigError: An option is impossible.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        given: Options,
        fixed: Options,
        classes: int,
        *,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        self._name, self._fixed, self._classes = name, fixed, classes
        self._plain = {**given, **fixed}
        self._base = {**defaults(name), **self._plain}
        self._kernels = self._settings()
        self._steps = [self._step(kernel) for kernel in self._kernels]
        self._samples = self._filter(store, seed, quiet)

    def __call__(self, cases: Sequence[int]) -> list[Candidate]:
        """Left out, the defaults, and what the best kernel settings on these cases suggest."""
        fits = [self._fit(number, cases) for number in range(len(self._kernels))]
        ranked = sorted(range(len(fits)), key=lambda number: fits[number].cross_entropy)
        suggested = [
            self._options(self._kernels[number], fits[number], strength)
            for number, strengths in zip(ranked, STRENGTHS, strict=False)
            for strength in strengths
        ]
        unique = {json.dumps(options, sort_keys=True): options for options in suggested}
        return [None, self._plain, *sorted(unique.values(), key=self._distance)]

    def _settings(self) -> list[dict[str, Any]]:
        """The kernel settings, each once; what is fixed stays."""
        settings = []
        for factors in KERNELS:
            kernel = {
                name: _times(self._base[name], factor)
                for name, factor in zip(_DEVIATIONS, factors, strict=True)
                if name not in self._fixed
            }
            settings += [kernel] if kernel not in settings else []
        return settings

    def _step(self, kernel: Options) -> CRF:
        spec = {"name": self._name, "accuracy": "fast", **self._plain, **kernel}
        step: CRF = POSTPROCESSORS.build(spec, classes=self._classes)
        return step

    def _filter(self, store: Store, seed: int, quiet: bool) -> list[list[Sample]]:
        """One sample for each case and kernel setting; two cases at a time."""

        def work(case: int) -> list[Sample]:
            prediction, truth = store.prediction(case), store.truth(case)
            rng = np.random.default_rng([seed, case])
            return samples(prediction, truth, self._steps, rng)

        found = []
        with track("Filter", len(store), quiet=quiet) as tick, ThreadPoolExecutor(2) as pool:
            for case, made in enumerate(pool.map(work, range(len(store)))):
                found.append(made)
                tick(store.ids[case])
        return found

    def _fit(self, kernel: int, cases: Sequence[int]) -> Fit:
        temperature, *weights = (float(self._base[name]) for name in _WEIGHTS)
        start = (1 / temperature, *weights)
        is_free = [
            name not in self._fixed and value > 0
            for name, value in zip(_WEIGHTS, start, strict=True)
        ]
        return fit([self._samples[case][kernel] for case in cases], start, is_free)

    def _options(self, kernel: Options, found: Fit, strength: float) -> dict[str, Any]:
        inverse, spatial, appearance = found.parameters
        values = (1 / inverse, strength * spatial, strength * appearance)
        rounded = {
            name: _on_grid(value, float(self._base[name]))
            for name, value in zip(_WEIGHTS, values, strict=True)
            if name not in self._fixed
        }
        return {**self._plain, **kernel, **rounded}

    def _distance(self, options: Options) -> float:
        """From the defaults, in factors of 2 summed over the options."""
        return sum(
            abs(log2(first / second)) if first and second else 2 * _FARTHEST * (first != second)
            for name in (*_DEVIATIONS, *_WEIGHTS)
            for first, second in [(_size(options.get(name, self._base[name])),
                                   _size(self._base[name]))]
        )  # fmt: skip


def samples(
    prediction: Prediction, truth: Array, steps: Sequence[CRF], rng: np.random.Generator
) -> list[Sample]:
    """Draw voxels of one case and take their features, the same voxels for each step.

    Half the voxels are drawn from the band: where the network is undecided, or within 2 voxels of
    a border of the truth or the prediction; half from the whole region. Each weighs as much as
    voxels it stands for, the inverse of its expected number of draws: the mean is that of the
    region, and the band, where the CRF acts, is measured more finely.
    """
    probabilities = prediction.need_probabilities()
    region, image = steps[0].features(prediction)  # the kernel settings do not change these
    band = (probabilities.max(0) < UNDECIDED) | _border(truth) | _border(prediction.labels)
    counts = region & (truth != IGNORE_INDEX)
    place, weights = _draw(counts.ravel(), (band & counts).ravel(), rng)
    logs = np.log(np.maximum(_at(probabilities, place), FLOOR))
    made = []
    for step in steps:
        spatial, appearance = step.crf.messages(probabilities, image, prediction.spacing, region)
        features = np.stack([logs, _at(spatial, place), _at(appearance, place)], dtype=float)
        made.append(Sample(features, truth.ravel()[place], weights))
    return made


def _draw(region: Array, band: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Voxels, with replacement, and their weights of sum 1."""
    everywhere, near = np.flatnonzero(region), np.flatnonzero(band)
    if not everywhere.size:
        raise DataError("a case", "all its voxels lie outside the region, or are ignored")
    half = min(MOST_VOXELS // 2, everywhere.size)
    from_band = half if near.size else 0
    place = np.concatenate(
        [rng.choice(everywhere, half)] + ([rng.choice(near, from_band)] if from_band else [])
    )
    expected = half / everywhere.size + band[place] * from_band / max(near.size, 1)
    weights = 1 / expected
    return place, weights / weights.sum()


def _border(labels: Array) -> Array:
    """Voxels within 2 of a voxel of another label."""
    high = ndimage.maximum_filter(labels, 3)
    border: Array = ndimage.binary_dilation(high != ndimage.minimum_filter(labels, 3))
    return border


def _at(maps: Array, place: Array) -> Array:
    """(C, I, J, K) at flat voxel indices, as (C, N)."""
    return maps.reshape(len(maps), -1).take(place, 1)  # contiguous, as [:, place] is not


def _times(value: Any, factor: float) -> Any:
    return tuple(v * factor for v in value) if isinstance(value, tuple | list) else value * factor


def _size(value: Any) -> float:
    return float(np.exp(np.log(value).mean())) if isinstance(value, tuple | list) else float(value)


def _on_grid(value: float, default: float) -> float:
    """The nearest of the default times powers of the square root of 2, so that folds agree."""
    if default == 0 or value < default * 2**-_FARTHEST:
        return 0.0
    power = min(round(_STEPS * log2(value / default)) / _STEPS, _FARTHEST)
    return float(f"{default * 2**power:.3g}")
