"""A term that holds predicted volumes to the true ones."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.registry import LOSSES
from medseg.training.losses.compound import Base, with_base
from medseg.training.losses.parts import Over, Parts, Regions, check_positive, summed_axes


@LOSSES.register("volume_enforcement")
class VolumeEnforcement(nn.Module):
    """A loss of overlap plus NiftyNet's volume enforcement.

    Gibson et al. 2018, doi:10.1016/j.cmpb.2018.01.025: the mean over the classes of |r - 1 / r|,
    r being true by predicted volume. It has no upper bound and looks at no place, so it only
    makes sense beside a `base`, with a small weight: against a class that vanishes from the
    predictions.

    Args:
        classes: Number of classes, background included.
        weight: Factor of the volume's part.
        base: The loss that it is added to; "none": it stands alone.
        smooth: Added to both volumes, in voxels (NiftyNet: 0.001).
        batch: Take the volumes of the whole batch.
        over: What all is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        weight: float = 0.01,
        base: Base = "dice_ce",
        smooth: float = 1.0,
        batch: bool = True,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        check_positive(smooth=smooth)
        term = _Volumes(Parts.of(classes, over, regions), smooth, summed_axes(batch))
        self.loss = with_base(term, weight, base, classes, over, regions)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        total: Tensor = self.loss(logits, target)
        return total


class _Volumes(nn.Module):
    def __init__(self, parts: Parts, smooth: float, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.parts, self.smooth, self.axes = parts, smooth, axes

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        predicted, truth = self.parts.soft(logits, target)
        ratio = (truth.sum(self.axes) + self.smooth) / (predicted.sum(self.axes) + self.smooth)
        return (ratio - 1 / ratio).abs().mean()
