"""What a draw does across samples and channels: boxes from other patches, channels that miss."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medseg.transforms.augment.drawing import Draw


def mix(change: Draw, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a box of voxels of another sample, with its labels (CutMix).

    Every voxel keeps one source and one class, so that any loss takes the result. A box is where it
    was in the other patch; its faces lie between voxels. Samples of a batch lend as they are, not
    as mixed.

    Source: Yun et al. 2019, CutMix, arXiv:1905.04899; there the class is mixed by area, here each
    voxel has its own.

    Args:
        change: The draw.
        image: (N, C, I, J, K).
        label: (N, I, J, K).
    """
    own = torch.arange(len(change.partner))
    rows = (change.partner != own).nonzero()[:, 0]
    if not len(rows):
        return image, label
    inside = _boxes(change.box[rows], image.shape[2:]).to(image.device)
    partner, rows = change.partner[rows].to(image.device), rows.to(image.device)
    images = torch.where(inside[:, None], image[partner], image[rows])
    labels = torch.where(inside, label[partner], label[rows])
    return image.index_copy(0, rows, images), label.index_copy(0, rows, labels)


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


def _boxes(box: Tensor, shape: torch.Size) -> Tensor:
    """(N, I, J, K) whether a voxel lies in its sample's box; faces rounded to whole voxels."""
    edges = [(box[:, axis] * n).round() for axis, n in enumerate(shape)]
    i, j, k = (
        (torch.arange(n) >= edge[:, :1]) & (torch.arange(n) < edge[:, 1:])
        for n, edge in zip(shape, edges, strict=True)
    )
    return i[:, :, None, None] & j[:, None, :, None] & k[:, None, None, :]
