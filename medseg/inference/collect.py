"""What becomes of a volume, block by block: labels, and what else is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medseg.inference.boxes import Box, around
from medseg.inference.spool import Spool
from medseg.inference.stitch import likeliest
from medseg.inference.window import MIB, Pass
from medseg.postprocess.prediction import Prediction, Step
from medseg.volumes.image import Array


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is wanted of a prediction beside its labels.

    Args:
        probabilities: All of them in memory.
        spool: Or on disk: makes the file for a shape (classes, I, J, K).
        uncertainty: "none", "entropy" or "spread".
        steps: Postprocessors, to be taken block by block, that look at each voxel alone.
    """

    probabilities: bool = False
    spool: Callable[[tuple[int, int, int, int]], Spool] | None = None
    uncertainty: str = "none"
    steps: Sequence[Step] = ()

    @property
    def is_labels_alone(self) -> bool:
        """Whether nothing but labels is wanted."""
        asked = self.probabilities or self.spool or self.steps
        return not asked and self.uncertainty == "none"


def collect(
    passes: Sequence[Pass],
    whole: Prediction,
    wanted: Wanted,
    memory: int,
    weights: Sequence[float] | None = None,
) -> Prediction:
    """Predict a volume: the mean of the probabilities of all passes.

    Args:
        passes: Networks on their way to one grid.
        whole: The volume (image, affine, mask), whose labels are all 0.
        wanted: What else is to be kept.
        memory: MiB for sums of windows, of all passes together.
        weights: Of each pass in the mean, summing to 1; None: all the same.

    Raises:
        NonFiniteError: A network gave NaN or infinity.
        OutOfMemoryError: There is not enough memory for one window at a time.
    """
    first, *others = passes
    labels, shape = whole.labels, (first.classes, *whole.labels.shape)
    i, j, k = whole.labels.shape
    shares: Array | None = None
    if wanted.probabilities:
        shares = np.zeros(shape, dtype=np.float32)
        shares[0] = 1
    spool = wanted.spool((first.classes, i, j, k)) if wanted.spool else None
    doubt = None if wanted.uncertainty == "none" else np.zeros((i, j, k), dtype=np.float32)
    box = around([one.seen for one in passes])
    parts = first.parts(box, memory * MIB, others)
    made = {
        "precision": ", ".join(dict.fromkeys(one.run.precision for one in passes)),
        "windows": sum(len(one.plan.places) for one in passes),
        "parts": len(parts),
    }
    for blocks in parts:
        if wanted.is_labels_alone and not others:
            for block, scores in zip(blocks, first.scores(blocks), strict=True):
                labels[block] = likeliest(scores).cpu().numpy()
            continue
        streams = zip(*(one.shares(blocks) for one in passes), strict=True)
        for block, members in zip(blocks, streams, strict=True):
            mean = _mean(members, weights)
            if doubt is not None:
                doubt[block] = _doubt(members, mean, wanted.uncertainty)
            part = _steps(whole, block, mean.cpu().numpy(), wanted.steps)
            labels[block] = part.labels
            if shares is not None:
                shares[(slice(None), *block)] = part.probabilities
            if spool is not None:
                assert part.probabilities is not None
                spool.add(block, part.probabilities)
    return replace(
        whole, labels=labels, probabilities=shares, stack=spool, uncertainty=doubt, made=made
    )


def _mean(members: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    if len(members) == 1:
        return members[0]
    if weights is not None:
        total = members[0] * weights[0]
        for member, weight in zip(members[1:], weights[1:], strict=True):
            total += member.to(total) * weight
        return total
    return torch.stack([member.to(members[0]) for member in members]).mean(0)


def _doubt(members: Sequence[Tensor], mean: Tensor, kind: str) -> Array:
    """Entropy of the probabilities over its maximum, or the largest deviation of a class."""
    if kind == "entropy":
        found = torch.special.entr(mean).sum(0) / np.log(len(mean))
    else:
        together = torch.stack([member.to(mean) for member in members])
        found = together.std(0, correction=0).amax(0)
    array: Array = found.clamp_(min=0).cpu().numpy()
    return array


def _steps(whole: Prediction, block: Box, shares: Array, steps: Sequence[Step]) -> Prediction:
    """A block as a prediction, after the steps."""
    part = Prediction(
        labels=shares.argmax(0).astype(np.uint8),
        image=whole.image[(slice(None), *block)],
        affine=whole.affine,
        probabilities=shares,
        mask=None if whole.mask is None else whole.mask[block],
    )
    for step in steps:
        part = step(part)
    return part
