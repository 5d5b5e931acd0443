"""A Dice for labels that are more or less alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.registry import LOSSES
from medseg.training.losses.parts import check_positive, known
from medseg.volumes.dataset import IGNORE_INDEX


@LOSSES.register("wasserstein_dice")
class WassersteinDice(nn.Module):
    """One minus the generalised Wasserstein Dice (Fidon et al. 2017, arXiv:1707.00478).

    A voxel's error is the distance from the predicted to the true label, averaged over what is
    predicted: to take necrosis for non-enhancing core costs less than to take it for healthy. A
    voxel's overlap is what is left of the true label's distance from background.

    The paper's distances for BraTS 2015 (background, 1 necrosis, 2 oedema, 3 non-enhancing and 4
    enhancing core), which are also NiftyNet's:

        distances: [[0, 1, 1, 1, 1], [1, 0, 0.6, 0.2, 0.5], [1, 0.6, 0, 0.6, 0.7],
                    [1, 0.2, 0.6, 0, 0.5], [1, 0.5, 0.7, 0.5, 0]]

    Args:
        classes: Number of classes, background included.
        distances: Between the labels, one row for each, background first: symmetric, 0 on the
            diagonal, above 0 elsewhere, in any unit. None: any two are 1 apart.
        smooth: Added above and below, in voxels.
        batch: Sum over the whole batch before the ratio.

    Raises:
        ValueError: The distances are not of such a form.
    """

    def __init__(
        self,
        classes: int,
        distances: tuple[tuple[float, ...], ...] | None = None,
        smooth: float = 1.0,
        batch: bool = True,
    ) -> None:
        super().__init__()
        check_positive(smooth=smooth)
        self.smooth = smooth
        self.axes = (0, 1, 2, 3) if batch else (1, 2, 3)
        matrix = 1 - torch.eye(classes) if distances is None else _matrix(distances, classes)
        self.distances: Tensor
        self.register_buffer("distances", matrix / matrix.max(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        counted = known(target)[:, 0]
        label = target.where(target != IGNORE_INDEX, 0)
        # Products and sums rather than a matrix product, which autocast would make in half.
        error = (logits.float().softmax(1) * self.distances[label].movedim(-1, 1)).sum(1) * counted
        depth = self.distances[0][label]  # 0 in the background: it has no overlap
        overlap = (depth * (depth - error)).sum(self.axes)
        total = 2 * overlap + error.sum(self.axes)
        return 1 - ((2 * overlap + self.smooth) / (total + self.smooth)).mean()


def _matrix(distances: tuple[tuple[float, ...], ...], classes: int) -> Tensor:
    if len(distances) != classes or any(len(row) != classes for row in distances):
        shape = [len(row) for row in distances]
        raise ValueError(
            f"distances needs {classes} rows of {classes} numbers (background and each label), got "
            f"rows of {shape}"
        )
    matrix = torch.tensor(distances)
    between = ~torch.eye(classes, dtype=torch.bool)
    if not (matrix == matrix.T).all() or matrix.diag().any() or not (matrix[between] > 0).all():
        raise ValueError(
            "distances must be symmetric, 0 on the diagonal and above 0 elsewhere, got "
            f"{[list(row) for row in distances]}"
        )
    return matrix
