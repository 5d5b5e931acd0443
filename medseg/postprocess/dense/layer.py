"""The dense CRF as the last layer of a network, trained with it.

Zheng et al. 2015, arXiv:1502.03240 (CRF as RNN): each mean-field update is a differentiable step,
and the weights of the kernels and the compatibility of labels are learnt with all others.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from medseg.errors import DataError
from medseg.postprocess.dense import checks, engines
from medseg.postprocess.dense.problem import Problem
from medseg.postprocess.dense.settings import Settings
from medseg.postprocess.dense.torch_field import Kernel, refine
from medseg.postprocess.dense.torch_filters import Gaussian, appearance
from medseg.postprocess.options import check_range

Triple = tuple[float, float, float]


class DenseCRFLayer(nn.Module):
    """Mean field on the logits of a network; what `DenseCRF3D` does, trainable.

    All voxels take part, and logits are not bounded. Gradients flow to the logits, the weights and
    the compatibility, not to the image. The kernels are those of `medseg.postprocess.crf`, so that
    learnt weights mean the same there.

    Args:
        classes: Channels of the logits.
        spacing: Voxel size (i, j, k) of the network's grid, in mm.
        spatial_mm: Standard deviation of the spatial kernel, in mm; one, or one for each axis.
        appearance_mm: That of the positions in the appearance kernel, in mm.
        appearance_intensity: That of the intensities in it, in units of the image given; one, or
            one for each modality.
        weights: Of the spatial and of the appearance kernel at the start of training; a learnt
            parameter, bound to no range.
        iterations: Updates.
        learn_compatibility: Whether the cost of two labels beside each other is learnt as a
            (classes, classes) matrix that starts at Potts; else it stays there.
        exclude_self: Whether a voxel's own marginal is left out of its message.
        memory_gib: The most that the kernels of one volume may take.

    Attributes:
        weights: (2,) parameter.
        compatibility: (classes, classes) parameter, whose symmetric part counts; or None.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(  # noqa: PLR0913
        self,
        classes: int,
        spacing: Triple,
        spatial_mm: float | Triple = 3.0,
        appearance_mm: float | Triple = 12.0,
        appearance_intensity: float | tuple[float, ...] = 0.3,
        weights: tuple[float, float] = (1.0, 2.0),
        iterations: int = 5,
        *,
        learn_compatibility: bool = False,
        exclude_self: bool = False,
        memory_gib: float = 4.0,
    ) -> None:
        super().__init__()
        check_range("classes", classes, least=2)
        check_range("iterations", iterations)
        self._spacing = _triple("spacing", spacing)
        self._spatial = self._in_voxels("spatial_mm", spatial_mm)
        self._appearance = self._in_voxels("appearance_mm", appearance_mm)
        self._intensity = checks.positive("appearance_intensity", appearance_intensity)
        (self._memory,) = checks.positive("memory_gib", memory_gib)
        self._settings = Settings(weights, iterations, exclude_self=exclude_self)
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))
        potts = 1 - torch.eye(classes) if learn_compatibility else None
        self.compatibility = None if potts is None else nn.Parameter(potts)
        self.classes = classes

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Sharpen logits by what the image shows, in float32 at least, also under autocast.

        Args:
            logits: (N, classes, I, J, K).
            image: (N, M, I, J, K) of 1 to 5 modalities, finite.

        Returns:
            (N, classes, I, J, K) logits; their softmax are the marginals of the mean field.

        Raises:
            ConfigError: There are neither one nor as many intensity deviations as modalities.
            DataError: The shapes do not fit, the image is not finite, or kernels of its range of
                intensities take more memory than allowed: clamp it, or take larger deviations.
        """
        self._check(logits, image)
        if logits.is_meta:  # shapes only
            return logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        with torch.autocast(logits.device.type, enabled=False):
            return torch.stack([self._refined(*pair) for pair in zip(logits, image, strict=True)])

    def _refined(self, logits: Tensor, image: Tensor) -> Tensor:
        """(classes, I, J, K) logits of one volume."""
        problem = self._problem(image)
        way = engines.choose(problem, self._settings, self._memory, torch=True)
        unary = logits.flatten(1).t()
        with torch.no_grad():
            own = self._settings.exclude_self
            kernels = [
                Kernel(Gaussian(problem, unary.device, unary.dtype), own),
                Kernel(appearance(problem, self._settings, way, unary.device, unary.dtype), own),
            ]
        learnt, costs = self.compatibility, None
        if learnt is not None:
            costs = ((learnt + learnt.t()) / 2).to(unary.dtype)
        weights = self.weights.to(unary.dtype)
        refined = refine(unary, kernels, weights, costs, self._settings.iterations)
        return refined.t().reshape(logits.shape)

    def _problem(self, image: Tensor) -> Problem:
        """All voxels of an image (M, I, J, K)."""
        shape = (image.shape[1], image.shape[2], image.shape[3])
        values = image.detach().float().flatten(1).cpu().numpy()
        checks.finite("image", values)
        intensity = "appearance_intensity", self._intensity
        deviations = checks.for_each(*intensity, len(image), "modalities")
        return Problem(
            shape,
            np.indices(shape, np.int32).reshape(3, -1),
            values / np.array(deviations, np.float32)[:, None],
            np.empty((self.classes - 1, 0), np.float32),  # they are in the logits
            self._spatial,
            self._appearance,
        )

    def _check(self, logits: Tensor, image: Tensor) -> None:
        if logits.ndim != 5 or logits.shape[1] != self.classes:
            raise DataError(
                "logits", f"(N, {self.classes}, I, J, K) expected, got {tuple(logits.shape)}"
            )
        batch, _, *grid = logits.shape
        if image.ndim != 5 or [len(image), *image.shape[2:]] != [batch, *grid]:
            raise DataError(
                "image",
                f"({batch}, M, {', '.join(map(str, grid))}) expected as for the logits, "
                f"got {tuple(image.shape)}",
            )
        if not 1 <= image.shape[1] <= checks.MOST_MODALITIES:
            raise DataError(
                "image", f"1 to {checks.MOST_MODALITIES} modalities expected, got {image.shape[1]}"
            )

    def _in_voxels(self, option: str, mm: float | Triple) -> Triple:
        i, j, k = (a / b for a, b in zip(_triple(option, mm), self._spacing, strict=True))
        return i, j, k


def _triple(option: str, values: float | Triple) -> Triple:
    i, j, k = checks.for_each(option, checks.positive(option, values), 3, "axes")
    return i, j, k
