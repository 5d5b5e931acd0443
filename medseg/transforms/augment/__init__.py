"""Random changes of a whole training batch, on the device where it lies.

Drawing (`draw`) is apart from applying (`apply`): the same draw may be applied twice, or to image
and label alone. A draw holds small tensors and seeds; what is as large as the image is made from
them on the image's device, for all samples at once.
"""

from __future__ import annotations

from torch import Tensor

from medseg.transforms.augment.drawing import Draw, draw
from medseg.transforms.augment.intensity import intensities
from medseg.transforms.augment.mixing import drop_channels, keep_present, mix
from medseg.transforms.augment.space import move

__all__ = [
    "Draw", "apply", "draw", "drop_channels", "intensities", "keep_present", "mix", "move",
]  # fmt: skip


def apply(
    change: Draw, image: Tensor, label: Tensor, spacing: Tensor, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Apply a draw to a batch: where voxels come from, what they hold, who they belong to.

    Args:
        change: What to do.
        image: (N, C, I, J, K) float. It is not changed in place, nor is the label.
        label: (N, I, J, K) class indices; any values, 255 (ignored) among them.
        spacing: (N, 3) voxel size in mm.
        present: (N, C) bool, false for a channel that a sample's case lacks: it stays 0, as it is
            in prediction, also where another sample borrows from it. None: all are there.

    Returns:
        The changed image, and the label moved with it (nearest voxel).
    """
    image, label = move(change, image, label, spacing)
    image = intensities(change, image, spacing)
    if present is not None and not bool(present.all()):
        change = keep_present(change, present)
        image = image.masked_fill(~present.to(image.device)[:, :, None, None, None], 0)
    image, label = mix(change, image, label)
    return drop_channels(change, image), label
