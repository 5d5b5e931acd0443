"""What a draw does across samples and channels: boxes from other patches, channels that miss."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medseg.transforms.augment.drawing import Draw


def mix(change: Draw, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a box of voxels of another sample, with its labels (CutMix).

    Every voxel keeps one source and one class, so that any loss takes the result. A box is where it
    was in the other patch, its faces rounded to whole voxels. Samples lend what they had before
    anything was pasted.

    Source: Yun et al. 2019, CutMix, arXiv:1905.04899; there the class is mixed by area, here each
    voxel has its own.

    Args:
        change: The draw.
        image: (N, C, I, J, K).
        label: (N, I, J, K).
    """
    rows = (change.partner != torch.arange(len(change.partner))).nonzero()[:, 0].tolist()
    if not rows:
        return image, label
    size = torch.tensor(image.shape[2:])
    boxes = (change.box * size[:, None]).round().int().tolist()
    images, labels = image.clone(), label.clone()
    for n in rows:
        partner, (i, j, k) = int(change.partner[n]), (slice(*edge) for edge in boxes[n])
        images[n, :, i, j, k] = image[partner, :, i, j, k]
        labels[n, i, j, k] = label[partner, i, j, k]
    return images, labels


def drop_channels(change: Draw, image: Tensor) -> Tensor:
    """Set dropped channels to 0, their mean after `zscore`, so that a network learns to miss them.

    Source: Neverova et al. 2015, ModDrop, arXiv:1501.00102; here at least one channel is kept.
    """
    if bool(change.is_kept.all()):
        return image
    gone = ~change.is_kept.to(image.device)
    return image.masked_fill(gone[:, :, None, None, None], 0)


def keep_present(change: Draw, present: Tensor) -> Draw:
    """The draw with what is missing dropped too, so that it stays 0, as it is in prediction.

    Where the draw would drop all that is there, it drops none of it.

    Args:
        change: The draw.
        present: (N, C) bool, false for a channel that a sample's case lacks.
    """
    kept = change.is_kept & present.to(change.is_kept.device)
    is_left = kept.any(dim=1, keepdim=True)
    return replace(change, is_kept=torch.where(is_left, kept, present))
