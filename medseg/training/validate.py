"""Validation on whole volumes, on the network's own grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from medseg.config.schema import Config
from medseg.inference.window import NonFiniteError, predict_labels
from medseg.networks.assembly import Network
from medseg.networks.checkpoint import Priors
from medseg.training.cache import CachedCase
from medseg.volumes.dataset import IGNORE_INDEX, Labels
from medseg.volumes.image import Array


def validate(
    network: Network,
    cases: Sequence[CachedCase],
    config: Config,
    labels: Labels,
    priors: Priors | None = None,
) -> dict[str, float]:
    """Mean Dice of each class over the cases that have it; a class that none has is left out.

    With `evaluation.roi` only what lies in the region of interest counts.

    Raises:
        NonFiniteError: The network gave NaN or infinity; the message names the case.
    """
    device, classes = next(network.parameters()).device, len(labels.values) + 1
    settings, divisor = config.numbered.inference, network.divisor
    offsets = None
    if priors is not None and settings.prior_correction:
        offsets = torch.tensor(priors.offsets(settings.prior_correction))
    scores: dict[str, list[float]] = {name: [] for name in labels.classes}
    for case in cases:
        image = torch.from_numpy(np.array(case.image())).to(device)
        mask = case.mask()
        region = None if mask is None else torch.from_numpy(np.array(mask)).to(device)
        try:
            found = predict_labels(
                network, image, settings, config.train.patch, divisor,
                classes=classes, roi=region if settings.roi else None, offsets=offsets,
            )  # fmt: skip
        except NonFiniteError as error:
            raise NonFiniteError(f"validation case {case.id!r}: {error}") from error
        predicted, truth = found.cpu().numpy(), np.asarray(case.label())
        if config.evaluation.roi and mask is not None:
            truth = np.where(mask, truth, IGNORE_INDEX)
        for name, dice in _dice(predicted, truth, labels).items():
            if dice is not None:
                scores[name].append(dice)
    return {name: float(np.mean(values)) for name, values in scores.items() if values}


def _dice(predicted: Array, truth: Array, labels: Labels) -> dict[str, float | None]:
    known = truth != IGNORE_INDEX
    result: dict[str, float | None] = {}
    for name, indices in zip(labels.classes, labels.regions, strict=True):
        p, t = np.isin(predicted, indices) & known, np.isin(truth, indices) & known
        total = int(p.sum()) + int(t.sum())
        result[name] = 2 * int((p & t).sum()) / total if t.any() else None
    return result
