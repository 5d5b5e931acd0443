"""A fully connected CRF for volumes, in millimetres.

Mean field (Kraehenbuehl and Koltun 2011, arXiv:1210.5644) over all pairs of voxels, with a spatial
and an appearance kernel

    k_s(m, n) = exp(-|x_m - x_n|^2 / 2 spatial_mm^2)
    k_a(m, n) = exp(-|x_m - x_n|^2 / 2 appearance_mm^2 - sum_i (f_im - f_in)^2 / 2 intensity_i^2)

each normalised symmetrically, D^-1/2 K D^-1/2 with D the sums of its rows. That keeps the pairwise
energy symmetric (by rows alone, a pair would cost one of its voxels more than the other), its
eigenvalues within [0, 1], and makes a weight mean the same at every deviation, voxel size and
border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from medseg.errors import ConfigError
from medseg.postprocess.dense import checks, engines
from medseg.postprocess.dense.problem import Problem, Region, log_odds
from medseg.postprocess.dense.settings import Settings
from medseg.postprocess.options import check_range
from medseg.volumes.image import Array

Accuracy = Literal["fast", "pair", "high", "exact"]
Engine = Literal["auto", "numba", "torch"]
Millimetres = float | tuple[float, float, float]
_GRIDS = {"fast": (1.0, (0.0,)), "pair": (1.0, (0.0, 0.5)), "high": (0.75, (0.0, 0.5))}
_LEAST = np.float32(1e-30)  # before the logarithm; the floor of probabilities comes later


class DenseCRF3D:
    """Mean field over the voxels of a volume.

    Args:
        spatial_mm: Standard deviation of the spatial kernel, in mm; one, or one for each axis.
        appearance_mm: That of the positions in the appearance kernel.
        appearance_intensity: That of the intensities in it, in units of the image given; one, or
            one for each modality.
        weights: Of the spatial and of the appearance kernel; 0 leaves one out.
        iterations: Updates, of all voxels at once.
        compatibility: (C, C), symmetric: the cost of two labels beside each other; None: Potts,
            1 for two different labels.
        temperature: What logits are divided by first; above 1 for an overconfident network.
        accuracy: "fast" one bilateral grid, "pair" the mean of two shifted by half a cell, "high"
            with cells of 0.75 deviations, "exact" all pairs of voxels (small volumes).
        exclude_self: Whether a voxel's own marginal is left out of its message.
        engine: "numba" (CPU), "torch" (any device), "auto": numba on a CPU.
        device: Where torch runs, e.g. "cuda".
        tolerance: Marginals that moved less than this are not sent again; 0: all are (numba).
        threads: For numba; more than three have nothing to do.
        memory_gib: The most that it may take beside its input and output.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(  # noqa: PLR0913  (the model's own parameters)
        self,
        spatial_mm: Millimetres = 3.0,
        appearance_mm: Millimetres = 12.0,
        appearance_intensity: float | Sequence[float] = 0.3,
        weights: tuple[float, float] = (1.0, 2.0),
        iterations: int = 5,
        *,
        compatibility: Sequence[Sequence[float]] | Array | None = None,
        temperature: float = 1.0,
        accuracy: Accuracy = "pair",
        exclude_self: bool = False,
        engine: Engine = "auto",
        device: str = "cpu",
        tolerance: float = 1e-3,
        threads: int = 2,
        memory_gib: float = 8.0,
    ) -> None:
        self._spatial = checks.positive("spatial_mm", spatial_mm)
        self._appearance = checks.positive("appearance_mm", appearance_mm)
        self._intensity = checks.positive("appearance_intensity", appearance_intensity)
        self._temperature = checks.one("temperature", temperature)
        self._memory = checks.one("memory_gib", memory_gib)
        (spatial, appearance) = checks.weights(weights)
        check_range("iterations", iterations)
        check_range("tolerance", tolerance, most=1)
        check_range("threads", threads, least=1)
        checks.known("accuracy", accuracy, (*_GRIDS, "exact"))
        checks.known("engine", engine, ("auto", "numba", "torch"))
        if engine == "numba" and device != "cpu":
            raise ConfigError(f"engine numba runs on the cpu, not on {device}", ("device",))
        uses_torch = engine == "torch" or device != "cpu"
        self._device = engines.checked_device(device) if uses_torch else None
        self._is_exact = accuracy == "exact"
        width, shifts = _GRIDS.get(accuracy, _GRIDS["pair"])
        self._settings = Settings(
            weights=(spatial, appearance),
            iterations=iterations,
            compatibility=checks.compatibility(compatibility),
            exclude_self=exclude_self,
            width=width,
            shifts=shifts,
            tolerance=tolerance,
            threads=threads,
        )

    def __call__(
        self,
        probabilities: Array,
        image: Array,
        spacing: Sequence[float],
        *,
        roi: Array | None = None,
        ignore: Array | None = None,
        logits: bool = False,
    ) -> Array:
        """Sharpen probabilities by what the image shows.

        Args:
            probabilities: (C, I, J, K), summing to 1 over C; or logits, if `logits`.
            image: (M, I, J, K) of 1 to 5 modalities, finite within the region.
            spacing: Voxel size in mm.
            roi: bool (I, J, K): the voxels that take part; None: all.
            ignore: bool (I, J, K): voxels within it that do not.
            logits: Whether `probabilities` are logits.

        Returns:
            (C, I, J, K) float32 marginals; those of voxels that take no part are as given.

        Raises:
            DataError: Arrays do not fit each other, are not finite (logits: anywhere), or do not
                sum to one; or the filters would take more memory than allowed, which is said
                before they are built.
        """
        self._check(probabilities, image, spacing, roi=roi, ignore=ignore)
        if logits:
            checks.finite("logits", probabilities)
            probabilities = np.asarray(probabilities, np.float32, order="C")
        region = Region.of(_mask(roi, ignore), probabilities.shape[1:])
        found = None
        if len(region.index):
            found = self._run(self._problem(region, probabilities, image, spacing, logits))
        result = (
            _softmax(probabilities) if logits else np.array(probabilities, np.float32, order="C")
        )
        if found is not None:
            region.put(result, found)
        return result

    def messages(
        self, probabilities: Array, image: Array, spacing: Sequence[float], roi: Array | None = None
    ) -> tuple[Array, Array]:
        """One pass of each normalised kernel over probabilities: mean field is linear in these.

        Args:
            probabilities: (C, I, J, K), summing to 1 over C.
            image: (M, I, J, K) of 1 to 5 modalities.
            spacing: Voxel size in mm.
            roi: bool (I, J, K): the voxels that take part; None: all.

        Returns:
            Spatial and appearance message, (C, I, J, K) float32; zero outside the region.

        Raises:
            DataError: As for a call.
        """
        self._check(probabilities, image, spacing, roi=roi)
        region = Region.of(_mask(roi, None), probabilities.shape[1:])
        found = np.zeros((2, *probabilities.shape), np.float32)
        if len(region.index):
            problem = self._problem(region, probabilities, image, spacing, is_logits=False)
            values = np.ascontiguousarray(region.take(probabilities).T, np.float32)
            for out, weights in zip(found, ((1.0, 0.0), (0.0, 1.0)), strict=True):
                settings = replace(self._settings, weights=weights)
                way = engines.choose(problem, settings, self._memory)
                kernel = engines.pairwise(problem, settings, way)
                region.put(out, kernel.send(values, kernel.all, kernel.all).T)
        return found[0], found[1]

    def _check(
        self, probabilities: Array, image: Array, spacing: Sequence[float], **masks: Array | None
    ) -> None:
        checks.shapes(probabilities, image, spacing, masks, self._settings.compatibility)

    def _run(self, problem: Problem) -> Array:
        if self._is_exact:
            return engines.exact(problem, self._settings)
        uses_torch = self._device is not None
        way = engines.choose(problem, self._settings, self._memory, uses_torch)
        return engines.run(problem, self._settings, way, self._device)

    def _problem(
        self,
        region: Region,
        probabilities: Array,
        image: Array,
        spacing: Sequence[float],
        is_logits: bool,
    ) -> Problem:
        """Gather what takes part, in voxels and in deviations.

        Raises:
            DataError: Values are not finite, or no probabilities.
        """
        values = region.take(probabilities).astype(np.float32, copy=False)
        intensities = region.take(image).astype(np.float32, copy=False)
        checks.finite("image", intensities)
        if not is_logits:
            checks.probabilities(values)
            values = np.log(np.maximum(values, _LEAST))
        deviations = checks.for_each(
            "appearance_intensity", self._intensity, len(image), "modalities"
        )
        with np.errstate(over="ignore"):
            intensities = intensities / np.asarray(deviations, np.float32)[:, None]
        checks.finite("image, divided by appearance_intensity,", intensities)
        return Problem(
            shape=region.shape,
            voxels=region.voxels,
            intensities=intensities,
            odds=log_odds(values / np.float32(self._temperature)),
            spatial=_in_voxels("spatial_mm", self._spatial, spacing),
            appearance=_in_voxels("appearance_mm", self._appearance, spacing),
        )


def _in_voxels(
    option: str, deviations: tuple[float, ...], spacing: Sequence[float]
) -> tuple[float, float, float]:
    i, j, k = checks.for_each(option, deviations, 3, "axes")
    return i / spacing[0], j / spacing[1], k / spacing[2]


def _mask(roi: Array | None, ignore: Array | None) -> Array | None:
    if ignore is None:
        return roi
    return ~ignore.astype(bool) if roi is None else roi.astype(bool) & ~ignore.astype(bool)


def _softmax(logits: Array) -> Array:
    shares = np.exp(logits - logits.max(0))
    shares /= shares.sum(0)
    softmax: Array = shares
    return softmax
