"""The dense CRF as a component of `postprocess`."""

from __future__ import annotations

from itertools import product

import numpy as np

from medseg.errors import ConfigError
from medseg.postprocess.crf import Accuracy, DenseCRF3D, Millimetres
from medseg.postprocess.dense.checks import positive
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.volumes.image import Array


@POSTPROCESSORS.register("crf")
class CRF:
    """Sharpen labels by a fully connected CRF, in millimetres; see docs/postprocess.md.

    It acts on the case's mask; without one, on all voxels but the constant border around them. Tune
    it with `medseg tune crf`: untuned, it may do harm.

    Args:
        spatial_mm: Standard deviation within which neighbours smooth each other, in mm; one, or
            one for each axis.
        appearance_mm: Standard deviation within which voxels of like intensity pull each other.
        appearance_intensity: How alike: a standard deviation, in those of the intensities in the
            region (or as they are, if `normalise` is false); one, or one for each channel.
        spatial_weight: How strongly neighbours pull, in log-odds.
        appearance_weight: How strongly voxels of like intensity pull, in log-odds.
        iterations: Updates of mean field.
        temperature: What the network's logits are divided by; above 1 trusts it less.
        accuracy: fast, pair, high or exact (small volumes only).
        normalise: Whether intensities are brought to mean 0 and standard deviation 1 over the
            region, and cut at `clip` deviations.
        clip: Where normalised intensities are cut.
        device: Where it runs: cpu, cuda or cuda:N.
        memory_gib: The most memory it may take.
    """

    needs_probabilities = True
    gives_probabilities = True

    def __init__(  # noqa: PLR0913, PLR0917  (its options)
        self,
        classes: int,
        spatial_mm: Millimetres = 3.0,
        appearance_mm: Millimetres = 12.0,
        appearance_intensity: float | tuple[float, ...] = 0.3,
        spatial_weight: float = 1.0,
        appearance_weight: float = 2.0,
        iterations: int = 5,
        temperature: float = 1.0,
        accuracy: Accuracy = "pair",
        normalise: bool = True,
        clip: float = 3.1,
        device: str = "cpu",
        memory_gib: float = 8.0,
    ) -> None:
        del classes
        for option, weight in (
            ("spatial_weight", spatial_weight),
            ("appearance_weight", appearance_weight),
        ):
            if not 0 <= weight < np.inf:
                raise ConfigError(f"{option} must be at least 0, got {weight}", (option,))
        (self._clip,) = positive("clip", clip)
        self._normalise = normalise
        self.crf = DenseCRF3D(
            spatial_mm,
            appearance_mm,
            appearance_intensity,
            (spatial_weight, appearance_weight),
            iterations,
            temperature=temperature,
            accuracy=accuracy,
            device=device,
            memory_gib=memory_gib,
        )

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction with the marginals as probabilities, and their labels."""
        shares = prediction.need_probabilities()
        region, image = self.features(prediction)
        return prediction.with_probabilities(
            self.crf(shares, image, prediction.spacing, roi=region)
        )

    def features(self, prediction: Prediction) -> tuple[Array, Array]:
        """The region it acts on, bool (I, J, K), and the intensities it sees, (C, I, J, K)."""
        region = inside(prediction.image) if prediction.mask is None else prediction.mask
        if not self._normalise or not region.any():
            return region, prediction.image
        image = np.empty_like(prediction.image)
        for channel, to in zip(prediction.image, image, strict=True):
            values = channel[region]
            mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
            np.subtract(channel, np.float32(mean), out=to)
            np.divide(to, np.float32(deviation or 1), out=to)
            np.clip(to, -self._clip, self._clip, out=to)
        return region, image


# 254 steps of dense3dCrf are 6.2 deviations, of voxels of 1 mm; see postprocess/deepmedic.py.
POSTPROCESSORS.preset(
    "crf_deepmedic_example",
    "crf",
    spatial_mm=3.0,
    appearance_mm=(17.0, 12.0, 10.0),
    appearance_intensity=(0.1098425, 0.0854331),
    spatial_weight=3.0,
    appearance_weight=5.0,
    iterations=2,
)
POSTPROCESSORS.preset(
    "crf_deepmedic_default",
    "crf",
    spatial_mm=3.0,
    appearance_mm=5.0,
    appearance_intensity=0.0732283,
    spatial_weight=3.0,
    appearance_weight=5.0,
    iterations=5,
)


def inside(image: Array) -> Array:
    """All voxels but the constant border, where every channel has the value of all its corners.

    Args:
        image: (C, I, J, K).

    Returns:
        bool (I, J, K).
    """
    outside = np.ones(image.shape[1:], bool)
    for channel in image:
        corners = {float(channel[at]) for at in product((0, -1), repeat=3)}
        if len(corners) > 1:
            return np.ones_like(outside)
        outside &= channel == corners.pop()
    return ~outside
